use std::future::poll_fn;
use std::process::Command;
use std::time::Duration;

use mobile_proto::{Offload, Packet};

use super::*;

#[test]
fn packets_pass_in_both_directions() {
    in_new_namespace(async {
        let tun = Tun::open("mobile0", DeviceLifetime::Process, Offloading::Auto).unwrap();
        run("ip link set mobile0 up");
        run("ip addr add 192.0.2.1/24 dev mobile0");
        let socket = tokio::net::UdpSocket::bind("192.0.2.1:7").await.unwrap();
        socket.send_to(b"out", "192.0.2.9:9").await.unwrap();
        let mut buf = [0; 2048];
        let (packet, offload) = loop {
            let headers = poll_fn(|cx| tun.poll_recv(cx, &mut buf)).await.unwrap();
            // The kernel sends IPv6 packets of its own on a new link.
            if buf[0] >> 4 == 4 {
                break (&mut buf[..headers.len()], headers.offload());
            }
        };
        assert!(packet.ends_with(b"out"));
        // With addresses and ports swapped the packet is a reply, for which both checksums are
        // still valid.
        for (a, b, length) in [(12, 16, 4), (20, 22, 2)] {
            for i in 0..length {
                packet.swap(a + i, b + i);
            }
        }
        assert_eq!(offload, Offload::Checksum);
        tun.try_send(Packet { bytes: packet, offload }.into()).unwrap();
        let mut answer = [0; 16];
        let (length, from) = socket.recv_from(&mut answer).await.unwrap();
        assert_eq!((&answer[..length], from), (&b"out"[..], "192.0.2.9:9".parse().unwrap()));
        // Read another packet without waiting, after which there is none.
        socket.send_to(b"again", "192.0.2.9:9").await.unwrap();
        let mut ends = Vec::new();
        let error = loop {
            match tun.try_recv(&mut buf) {
                Ok(headers) => ends.push(buf[..headers.len()].ends_with(b"again")),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(ends.into_iter().filter(|again| *again).count(), 1);
    });
}

/// Returns a datagram from 192.0.2.9 to 192.0.2.1, port 7, with a partial checksum.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 9, 192, 0, 2, 1];
    packet.extend([0, 9, 0, 7, 0, 0, 0, 0]);
    packet.extend(payload);
    let total = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[24..26].copy_from_slice(&(total - 20).to_be_bytes());
    packet
}

#[test]
fn coalesced_datagrams_are_received_one_by_one() {
    in_new_namespace(async {
        let tun = Tun::open("mobile0", DeviceLifetime::Process, Offloading::Auto).unwrap();
        assert!(tun.coalesces_datagrams(), "this kernel is older than 6.2, or its TUN cannot");
        run("ip link set mobile0 up");
        run("ip addr add 192.0.2.1/24 dev mobile0");
        let socket = tokio::net::UdpSocket::bind("192.0.2.1:7").await.unwrap();
        let (mut writer, mut writes) = (crate::coalescing::CoalescingWriter::new(true), 0);
        let mut write = |packet: InnerPacket<'_>, _| {
            tun.try_send(packet).unwrap();
            writes += 1;
        };
        // The last datagram is shorter than the others.
        let sent: Vec<Vec<u8>> =
            (0..20).map(|number| vec![number; if number < 19 { 200 } else { 9 }]).collect();
        for payload in &sent {
            let bytes = datagram(payload);
            let packet = Packet { bytes: &bytes, offload: Offload::Checksum };
            writer.send(packet.into(), &mut write);
        }
        writer.flush(&mut write);
        assert_eq!(writes, 1);
        let mut buffer = [0; 300];
        for payload in sent {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..length], from), (&payload[..], "192.0.2.9:9".parse().unwrap()));
        }
    });
}

#[test]
fn without_offloads_datagrams_are_not_coalesced() {
    in_new_namespace(async {
        assert!(
            !Tun::open("mobile0", DeviceLifetime::Process, Offloading::Off).unwrap().coalesces_datagrams()
        );
    });
}

#[test]
fn a_persistent_device_can_be_opened_again_and_removed() {
    in_new_namespace(async {
        assert!(!remove("mobile0").unwrap());
        drop(Tun::open("mobile0", DeviceLifetime::Persistent, Offloading::Auto).unwrap());
        let shown = Command::new("ip").args(["link", "show", "mobile0"]).output().unwrap();
        assert!(String::from_utf8_lossy(&shown.stdout).contains(" qlen 1000"), "{shown:?}");
        let again = Tun::open("mobile0", DeviceLifetime::Persistent, Offloading::Auto).unwrap();
        let busy = Tun::open("mobile0", DeviceLifetime::Persistent, Offloading::Auto).unwrap_err();
        assert!(matches!(&busy, TunError::Busy(name) if name == "mobile0"), "{busy}");
        assert!(matches!(remove("mobile0"), Err(TunError::Busy(_))));
        drop(again);
        assert!(remove("mobile0").unwrap());
        assert!(!remove("mobile0").unwrap());
    });
}

#[test]
fn a_missing_capability_is_named() {
    in_new_namespace(async {
        let mut own = rustix::thread::capabilities(None).unwrap();
        own.effective -= rustix::thread::CapabilitySet::NET_ADMIN;
        rustix::thread::set_capabilities(None, own).unwrap();
        let error = Tun::open("mobile0", DeviceLifetime::Process, Offloading::Auto).unwrap_err();
        assert!(matches!(error, TunError::NotAllowed { .. }), "{error}");
        assert!(error.to_string().contains("root has no CAP_NET_ADMIN here"), "{error}");
    });
}

#[test]
fn a_name_that_is_taken_or_invalid_is_refused() {
    in_new_namespace(async {
        assert!(matches!(
            Tun::open("lo", DeviceLifetime::Process, Offloading::Auto),
            Err(TunError::NotATun(_))
        ));
        for name in ["", "a b", "a/b", "tun%d", "sixteen-letters-"] {
            assert!(
                matches!(
                    Tun::open(name, DeviceLifetime::Process, Offloading::Auto),
                    Err(TunError::BadName(_))
                ),
                "{name}"
            );
        }
    });
}

fn run(command: &str) {
    let words: Vec<_> = command.split(' ').collect();
    assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success(), "{command}");
}

/// Runs `test` in a new network namespace, which ends with its thread. Requires root.
fn in_new_namespace(test: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests run as root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bounded = async { tokio::time::timeout(Duration::from_secs(20), test).await };
        runtime.block_on(bounded).expect("took too long");
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
