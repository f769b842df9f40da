//! The client's tunnel configuration, which the relay pushes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::frame::PayloadReader;
use crate::varint;
use crate::{Announcement, ProtocolError};

/// The configuration that the relay sends in every WELCOME, and in CONFIG when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushConfig {
    /// The client's persistent IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The client's persistent IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The MTU of the host virtual device, in bytes.
    pub mtu: u16,
    /// Resolvers to use through the tunnel, in order of preference. At most eight are pushed.
    pub dns: Vec<IpAddr>,
    /// The key and endpoint by which the relay will be reached, if it announces any.
    pub relay: Option<Arc<Announcement>>,
}

const TAG_IPV4: u64 = 1;
const TAG_IPV6: u64 = 2;
const TAG_MTU: u64 = 3;
const TAG_DNS: u64 = 4;
/// Tag of an item that is sent in WELCOME only: the compression that the relay reads and sends on
/// this path.
pub(crate) const TAG_COMPRESSION: u64 = 5;

/// Maximum number of resolvers; glibc on the mobile host uses three (`MAXNS`).
const MAX_DNS: usize = 8;
/// Minimum MTU: every IPv4 host accepts 576 bytes (RFC 791); IPv6 needs 1280.
const MIN_MTU: u16 = 576;

impl PushConfig {
    /// Appends the configuration as a list of `tag varint | length varint | value`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if let Some(address) = self.ipv4 {
            put_item(out, TAG_IPV4, &address.octets());
        }
        if let Some(address) = self.ipv6 {
            put_item(out, TAG_IPV6, &address.octets());
        }
        put_item(out, TAG_MTU, &self.mtu.to_be_bytes());
        for resolver in self.dns.iter().take(MAX_DNS) {
            match resolver {
                IpAddr::V4(address) => put_item(out, TAG_DNS, &address.octets()),
                IpAddr::V6(address) => put_item(out, TAG_DNS, &address.octets()),
            }
        }
        if let Some(announced) = &self.relay {
            announced.encode(out);
        }
    }

    /// Parses a configuration up to the end of the payload. Unknown tags are skipped; known ones
    /// must be valid.
    pub(crate) fn decode(reader: &mut PayloadReader<'_>) -> Result<Self, ProtocolError> {
        Self::decode_with_compression(reader).map(|(config, _)| config)
    }

    /// Parses the configuration in a WELCOME, with the identifier of the compression if it names
    /// one.
    pub(crate) fn decode_with_compression(
        reader: &mut PayloadReader<'_>,
    ) -> Result<(Self, Option<u8>), ProtocolError> {
        let mut compression = None;
        let (mut ipv4, mut ipv6, mut mtu, mut dns) = (None, None, None, Vec::new());
        let mut relay = Announcement::default();
        while !reader.is_empty() {
            let (tag, value) = item(reader)?;
            match (tag, value.len()) {
                (TAG_IPV4, 4) => ipv4 = v4(value),
                (TAG_IPV6, 16) => ipv6 = v6(value),
                (TAG_MTU, 2) => mtu = Some(u16::from_be_bytes([value[0], value[1]])),
                (TAG_DNS, 4) => dns.extend(v4(value).map(IpAddr::from)),
                (TAG_DNS, 16) => dns.extend(v6(value).map(IpAddr::from)),
                (TAG_COMPRESSION, 1) => compression = value.first().copied(),
                (TAG_IPV4 | TAG_IPV6 | TAG_MTU | TAG_DNS, _) => {
                    return Err(reader.malformed("a configuration item has the wrong length"));
                }
                _ => relay.take_item(reader, tag, value)?,
            }
        }
        dns.truncate(MAX_DNS);
        let mtu = mtu.ok_or(reader.malformed("the configuration has no MTU"))?;
        if mtu < MIN_MTU {
            return Err(reader.malformed("the MTU is below 576"));
        }
        Ok((Self { ipv4, ipv6, mtu, dns, relay: relay.into_shared() }, compression))
    }
}

/// Appends one item of a list: `tag varint | length varint | value`.
pub(crate) fn put_item(out: &mut Vec<u8>, tag: u64, value: &[u8]) {
    varint::put(out, tag);
    varint::put(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Parses one item of a list and returns its tag and value.
pub(crate) fn item<'a>(reader: &mut PayloadReader<'a>) -> Result<(u64, &'a [u8]), ProtocolError> {
    let tag = reader.varint()?;
    let length = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    Ok((tag, reader.bytes(length)?))
}

fn v4(octets: &[u8]) -> Option<Ipv4Addr> {
    octets.first_chunk::<4>().map(|&octets| octets.into())
}

fn v6(octets: &[u8]) -> Option<Ipv6Addr> {
    octets.first_chunk::<16>().map(|&octets| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<PushConfig, ProtocolError> {
        PushConfig::decode(&mut PayloadReader::new("CONFIG", bytes))
    }

    fn full() -> PushConfig {
        PushConfig {
            ipv4: Some(Ipv4Addr::new(10, 77, 0, 2)),
            ipv6: Some("fd00:77::2".parse().unwrap()),
            mtu: 1400,
            dns: vec!["10.77.0.1".parse().unwrap(), "fd00:77::1".parse().unwrap()],
            relay: Announcement { key: Some([9; 32]), endpoint: Some("relay.example.org:443".into()) }
                .into_shared(),
        }
    }

    #[test]
    fn full_and_minimal_configurations_survive_a_round_trip() {
        for config in [full(), PushConfig { mtu: 65_535, ..PushConfig::default() }] {
            let mut wire = Vec::new();
            config.encode(&mut wire);
            assert_eq!(decode(&wire), Ok(config));
        }
    }

    #[test]
    fn unknown_items_are_skipped() {
        let mut wire = Vec::new();
        put_item(&mut wire, 99, b"later");
        full().encode(&mut wire);
        assert_eq!(decode(&wire), Ok(full()));
    }

    #[test]
    fn at_most_eight_resolvers_are_sent() {
        let mut config = full();
        config.dns = vec![IpAddr::from([10, 0, 0, 1]); 20];
        let mut wire = Vec::new();
        config.encode(&mut wire);
        config.dns.truncate(8);
        assert_eq!(decode(&wire), Ok(config));
    }

    #[test]
    fn wrong_lengths_and_values_are_refused() {
        let item = |tag, value: &[u8]| {
            let mut wire = Vec::new();
            put_item(&mut wire, tag, value);
            decode(&wire)
        };
        assert!(item(TAG_IPV4, &[1, 2, 3]).is_err());
        assert!(item(TAG_DNS, &[0; 5]).is_err());
        assert!(item(TAG_MTU, &100_u16.to_be_bytes()).is_err());
        assert!(decode(&[]).is_err(), "no MTU");
        assert!(decode(&[3, 0x3f, 1]).is_err(), "an item longer than the frame");
    }
}
