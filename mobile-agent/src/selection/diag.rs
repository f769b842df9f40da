//! Lists the TCP sockets of this network namespace that the eBPF programs follow, with the kernel's
//! `sock_diag`: the process that owns each, and the bytes it has carried so far.

use std::{
    io::{self, Read as _, Write as _},
    mem::offset_of,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

use mobile_ebpf_common::TrackedConnection;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// Constants of linux/sock_diag.h and linux/inet_diag.h that libc lacks.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;

/// The mask of the type in a netlink attribute's header; the bits above tell how the attribute is
/// encoded.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// The lengths of `nlmsghdr`, of an attribute's header and of `inet_diag_msg`, in bytes.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
const MESSAGE: usize = 72;

/// The offsets of the counters in `struct tcp_info` (linux/tcp.h, Linux 4.1).
const BYTES_ACKED: usize = offset_of!(libc::tcp_info, tcpi_bytes_acked);
const BYTES_RECEIVED: usize = offset_of!(libc::tcp_info, tcpi_bytes_received);

/// The TCP states to list, as a bit mask: all but TIME_WAIT (whose socket is gone), CLOSE and
/// LISTEN.
const STATES: u32 = !(1 << 6 | 1 << 7 | 1 << 10);

/// The size of the receive buffer, in bytes. The kernel answers a dump in messages of up to 32 KiB.
const BUFFER_SIZE: usize = 64 * 1024;

/// The timeout for reading the kernel's answer, which comes at once.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// An open TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenConnection {
    /// The process that owns the connection, and the bytes that are on its traffic account already.
    pub(super) owner: TrackedConnection,
    /// The TCP state of the connection, as the kernel numbers them (`TCP_ESTABLISHED` is 1).
    pub(super) state: u32,
    /// The number of sequence numbers that the other end acknowledged.
    pub(super) acked: u64,
    /// The number of sequence numbers received.
    pub(super) received: u64,
}

/// Returns every open TCP connection of this network namespace that has an entry in the eBPF map
/// `owners`.
pub(super) fn list_open(owners: BorrowedFd<'_>) -> io::Result<Vec<OpenConnection>> {
    let mut socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.cloexec(),
        Some(Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )?;
    socket.set_read_timeout(Some(READ_TIMEOUT))?;
    let mut open = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        socket.write_all(&request(family as u8, owners))?;
        let mut buffer = vec![0; BUFFER_SIZE];
        loop {
            let length = socket.read(&mut buffer)?;
            if read_message(buffer.get(..length).unwrap_or_default(), &mut open)? {
                break;
            }
        }
    }
    Ok(open)
}

/// Encodes the request for a dump of one address family: `nlmsghdr`, `inet_diag_req_v2`, and the
/// eBPF map whose value for each socket the kernel is to return.
fn request(family: u8, owners: BorrowedFd<'_>) -> Vec<u8> {
    let mut body = vec![family, libc::IPPROTO_TCP as u8, 1 << (INET_DIAG_INFO - 1), 0];
    body.extend(STATES.to_ne_bytes());
    // Any address and port.
    body.extend([0; 48]);
    let map = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &owners.as_raw_fd().to_ne_bytes());
    body.extend(attribute(INET_DIAG_REQ_SK_BPF_STORAGES, &map));

    let mut message = Vec::from(((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    // The sequence number and the sender's port ID.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Encodes a netlink attribute; the value's length must be a multiple of four.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes
}

/// Parses a part of the kernel's answer, appends its connections to `open`, and returns whether
/// this part was the last.
fn read_message(mut buffer: &[u8], open: &mut Vec<OpenConnection>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(buffer, 0), u16_at(buffer, 4)) {
        let length = length as usize;
        let body = buffer.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
        match i32::from(kind) {
            libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                let code = u32_at(body, 0).map_or(0, u32::cast_signed);
                return if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(true) };
            }
            _ => open.extend(read_socket(body)),
        }
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Parses a socket of the kernel's answer; returns `None` if the eBPF map `owners` has no entry for
/// it.
fn read_socket(body: &[u8]) -> Option<OpenConnection> {
    let state = u32::from(*body.get(1)?);
    let attributes = body.get(MESSAGE..)?;
    let storages = find(attributes, INET_DIAG_SK_BPF_STORAGES)?;
    let value = find(find(storages, SK_DIAG_BPF_STORAGE)?, SK_DIAG_BPF_STORAGE_MAP_VALUE)?;
    let owner = TrackedConnection {
        since: u64_at(value, offset_of!(TrackedConnection, since))?,
        process: u32_at(value, offset_of!(TrackedConnection, process))?,
        stage: u32_at(value, offset_of!(TrackedConnection, stage))?,
        sent: u64_at(value, offset_of!(TrackedConnection, sent))?,
        received: u64_at(value, offset_of!(TrackedConnection, received))?,
        ..TrackedConnection::default()
    };
    let info = find(attributes, INET_DIAG_INFO)?;
    Some(OpenConnection {
        owner,
        state,
        acked: u64_at(info, BYTES_ACKED)?,
        received: u64_at(info, BYTES_RECEIVED)?,
    })
}

/// Returns the value of the first netlink attribute with the type `wanted`.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & ATTRIBUTE_TYPE;
        let value = attributes.get(ATTRIBUTE..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_answers_yield_no_socket_and_end() {
        let value =
            [[7, 0, 8, 9].map(u32::to_ne_bytes).concat(), [10_u64, 11, 12].map(u64::to_ne_bytes).concat()]
                .concat();
        let storage =
            attribute(SK_DIAG_BPF_STORAGE | 0x8000, &attribute(SK_DIAG_BPF_STORAGE_MAP_VALUE, &value));
        let mut info = [0_u8; 240];
        info[BYTES_ACKED] = 3;
        info[BYTES_RECEIVED] = 4;
        let mut body = vec![libc::AF_INET as u8, 1];
        body.resize(MESSAGE, 0);
        body.extend(attribute(INET_DIAG_INFO, &info));
        body.extend(attribute(INET_DIAG_SK_BPF_STORAGES | 0x8000, &storage));
        let expected = OpenConnection {
            owner: TrackedConnection {
                since: 7,
                process: 8,
                stage: 9,
                sent: 10,
                received: 11,
                ..TrackedConnection::default()
            },
            state: 1,
            acked: 3,
            received: 4,
        };
        assert_eq!(read_socket(&body), Some(expected));
        for length in 0..body.len() {
            assert_eq!(read_socket(&body[..length]), None, "{length}");
        }
        // An attribute that is shorter than its own header.
        assert_eq!(find(&[0, 0, 0, 0, 0, 0, 0, 0], 5), None);
        assert!(read_message(&[0; HEADER], &mut Vec::new()).is_err());
    }
}
