//! An agent to test the relay with.

use std::io;
use std::task::{Context, Poll};

use mobile_proto::{Event, InnerPacket, PacketHeaders, PathId, Session, SessionId};
use mobile_transport::driver::{self, DriverEvent, Handle, PacketIo};
use mobile_transport::keys::PrivateKey;
use tokio::sync::mpsc;

use super::{TestRelay, soon};

/// An agent whose device is a pair of channels.
pub(super) struct TestClient {
    pub(super) handle: Handle,
    pub(super) events: mpsc::Receiver<DriverEvent>,
    to_send: mpsc::UnboundedSender<Vec<u8>>,
    received: mpsc::UnboundedReceiver<Vec<u8>>,
}

struct ChannelIo {
    to_send: mpsc::UnboundedReceiver<Vec<u8>>,
    received: mpsc::UnboundedSender<Vec<u8>>,
}

impl PacketIo for ChannelIo {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<PacketHeaders>> {
        self.to_send.poll_recv(cx).map(|packet| {
            let packet = packet.ok_or(io::ErrorKind::BrokenPipe)?;
            buffer[..packet.len()].copy_from_slice(&packet);
            Ok(PacketHeaders::locate(&packet))
        })
    }

    fn send(&mut self, packet: InnerPacket<'_>) {
        // The receiver is gone when a test has seen what it wanted.
        let _ = self.received.send(packet.to_vec());
    }
}

impl TestClient {
    pub(super) fn new(id: u8) -> Self {
        let (to_send, receiver) = mpsc::unbounded_channel();
        let (sender, received) = mpsc::unbounded_channel();
        let session = Session::client(SessionId([id; 16]), mobile_proto::Limits::default());
        let io = ChannelIo { to_send: receiver, received: sender };
        let (handle, events) = driver::spawn(session, io);
        Self { handle, events, to_send, received }
    }

    /// Opens a path and activates it; returns whether the relay knew the session.
    pub(super) async fn move_to(&mut self, relay: &TestRelay, key: &PrivateKey, path: u32) -> bool {
        let path = PathId(path);
        self.handle.open_path(path, relay.tls(key).await.unwrap());
        let resumed = self.event(|event| match event {
            Event::PathReady { path: ready, resumed } if *ready == path => Some(*resumed),
            _ => None,
        });
        let resumed = resumed.await;
        self.handle.activate(path, vec![path]);
        self.event(|event| {
            matches!(event, Event::PathActivated { path: now, .. } if *now == path).then_some(())
        })
        .await;
        resumed
    }

    pub(super) async fn event<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        loop {
            match soon(self.events.recv()).await.expect("the driver runs") {
                DriverEvent::Session(event) => {
                    if let Some(found) = wanted(&event) {
                        return found;
                    }
                }
                DriverEvent::PathError { .. } => {}
                DriverEvent::Stopped => panic!("the driver has stopped"),
            }
        }
    }

    pub(super) fn send(&self, packet: Vec<u8>) {
        self.to_send.send(packet).unwrap();
    }

    pub(super) async fn receive(&mut self) -> Vec<u8> {
        soon(self.received.recv()).await.unwrap()
    }
}
