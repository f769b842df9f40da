//! Sends one request over the agent's control socket and receives the reply, with timeouts. Sends
//! without raising SIGPIPE, because its disposition belongs to the program that uses the library.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use mobile_control::{Call, CallReply, CallRequest};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// The timeout in seconds of each of three steps: connecting to the agent, sending the request,
/// receiving the reply. The agent answers within milliseconds; a stopped agent must not block the
/// calling program.
const TIMEOUT_SECONDS: i64 = 5;

/// The maximum length of the agent's reply, in bytes. The longest reply is a refusal of a sentence
/// or two.
const MAX_REPLY: u64 = 64 * 1024;

/// Asks the agent that listens on the socket `path` to carry out `call`, and waits for the result.
pub(crate) fn call(path: &Path, call: Call) -> Result<(), Errno> {
    let address = UnixAddr::new(path)?;
    let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let timeout = TimeVal::seconds(TIMEOUT_SECONDS);
    setsockopt(&stream, sockopt::ReceiveTimeout, &timeout)?;
    // The send timeout applies to connect() too.
    setsockopt(&stream, sockopt::SendTimeout, &timeout)?;
    connect(stream.as_raw_fd(), &address).map_err(timeout_error)?;
    let mut request = serde_json::to_vec(&CallRequest::Call(call)).map_err(|_| Errno::EIO)?;
    request.push(b'\n');
    send_all(&stream, &request)?;
    match receive(stream)? {
        CallReply::Called(0) => Ok(()),
        CallReply::Called(errno) => Err(Errno::from_raw(errno)),
        CallReply::Refused(_) => Err(Errno::EPROTO),
    }
}

fn send_all(stream: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match send(stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(timeout_error(error)),
        }
    }
    Ok(())
}

fn receive(stream: OwnedFd) -> Result<CallReply, Errno> {
    let mut line = Vec::new();
    BufReader::new(UnixStream::from(stream).take(MAX_REPLY))
        .read_until(b'\n', &mut line)
        .map_err(|error| timeout_error(errno_of(&error)))?;
    if line.is_empty() {
        // The agent closed the connection: this user has too many open, or the agent ends.
        return Err(Errno::ECONNRESET);
    }
    serde_json::from_slice(&line).map_err(|_| Errno::EPROTO)
}

/// Maps EAGAIN, by which a socket reports a timeout, to ETIMEDOUT.
fn timeout_error(error: Errno) -> Errno {
    if error == Errno::EAGAIN { Errno::ETIMEDOUT } else { error }
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const SET: Call = Call::SetMobile { pid: 0, mobile: true };

    /// Returns the result of a call to an agent that sends `reply` to any request.
    fn call_with_reply(reply: &'static [u8]) -> Result<(), Errno> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(reply).unwrap();
            line
        });
        let result = call(&path, SET);
        assert_eq!(agent.join().unwrap(), "{\"call\":{\"set_mobile\":{\"pid\":0,\"mobile\":true}}}\n");
        result
    }

    #[test]
    fn every_reply_has_its_error_number() {
        assert_eq!(call_with_reply(b"{\"called\":0}\n"), Ok(()));
        assert_eq!(call_with_reply(b"{\"called\":3}\n"), Err(Errno::ESRCH));
        assert_eq!(call_with_reply(b"{\"refused\":\"not understood\"}\n"), Err(Errno::EPROTO));
        assert_eq!(call_with_reply(b"nonsense\n"), Err(Errno::EPROTO));
        assert_eq!(call_with_reply(b""), Err(Errno::ECONNRESET));
    }

    #[test]
    fn without_an_agent_a_call_fails_within_the_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        assert_eq!(call(&path, SET), Err(Errno::ENOENT));
        // The kernel accepts the connection, and no process answers.
        let listener = UnixListener::bind(&path).unwrap();
        let start = std::time::Instant::now();
        assert_eq!(call(&path, SET), Err(Errno::ETIMEDOUT));
        assert!(start.elapsed().as_secs() < 2 * TIMEOUT_SECONDS.unsigned_abs(), "{:?}", start.elapsed());
        drop(listener);
        assert_eq!(call(&path, SET), Err(Errno::ECONNREFUSED));
        assert_eq!(call(&dir.path().join("x".repeat(200)), SET), Err(Errno::ENAMETOOLONG));
    }
}
