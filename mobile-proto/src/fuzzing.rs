//! What the fuzz targets call: the parsers behind [`Session`](crate::Session), each with what must hold for any input,
//! and the messages that the corpora begin with. Built with `--cfg fuzzing` only.

mod acceptance;
mod messages;
mod packets;
mod streams;

pub use acceptance::{acceptance, acceptance_seeds};
pub use messages::{enrolment, enrolment_seeds, frame_seeds, frames, hello, hello_seeds};
pub use packets::{packet, packet_seeds};
pub use streams::{compression, compression_seeds};
