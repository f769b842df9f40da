//! Reads the kernel's statistics of a TCP connection, for the liveness check and for the rate
//! control of its path.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::time::Duration;

use mobile_proto::TransportSample;
use nix::errno::Errno;
use nix::libc::{self, tcp_info};
use tokio::net::TcpStream;

use crate::rate_control::{Bbr, CongestionWindow, TcpSample};

/// The minimum length in bytes of `struct tcp_info` that the kernel must fill in; kernels before
/// 4.18 lack the field `delivered`.
const MIN_LENGTH: usize = offset_of!(tcp_info, tcpi_delivered) + size_of::<u32>();

/// Returns the statistics of a connection for the liveness check; `None` if the kernel does not
/// provide them.
pub(crate) fn liveness_sample(tcp: &TcpStream) -> Option<TransportSample> {
    read(tcp).ok().map(|info| sample(&info))
}

/// Returns the statistics of a connection for the rate control; `None` if the kernel does not
/// provide them.
pub(crate) fn send_sample(tcp: &TcpStream) -> Option<TcpSample> {
    let info = read(tcp).ok()?;
    let (outstanding, unsent) = (outstanding(tcp)?, u64::from(info.tcpi_notsent_bytes));
    // SACK counts segments. Assume the average length of the segments in flight, not the MSS,
    // because segments that only carry inner acknowledgements are short.
    let sent = outstanding.saturating_sub(unsent);
    let sacked = (sent * u64::from(info.tcpi_sacked))
        .checked_div(info.tcpi_unacked.into())
        .unwrap_or_default()
        .min(sent);
    Some(TcpSample {
        outstanding: outstanding - sacked,
        unsent,
        acked_bytes: info.tcpi_bytes_acked.saturating_add(sacked),
        window: CongestionWindow { segments: info.tcpi_snd_cwnd.into(), mss: info.tcpi_snd_mss.into() },
        pacing_rate: info.tcpi_pacing_rate,
        rtt: from_micros(info.tcpi_rtt),
        rttvar: from_micros(info.tcpi_rttvar),
        min_rtt: known_rtt(info.tcpi_min_rtt),
        recovering: info.tcpi_ca_state >= CA_RECOVERY,
        retransmitted: info.tcpi_total_retrans > 0,
        left_slow_start: info.tcpi_snd_ssthresh < INFINITE_SSTHRESH,
        bbr: bbr(tcp),
    })
}

/// Returns the number of bytes written to a connection but not acknowledged.
///
/// The option `TCP_INFO` is no alternative, because it only counts segments, of which many are
/// short.
fn outstanding(tcp: &TcpStream) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ of a socket) writes one int.
    let outcome = unsafe { libc::ioctl(tcp.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    Errno::result(outcome).ok()?;
    u64::try_from(bytes).ok()
}

/// The value of `ca_state` during fast retransmit (`TCP_CA_Recovery`, uapi/linux/tcp.h). The only
/// higher value is that of recovery after a retransmission time-out.
const CA_RECOVERY: u8 = 3;

/// The value of `snd_ssthresh` until slow start has ended (`TCP_INFINITE_SSTHRESH`,
/// include/net/tcp.h).
const INFINITE_SSTHRESH: u32 = 0x7fff_ffff;

/// The kernel's `struct tcp_bbr_info` (uapi/linux/inet_diag.h).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct BbrInfo {
    /// The estimated delivery rate in bytes per second, lower half first.
    bandwidth: [u32; 2],
    min_rtt: u32,
    pacing_gain: u32,
    cwnd_gain: u32,
}

/// The pacing gain 1.0 in bbr's fixed-point format (`BBR_UNIT`, net/ipv4/tcp_bbr.c). bbr paces at
/// 2.89 times the estimated rate during start-up, and at 1.25 times at most later.
const BBR_UNIT: u32 = 1 << 8;

/// Returns the state of bbr; `None` if the connection uses another congestion control.
fn bbr(tcp: &TcpStream) -> Option<Bbr> {
    let mut info = BbrInfo::default();
    let mut length = size_of::<BbrInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, all of them inside `info`, which is made of
    // integers only, so that any bytes are a value of it.
    let outcome = unsafe {
        let info = (&raw mut info).cast();
        libc::getsockopt(tcp.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_CC_INFO, info, &raw mut length)
    };
    Errno::result(outcome).ok()?;
    let [low, high] = info.bandwidth.map(u64::from);
    ((length as usize) == size_of::<BbrInfo>()).then(|| Bbr {
        min_rtt: known_rtt(info.min_rtt),
        rate: (high << 32) | low,
        starting: info.pacing_gain > 2 * BBR_UNIT,
    })
}

fn from_micros(micros: u32) -> Duration {
    Duration::from_micros(micros.into())
}

/// Converts a round trip in microseconds; returns `None` for the value of a kernel without a
/// measurement yet.
fn known_rtt(rtt: u32) -> Option<Duration> {
    (rtt != u32::MAX).then(|| from_micros(rtt))
}

fn read(tcp: &TcpStream) -> io::Result<tcp_info> {
    let mut info = zeroed();
    let mut length = size_of::<tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, all of them inside `info`, which is made of
    // integers only, so that any bytes are a value of it.
    let outcome = unsafe {
        let info = (&raw mut info).cast();
        libc::getsockopt(tcp.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, &raw mut length)
    };
    Errno::result(outcome)?;
    if (length as usize) < MIN_LENGTH { Err(io::ErrorKind::Unsupported.into()) } else { Ok(info) }
}

/// Returns statistics of zeros, which an older kernel leaves in the fields that it does not have.
fn zeroed() -> tcp_info {
    // SAFETY: the C structure consists of integers, for which zeros are valid.
    unsafe { std::mem::zeroed() }
}

fn sample(info: &tcp_info) -> TransportSample {
    let gone = info.tcpi_sacked.saturating_add(info.tcpi_lost);
    TransportSample {
        delivered: info.tcpi_delivered,
        in_flight: info.tcpi_unacked.saturating_sub(gone).saturating_add(info.tcpi_retrans),
        unacked: info.tcpi_unacked,
        // `tcpi_segs_out` would include bare acknowledgements, which are never acknowledged.
        segs_out: info.tcpi_data_segs_out,
        retransmitted: info.tcpi_total_retrans,
        last_ack: Duration::from_millis(u64::from(info.tcpi_last_ack_recv)),
        srtt: from_micros(info.tcpi_rtt),
        rttvar: from_micros(info.tcpi_rttvar),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_kernel_counts_delivered_segments() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut near, mut far) = (near.unwrap(), far.unwrap().0);
        near.set_nodelay(true).unwrap();
        let before = liveness_sample(&near).unwrap();
        assert!(before.srtt > Duration::ZERO && before.srtt < Duration::from_secs(1), "{before:?}");
        for _ in 0..10 {
            near.write_all(&[7; 100]).await.unwrap();
            far.read_exact(&mut [0; 100]).await.unwrap();
            far.write_all(&[8]).await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
        }
        let after = liveness_sample(&near).unwrap();
        assert_eq!(after.delivered.wrapping_sub(before.delivered), 10);
        assert_eq!(after.segs_out - before.segs_out, 10 + after.retransmitted);
        assert_eq!((after.unacked, after.in_flight), (0, 0));
        assert!(after.last_ack < Duration::from_secs(1));
        // Bytes from the peer are not segments of ours.
        far.write_all(&[9]).await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
        assert_eq!(liveness_sample(&near).unwrap().segs_out, after.segs_out);
    }

    #[tokio::test]
    async fn a_connection_that_has_sent_little_is_starting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut near, mut far) = (near.unwrap(), far.unwrap().0);
        socket2::SockRef::from(&near).set_tcp_congestion(b"bbr").expect("root, and a kernel with bbr");
        near.write_all(&[7; 100]).await.unwrap();
        far.read_exact(&mut [0; 100]).await.unwrap();
        let path = send_sample(&near).unwrap();
        let bbr = path.bbr.unwrap();
        assert!(bbr.starting && bbr.min_rtt.is_some_and(|rtt| rtt < Duration::from_secs(1)), "{path:?}");
        assert!(bbr.rate > 0 && bbr.rate < 1 << 40, "{path:?}");
        socket2::SockRef::from(&near).set_tcp_congestion(b"cubic").unwrap();
        let path = send_sample(&near).unwrap();
        assert!(
            path.bbr.is_none() && path.is_starting() && !path.left_slow_start && !path.retransmitted,
            "{path:?}"
        );
    }

    #[test]
    fn segments_deemed_lost_are_not_in_flight() {
        let info = tcp_info { tcpi_unacked: 10, tcpi_sacked: 2, tcpi_lost: 5, tcpi_retrans: 1, ..zeroed() };
        assert_eq!(sample(&info).in_flight, 4);
        let nonsense = tcp_info { tcpi_unacked: 1, tcpi_sacked: u32::MAX, tcpi_lost: 9, ..zeroed() };
        assert_eq!(sample(&nonsense).in_flight, 0);
        assert_eq!(MIN_LENGTH, 196);
    }
}
