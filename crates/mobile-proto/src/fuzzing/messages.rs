//! Invariants of frames and messages: whatever can be parsed can be encoded, and is the same when
//! it is parsed again.

use crate::config;
use crate::enroll::{self, EnrolmentRefusal, EnrolmentReply, EnrolmentRequest, KeyChange, TOKEN_LEN, Token};
use crate::frame::{self, Decoded};
use crate::message::{self, Activate, VersionedConfig, Welcome};
use crate::{
    Announcement, CloseCode, Hello, HelloReader, MAX_PACKET, Offload, Packet, PathId, ProtocolError,
    PushConfig, SessionId,
};

/// Maximum length of a frame's header in bytes: its type and the longest varint.
const HEADER: usize = 9;

/// Decodes the input frame by frame, as a session does, and checks the round trip of each frame.
pub fn frames(mut bytes: &[u8]) {
    loop {
        match frame::decode(bytes) {
            Ok(Decoded::Frame { kind, payload, consumed }) => {
                assert!(consumed > payload.len() && consumed <= bytes.len());
                for cut in [0, 1, 2, consumed - 1].map(|cut| cut.min(consumed - 1)) {
                    let part = frame::decode(&bytes[..cut]).expect("a frame's beginning");
                    assert!(matches!(part, Decoded::Incomplete { need } if need > cut && need <= consumed));
                }
                // An invalid payload may be refused; an accepted one must survive a round trip.
                let _ = payload_of(kind, payload);
                bytes = &bytes[consumed..];
            }
            Ok(Decoded::Incomplete { need }) => {
                assert!(need > bytes.len(), "the frame would never be complete");
                assert!(need <= MAX_PACKET + 1024 + HEADER, "{need} bytes would be buffered");
                return;
            }
            Err(_) => return,
        }
    }
}

/// Parses a control frame whose type is given by the first byte of the input; HELLO is fed in
/// pieces, too.
pub fn hello(bytes: &[u8]) {
    let Some((&choice, payload)) = bytes.split_first() else { return };
    let kinds = [frame::WELCOME, frame::CONFIG, frame::ACTIVATE, frame::HELLO];
    let kind = kinds[usize::from(choice) % kinds.len()];
    let _ = payload_of(kind, payload);
    if kind == frame::HELLO {
        let mut whole = HelloReader::new();
        let mut pieces = HelloReader::new();
        let expected = whole.feed(payload);
        let step = usize::from(choice / 4) + 1;
        for (at, piece) in payload.chunks(step).enumerate() {
            match (pieces.feed(piece), &expected) {
                (Ok(None), _) => {}
                (Ok(Some((hello, rest))), Ok(Some((same, all)))) => {
                    assert_eq!(&hello, same);
                    assert!(all.starts_with(&rest));
                    assert_eq!(payload.len() - all.len(), (at * step + piece.len()) - rest.len());
                    return;
                }
                (Err(error), Err(same)) => return assert_eq!(&error, same),
                (other, _) => panic!("{other:?} in pieces of {step}, {expected:?} as a whole"),
            }
        }
        assert_eq!(expected, Ok(None));
    }
}

/// Parses the payload of a frame; a payload that can be parsed is encoded and parsed again.
fn payload_of(kind: u8, payload: &[u8]) -> Result<(), ProtocolError> {
    match kind {
        _ if frame::is_data(kind) || kind == frame::COMPRESSED => record(kind, payload),
        frame::HELLO | frame::WELCOME | frame::CONFIG | frame::ACTIVATE => negotiation(kind, payload),
        _ => signal(kind, payload),
    }
}

/// Parses the payload of a frame with a record, encodes it and parses it again.
fn record(kind: u8, payload: &[u8]) -> Result<(), ProtocolError> {
    let mut wire = Vec::new();
    if frame::is_data(kind) {
        let packet = frame::read_packet(kind, payload)?;
        frame::put_packet(&mut wire, packet);
        assert_eq!(frame::read_packet(kind, reread(kind, &wire)), Ok(packet));
        return Ok(());
    }
    let read = frame::read_compressed(payload)?;
    assert!(read.length <= MAX_PACKET);
    if read.length > 0 {
        let zeros = vec![0; read.length];
        let packet = Packet { bytes: &zeros, offload: read.offload };
        frame::put_compressed(&mut wire, packet, read.bytes);
        let again = frame::read_compressed(reread(kind, &wire))?;
        assert_eq!((again.offload, again.length), (read.offload, read.length));
        assert_eq!(again.bytes, read.bytes);
    }
    Ok(())
}

/// Parses the payload of a frame that opens, activates or configures a path, encodes it and parses
/// it again.
fn negotiation(kind: u8, payload: &[u8]) -> Result<(), ProtocolError> {
    let mut wire = Vec::new();
    match kind {
        frame::HELLO => {
            let (hello, rest) = read_hello(payload)?;
            assert!(rest.is_empty());
            hello.put(&mut wire);
            assert_eq!(read_hello(reread(kind, &wire)), Ok((hello, Vec::new())));
        }
        frame::WELCOME => {
            let Welcome { epoch, rx_next, config, compression } = Welcome::decode(payload)?;
            Welcome::put(&mut wire, epoch, rx_next, config.version, &config.config, compression);
            let expected = Welcome { epoch, rx_next, config, compression };
            assert_eq!(Welcome::decode(reread(kind, &wire)), Ok(expected));
        }
        frame::CONFIG => {
            let read = VersionedConfig::decode(payload)?;
            VersionedConfig::put(&mut wire, read.version, &read.config);
            assert_eq!(VersionedConfig::decode(reread(kind, &wire)), Ok(read));
        }
        _ => {
            let mut activate = Activate::decode(payload)?;
            activate.put(&mut wire);
            activate.keep.truncate(Activate::MAX_KEEP);
            assert_eq!(Activate::decode(reread(kind, &wire)), Ok(activate));
        }
    }
    Ok(())
}

/// Parses the payload of any other control frame, encodes it and parses
/// it again.
fn signal(kind: u8, payload: &[u8]) -> Result<(), ProtocolError> {
    let mut wire = Vec::new();
    match kind {
        frame::SEQ | frame::ACK => {
            let number = message::decode_number("SEQ", payload)?;
            frame::put_number(&mut wire, kind, number);
            assert_eq!(message::decode_number("SEQ", reread(kind, &wire)), Ok(number));
        }
        frame::PING | frame::PONG => {
            let nonce = message::decode_nonce("PING", payload)?;
            message::put_nonce(&mut wire, kind, nonce);
            assert_eq!(reread(kind, &wire), payload);
        }
        frame::CLOSE => {
            let code = message::decode_close(payload)?;
            message::put_close(&mut wire, code);
            assert_eq!(message::decode_close(reread(kind, &wire)), Ok(code));
            assert!(!code.to_string().is_empty());
        }
        frame::DOUBT => message::decode_empty("DOUBT", payload)?,
        frame::CONFIRM => {
            let read = Announcement::decode_confirmation(payload)?;
            message::put_confirm(&mut wire, &read);
            assert_eq!(Announcement::decode_confirmation(reread(kind, &wire)), Ok(read));
        }
        _ => {}
    }
    Ok(())
}

/// Returns the payload of the frame that fills `wire`.
fn reread(kind: u8, wire: &[u8]) -> &[u8] {
    match frame::decode(wire) {
        Ok(Decoded::Frame { kind: same, payload, consumed }) if same == kind && consumed == wire.len() => {
            payload
        }
        other => panic!("an encoded frame is not decoded: {other:?}"),
    }
}

fn read_hello(payload: &[u8]) -> Result<(Hello, Vec<u8>), ProtocolError> {
    let mut wire = Vec::new();
    frame::put(&mut wire, frame::HELLO, payload);
    HelloReader::new().feed(&wire).map(|hello| hello.expect("the frame is complete"))
}

/// Parses the input as both enrolment messages, and all its prefixes likewise.
pub fn enrolment(bytes: &[u8]) {
    by_prefix(bytes, enroll::read_request);
    by_prefix(bytes, enroll::read_reply);
    if let Ok(Some(request)) = enroll::read_request(bytes) {
        assert_eq!(enroll::read_request(&enroll::encode_request(&request)), Ok(Some(request)));
    }
    if let Ok(Some(answer)) = enroll::read_reply(bytes) {
        if let EnrolmentReply::Enrolled(name) = &answer {
            assert!(!name.chars().any(char::is_control), "a control character would be printed");
        }
        assert_eq!(enroll::read_reply(&enroll::encode_reply(&answer)), Ok(Some(answer)));
    }
}

/// Checks that a prefix that is parsed or refused gives the same result as the whole input.
fn by_prefix<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    read: impl Fn(&[u8]) -> Result<Option<T>, ProtocolError>,
) {
    let whole = read(bytes);
    for cut in 0..bytes.len().min(300) {
        match read(&bytes[..cut]) {
            Ok(None) => {}
            settled => return assert_eq!(settled, whole, "decided by {cut} bytes"),
        }
    }
}

/// Returns seeds: one frame of each type, as the encoders write it.
#[must_use]
pub fn frame_seeds() -> Vec<Vec<u8>> {
    let mut seeds = control_frames();
    let bytes = [0x45; 60];
    for offload in [Offload::None, Offload::Checksum, Offload::Segment(1448)] {
        let packet = Packet { bytes: &bytes, offload };
        seeds.push(one(|out| frame::put_packet(out, packet)));
        seeds.push(one(|out| frame::put_compressed(out, packet, b"made")));
    }
    for number in [0, 0x3f, 0x3fff, 0x3fff_ffff, u64::MAX >> 3] {
        seeds.push(one(|out| frame::put_number(out, frame::SEQ, number)));
        seeds.push(one(|out| frame::put_number(out, frame::ACK, number)));
    }
    for kind in [frame::PING, frame::PONG] {
        seeds.push(one(|out| message::put_nonce(out, kind, 0x0102_0304_0506_0708)));
    }
    for code in (0..=9).map(CloseCode::from_wire) {
        seeds.push(one(|out| message::put_close(out, code)));
    }
    seeds.push(one(|out| frame::put(out, frame::DOUBT, &[])));
    seeds.push(one(|out| message::put_confirm(out, &announcement())));
    seeds.push(one(|out| frame::put(out, frame::FIRST_IGNORABLE, &[9; 70])));
    let all = seeds.concat();
    seeds.push(all);
    seeds
}

/// Returns seeds for [`hello`]: control frames after the byte that gives their type.
#[must_use]
pub fn hello_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for wire in control_frames() {
        let Ok(Decoded::Frame { kind, payload, .. }) = frame::decode(&wire) else { continue };
        match kind {
            frame::WELCOME => seeds.push([&[0], payload].concat()),
            frame::CONFIG => seeds.push([&[1], payload].concat()),
            frame::ACTIVATE => seeds.push([&[2], payload].concat()),
            _ => {
                seeds.push([&[3], payload].concat());
                // The whole frame, in pieces of 1 and of 6 bytes, with bytes after it.
                seeds.push([&[3], &wire[..], b"rest"].concat());
                seeds.push([&[23], &wire[..], b"rest"].concat());
            }
        }
    }
    seeds
}

/// Returns seeds: both enrolment messages, with every refusal.
#[must_use]
pub fn enrolment_seeds() -> Vec<Vec<u8>> {
    let token = EnrolmentRequest::Enroll(Token::from_bytes([0xab; TOKEN_LEN]));
    let change = EnrolmentRequest::ChangeKey(KeyChange { new_key: [3; 32], signature: [4; 64] });
    let mut seeds = vec![enroll::encode_request(&token).to_vec(), enroll::encode_request(&change).to_vec()];
    seeds.push(enroll::encode_reply(&EnrolmentReply::Enrolled("laptop".into())));
    seeds.extend(
        (0..10).map(|code| enroll::encode_reply(&EnrolmentReply::Refused(EnrolmentRefusal::from_wire(code)))),
    );
    seeds
}

/// Returns HELLO, WELCOME, ACTIVATE and CONFIG, with all optional parts and with none.
fn control_frames() -> Vec<Vec<u8>> {
    let least = PushConfig { mtu: 1280, ..PushConfig::default() };
    let full = PushConfig {
        ipv4: Some([10, 77, 0, 2].into()),
        ipv6: Some([0xfd00, 0x77, 0, 0, 0, 0, 0, 2].into()),
        mtu: 1500,
        dns: vec![[10, 77, 0, 1].into(), [0xfd00, 0x77, 0, 0, 0, 0, 0, 1].into()],
        relay: announcement().into_shared(),
    };
    let mut frames = Vec::new();
    for compression in [false, true] {
        let session = SessionId([1; 16]);
        let hello = Hello { session, epoch: 7, path: PathId(2), switch: 3, compression };
        frames.push(one(|out| hello.put(out)));
        for config in [&least, &full] {
            frames.push(one(|out| Welcome::put(out, 7, 300, 1, config, compression)));
            frames.push(one(|out| VersionedConfig::put(out, 2, config)));
        }
    }
    // A relay of a later version sends an item that this version does not know.
    frames.push(one(|out| {
        let mut payload = vec![0; 8];
        payload[7] = 7;
        payload.extend_from_slice(&[0, 0]);
        full.encode(&mut payload);
        config::put_item(&mut payload, 99, b"later");
        frame::put(out, frame::WELCOME, &payload);
    }));
    for keep in [vec![], vec![PathId(1), PathId(2)], (0..200).map(PathId).collect()] {
        frames.push(one(|out| Activate { epoch: 7, switch: 4, rx_next: 70_000, keep }.put(out)));
    }
    frames
}

/// Returns an announcement with both parts.
fn announcement() -> Announcement {
    Announcement { key: Some([5; 32]), endpoint: Some("relay.example.org:443".into()) }
}

fn one(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out);
    out
}
