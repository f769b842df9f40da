//! TCP for a path: bound to its uplink, tuned so that the queue stays ours and a dead peer is noticed.

use std::io;
use std::net::SocketAddr;
use std::sync::Once;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::sysctl;

/// Bytes the kernel may hold unsent before the socket stops being writable. What is in the kernel can neither be
/// reordered nor moved to another path, so it is little; but the socket must not run dry before we are woken: half
/// of this (when the kernel wakes us) lasts 130 µs at 1 Gbit/s.
pub(crate) const NOTSENT_LOWAT: u32 = 32 * 1024;

/// What is asked for when a path is to have room for more. The kernel takes it for twice as much memory, of which nine tenths are
/// bytes on their way at the most: somewhat more than a session may have unacknowledged.
const SEND_BUFFER: usize = 10 << 20;

/// The congestion control that goes by rate and round trip, not by loss.
const BBR: &str = "bbr";

/// Those that go by loss and do not pace, the better one first; every kernel has the second.
const LOSS_BASED: [&str; 2] = ["cubic", "reno"];

/// How long sent data may stay unacknowledged before the kernel drops the connection. The session notices a dead
/// path within seconds by itself: this only frees the sockets nobody asks for any more.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// An idle path is probed after this long, and every so often after. The session's own PING comes first (45 s) and
/// keeps the kernel quiet, on both sides; below the 2 minutes after which the meanest NATs forget a connection.
const KEEPALIVE: Duration = Duration::from_secs(75);

/// Connections the kernel holds until they are accepted: a relay's restart makes all its clients return at once.
const BACKLOG: i32 = 1024;

/// Why a path's TCP connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The relay could not be reached.
    #[error("cannot reach {endpoint}{via}: {source}")]
    Connect {
        /// The relay's address.
        endpoint: SocketAddr,
        /// ` over IFNAME`, or nothing.
        via: String,
        /// What the system says.
        source: io::Error,
    },
    /// The port cannot be listened on.
    #[error("cannot listen on {address}: {source}{hint}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
}

/// Connects to the relay, over the uplink `ifname` if one is given, whatever the default route says.
///
/// # Errors
/// When the relay does not answer within `timeout`, or the uplink cannot be used.
pub async fn connect(
    endpoint: SocketAddr,
    ifname: Option<&str>,
    timeout: Duration,
) -> Result<TcpStream, TransportError> {
    let attempt = async {
        let socket = if endpoint.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(name) = ifname {
            socket.bind_device(Some(name.as_bytes()))?;
        }
        avoid_bbr_at_start(&SockRef::from(&socket));
        let stream = socket.connect(endpoint).await?;
        tune(&stream)?;
        Ok(stream)
    };
    let outcome = tokio::time::timeout(timeout, attempt).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {timeout:?}")))
    });
    outcome.map_err(|source| TransportError::Connect {
        endpoint,
        via: ifname.map(|name| format!(" over {name}")).unwrap_or_default(),
        source,
    })
}

/// Listens for paths.
///
/// An IPv6 wildcard listens for IPv4 as well.
///
/// # Errors
/// When the address is busy or not ours.
pub fn listen(address: SocketAddr) -> Result<TcpListener, TransportError> {
    bind(address).map_err(|source| {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => {
                ": another program has the port; stop it, or choose another in [listen]"
            }
            io::ErrorKind::PermissionDenied => ": run as root, or with CAP_NET_BIND_SERVICE",
            io::ErrorKind::AddrNotAvailable => ": this host has no such address",
            _ => "",
        };
        TransportError::Listen { address, source, hint }
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    // A restarted relay takes its port back although connections of its predecessor linger in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    avoid_bbr_at_start(&SockRef::from(&socket));
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Sets what every path's socket needs; `connect` has done it, an accepted socket needs it.
///
/// # Errors
/// When the socket refuses an option every supported kernel has.
pub fn tune(tcp: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    Ok(())
}

/// Closes a connection nobody has read from, with a reset: the cheapest end, after which the kernel keeps nothing of it.
pub fn reset(tcp: TcpStream) {
    // Closed in any case; without the option it lingers a minute as one of thousands in TIME_WAIT.
    let _ = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
    drop(tcp);
}

/// Where the system's congestion control goes by rate, lets a path, or all that a socket will accept, begin with one that does not
/// pace: to go by rate is for those that show bounds ([`switch_to_bbr`]), and the kernel never stops to pace a connection. For a socket
/// that is not connected yet. A route that says what it is (`ip route … congctl`) counts for more.
fn avoid_bbr_at_start(socket: &SockRef<'_>) {
    static LOGGED: Once = Once::new();
    if !socket.tcp_congestion().is_ok_and(|name| is_bbr(&name)) {
        return;
    }
    if !LOSS_BASED.iter().any(|name| socket.set_tcp_congestion(name.as_bytes()).is_ok()) {
        LOGGED.call_once(|| {
            tracing::info!(
                "{} not allowed: paths begin with {BBR}, as the system has it",
                LOSS_BASED.join(", ")
            );
        });
    }
}

/// A congestion control's name, as the kernel has it.
pub(crate) type CongestionControl = Vec<u8>;

/// Gives a path the congestion control that goes by rate; tells which one it had, if that was another. A kernel that has none, or does
/// not let us, keeps its own: slower keystrokes beside an upload, no failure.
pub(crate) fn switch_to_bbr(tcp: &TcpStream) -> Option<CongestionControl> {
    static LOGGED: Once = Once::new();
    let socket = SockRef::from(tcp);
    let before = socket.tcp_congestion().ok();
    if let Err(error) = socket.set_tcp_congestion(BBR.as_bytes()) {
        LOGGED.call_once(|| {
            tracing::info!(%error, "no {BBR}: paths keep the congestion control they began with");
        });
        return None;
    }
    before.filter(|name| !is_bbr(name))
}

/// Gives a path back the congestion control that it had. False: it keeps the one it has.
pub(crate) fn restore_congestion_control(tcp: &TcpStream, before: &CongestionControl) -> bool {
    SockRef::from(tcp).set_tcp_congestion(before).is_ok()
}

/// The kernel ends a name with zeros.
fn is_bbr(name: &CongestionControl) -> bool {
    name.split(|&byte| byte == 0).next() == Some(BBR.as_bytes())
}

/// Gives a path room for more on its way than the kernel's bound for one connection (`tcp_wmem`, 4 MiB): all inner connections
/// share it. Where that is larger already it stays, and where CAP_NET_ADMIN does not count (in a user namespace).
pub(crate) fn raise_send_buffer(tcp: &TcpStream) {
    static LOGGED: Once = Once::new();
    // Least, first and greatest. One that cannot be read is taken for the kernel's own.
    let bound = sysctl::read("net/ipv4/tcp_wmem").ok();
    let bound: Option<usize> = bound.and_then(|three| three.split_whitespace().last()?.parse().ok());
    if bound.is_some_and(|bound| bound >= 2 * SEND_BUFFER) {
        return;
    }
    if let Err(error) = setsockopt(tcp, sockopt::SndBufForce, &SEND_BUFFER) {
        LOGGED.call_once(|| {
            tracing::info!(%error, "no more may be on the way over a path than tcp_wmem allows");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[tokio::test]
    async fn a_path_is_tuned_on_both_sides() {
        let listener = listen(any()).unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) =
            tokio::join!(connect(address, Some("lo"), Duration::from_secs(5)), listener.accept());
        let (near, far) = (near.unwrap(), far.unwrap().0);
        tune(&far).unwrap();
        for stream in [&near, &far] {
            let socket = SockRef::from(stream);
            assert!(socket.tcp_nodelay().unwrap());
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
            assert!(socket.keepalive().unwrap());
        }
        assert_eq!(SockRef::from(&near).device().unwrap().as_deref(), Some(&b"lo"[..]));
    }

    #[test]
    fn a_path_that_would_begin_by_rate_begins_by_loss_and_others_as_the_system_has_it() {
        for (system_s, begins) in [(BBR, "cubic"), ("reno", "reno")] {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let chosen = socket.set_tcp_congestion(system_s.as_bytes());
            chosen.unwrap_or_else(|error| panic!("these tests run as root, with {system_s}: {error}"));
            avoid_bbr_at_start(&SockRef::from(&socket));
            let name = String::from_utf8(socket.tcp_congestion().unwrap()).unwrap();
            assert_eq!(name.trim_end_matches('\0'), begins);
        }
    }

    #[tokio::test]
    async fn a_busy_port_is_named_with_the_next_step() {
        let first = listen(any()).unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("[listen]"), "{error}");
    }

    #[tokio::test]
    async fn an_uplink_that_is_gone_is_named() {
        let error = connect(any(), Some("no-such-if"), Duration::from_secs(5)).await.unwrap_err().to_string();
        assert!(error.contains("over no-such-if"), "{error}");
    }
}
