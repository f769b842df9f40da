//! Runs work that blocks on a thread of its own.

use super::request_error::RequestError;

/// Runs `work` on a blocking thread and returns its result.
pub(super) async fn blocking<T: Send + 'static, E: Into<RequestError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, RequestError> {
    tokio::task::spawn_blocking(work).await?.map_err(Into::into)
}
