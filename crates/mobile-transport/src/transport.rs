//! TCP connections for paths: bound to their uplink, with little unsent data in the kernel and
//! quick detection of dead peers.

use std::io;
use std::net::SocketAddr;
use std::sync::Once;
use std::time::Duration;

use mobile_host::sysctl;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::rate_control::{CongestionControl, CongestionOutcome};

/// The maximum number of unsent bytes in the kernel before the socket stops being writable.
///
/// Data in the kernel can neither be reordered nor moved to another path, so the limit is low.
/// However, the socket must not run out of data before this process is woken: half of the limit (at
/// which the kernel wakes the process) lasts 130 µs at 1 Gbit/s.
pub(crate) const NOTSENT_LOWAT: u32 = 32 * 1024;

/// The size in bytes of the send buffer to request for a path that needs a larger one.
///
/// The kernel doubles the requested size and uses at most nine tenths of the result for data in
/// flight, which is somewhat more than a session may have unacknowledged.
const SEND_BUFFER: usize = 10 << 20;

/// The name of the congestion control that follows the delivery rate and the round trip instead of
/// losses.
const BBR: &str = "bbr";

/// The names of loss-based congestion controls that do not pace, the preferred one first; every
/// kernel has reno.
const LOSS_BASED: [&str; 2] = ["cubic", "reno"];

/// The time for which sent data may stay unacknowledged before the kernel drops the connection.
///
/// The session itself detects a dead path within seconds. This time-out only frees sockets that no
/// session uses.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// The idle time after which the kernel sends a TCP keepalive, and the interval of further ones.
///
/// The session's own PING comes first (after 45 s), so that the kernel of neither side sends
/// keepalives. Both times are shorter than the two minutes after which the least patient NATs drop
/// a mapping.
const KEEPALIVE: Duration = Duration::from_secs(75);

/// The number of connections that the kernel queues for acceptance; large, because all clients
/// reconnect at once when a relay restarts.
const BACKLOG: i32 = 1024;

/// The reason why the TCP connection of a path could not be established.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The relay could not be reached.
    #[error("cannot reach {endpoint}{via}: {source}")]
    Connect {
        /// The address of the relay.
        endpoint: SocketAddr,
        /// The text ` over IFNAME` for a connection bound to an uplink, otherwise empty.
        via: String,
        /// The error of the system call.
        source: io::Error,
    },
    /// The relay cannot listen on the address.
    #[error("cannot listen on {address}: {source}{hint}")]
    Listen {
        /// The address of `[listen] address` in the relay's configuration.
        address: SocketAddr,
        /// The error of the system call.
        source: io::Error,
        /// A text with the next step for the user, or empty.
        hint: &'static str,
    },
}

/// Connects to the relay. If `ifname` names an uplink, the connection is bound to that device,
/// whatever the default route is.
///
/// # Errors
/// When the relay does not answer within `timeout`, or when the uplink cannot be used.
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

/// Creates the relay's listening socket for paths.
///
/// An IPv6 wildcard address also accepts IPv4.
///
/// # Errors
/// When the address is in use or does not belong to this host.
pub fn listen(address: SocketAddr) -> Result<TcpListener, TransportError> {
    bind(address).map_err(|source| {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => {
                ": another program uses the port; stop it, or choose another port in [listen]"
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
    // A restarted relay can bind its port although connections of its predecessor are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    avoid_bbr_at_start(&SockRef::from(&socket));
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Sets the socket options of a path.
///
/// [`connect`] calls this function itself; for an accepted socket the caller must do so.
///
/// # Errors
/// When the socket rejects an option that every supported kernel has.
pub fn tune(tcp: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    Ok(())
}

/// Closes a connection, of which no byte was read, with a reset (RST), after which the kernel keeps
/// no state for it.
pub fn reset(tcp: TcpStream) {
    // Dropping closes the socket in any case. Without the option it would stay in TIME_WAIT for a
    // minute, as one of thousands.
    let _ = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
    drop(tcp);
}

/// Selects a loss-based congestion control for a socket that is not yet connected, if the system's
/// default is bbr.
///
/// Sockets that a listener accepts inherit the setting. Only paths that turn out to be
/// bandwidth-limited use bbr ([`switch_to_bbr`]), because the kernel never stops pacing a
/// connection once it has been paced. The setting of a route (`ip route … congctl`) takes
/// precedence.
fn avoid_bbr_at_start(socket: &SockRef<'_>) {
    static LOGGED: Once = Once::new();
    if !socket.tcp_congestion().is_ok_and(|name| is_bbr(&name)) {
        return;
    }
    if !LOSS_BASED.iter().any(|name| socket.set_tcp_congestion(name.as_bytes()).is_ok()) {
        LOGGED.call_once(|| {
            tracing::info!(
                "cannot select {}: paths start with {BBR}, the default of the system",
                LOSS_BASED.join(", ")
            );
        });
    }
}

/// Switches a path to bbr.
///
/// If the kernel has no bbr or refuses it, the path keeps its congestion control: keystrokes are
/// slower during an upload, but nothing fails.
pub(crate) fn switch_to_bbr(tcp: &TcpStream) -> CongestionOutcome {
    static LOGGED: Once = Once::new();
    let socket = SockRef::from(tcp);
    let before = socket.tcp_congestion().ok();
    if let Err(error) = socket.set_tcp_congestion(BBR.as_bytes()) {
        LOGGED.call_once(|| {
            tracing::info!(%error, "cannot use {BBR}: paths keep their initial congestion control");
        });
        return CongestionOutcome::Unchanged;
    }
    before.filter(|name| !is_bbr(name)).map_or(CongestionOutcome::Unchanged, CongestionOutcome::Replaced)
}

/// Restores the earlier congestion control (`before`) of a path.
pub(crate) fn restore_congestion_control(tcp: &TcpStream, before: &CongestionControl) -> CongestionOutcome {
    let restored = SockRef::from(tcp).set_tcp_congestion(before);
    restored.map_or(CongestionOutcome::Unchanged, |()| CongestionOutcome::Restored)
}

/// Returns whether the congestion control `name`, which the kernel pads with zero bytes, is bbr.
fn is_bbr(name: &CongestionControl) -> bool {
    name.split(|&byte| byte == 0).next() == Some(BBR.as_bytes())
}

/// Raises the send buffer of a path above the kernel's limit for one connection (`tcp_wmem`, 4
/// MiB), because all inner connections share the path.
///
/// Has no effect if `tcp_wmem` is larger already, or in a user namespace, where `CAP_NET_ADMIN`
/// does not permit the change.
pub(crate) fn raise_send_buffer(tcp: &TcpStream) {
    static LOGGED: Once = Once::new();
    // The three values are minimum, default and maximum. If they cannot be read, assume the
    // kernel's defaults.
    let bound = sysctl::read("net/ipv4/tcp_wmem").ok();
    let bound: Option<usize> = bound.and_then(|three| three.split_whitespace().last()?.parse().ok());
    if bound.is_some_and(|bound| bound >= 2 * SEND_BUFFER) {
        return;
    }
    if let Err(error) = setsockopt(tcp, sockopt::SndBufForce, &SEND_BUFFER) {
        LOGGED.call_once(|| {
            tracing::info!(%error, "cannot raise the send buffer of a path: tcp_wmem limits its bytes in flight");
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
    fn a_path_starts_with_the_systems_congestion_control_unless_it_is_bbr() {
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
    async fn a_raised_send_buffer_is_larger_than_the_systems_limit() {
        let listener = listen(any()).unwrap();
        let path = connect(listener.local_addr().unwrap(), None, Duration::from_secs(5)).await.unwrap();
        raise_send_buffer(&path);
        let three = sysctl::read("net/ipv4/tcp_wmem").unwrap();
        let bound: usize = three.split_whitespace().last().unwrap().parse().unwrap();
        // The kernel reports twice the requested size (socket(7), SO_SNDBUF).
        let raised = SockRef::from(&path).send_buffer_size().unwrap();
        assert!(bound >= 2 * SEND_BUFFER || raised == 2 * SEND_BUFFER, "{raised}, {bound}");
    }

    #[tokio::test]
    async fn a_busy_port_is_named_with_the_next_step() {
        let first = listen(any()).unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("[listen]"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_uplink_is_named() {
        let error = connect(any(), Some("no-such-if"), Duration::from_secs(5)).await.unwrap_err().to_string();
        assert!(error.contains("over no-such-if"), "{error}");
    }
}
