//! An inner packet with its located headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use super::headers::{self, IpValidity, Layout, PacketHeaders, TCP};
use super::{Packet, PacketBuf, PacketError};

/// A borrowed inner packet whose headers were located.
///
/// Any bytes can be an inner packet. A packet that is no IP packet has no addresses, and a packet
/// that is no TCP segment has no TCP fields. Later readers of the packet use the stored offsets and
/// parse nothing. The offsets were checked against the length of the packet, so the accessors never
/// read beyond its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerPacket<'a> {
    packet: Packet<'a>,
    layout: Layout,
}

/// An owned inner packet whose headers were located.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InnerPacketBuf {
    packet: PacketBuf,
    layout: Layout,
}

/// The addresses in the IP header of a valid inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// The source address of the packet.
    pub src: IpAddr,
    /// The destination address of the packet.
    pub dst: IpAddr,
}

/// The addresses, the protocol and the ports that packets of one flow share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowIdentity<'a> {
    /// The source address, then the destination address.
    pub(crate) addresses: &'a [u8],
    pub(crate) protocol: u8,
    /// The source port, then the destination port; empty if the packet has none.
    pub(crate) ports: &'a [u8],
}

impl<'a> InnerPacket<'a> {
    /// Joins the packet in the first [`len`](PacketHeaders::len) bytes of `buffer` with its
    /// headers, which were located before. Returns an empty packet if the buffer is shorter.
    ///
    /// If the bytes have changed since, the accessors return wrong fields, but none from outside
    /// the packet.
    #[must_use]
    pub fn in_buffer(buffer: &'a [u8], headers: PacketHeaders) -> Self {
        match buffer.get(..headers.len()) {
            Some(bytes) => {
                Self { packet: Packet { bytes, offload: headers.offload() }, layout: headers.layout() }
            }
            None => Packet { bytes: &[], offload: headers.offload() }.into(),
        }
    }

    /// Returns where the headers are, without the bytes.
    #[must_use]
    pub fn headers(&self) -> PacketHeaders {
        PacketHeaders::new(self.packet, self.layout)
    }

    /// Returns the fields of the IP header.
    ///
    /// # Errors
    /// If the packet is no IP packet.
    pub fn ip(&self) -> Result<IpHeader, PacketError> {
        match self.layout.status {
            IpValidity::V4 => {
                let [src, dst] = [12, 16].map(|at| Ipv4Addr::from(self.array::<4>(at)).into());
                Ok(IpHeader { src, dst })
            }
            IpValidity::V6 => {
                let [src, dst] = [8, 24].map(|at| Ipv6Addr::from(self.array::<16>(at)).into());
                Ok(IpHeader { src, dst })
            }
            _ => Err(self.error()),
        }
    }

    /// Returns the destination address; `None` if the packet is no IP packet.
    #[must_use]
    pub fn destination(&self) -> Option<IpAddr> {
        match self.layout.status {
            IpValidity::V4 => Some(Ipv4Addr::from(self.array::<4>(16)).into()),
            IpValidity::V6 => Some(Ipv6Addr::from(self.array::<16>(24)).into()),
            _ => None,
        }
    }

    /// Returns the upper-layer protocol and its header, or `None` if the header is not in this
    /// packet (later fragments), not right after the IP header (IPv6 extension headers), or if this
    /// is no IP packet.
    #[must_use]
    pub fn upper_layer(&self) -> Option<(u8, &'a [u8])> {
        let is_first = match self.layout.status {
            IpValidity::V4 => u16::from_be_bytes(self.array(6)) & 0x1fff == 0,
            IpValidity::V6 => true,
            _ => return None,
        };
        let header = self.packet.bytes.get(usize::from(self.layout.ip_len)..)?;
        is_first.then_some((self.next_header(), header))
    }
}

impl<'a> InnerPacket<'a> {
    /// Returns why the packet is no IP packet.
    pub(crate) fn error(&self) -> PacketError {
        headers::error(self.packet.bytes, self.layout.status)
    }

    /// Returns the IP version if the packet is an IP packet.
    pub(crate) fn version(&self) -> Option<u8> {
        match self.layout.status {
            IpValidity::V4 => Some(4),
            IpValidity::V6 => Some(6),
            _ => None,
        }
    }

    /// Returns the protocol of the transport header, [`TCP`] or [`UDP`](headers::UDP); `None` if
    /// there is none: another protocol, a fragment, a header that is cut off, or no IP packet.
    pub(crate) fn transport(&self) -> Option<u8> {
        (self.layout.payload > 0).then_some(self.layout.protocol)
    }

    /// Returns the offset of the transport header, which follows the IP header and its extensions;
    /// 0 without one.
    pub(crate) fn transport_at(&self) -> usize {
        self.layout.transport.into()
    }

    /// Returns the offset of the end of the transport header; 0 without one.
    pub(crate) fn payload_at(&self) -> usize {
        self.layout.payload.into()
    }

    /// Returns the first 20 bytes of the TCP header (all but its options) if the packet is a TCP
    /// segment.
    pub(crate) fn tcp_header(&self) -> Option<&'a [u8; headers::TCP_HEADER]> {
        if self.transport() != Some(TCP) {
            return None;
        }
        self.packet.bytes.get(self.transport_at()..)?.first_chunk()
    }

    /// Returns the options of the TCP header if the packet is a TCP segment.
    pub(crate) fn tcp_options(&self) -> Option<&'a [u8]> {
        if self.transport() != Some(TCP) {
            return None;
        }
        self.packet.bytes.get(self.transport_at() + headers::TCP_HEADER..self.payload_at())
    }

    /// Returns the source and the destination address; an IPv4 address fills the first four bytes.
    pub(crate) fn addresses(&self) -> [[u8; 16]; 2] {
        if self.layout.status == IpValidity::V6 {
            return [8, 24].map(|at| self.array(at));
        }
        [12, 16].map(|at| {
            let [a, b, c, d] = self.array(at);
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        })
    }

    /// Returns the identity of the packet's flow. A fragment has no ports, so that all fragments of
    /// a datagram belong to one flow. All packets whose addresses cannot be read belong to one
    /// flow, too.
    pub(crate) fn flow(&self) -> FlowIdentity<'a> {
        let bytes = self.packet.bytes;
        let addresses = match headers::addressed_version(bytes, self.layout.status) {
            4 => bytes.get(12..20),
            6 => bytes.get(8..40),
            _ => return FlowIdentity::default(),
        };
        let at = usize::from(self.layout.ip_len);
        let ports = bytes.get(at..at + 4).filter(|_| self.layout.has_ports);
        FlowIdentity {
            addresses: addresses.unwrap_or_default(),
            protocol: self.next_header(),
            ports: ports.unwrap_or_default(),
        }
    }

    /// Returns the protocol field of the IP header.
    fn next_header(&self) -> u8 {
        let at = if headers::addressed_version(self.packet.bytes, self.layout.status) == 4 { 9 } else { 6 };
        self.packet.bytes.get(at).copied().unwrap_or_default()
    }

    /// Returns the `N` bytes at the checked offset `at`; zeros if they are not all inside the
    /// packet.
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.packet.bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }
}

impl<'a> Deref for InnerPacket<'a> {
    type Target = Packet<'a>;

    fn deref(&self) -> &Packet<'a> {
        &self.packet
    }
}

/// Locates the headers of the packet.
impl<'a> From<Packet<'a>> for InnerPacket<'a> {
    fn from(packet: Packet<'a>) -> Self {
        Self { packet, layout: Layout::locate(packet.bytes) }
    }
}

/// Locates the headers of an ordinary packet, which needs no offload.
impl<'a> From<&'a [u8]> for InnerPacket<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Packet::from(bytes).into()
    }
}

/// Locates the headers of an ordinary packet, which needs no offload.
impl<'a> From<&'a Vec<u8>> for InnerPacket<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Packet::from(bytes).into()
    }
}

/// Locates the headers of an ordinary packet, which needs no offload.
impl<'a, const N: usize> From<&'a [u8; N]> for InnerPacket<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Packet::from(bytes).into()
    }
}

impl InnerPacketBuf {
    /// Returns the bytes of the packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.packet.bytes
    }

    /// Returns where the headers are, without the bytes.
    #[must_use]
    pub fn headers(&self) -> PacketHeaders {
        PacketHeaders::new((&self.packet).into(), self.layout)
    }
}

impl From<InnerPacket<'_>> for InnerPacketBuf {
    fn from(packet: InnerPacket<'_>) -> Self {
        Self { packet: packet.packet.into(), layout: packet.layout }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::headers::IPV6_HEADER;

    fn v4(len: u16) -> Vec<u8> {
        let mut packet = vec![0; usize::from(len)];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[192, 0, 2, 7]);
        packet
    }

    fn v6(payload: u16) -> Vec<u8> {
        let mut packet = vec![0; IPV6_HEADER + usize::from(payload)];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        packet[23] = 1;
        packet[39] = 2;
        packet
    }

    fn parse(packet: &[u8]) -> Result<IpHeader, PacketError> {
        InnerPacket::from(packet).ip()
    }

    /// Returns the length of a packet according to its IP header.
    fn claimed_len(packet: &[u8]) -> usize {
        let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        if packet[0] >> 4 == 4 { word(2) } else { word(4) + IPV6_HEADER }
    }

    #[test]
    fn reads_addresses_of_both_families() {
        let packet = v4(40);
        assert_eq!(InnerPacket::from(&packet).version(), Some(4));
        let header = parse(&packet).unwrap();
        assert_eq!(header.src, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(header.dst, IpAddr::from([192, 0, 2, 7]));
        let packet = v6(8);
        assert_eq!(InnerPacket::from(&packet).version(), Some(6));
        let header = parse(&packet).unwrap();
        assert_eq!(header.src, "::1".parse::<IpAddr>().unwrap());
        assert_eq!(header.dst, "::2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn refuses_lengths_that_do_not_fit() {
        assert_eq!(parse(&[]), Err(PacketError::TooShort(0)));
        assert_eq!(parse(&v4(40)[..19]), Err(PacketError::TooShort(19)));
        assert_eq!(parse(&v4(40)[..39]), Err(PacketError::Length { claimed: 40, actual: 39 }));
        let mut longer = v6(8);
        longer.push(0);
        assert_eq!(parse(&longer), Err(PacketError::Length { claimed: 48, actual: 49 }));
        let mut options = v4(20);
        options[0] = 0x46;
        assert_eq!(parse(&options), Err(PacketError::HeaderLength(24)));
        options[0] = 0x44;
        assert_eq!(parse(&options), Err(PacketError::HeaderLength(16)));
        assert_eq!(parse(&[0x50; 60]), Err(PacketError::Version(5)));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if parse(&bytes).is_ok() {
                prop_assert_eq!(claimed_len(&bytes), bytes.len());
            }
        }
    }
}
