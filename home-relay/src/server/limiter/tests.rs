//! Tests the limiter with a simulated clock.

use proptest::prelude::*;

use super::known_sources::{KNOWN_FOR, MAX_KNOWN, MAX_PER_KEY};
use super::*;

fn limits() -> Limits {
    Limits {
        half_open: 16,
        half_open_per_source: 2,
        handshake_rate: 20,
        handshake_rate_per_source: 2,
        ..Limits::default()
    }
}

fn ipv4(host: u32) -> IpAddr {
    IpAddr::V4((0x0a00_0000 + host).into())
}

fn key(number: u32) -> PublicKey {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PublicKey::from_bytes(bytes)
}

/// Attempts `count` handshakes from `address` at the time `now`, each ending at once, and returns
/// how many are admitted.
fn admitted(limiter: &mut HandshakeLimiter, now: Instant, address: IpAddr, count: usize) -> usize {
    let attempt =
        |limiter: &mut HandshakeLimiter| limiter.admit(now, address).map(|permit| limiter.end(&permit));
    (0..count).filter(|_| attempt(limiter).is_ok()).count()
}

#[test]
fn each_source_has_its_own_burst_and_rate() {
    let mut limiter = HandshakeLimiter::new(limits());
    let start = Instant::now();
    assert_eq!(admitted(&mut limiter, start, ipv4(1), 100), 20, "10 seconds' worth");
    assert_eq!(limiter.admit(start, ipv4(1)).unwrap_err(), HandshakeResult::SourceRate);
    assert_eq!(admitted(&mut limiter, start + Duration::from_secs(3), ipv4(1), 100), 6);
    assert_eq!(
        admitted(&mut limiter, start + Duration::from_secs(3), ipv4(2), 100),
        14,
        "of all strangers' 20"
    );
    assert_eq!(limiter.admit(start + Duration::from_secs(3), ipv4(3)).unwrap_err(), HandshakeResult::Rate);
}

#[test]
fn one_ipv6_network_is_one_source() {
    let mut limiter = HandshakeLimiter::new(limits());
    let now = Instant::now();
    let of = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(admitted(&mut limiter, now, of("2001:db8::1"), 19), 19);
    assert_eq!(admitted(&mut limiter, now, of("2001:db8::2:0:0:1"), 9), 1, "the same /64");
    let later = now + ALL_BURST;
    assert_eq!(admitted(&mut limiter, later, of("2001:db8:0:1::1"), 9), 9, "the next");
}

#[test]
fn a_flood_of_strangers_does_not_lock_out_known_sources() {
    let mut limiter = HandshakeLimiter::new(limits());
    let now = Instant::now();
    limiter.record_proof(now, key(1), ipv4(1));
    let flood: Vec<_> = (100..200).filter_map(|host| limiter.admit(now, ipv4(host)).ok()).collect();
    assert_eq!(flood.len(), 12, "three quarters of what may be half open");
    assert_eq!(limiter.admit(now, ipv4(2)).unwrap_err(), HandshakeResult::Busy);
    let permit = limiter.admit(now, ipv4(1)).unwrap();
    limiter.end(&permit);
    flood.iter().for_each(|permit| limiter.end(permit));
    assert_eq!((200..300).map(|host| admitted(&mut limiter, now, ipv4(host), 1)).sum::<usize>(), 8);
    assert_eq!(admitted(&mut limiter, now, ipv4(1), 1000), 199, "ten times a stranger's burst");
    // The next day the source is a stranger again.
    assert_eq!(admitted(&mut limiter, now + KNOWN_FOR, ipv4(1), 1000), 20);
}

#[test]
fn half_open_connections_of_one_source_are_bounded() {
    let mut limiter = HandshakeLimiter::new(limits());
    let now = Instant::now();
    let held: Vec<_> = (0..2).map(|_| limiter.admit(now, ipv4(1)).unwrap()).collect();
    assert_eq!(limiter.admit(now, ipv4(1)).unwrap_err(), HandshakeResult::SourceBusy);
    limiter.end(&held[0]);
    assert!(limiter.admit(now, ipv4(1)).is_ok());
}

#[test]
fn one_known_source_cannot_use_up_the_reserve_for_known_sources() {
    let mut limiter = HandshakeLimiter::new(Limits { half_open: 64, half_open_per_source: 10, ..limits() });
    let now = Instant::now();
    (1..=2).for_each(|host| limiter.record_proof(now, key(host), ipv4(host)));
    let abuse: Vec<_> = (0..100).filter_map(|_| limiter.admit(now, ipv4(1)).ok()).collect();
    assert_eq!(abuse.len(), 8, "an eighth, and not ten times a stranger's ten");
    assert_eq!(limiter.admit(now, ipv4(1)).unwrap_err(), HandshakeResult::SourceBusy);
    assert!(limiter.admit(now, ipv4(2)).is_ok());
}

#[test]
fn one_key_keeps_only_a_few_sources_known() {
    let mut limiter = HandshakeLimiter::new(limits());
    let now = Instant::now();
    let network =
        |number: u32| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) | u128::from(number) << 64));
    limiter.record_proof(now, key(1), ipv4(1));
    for number in 0..65_536 {
        limiter.record_proof(now, key(2), network(number));
    }
    assert_eq!(limiter.known.len(), MAX_PER_KEY + 1);
    let known = |limiter: &HandshakeLimiter, address| limiter.known.contains(now, source_of(address));
    assert!(known(&limiter, ipv4(1)), "of another key");
    assert!(known(&limiter, network(65_535)) && !known(&limiter, network(0)), "the latest stay");
    // A source seen again is no longer the oldest.
    limiter.record_proof(now, key(2), network(65_532));
    limiter.record_proof(now, key(2), network(7));
    assert!(known(&limiter, network(65_532)) && !known(&limiter, network(65_533)));
}

#[test]
fn revoking_a_key_forgets_its_sources_unless_other_keys_were_proved_there() {
    let mut limiter = HandshakeLimiter::new(limits());
    let now = Instant::now();
    limiter.record_proof(now, key(1), ipv4(1));
    limiter.record_proof(now, key(1), ipv4(2));
    limiter.record_proof(now + KNOWN_FOR / 2, key(2), ipv4(2));
    limiter.record_proof(now, key(3), ipv4(2));
    limiter.forget(&key(1));
    let known = |limiter: &HandshakeLimiter, after, host| limiter.known.contains(now + after, ipv4(host));
    assert!(!known(&limiter, Duration::ZERO, 1));
    assert!(known(&limiter, KNOWN_FOR, 2));
    limiter.forget(&key(2));
    assert!(known(&limiter, KNOWN_FOR / 2, 2) && !known(&limiter, KNOWN_FOR, 2), "as the third proved it");
    limiter.forget(&key(3));
    assert_eq!(limiter.known.len(), 0);
}

#[test]
fn changed_limits_apply_at_once() {
    let mut limiter = HandshakeLimiter::new(limits());
    let now = Instant::now();
    assert_eq!(admitted(&mut limiter, now, ipv4(1), 100), 20);
    limiter.set_limits(Limits { handshake_rate: 100, handshake_rate_per_source: 4, ..limits() });
    assert_eq!(admitted(&mut limiter, now + Duration::from_secs(1), ipv4(1), 100), 4);
}

#[test]
fn tables_are_bounded_and_a_source_without_an_entry_has_the_limits_of_all() {
    let mut limiter =
        HandshakeLimiter::new(Limits { handshake_rate: 100_000, half_open: 100_000, ..limits() });
    let now = Instant::now();
    for host in 0..20_000 {
        limiter.record_proof(now, key(host), ipv4(host));
        assert_eq!(admitted(&mut limiter, now, ipv4(1_000_000 + host), 1), 1);
    }
    assert_eq!((limiter.sources.len(), limiter.known.len()), (MAX_SOURCES, MAX_KNOWN));
    assert_eq!(admitted(&mut limiter, now, ipv4(1_000_000), 100), 19, "who is in the table stays in it");
    assert_eq!(admitted(&mut limiter, now, ipv4(2_000_000), 100), 100);
    // The other sources make room once their buckets are full again.
    let later = now + SOURCE_BURST;
    assert_eq!(admitted(&mut limiter, later, ipv4(2_000_000), 100), 20);
    assert!(limiter.sources.len() < 10);
}

proptest! {
    /// Checks that no sequence of events gives one source, or all strangers together, more than
    /// their burst and rate, and that half-open connections are counted correctly.
    #[test]
    fn no_sequence_of_events_evades_the_limits(
        events in proptest::collection::vec((0_u64..400, 0_u32..4, any::<bool>()), 1..300),
    ) {
        let start = Instant::now();
        let mut limiter = HandshakeLimiter::new(limits());
        let (mut elapsed, mut open, mut total) = (0, Vec::new(), [0_u32; 4]);
        for (pause, host, ends) in events {
            elapsed += pause;
            if let Ok(permit) = limiter.admit(start + Duration::from_millis(elapsed), ipv4(host)) {
                total[host as usize] += 1;
                open.push(permit);
            }
            if ends && let Some(permit) = open.pop() {
                limiter.end(&permit);
            }
            prop_assert_eq!(limiter.half_open, open.len());
            prop_assert!(open.len() <= 12);
            let seconds = elapsed as f64 / 1000.0;
            for count in total {
                prop_assert!(f64::from(count) <= 20.0 + 2.0 * seconds + 1e-6);
            }
            prop_assert!(f64::from(total.iter().sum::<u32>()) <= 20.0 + 20.0 * seconds + 1e-6);
        }
        let all: usize = limiter.sources.values().map(|source| source.half_open).sum();
        prop_assert_eq!(all, open.len());
    }
}
