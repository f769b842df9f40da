//! Deletes connection tracking entries and reads named nftables counters over a `NETLINK_NETFILTER`
//! socket.
//!
//! All functions block, and a connection table may hold hundreds of thousands of entries.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    Nla as _, NlasIterator,
};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Tuple};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

use super::NetlinkError;

/// The maximum number of passes over the connection tracking table in one deletion.
///
/// One pass may miss entries that move meanwhile (when the kernel resizes the table), so passes are
/// repeated until one finds no entry to delete.
const PASSES: usize = 4;

/// The attribute `CTA_ID`, which distinguishes a tracked connection from a later one with the same
/// addresses and ports.
const CTA_ID: u16 = 12;
/// The attribute `CTA_ZONE`, the conntrack zone of the connection, which is absent for the default
/// zone.
const CTA_ZONE: u16 = 18;

/// The attribute `NFTA_OBJ_TABLE`, the table of a named nftables object.
const OBJ_TABLE: u16 = 1;
/// The attribute `NFTA_OBJ_NAME`, the name of a named nftables object.
const OBJ_NAME: u16 = 2;
/// The attribute `NFTA_OBJ_TYPE`, the type of a named nftables object.
const OBJ_TYPE: u16 = 3;
/// The attribute `NFTA_OBJ_DATA`, the content of a named nftables object.
const OBJ_DATA: u16 = 4;

/// The type of an nftables object that is a counter (`NFT_OBJECT_COUNTER`).
const COUNTER: u32 = 1;
/// The attribute `NFTA_COUNTER_PACKETS`, the number of packets, within [`OBJ_DATA`].
const COUNTER_PACKETS: u16 = 2;

/// The size of the receive buffer in bytes: larger than any datagram of a dump.
const BUFFER_LEN: usize = 32 * 1024;

/// The addresses of a tracked connection, in the direction of its first packet and in that of the
/// replies.
///
/// With NAT, the addresses of the replies are not simply the swapped addresses of the first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// The source and destination address of the first packet, as received by this host.
    pub original: (IpAddr, IpAddr),
    /// The source and destination address of the replies, as received by this host.
    pub reply: (IpAddr, IpAddr),
}

impl ConntrackEntry {
    /// Returns whether any address of the connection, before or after translation (NAT), satisfies
    /// `is_one`.
    #[must_use]
    pub fn involves(&self, is_one: impl Fn(IpAddr) -> bool) -> bool {
        [self.original.0, self.original.1, self.reply.0, self.reply.1].into_iter().any(is_one)
    }
}

/// Deletes the tracked connections in this thread's network namespace for which `is_over` returns
/// true.
///
/// Returns the number of deleted entries, which is zero if the kernel does not track connections.
///
/// # Errors
/// When the kernel provides no socket or refuses.
pub fn delete_connections(is_over: impl Fn(&ConntrackEntry) -> bool) -> Result<u64, NetlinkError> {
    let mut deleted = 0;
    for _ in 0..PASSES {
        let mut found = Vec::new();
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        let request = NetfilterMessage::new(header, ConntrackMessage::Get(Vec::new()));
        let what = "list the tracked connections";
        let listed = NetfilterSocket::new(what)?.request(request, NLM_F_DUMP, |message| {
            if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner
                && parse_connection(&attributes).is_some_and(|entry| is_over(&entry))
            {
                found.push((message.header.family, attributes));
            }
        });
        match listed {
            // The kernel has no connection tracking, or cannot load its module.
            Err(RequestError::Kernel(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EPROTONOSUPPORT)) => {
                return Ok(0);
            }
            other => other.map_err(|error| error.explain(what))?,
        }
        if found.is_empty() {
            break;
        }
        deleted += delete(found)?;
    }
    Ok(deleted)
}

fn delete(entries: Vec<(NetfilterProtoFamily, Vec<ConntrackAttribute>)>) -> Result<u64, NetlinkError> {
    let what = "delete a tracked connection";
    let mut socket = NetfilterSocket::new(what)?;
    let mut deleted = 0;
    for (family, mut attributes) in entries {
        attributes.retain(|attribute| {
            matches!(attribute, ConntrackAttribute::CtaTupleOrig(_))
                || [CTA_ID, CTA_ZONE].contains(&attribute.kind())
        });
        let request =
            NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), ConntrackMessage::Delete(attributes));
        match socket.request(request, NLM_F_ACK, |_| {}) {
            Ok(()) => deleted += 1,
            // The entry expired between the two requests.
            Err(RequestError::Kernel(Errno::ENOENT)) => {}
            Err(error) => return Err(error.explain(what)),
        }
    }
    Ok(deleted)
}

/// Returns the four addresses of a tracked connection; `None` if one of them is missing.
fn parse_connection(attributes: &[ConntrackAttribute]) -> Option<ConntrackEntry> {
    let ends = |tuple: &[Tuple]| {
        let ip = tuple.iter().find_map(|part| if let Tuple::Ip(ip) = part { Some(ip) } else { None })?;
        let source =
            ip.iter().find_map(|it| if let IPTuple::SourceAddress(it) = it { Some(*it) } else { None });
        let destination =
            ip.iter().find_map(|it| if let IPTuple::DestinationAddress(it) = it { Some(*it) } else { None });
        source.zip(destination)
    };
    let original = attributes.iter().find_map(|it| match it {
        ConntrackAttribute::CtaTupleOrig(tuple) => ends(tuple),
        _ => None,
    });
    let reply = attributes.iter().find_map(|it| match it {
        ConntrackAttribute::CtaTupleReply(tuple) => ends(tuple),
        _ => None,
    });
    Some(ConntrackEntry { original: original?, reply: reply? })
}

/// Reads the number of packets of each named counter in the table `inet TABLE`.
///
/// # Errors
/// When the kernel provides no socket or refuses: it has no nftables, or no such table.
pub fn counters(table: &str) -> Result<Vec<(String, u64)>, NetlinkError> {
    let what = "read the counters of nftables";
    let table = [table.as_bytes(), &[0]].concat();
    let request = NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0),
        NfTablesMessage::GetObject(vec![
            DefaultNla::new(OBJ_TABLE, table.clone()),
            DefaultNla::new(OBJ_TYPE, COUNTER.to_be_bytes().to_vec()),
        ]),
    );
    let mut counters = Vec::new();
    let listed = NetfilterSocket::new(what)?.request(request, NLM_F_DUMP, |message| {
        if let NetfilterMessageInner::NfTables(NfTablesMessage::NewObject(attributes)) = message.inner
            // A kernel that ignores the filter returns the counters of every table.
            && value(&attributes, OBJ_TABLE).is_some_and(|name| name == table)
        {
            counters.extend(counter(&attributes));
        }
    });
    listed.map_err(|error| error.explain(what))?;
    Ok(counters)
}

fn counter(attributes: &[DefaultNla]) -> Option<(String, u64)> {
    if value(attributes, OBJ_TYPE)? != COUNTER.to_be_bytes() {
        return None;
    }
    let name = String::from_utf8(value(attributes, OBJ_NAME)?).ok()?;
    let data = value(attributes, OBJ_DATA)?;
    let packets = NlasIterator::new(&data).filter_map(Result::ok).find(|it| it.kind() == COUNTER_PACKETS)?;
    let packets = u64::from_be_bytes(packets.value().try_into().ok()?);
    Some((name.trim_end_matches('\0').to_owned(), packets))
}

/// Returns the value of the first attribute of type `kind`, if any.
fn value(attributes: &[DefaultNla], kind: u16) -> Option<Vec<u8>> {
    let attribute = attributes.iter().find(|attribute| attribute.kind() == kind)?;
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    Some(bytes)
}

/// A netlink socket for netfilter that carries one request at a time.
struct NetfilterSocket(Socket);

/// The reason why a netlink request failed, without a description of the attempted action.
enum RequestError {
    /// The kernel refused the request.
    Kernel(Errno),
    /// The socket failed, or the reply could not be parsed.
    Socket(String),
}

impl RequestError {
    fn explain(self, what: &str) -> NetlinkError {
        let what = what.to_owned();
        match self {
            Self::Kernel(Errno::EPERM) => NetlinkError::NotAllowed(what),
            Self::Kernel(errno) => NetlinkError::Refused { what, source: io::Error::from(errno) },
            Self::Socket(message) => NetlinkError::Socket { what, message },
        }
    }
}

impl NetfilterSocket {
    fn new(what: &str) -> Result<Self, NetlinkError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let failed = |error: io::Error| RequestError::Socket(error.to_string()).explain(what);
        open().map(Self).map_err(failed)
    }

    /// Sends one request and passes each message of the reply to `on_message`.
    fn request(
        &mut self,
        request: NetfilterMessage,
        flags: u16,
        mut on_message: impl FnMut(NetfilterMessage),
    ) -> Result<(), RequestError> {
        let failed = |error: io::Error| RequestError::Socket(error.to_string());
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(request));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0).map_err(failed)?;
        let mut buffer = Vec::with_capacity(BUFFER_LEN);
        loop {
            buffer.clear();
            match self.0.recv(&mut buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received.map_err(failed)?,
            };
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
                    .map_err(|error| RequestError::Socket(error.to_string()))?;
                let length = message.buffer_len().next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => on_message(inner),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(RequestError::Kernel(Errno::from_raw(done.code.saturating_abs())));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        return Err(RequestError::Kernel(Errno::from_raw(error.raw_code().saturating_abs())));
                    }
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;

    use super::super::tests::{in_new_namespace, ip};
    use super::*;

    fn nft(script: &str) {
        assert!(Command::new("nft").arg(script).status().unwrap().success(), "nft {script}");
    }

    #[test]
    fn connections_are_deleted_by_either_address_and_others_stay() {
        in_new_namespace(async {
            ip("link set lo up");
            ip("address add 10.1.0.1/32 dev lo");
            ip("address add fd01::1/128 dev lo nodad");
            nft("table inet t { chain c { type filter hook output priority 0; ct state new accept; }; }");
            let send = |from: (&str, u16), to: &str| {
                let socket = UdpSocket::bind(from).unwrap();
                socket.send_to(b"x", (to, 9)).unwrap();
            };
            for port in 2000..2500 {
                send(("10.1.0.1", port), "127.0.0.2");
            }
            send(("127.0.0.1", 0), "10.1.0.1");
            send(("fd01::1", 0), "::1");
            send(("127.0.0.1", 0), "127.0.0.3");
            let all = || {
                let counted = std::cell::Cell::new(0);
                delete_connections(|_| {
                    counted.set(counted.get() + 1);
                    false
                })
                .unwrap();
                counted.get()
            };
            // An ICMP error belongs to the entry of the connection that it refers to.
            assert_eq!(all(), 503);
            let gone: [IpAddr; 2] = ["10.1.0.1".parse().unwrap(), "fd01::1".parse().unwrap()];
            let is_gone = |entry: &ConntrackEntry| entry.involves(|address| gone.contains(&address));
            assert_eq!(delete_connections(is_gone).unwrap(), 502);
            assert_eq!(all(), 1);
            assert_eq!(delete_connections(is_gone).unwrap(), 0);
        });
    }

    #[test]
    fn named_counters_of_one_table_are_read() {
        in_new_namespace(async {
            ip("link set lo up");
            assert!(counters("ours").is_err() || counters("ours").unwrap().is_empty());
            nft("table inet ours { counter a { }; counter b { }; \
                 chain c { type filter hook output priority 0; udp dport 9 counter name a; }; }");
            nft("table inet theirs { counter a { packets 7 bytes 7 }; }");
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..3 {
                let _ = socket.send_to(b"x", "127.0.0.1:9");
            }
            let mut read = counters("ours").unwrap();
            read.sort();
            assert_eq!(read, [("a".to_owned(), 3), ("b".to_owned(), 0)]);
        });
    }
}
