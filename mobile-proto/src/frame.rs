//! soon
/// The longest packet in bytes.
pub const MAX_PACKET: usize = 65_535 + 16;
