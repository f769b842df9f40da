//! Collects what a test logs.

use std::io;
use std::sync::{Arc, Mutex};

/// A log writer that collects all lines.
#[derive(Clone, Default)]
pub(super) struct LogBuffer(pub(super) Arc<Mutex<Vec<u8>>>);

impl io::Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts collecting what this thread logs.
pub(super) fn log() -> (LogBuffer, tracing::subscriber::DefaultGuard) {
    let log = LogBuffer::default();
    let buffer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || buffer.clone()).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

/// Returns the number of log lines that contain `words`.
pub(super) fn lines(log: &LogBuffer, words: &str) -> usize {
    String::from_utf8_lossy(&log.0.lock().unwrap()).lines().filter(|line| line.contains(words)).count()
}
