//! A session with the relay that only asks what it assigns.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::bail;
use mobile_io::driver::{self, DriverEvent, PacketIo};
use mobile_io::tls::TlsStream;
use mobile_proto::{CloseCode, Event, Limits, Offload, Packet, PathId, Session, SessionId};

use crate::routing::assignment::Assignment;

/// From HELLO to WELCOME.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the relay pushes to this client.
pub(super) async fn assigned(stream: TlsStream) -> anyhow::Result<Assignment> {
    let session = Session::client(SessionId(rand::random()), Limits::default());
    let (handle, mut events) = driver::spawn(session, NoPackets);
    handle.open_path(PathId(1), stream);
    let pushed = async {
        loop {
            match events.recv().await {
                Some(DriverEvent::Session(Event::Config(config))) => return Ok(config),
                Some(DriverEvent::Session(Event::PathClosed { code, .. })) => bail!("the relay says: {code}"),
                Some(DriverEvent::PathError { cause, .. }) => bail!(cause),
                Some(DriverEvent::Session(_)) => {}
                Some(DriverEvent::Stopped) | None => bail!("the session stopped"),
            }
        }
    };
    let pushed = tokio::time::timeout(PATIENCE, pushed).await;
    handle.shutdown(CloseCode::Normal).await;
    let Ok(pushed) = pushed else { bail!("the relay did not answer within {PATIENCE:?}") };
    let assigned = Assignment::from(pushed?);
    match assigned.objection() {
        None => Ok(assigned),
        Some(objection) => bail!("what the relay assigns cannot be used, it {objection}"),
    }
}

/// There is no device yet.
struct NoPackets;

impl PacketIo for NoPackets {
    fn poll_recv(&mut self, _cx: &mut Context<'_>, _buffer: &mut [u8]) -> Poll<io::Result<(usize, Offload)>> {
        Poll::Pending
    }

    fn send(&mut self, _packet: Packet<'_>) {}
}
