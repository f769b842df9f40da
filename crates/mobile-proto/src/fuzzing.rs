//! Entry points of the fuzz targets: the parsers behind [`Session`](crate::Session), each with the
//! invariants that hold for any input, and the seeds of the corpora. Compiled with `--cfg fuzzing`
//! and for tests only.

mod acceptance;
mod messages;
mod packets;
mod streams;

pub use acceptance::{acceptance, acceptance_seeds};
pub use messages::{enrolment, enrolment_seeds, frame_seeds, frames, hello, hello_seeds};
pub use packets::{packet, packet_seeds};
pub use streams::{compression, compression_seeds};
