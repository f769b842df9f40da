//! Inner packets, and a parser of their IP header, with which the programs check packets and look
//! up sessions by address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use crate::Offload;

/// A borrowed inner packet with the checksum and segmentation work still to be done on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The packet from its IP header on.
    pub bytes: &'a [u8],
    /// The checksum or segmentation work left to be done on the packet.
    pub offload: Offload,
}

/// An owned inner packet with the checksum and segmentation work still to be done on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketBuf {
    /// The packet from its IP header on.
    pub bytes: Box<[u8]>,
    /// The checksum or segmentation work left to be done on the packet.
    pub offload: Offload,
}

impl Deref for Packet<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

/// Converts the bytes of an ordinary packet, which needs no offload.
impl<'a> From<&'a [u8]> for Packet<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, offload: Offload::None }
    }
}

/// Converts the bytes of an ordinary packet, which needs no offload.
impl<'a> From<&'a Vec<u8>> for Packet<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}

/// Converts the bytes of an ordinary packet, which needs no offload.
impl<'a, const N: usize> From<&'a [u8; N]> for Packet<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl<'a> From<&'a PacketBuf> for Packet<'a> {
    fn from(packet: &'a PacketBuf) -> Self {
        Self { bytes: &packet.bytes, offload: packet.offload }
    }
}

impl From<Packet<'_>> for PacketBuf {
    fn from(packet: Packet<'_>) -> Self {
        Self { bytes: packet.bytes.into(), offload: packet.offload }
    }
}

/// The fields of an inner packet's IP header that the agent and the relay use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// The IP version, 4 or 6.
    pub version: u8,
    /// The source address of the packet.
    pub src: IpAddr,
    /// The destination address of the packet.
    pub dst: IpAddr,
    /// The length of the whole packet in bytes, which equals the length of the parsed buffer.
    pub total_len: usize,
}

/// The reason why bytes are not an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The buffer is too short for the header of its version.
    #[error("an IP packet of {0} bytes is too short for its header")]
    TooShort(usize),
    /// The version is neither 4 nor 6.
    #[error("IP version {0} is neither 4 nor 6")]
    Version(u8),
    /// An IPv4 header length below 20 bytes or beyond the packet.
    #[error("IPv4 header length {0} is below 20 bytes or beyond the packet")]
    HeaderLength(usize),
    /// The length in the header differs from the length of the buffer.
    #[error("the IP header says {claimed} bytes, the packet has {actual}")]
    Length {
        /// The length in the header.
        claimed: usize,
        /// The length of the buffer.
        actual: usize,
    },
}

/// Length of an IPv4 header without options, in bytes.
const IPV4_HEADER: usize = 20;
/// Length of an IPv6 header without extension headers, in bytes.
const IPV6_HEADER: usize = 40;

impl IpHeader {
    /// Parses the IP header of the packet that fills the buffer.
    ///
    /// # Errors
    /// If the buffer does not hold exactly one IP packet.
    pub fn parse(packet: &[u8]) -> Result<Self, PacketError> {
        let short = PacketError::TooShort(packet.len());
        let first = *packet.first().ok_or(short)?;
        match first >> 4 {
            4 => Self::parse_v4(packet.first_chunk().ok_or(short)?, packet.len()),
            6 => Self::parse_v6(packet.first_chunk().ok_or(short)?, packet.len()),
            other => Err(PacketError::Version(other)),
        }
    }

    fn parse_v4(header: &[u8; IPV4_HEADER], actual: usize) -> Result<Self, PacketError> {
        let claimed = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if claimed != actual {
            return Err(PacketError::Length { claimed, actual });
        }
        let header_len = usize::from(header[0] & 0x0f) * 4;
        if header_len < IPV4_HEADER || header_len > actual {
            return Err(PacketError::HeaderLength(header_len));
        }
        let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        Ok(Self {
            version: 4,
            src: Ipv4Addr::new(s0, s1, s2, s3).into(),
            dst: Ipv4Addr::new(d0, d1, d2, d3).into(),
            total_len: actual,
        })
    }

    fn parse_v6(header: &[u8; IPV6_HEADER], actual: usize) -> Result<Self, PacketError> {
        let claimed = usize::from(u16::from_be_bytes([header[4], header[5]])) + IPV6_HEADER;
        if claimed != actual {
            return Err(PacketError::Length { claimed, actual });
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            IpAddr::from(Ipv6Addr::from(octets))
        };
        Ok(Self { version: 6, src: address(8), dst: address(24), total_len: actual })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    #[test]
    fn reads_addresses_of_both_families() {
        let header = IpHeader::parse(&v4(40)).unwrap();
        assert_eq!((header.version, header.total_len), (4, 40));
        assert_eq!(header.src, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(header.dst, IpAddr::from([192, 0, 2, 7]));
        let header = IpHeader::parse(&v6(8)).unwrap();
        assert_eq!((header.version, header.total_len), (6, 48));
        assert_eq!(header.src, "::1".parse::<IpAddr>().unwrap());
        assert_eq!(header.dst, "::2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn refuses_lengths_that_do_not_fit() {
        assert_eq!(IpHeader::parse(&[]), Err(PacketError::TooShort(0)));
        assert_eq!(IpHeader::parse(&v4(40)[..19]), Err(PacketError::TooShort(19)));
        assert_eq!(IpHeader::parse(&v4(40)[..39]), Err(PacketError::Length { claimed: 40, actual: 39 }));
        let mut longer = v6(8);
        longer.push(0);
        assert_eq!(IpHeader::parse(&longer), Err(PacketError::Length { claimed: 48, actual: 49 }));
        let mut options = v4(20);
        options[0] = 0x46;
        assert_eq!(IpHeader::parse(&options), Err(PacketError::HeaderLength(24)));
        options[0] = 0x44;
        assert_eq!(IpHeader::parse(&options), Err(PacketError::HeaderLength(16)));
        assert_eq!(IpHeader::parse(&[0x50; 60]), Err(PacketError::Version(5)));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(header) = IpHeader::parse(&bytes) {
                prop_assert_eq!(header.total_len, bytes.len());
            }
        }
    }
}
