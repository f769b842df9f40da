//! Sends requests over the netlink socket, one after the other, and interprets the kernel's errors.

use std::io;

use futures_util::StreamExt;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_MULTIPART,
    NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::AsyncSocket;
use nix::errno::Errno;
use tokio::runtime;

use super::{Family, NetlinkError};

/// The flags of a netlink request to create an object that must not exist yet.
pub(super) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// The flags of a netlink request to create an object or replace an existing one.
pub(super) const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// The maximum number of attempts at a dump (a request for all objects of a kind) that changes of
/// the objects interrupt.
///
/// If the objects change even faster, the result may be inconsistent; the next notification of a
/// change causes another dump.
const DUMP_ATTEMPTS: usize = 5;

/// The attribute of an error reply with the kernel's message (`NLMSGERR_ATTR_MSG`).
const ATTR_MESSAGE: u16 = 1;

/// The length in bytes of the request's header (`nlmsghdr`), which an error reply quotes.
const HEADER_LEN: usize = 16;

/// The netlink socket, which a lock protects against concurrent use.
#[derive(Debug)]
pub(super) struct Channel(rtnetlink::Handle);

/// The reason why a netlink request failed, without a description of the attempted action.
#[derive(Debug)]
pub(super) enum Failure {
    /// The kernel refused the request.
    Kernel {
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's error message, if there was one.
        detail: Option<String>,
    },
    /// The netlink socket failed.
    Socket(String),
}

impl Channel {
    /// Opens the socket in this thread's network namespace and spawns a task that serves it.
    pub(super) fn open() -> Result<Self, Failure> {
        let socket = |error: io::Error| Failure::Socket(error.to_string());
        let runtime = runtime::Handle::try_current().map_err(|error| Failure::Socket(error.to_string()))?;
        // With strict checking the kernel filters dumps: a host may have a million routes in other
        // tables.
        let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check().map_err(socket)?;
        // Wait for the end of each reply, to notice if the socket fails before it.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let raw = connection.socket_mut().socket_mut();
        raw.set_ext_ack(true).map_err(socket)?;
        raw.set_cap_ack(true).map_err(socket)?;
        runtime.spawn(connection);
        Ok(Self(handle))
    }

    /// Requests all objects that match the fields and attributes of `message`; repeats the request
    /// if a change of the objects interrupts the reply.
    pub(super) async fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        let mut attempt = 1;
        loop {
            let (items, interrupted) = self.exchange(message.clone(), NLM_F_DUMP).await?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(items);
            }
            attempt += 1;
        }
    }

    /// Requests the one object that `message` describes; `None` if the reply has no object.
    pub(super) async fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Failure> {
        Ok(self.exchange(message, 0).await?.0.pop())
    }

    /// Requests a change of the configuration and waits for the kernel's acknowledgement.
    pub(super) async fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Failure> {
        self.exchange(message, NLM_F_ACK | flags).await.map(drop)
    }

    /// Sends a request; returns the objects of the reply, and whether a change of the objects
    /// interrupted a dump.
    async fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Failure> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut replies = self.0.request(request).map_err(|error| Failure::Socket(error.to_string()))?;
        let mut items = Vec::new();
        let mut interrupted = false;
        while let Some(reply) = replies.next().await {
            interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
            match reply.payload {
                NetlinkPayload::InnerMessage(item) => {
                    items.push(item);
                    if reply.header.flags & NLM_F_MULTIPART == 0 && flags & NLM_F_ACK == 0 {
                        return Ok((items, interrupted));
                    }
                }
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(Failure::kernel(done.code, None));
                }
                NetlinkPayload::Done(_) => return Ok((items, interrupted)),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok((items, interrupted)),
                NetlinkPayload::Error(error) => {
                    return Err(Failure::kernel(error.raw_code(), detail(&error)));
                }
                _ => {}
            }
        }
        Err(Failure::Socket("the kernel's reply is incomplete".to_owned()))
    }
}

impl Failure {
    fn kernel(code: i32, detail: Option<String>) -> Self {
        Self::Kernel { errno: Errno::from_raw(code.saturating_abs()), detail }
    }

    /// Returns whether the kernel refused the request with the error number `reason`.
    pub(super) fn is(&self, reason: Errno) -> bool {
        matches!(self, Self::Kernel { errno, .. } if *errno == reason)
    }

    /// Converts the failure into the caller's error, for the attempted action `what` in an address
    /// family.
    pub(super) fn into_error(self, family: Option<Family>, what: String) -> NetlinkError {
        match self {
            Self::Socket(message) => NetlinkError::Socket { what, message },
            Self::Kernel { errno: Errno::EPERM, .. } => NetlinkError::NotAllowed(what),
            Self::Kernel { errno, detail } => match family {
                Some(family) if is_missing_family(errno, family) => {
                    NetlinkError::FamilyUnavailable { family, what }
                }
                _ => NetlinkError::Refused { what, source: describe(errno, detail) },
            },
        }
    }
}

/// Converts the failure of a netlink request into the caller's error.
pub(super) trait Explain<T> {
    /// Adds to a failure the attempted action `what` and its address family, if any.
    fn explain(self, family: Option<Family>, what: impl FnOnce() -> String) -> Result<T, NetlinkError>;
}

impl<T> Explain<T> for Result<T, Failure> {
    fn explain(self, family: Option<Family>, what: impl FnOnce() -> String) -> Result<T, NetlinkError> {
        self.map_err(|failure| failure.into_error(family, what()))
    }
}

/// Returns whether the error number means that the kernel or the device lacks the address family.
///
/// A kernel without IPv6 does not know requests for IPv6 objects. A kernel where a device has IPv6
/// disabled returns EACCES, never EPERM.
fn is_missing_family(errno: Errno, family: Family) -> bool {
    family == Family::V6 && matches!(errno, Errno::EACCES | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)
}

fn describe(errno: Errno, detail: Option<String>) -> io::Error {
    let plain = io::Error::from(errno);
    match detail {
        Some(detail) => io::Error::new(plain.kind(), format!("{plain}: {detail}")),
        None => plain,
    }
}

/// Returns the kernel's message from the attributes of an error reply, which follow the quoted
/// header; `None` if there is no message.
fn detail(error: &ErrorMessage) -> Option<String> {
    let mut rest = error.header.get(HEADER_LEN..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]);
        let value = rest.get(4..length)?;
        if kind == ATTR_MESSAGE {
            let text = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(header: Vec<u8>) -> ErrorMessage {
        let mut error = ErrorMessage::default();
        error.header = header;
        error
    }

    #[test]
    fn the_kernels_message_is_found_behind_other_attributes() {
        let mut bytes = vec![0; HEADER_LEN];
        bytes.extend([8, 0, 2, 0, 1, 2, 3, 4]);
        bytes.extend([7, 0, 1, 0, b'n', b'o', 0, 0]);
        assert_eq!(detail(&refusal(bytes)).as_deref(), Some("no"));
    }

    #[test]
    fn attributes_with_wrong_lengths_are_ignored() {
        for tail in [&[200, 0, 1, 0, b'n'][..], &[0, 0, 1, 0], &[3, 0, 2, 0, 1], &[8, 0, 2]] {
            let mut bytes = vec![0; HEADER_LEN];
            bytes.extend(tail);
            assert_eq!(detail(&refusal(bytes)), None);
        }
        assert_eq!(detail(&refusal(vec![1, 2])), None);
    }

    #[test]
    fn only_ipv6_can_be_missing() {
        let tried = |errno, family| {
            Failure::Kernel { errno, detail: None }
                .into_error(family, "try".to_owned())
                .is_family_unavailable()
        };
        assert!(tried(Errno::EACCES, Some(Family::V6)));
        assert!(tried(Errno::EAFNOSUPPORT, Some(Family::V6)));
        assert!(!tried(Errno::EACCES, Some(Family::V4)));
        assert!(!tried(Errno::EPERM, Some(Family::V6)));
        assert!(!tried(Errno::EACCES, None));
    }
}
