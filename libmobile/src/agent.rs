//! One call over the agent's control socket. Bounded in time, and without SIGPIPE, which is the
//! program's own.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use mobile_control::{CallReply, Call, CallRequest};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// How long the agent may take for each step: to accept, to read, to answer. It answers within milliseconds; a
/// stopped one must not stop the program.
const PATIENCE_SECONDS: i64 = 5;

/// The longest answer: a refusal of a sentence or two.
const MAX_ANSWER: u64 = 64 * 1024;

/// Asks the agent at `path` to do it.
pub(crate) fn call(path: &Path, call: Call) -> Result<(), Errno> {
    let address = UnixAddr::new(path)?;
    let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = TimeVal::seconds(PATIENCE_SECONDS);
    setsockopt(&stream, sockopt::ReceiveTimeout, &patience)?;
    // This bounds connect() too.
    setsockopt(&stream, sockopt::SendTimeout, &patience)?;
    connect(stream.as_raw_fd(), &address).map_err(in_time)?;
    let mut question = serde_json::to_vec(&CallRequest::Call(call)).map_err(|_| Errno::EIO)?;
    question.push(b'\n');
    send_all(&stream, &question)?;
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
            Err(error) => return Err(in_time(error)),
        }
    }
    Ok(())
}

fn receive(stream: OwnedFd) -> Result<CallReply, Errno> {
    let mut line = Vec::new();
    BufReader::new(UnixStream::from(stream).take(MAX_ANSWER))
        .read_until(b'\n', &mut line)
        .map_err(|error| in_time(number(&error)))?;
    if line.is_empty() {
        // It hung up: too many calls of this user at once, or its end.
        return Err(Errno::ECONNRESET);
    }
    serde_json::from_slice(&line).map_err(|_| Errno::EPROTO)
}

/// A timeout of a socket is told as EAGAIN.
fn in_time(error: Errno) -> Errno {
    if error == Errno::EAGAIN { Errno::ETIMEDOUT } else { error }
}

fn number(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const SET: Call = Call::SetMobile { pid: 0, mobile: true };

    /// What a call says of an agent that answers so to whatever it hears.
    fn against(answer: &'static [u8]) -> Result<(), Errno> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(answer).unwrap();
            line
        });
        let result = call(&path, SET);
        assert_eq!(agent.join().unwrap(), "{\"call\":{\"set_mobile\":{\"pid\":0,\"mobile\":true}}}\n");
        result
    }

    #[test]
    fn every_answer_has_its_number() {
        assert_eq!(against(b"{\"called\":0}\n"), Ok(()));
        assert_eq!(against(b"{\"called\":3}\n"), Err(Errno::ESRCH));
        assert_eq!(against(b"{\"refused\":\"not understood\"}\n"), Err(Errno::EPROTO));
        assert_eq!(against(b"nonsense\n"), Err(Errno::EPROTO));
        assert_eq!(against(b""), Err(Errno::ECONNRESET));
    }

    #[test]
    fn without_an_agent_there_is_an_error_and_it_comes_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        assert_eq!(call(&path, SET), Err(Errno::ENOENT));
        // Accepted by the kernel, and never answered.
        let listener = UnixListener::bind(&path).unwrap();
        let start = std::time::Instant::now();
        assert_eq!(call(&path, SET), Err(Errno::ETIMEDOUT));
        assert!(start.elapsed().as_secs() < 2 * PATIENCE_SECONDS.unsigned_abs(), "{:?}", start.elapsed());
        drop(listener);
        assert_eq!(call(&path, SET), Err(Errno::ECONNREFUSED));
        assert_eq!(call(&dir.path().join("x".repeat(200)), SET), Err(Errno::ENAMETOOLONG));
    }
}
