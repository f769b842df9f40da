//! Forwards the log messages of the eBPF programs to the agent's log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::{io::unix::AsyncFd, task::JoinHandle};

use super::bpf_error::{BpfError, Result};

/// Starts a task that forwards the log messages of these eBPF programs to `tracing` until it is
/// aborted.
pub(super) fn spawn(ebpf: &mut Ebpf) -> Result<JoinHandle<()>> {
    let logger = EbpfLogger::init_with_logger(ebpf, ToTracing);
    let logger = logger.map_err(|error| BpfError::Logs(error.to_string()))?;
    // SAFETY: the logger owns its descriptor, and neither closes nor changes it before it is
    // dropped.
    let logger = unsafe { AsyncFd::register(logger) };
    let mut logger = logger.map_err(|error| BpfError::Logs(error.to_string()))?;
    Ok(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }))
}

/// A logger that passes each log message on to `tracing` at the same level.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: "mobile::bpf", "{message}"),
            log::Level::Warn => tracing::warn!(target: "mobile::bpf", "{message}"),
            log::Level::Info => tracing::info!(target: "mobile::bpf", "{message}"),
            log::Level::Debug => tracing::debug!(target: "mobile::bpf", "{message}"),
            log::Level::Trace => tracing::trace!(target: "mobile::bpf", "{message}"),
        }
    }

    fn flush(&self) {}
}
