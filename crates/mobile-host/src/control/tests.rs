use std::collections::BTreeMap;

use super::*;

type Message = BTreeMap<String, u32>;

fn message(number: u32) -> Message {
    Message::from([("number".to_owned(), number)])
}

fn socket_path() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/agent.sock");
    (dir, path)
}

#[tokio::test]
async fn a_command_reads_one_reply_and_then_a_series() {
    let (_dir, path) = socket_path();
    let listener = Listener::bind(&path, 0o660, None).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let command = tokio::task::spawn_blocking({
        let path = path.clone();
        move || {
            let mut client = Client::connect(&path).unwrap();
            let reply: Message = client.call(&message(1)).unwrap();
            let rest: Vec<Option<Message>> = (0..3).map(|_| client.next_line().unwrap()).collect();
            (reply, rest)
        }
    });
    let mut connection = listener.accept().await.unwrap();
    assert_eq!(connection.peer.pid, i32::try_from(std::process::id()).unwrap());
    assert_eq!(connection.peer.uid, nix::unistd::getuid().as_raw());
    assert!(connection.peer.pidfd.is_some());
    assert_eq!(connection.recv().await.unwrap(), Some(message(1)));
    for number in 2..5 {
        connection.send(&message(number)).await.unwrap();
    }
    drop(connection);
    let (reply, rest) = command.await.unwrap();
    assert_eq!(reply, message(2));
    assert_eq!(rest, [Some(message(3)), Some(message(4)), None]);
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_silent_slow_or_unreading_peer_times_out() {
    let (_dir, path) = socket_path();
    let mut listener = Listener::bind(&path, 0o600, None).unwrap();
    listener.step_timeout = Duration::from_millis(300);
    let late = Duration::from_secs(20);
    let _silent = UnixStream::connect(&path).await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    let left = tokio::time::timeout(late, connection.recv::<Message>()).await;
    assert_eq!(left.expect("a silent peer is left").unwrap(), None);

    // A byte sent now and then does not extend the deadline.
    let mut slow = UnixStream::connect(&path).await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    let dribbling = tokio::spawn(async move {
        while slow.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let left = tokio::time::timeout(late, connection.recv::<Message>()).await;
    assert_eq!(left.expect("a slow peer is left").unwrap(), None);
    drop(connection);
    tokio::time::timeout(late, dribbling).await.expect("the connection was not closed").unwrap();

    let _deaf = UnixStream::connect(&path).await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    let reply = "x".repeat(MAX_REPLY / 2);
    let left = tokio::time::timeout(late, connection.send(&reply)).await;
    let error = left.expect("a peer that does not read is left").unwrap_err();
    assert!(matches!(&error, ControlError::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut));
}

#[tokio::test]
async fn a_reply_may_be_longer_than_a_request() {
    let (_dir, path) = socket_path();
    let listener = Listener::bind(&path, 0o600, None).unwrap();
    let command = tokio::task::spawn_blocking({
        let path = path.clone();
        move || Client::connect(&path).unwrap().call::<_, Vec<u64>>(&message(1)).unwrap()
    });
    let mut connection = listener.accept().await.unwrap();
    assert_eq!(connection.recv().await.unwrap(), Some(message(1)));
    let reply: Vec<u64> = (0..MAX_REQUEST as u64).collect();
    connection.send(&reply).await.unwrap();
    assert_eq!(command.await.unwrap(), reply);
    let endless = "x".repeat(MAX_REPLY);
    assert!(matches!(connection.send(&endless).await, Err(ControlError::TooLong)));
}

#[tokio::test]
async fn after_an_invalid_line_the_connection_continues_but_not_after_a_long_one() {
    let (_dir, path) = socket_path();
    let listener = Listener::bind(&path, 0o600, None).unwrap();
    let mut raw = UnixStream::connect(&path).await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    raw.write_all(b"nonsense\n{\"number\":7}\n").await.unwrap();
    assert!(matches!(connection.recv::<Message>().await, Err(ControlError::BadMessage(_))));
    assert_eq!(connection.recv().await.unwrap(), Some(message(7)));
    raw.write_all(&vec![b'x'; MAX_REQUEST + 1]).await.unwrap();
    assert!(matches!(connection.recv::<Message>().await, Err(ControlError::TooLong)));
    let mut raw = UnixStream::connect(&path).await.unwrap();
    let mut connection = listener.accept().await.unwrap();
    raw.write_all(b"{\"half").await.unwrap();
    drop(raw);
    assert_eq!(connection.recv::<Message>().await.unwrap(), None);
}

/// A child that a killed service was about to start still holds the listening socket.
#[tokio::test]
async fn a_socket_that_outlives_its_service_is_stale() {
    use nix::libc;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
    use std::os::fd::AsRawFd;

    let (_dir, path) = socket_path();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let held = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(held.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    // SAFETY: the child makes two system calls and touches no memory.
    let service = unsafe {
        match libc::fork() {
            0 => libc::_exit(libc::listen(held.as_raw_fd(), 8)),
            child => child,
        }
    };
    // SAFETY: a null pointer is valid: it tells the kernel not to write a status.
    assert_eq!(unsafe { libc::waitpid(service, std::ptr::null_mut(), 0) }, service);
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert!(matches!(Client::connect(&path), Err(ControlError::NotRunning { .. })));
    Listener::bind(&path, 0o600, None).unwrap();
}

#[tokio::test]
async fn a_socket_in_use_is_kept_and_a_stale_one_is_replaced() {
    let (_dir, path) = socket_path();
    let first = Listener::bind(&path, 0o600, None).unwrap();
    let second = Listener::bind(&path, 0o600, None).unwrap_err();
    assert!(matches!(&second, ControlError::AlreadyRunning(p) if *p == path), "{second}");
    drop(first);
    // A killed service leaves its socket file behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let third = Listener::bind(&path, 0o600, None).unwrap();
    // The file belongs to a successor, so dropping `third` must not remove it.
    fs::remove_file(&path).unwrap();
    let fourth = Listener::bind(&path, 0o600, None).unwrap();
    drop(third);
    assert!(path.exists());
    drop(fourth);
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(&path, 0o600, None), Err(ControlError::Io { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn errors_name_the_socket_or_the_group() {
    let (_dir, path) = socket_path();
    let error = Client::connect(&path).unwrap_err().to_string();
    assert_eq!(error, format!("cannot connect to {}: No such file or directory", path.display()));
    let error = Listener::bind(&path, 0o660, Some("no-such-group")).unwrap_err().to_string();
    assert!(error.contains("no-such-group"), "{error}");
    assert!(!path.exists());
}
