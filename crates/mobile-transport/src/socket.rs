//! The TCP socket below a path's TLS connection, which reads more bytes from the kernel than rustls
//! asks for.
//!
//! rustls asks for 4 KiB at a time, and a system call costs more than copying that many bytes from
//! a buffer.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The number of bytes to read from the kernel at a time: eight TLS records. If the number were
/// much larger, the bytes would leave the processor's cache before they are decrypted.
const READ_AHEAD: usize = 128 * 1024;

thread_local! {
    /// The buffer that no socket on this thread uses at the moment.
    ///
    /// A socket holds a buffer only while it has unread bytes, so thousands of idle ones hold none.
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// A TCP connection that reads more bytes from the kernel than the caller asks for, and keeps the
/// rest for the next read.
#[derive(Debug)]
pub struct ReadAheadSocket {
    tcp: TcpStream,
    ahead: Option<ReadAhead>,
    /// The number of bytes that may still be read from the connection; `None` if reads are not
    /// limited.
    allowance: Option<usize>,
}

/// The error of a read beyond the limit of [`ReadAheadSocket::limit`]: the peer sent more than a
/// handshake needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("received more bytes than a handshake needs")]
pub(crate) struct AllowanceExceeded;

/// Bytes that were read from the kernel but not yet returned to the caller.
#[derive(Debug)]
struct ReadAhead {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl ReadAheadSocket {
    /// Wraps a connection; reads and writes should go through the wrapper only.
    #[must_use]
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, ahead: None, allowance: None }
    }

    /// Disables reading ahead and limits further reads to `bytes` in total; a read beyond that
    /// fails.
    pub fn limit(&mut self, bytes: usize) {
        self.allowance = Some(bytes);
    }

    /// Removes the limit on reads.
    pub fn lift_limit(&mut self) {
        self.allowance = None;
    }

    /// Returns the underlying connection.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Reads at most as many bytes as `allowance`, the limit on reads, permits and `out` has room
    /// for.
    fn poll_read_limited(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        allowance: usize,
    ) -> Poll<io::Result<()>> {
        if allowance == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, AllowanceExceeded)));
        }
        let length = allowance.min(out.remaining());
        let mut part = ReadBuf::new(out.initialize_unfilled_to(length));
        ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        out.advance(read);
        self.allowance = Some(allowance - read);
        Poll::Ready(Ok(()))
    }

    /// Copies bytes that were read from the kernel earlier to `out`.
    fn take_ahead(&mut self, out: &mut ReadBuf<'_>) {
        let Some(ahead) = &mut self.ahead else { return };
        let length = out.remaining().min(ahead.end - ahead.start);
        out.put_slice(&ahead.buffer[ahead.start..ahead.start + length]);
        ahead.start += length;
        if ahead.start == ahead.end
            && let Some(ReadAhead { buffer, .. }) = self.ahead.take()
        {
            SPARE.set(Some(buffer));
        }
    }
}

impl AsyncRead for ReadAheadSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(allowance) = self.allowance {
            return self.poll_read_limited(cx, out, allowance);
        }
        if self.ahead.is_none() {
            let mut buffer = SPARE.take().unwrap_or_else(|| vec![0; READ_AHEAD].into_boxed_slice());
            let mut read = ReadBuf::new(&mut buffer);
            let outcome = Pin::new(&mut self.tcp).poll_read(cx, &mut read);
            let end = read.filled().len();
            // The read is pending or failed, or the peer disconnected: there is nothing to keep.
            if end == 0 {
                SPARE.set(Some(buffer));
                return outcome;
            }
            ready!(outcome)?;
            self.ahead = Some(ReadAhead { buffer, start: 0, end });
        }
        self.take_ahead(out);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAheadSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, ReadAheadSocket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), ReadAheadSocket::new(far.unwrap().0))
    }

    #[tokio::test]
    async fn every_byte_comes_in_order_and_then_the_end() {
        let (mut near, mut socket) = pair().await;
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| ((i * 31) >> 8) as u8).collect();
        let writing = tokio::spawn({
            let sent = sent.clone();
            async move {
                near.write_all(&sent).await.unwrap();
            }
        });
        let (mut got, mut piece) = (Vec::new(), [0; 777]);
        loop {
            let read = socket.read(&mut piece).await.unwrap();
            if read == 0 {
                break;
            }
            got.extend_from_slice(&piece[..read]);
        }
        writing.await.unwrap();
        assert!(got == sent);
    }

    #[tokio::test]
    async fn no_more_is_read_than_is_allowed() {
        let (mut near, mut socket) = pair().await;
        near.write_all(&[7; 1000]).await.unwrap();
        socket.limit(100);
        let mut piece = [0; 77];
        assert_eq!(socket.read(&mut piece).await.unwrap(), 77);
        assert_eq!(socket.read(&mut piece).await.unwrap(), 23);
        let error = socket.read(&mut piece).await.unwrap_err();
        assert!(
            error.get_ref().and_then(|inner| inner.downcast_ref::<AllowanceExceeded>()).is_some(),
            "{error}"
        );
        socket.lift_limit();
        let mut rest = vec![0; 900];
        socket.read_exact(&mut rest).await.unwrap();
        assert!(rest.iter().all(|byte| *byte == 7));
    }

    #[tokio::test]
    async fn a_socket_with_nothing_unread_holds_no_buffer() {
        let (mut near, mut socket) = pair().await;
        near.write_all(b"four").await.unwrap();
        let mut piece = [0; 2];
        socket.read_exact(&mut piece).await.unwrap();
        assert_eq!((&piece, socket.ahead.is_some()), (b"fo", true));
        socket.read_exact(&mut piece).await.unwrap();
        assert_eq!((&piece, socket.ahead.is_some()), (b"ur", false));
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(5), socket.read(&mut piece));
        assert!(waiting.await.is_err() && socket.ahead.is_none());
    }
}
