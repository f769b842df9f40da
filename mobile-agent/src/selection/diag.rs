//! The TCP sockets of this network namespace that the programs follow, as the kernel's `sock_diag` lists them: whose each is and what
//! it has carried so far.

use std::{
    io::{self, Read as _, Write as _},
    mem::offset_of,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

use mobile_ebpf_common::TrackedConnection;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// linux/sock_diag.h and inet_diag.h: what libc does not have.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;

/// The top bits of an attribute's type say how it is encoded.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// The lengths of `nlmsghdr`, of an attribute's header, and of `inet_diag_msg`.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
const MESSAGE: usize = 72;

/// Where the counters are in `struct tcp_info` (linux/tcp.h; Linux 4.1).
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;

/// The states, as bits, of what is a connection: not TIME_WAIT (its socket is gone), CLOSE and LISTEN.
const STATES: u32 = !(1 << 6 | 1 << 7 | 1 << 10);

/// The kernel answers a dump in pieces of up to 32 KiB.
const PIECE: usize = 64 * 1024;

/// The kernel answers at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection that is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    /// Whose.
    pub(super) owner: TrackedConnection,
    /// Its state.
    pub(super) state: u32,
    /// Sequence numbers that the other end acknowledged.
    pub(super) acked: u64,
    /// Sequence numbers that came.
    pub(super) received: u64,
}

/// Every connection that has an owner in the map `owners`.
pub(super) fn open(owners: BorrowedFd<'_>) -> io::Result<Vec<Open>> {
    let mut socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.cloexec(),
        Some(Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut open = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        socket.write_all(&request(family as u8, owners))?;
        let mut piece = vec![0; PIECE];
        loop {
            let length = socket.read(&mut piece)?;
            if read_piece(piece.get(..length).unwrap_or_default(), &mut open)? {
                break;
            }
        }
    }
    Ok(open)
}

/// A dump of one family: `nlmsghdr`, `inet_diag_req_v2`, and which map's storage we want to see.
fn request(family: u8, owners: BorrowedFd<'_>) -> Vec<u8> {
    let mut body = vec![family, libc::IPPROTO_TCP as u8, 1 << (INET_DIAG_INFO - 1), 0];
    body.extend(STATES.to_ne_bytes());
    // Of which address and port: any.
    body.extend([0; 48]);
    let map = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &owners.as_raw_fd().to_ne_bytes());
    body.extend(attribute(INET_DIAG_REQ_SK_BPF_STORAGES, &map));

    let mut message = Vec::from(((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    // Sequence number and sender.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Of a value whose length is a multiple of four.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes
}

/// Takes the sockets out of a piece of the answer; says whether it was the last.
fn read_piece(mut piece: &[u8], open: &mut Vec<Open>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(piece, 0), u16_at(piece, 4)) {
        let length = length as usize;
        let body = piece.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
        match i32::from(kind) {
            libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                let code = u32_at(body, 0).map_or(0, u32::cast_signed);
                return if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(true) };
            }
            _ => open.extend(read_socket(body)),
        }
        piece = piece.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// One socket, if it has an owner.
fn read_socket(body: &[u8]) -> Option<Open> {
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
    Some(Open { owner, state, acked: u64_at(info, BYTES_ACKED)?, received: u64_at(info, BYTES_RECEIVED)? })
}

/// The value of an attribute.
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
    fn answers_that_end_too_early_are_no_sockets_and_do_not_go_on_for_ever() {
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
        let expected = Open {
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
        // An attribute shorter than its own header.
        assert_eq!(find(&[0, 0, 0, 0, 0, 0, 0, 0], 5), None);
        assert!(read_piece(&[0; HEADER], &mut Vec::new()).is_err());
    }
}
