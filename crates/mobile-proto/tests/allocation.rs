//! Tests that a steady flow allocates nothing: packet buffers, queues and partial frames are
//! reused.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use mobile_proto::{
    Budget, Enqueue, HelloReader, InnerPacket, Limits, PathId, PushConfig, Session, SessionId,
};

struct Counting;

thread_local! {
    /// The number of allocations in this thread; the test harness allocates in its own thread.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here and there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, and so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PATH: PathId = PathId(1);

/// Passes everything that `from` has to send to `to`, in pieces that cut frames. Returns the bytes
/// of the delivered packets.
fn pass(now: Instant, from: &mut Session, to: &mut Session, wire: &mut Vec<u8>) -> u64 {
    let mut delivered = 0;
    while from.wants_transmit(PATH) {
        wire.clear();
        from.poll_transmit(now, PATH, wire, Budget::new(64 << 10));
        for piece in wire.chunks(16 << 10) {
            let mut deliver = |packet: InnerPacket<'_>| delivered += packet.len() as u64;
            to.handle_input(now, PATH, piece, &mut deliver).expect("valid input");
        }
    }
    delivered
}

/// Returns a TCP segment over IPv4 whose source equals its destination, so that it belongs to the
/// same flow in both directions.
fn segment(size: usize) -> Vec<u8> {
    let mut packet = vec![1; size];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(size).expect("a packet's size").to_be_bytes());
    packet[6..8].fill(0);
    packet[9] = 6;
    (packet[32], packet[33]) = (5 << 4, 0x10);
    packet
}

#[test]
fn a_steady_flow_allocates_nothing() {
    steady_flow(&Limits::default());
    steady_flow(&Limits { compression: true, ..Limits::default() });
}

fn steady_flow(limits: &Limits) {
    let mut now = Instant::now();
    let config = PushConfig { mtu: 1400, ..PushConfig::default() };
    let mut client = Session::client(SessionId([1; 16]), limits.clone());
    let mut server = Session::server(SessionId([1; 16]), 7, limits.clone(), config);
    let mut wire = Vec::new();
    client.open_path(now, PATH);
    client.poll_transmit(now, PATH, &mut wire, Budget::new(1000));
    let (hello, _) = HelloReader::new().feed(&wire).expect("valid").expect("complete");
    server.accept_path(now, &hello).expect("its own session");
    pass(now, &mut server, &mut client, &mut wire);
    client.activate(now, PATH, &[]);
    while client.poll_event().is_some() {}

    // Segments of flows that become tracked, and a packet that is none.
    let mut packets: Vec<Vec<u8>> = [40, 1500, 65_535, 9000].map(segment).to_vec();
    packets.push(vec![1; 700]);
    let total: u64 = packets.iter().map(|packet| packet.len() as u64).sum();
    let mut round = |now: Instant| {
        for packet in &packets {
            assert_eq!(client.enqueue(now, packet), Enqueue::Queued);
            assert_eq!(server.enqueue(now, packet), Enqueue::Queued);
        }
        let mut up = 0;
        let mut down = 0;
        for _ in 0..3 {
            up += pass(now, &mut client, &mut server, &mut wire);
            down += pass(now, &mut server, &mut client, &mut wire);
        }
        assert_eq!((up, down), (total, total));
        client.handle_timeout(now);
        server.handle_timeout(now);
        client.poll_local(now, &mut |_| panic!("there is no outage"));
        server.poll_local(now, &mut |_| panic!("there is no outage"));
        while server.poll_event().is_some() {}
    };
    // Warm up until every buffer has its size: compressed packets arrive many at a time. A round
    // takes ten milliseconds, so the PING of each second, which releases memory, falls in between.
    for _ in 0..30 {
        now += Duration::from_millis(10);
        round(now);
    }
    let before = ALLOCATIONS.get();
    for _ in 0..50 {
        now += Duration::from_millis(10);
        round(now);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(client.stats().tx_compressed_bytes > 0, limits.compression);
}
