//! A short session with the relay that fetches this client's assignment.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::bail;
use mobile_proto::{
    Announcement, CloseCode, Event, InnerPacket, Limits, PacketHeaders, PathId, PushConfig, Session,
    SessionId,
};
use mobile_transport::driver::{self, DriverEvent, PacketIo};
use mobile_transport::tls::TlsStream;

use crate::routing::assignment::Assignment;

/// Timeout of the whole session, from HELLO to WELCOME.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Opens a session on `stream`, returns the assignment that the relay pushes, and closes the
/// session. If the relay announces a key or an endpoint, stores it and confirms that.
pub(super) async fn fetch_assignment(
    stream: TlsStream,
    store: impl FnOnce(&Announcement) -> anyhow::Result<()>,
) -> anyhow::Result<Assignment> {
    let session = Session::client(SessionId(rand::random()), Limits::default());
    let (handle, mut events) = driver::spawn(session, NoPackets);
    handle.open_path(PathId(1), stream);
    let pushed = async {
        loop {
            match events.recv().await {
                Some(DriverEvent::Session(Event::Config(config))) => return Ok(config),
                Some(DriverEvent::Session(Event::PathClosed { code, .. })) => {
                    bail!("the relay closed the session: {code}")
                }
                Some(DriverEvent::PathError { cause, .. }) => bail!(*cause),
                Some(DriverEvent::Session(_)) => {}
                Some(DriverEvent::Stopped) | None => {
                    bail!("the session ended before the relay sent an assignment")
                }
            }
        }
    };
    let pushed = tokio::time::timeout(TIMEOUT, pushed).await;
    if let Ok(Ok(PushConfig { relay: Some(announced), .. })) = &pushed {
        store(announced)?;
        handle.confirm(Arc::clone(announced));
    }
    handle.shutdown(CloseCode::Normal).await;
    let Ok(pushed) = pushed else { bail!("the relay did not answer within {TIMEOUT:?}") };
    let assigned = Assignment::from(pushed?);
    match assigned.objection() {
        None => Ok(assigned),
        Some(objection) => bail!("the relay's assignment cannot be used: it {objection}"),
    }
}

/// A packet source without packets: no device exists yet.
struct NoPackets;

impl PacketIo for NoPackets {
    fn poll_recv(&mut self, _cx: &mut Context<'_>, _buffer: &mut [u8]) -> Poll<io::Result<PacketHeaders>> {
        Poll::Pending
    }

    fn send(&mut self, _packet: InnerPacket<'_>) {}
}
