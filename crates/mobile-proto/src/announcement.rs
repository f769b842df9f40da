//! The key and the endpoint by which the relay will be reached, which it announces to its clients.

use std::sync::Arc;

use crate::ProtocolError;
use crate::config::{item, put_item};
use crate::frame::PayloadReader;

/// Maximum length of an endpoint in bytes: a DNS name (253), a colon and a port.
const MAX_ENDPOINT: usize = 253 + 1 + 5;

/// Tag of the item with the public key that the relay announces.
const TAG_KEY: u64 = 6;
/// Tag of the item with the endpoint that the relay announces.
const TAG_ENDPOINT: u64 = 7;

/// The relay's key and endpoint of the future, as the relay announces them in its configuration,
/// and as a client confirms that it has stored them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// The Ed25519 public key that clients are to accept, besides the present one if it differs.
    /// `None` says nothing: a client keeps the keys that it knows.
    pub key: Option<[u8; 32]>,
    /// The `host:port` that clients are to connect to first; empty withdraws an earlier one. `None`
    /// says nothing: a client keeps the endpoint that it knows.
    pub endpoint: Option<String>,
}

impl Announcement {
    /// Returns the announcement for many sessions to share, or `None` if it announces nothing.
    #[must_use]
    pub fn into_shared(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }

    /// Appends the items of the announcement.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if let Some(key) = &self.key {
            put_item(out, TAG_KEY, key);
        }
        if let Some(endpoint) = &self.endpoint {
            put_item(out, TAG_ENDPOINT, endpoint.as_bytes());
        }
    }

    /// Takes an item of a list if it belongs to an announcement. Each item may occur once.
    pub(crate) fn take_item(
        &mut self,
        reader: &PayloadReader<'_>,
        tag: u64,
        value: &[u8],
    ) -> Result<(), ProtocolError> {
        match tag {
            TAG_KEY => {
                let key =
                    value.try_into().map_err(|_| reader.malformed("the relay's key is not 32 bytes"))?;
                set_once(&mut self.key, key, reader)
            }
            TAG_ENDPOINT => {
                let text = std::str::from_utf8(value).ok();
                let endpoint = text.filter(|text| text.is_empty() || is_endpoint(text));
                let endpoint = endpoint.ok_or(reader.malformed("the endpoint is not HOST:PORT"))?;
                set_once(&mut self.endpoint, endpoint.to_owned(), reader)
            }
            _ => Ok(()),
        }
    }

    /// Parses the payload of CONFIRM. Unknown items are skipped.
    pub(crate) fn decode_confirmation(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = PayloadReader::new("CONFIRM", payload);
        let mut confirmed = Self::default();
        while !reader.is_empty() {
            let (tag, value) = item(&mut reader)?;
            confirmed.take_item(&reader, tag, value)?;
        }
        Ok(confirmed)
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T, reader: &PayloadReader<'_>) -> Result<(), ProtocolError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(reader.malformed("an item of the announcement occurs twice")),
    }
}

/// Returns whether the text is `host:port` in a form that can be resolved or connected to: a name,
/// an IPv4 address or an IPv6 address in brackets, and a port other than 0.
#[must_use]
pub fn is_endpoint(text: &str) -> bool {
    let port = text.rsplit_once(':').and_then(|(host, port)| {
        let bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        let clean = !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '\\');
        (clean && !bare_ipv6).then(|| port.parse::<u16>().ok()).flatten()
    });
    text.len() <= MAX_ENDPOINT && port.is_some_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items(items: &[(u64, &[u8])]) -> Vec<u8> {
        let mut wire = Vec::new();
        items.iter().for_each(|(tag, value)| put_item(&mut wire, *tag, value));
        wire
    }

    #[test]
    fn every_announcement_survives_a_round_trip() {
        let longest = format!("{}:65535", "a".repeat(253));
        for key in [None, Some([7; 32])] {
            for endpoint in [None, Some(""), Some("[2001:db8::1]:443"), Some(&longest)] {
                let announced = Announcement { key, endpoint: endpoint.map(str::to_owned) };
                let mut wire = Vec::new();
                announced.encode(&mut wire);
                assert_eq!(Announcement::decode_confirmation(&wire), Ok(announced));
            }
        }
    }

    #[test]
    fn wrong_and_repeated_items_are_refused_and_unknown_ones_skipped() {
        let too_long = format!("{}:1", "a".repeat(258));
        for bad in [
            items(&[(TAG_KEY, &[1; 31])]),
            items(&[(TAG_KEY, &[1; 32]), (TAG_KEY, &[1; 32])]),
            items(&[(TAG_ENDPOINT, b"relay")]),
            items(&[(TAG_ENDPOINT, b"re\nlay:443")]),
            items(&[(TAG_ENDPOINT, b"\xff:443")]),
            items(&[(TAG_ENDPOINT, too_long.as_bytes())]),
            items(&[(TAG_ENDPOINT, b""), (TAG_ENDPOINT, b"a:1")]),
            vec![6, 32, 1],
        ] {
            assert!(Announcement::decode_confirmation(&bad).is_err(), "{bad:?}");
        }
        let later = items(&[(99, b"later"), (TAG_ENDPOINT, b"a:1")]);
        assert_eq!(Announcement::decode_confirmation(&later).unwrap().endpoint.as_deref(), Some("a:1"));
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_what_is_read_is_written_alike(
            bytes in proptest::collection::vec(any::<u8>(), 0..120)
        ) {
            if let Ok(read) = Announcement::decode_confirmation(&bytes) {
                let mut wire = Vec::new();
                read.encode(&mut wire);
                prop_assert_eq!(Announcement::decode_confirmation(&wire), Ok(read));
            }
        }
    }
}
