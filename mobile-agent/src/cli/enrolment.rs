//! Enrolment connections to the relay, for the verbs `enroll` and `key rotate`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use mobile_proto::enroll::{self, EnrolmentReply, EnrolmentRequest};
use mobile_transport::tls::{self, TlsStream};
use mobile_transport::transport;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::check::resolve;

/// Timeout for each step of a connection to the relay, such as the TCP or the TLS handshake: enough
/// to repeat a satellite's round trip three times, short enough for a person who waits.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Sends a request on an enrolment connection and returns the relay's reply.
pub(super) async fn ask(
    stream: &mut TlsStream,
    request: &EnrolmentRequest,
) -> anyhow::Result<EnrolmentReply> {
    let exchange = async {
        stream.write_all(&enroll::encode_request(request)).await?;
        stream.flush().await?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 512];
        loop {
            if let Some(answer) = enroll::read_reply(&bytes)? {
                // The relay waits for the end of this side's stream; if the relay has closed
                // already, nothing is lost.
                let _ = stream.shutdown().await;
                return Ok(answer);
            }
            match stream.read(&mut buffer).await.map_err(|error| tls::classify(&error))? {
                0 => {
                    bail!("the relay closed the connection without an answer: it is busy or restarting")
                }
                read => bytes.extend_from_slice(&buffer[..read]),
            }
        }
    };
    match tokio::time::timeout(2 * STEP_TIMEOUT, exchange).await {
        Ok(answer) => answer,
        Err(_) => bail!("the relay did not answer within {:?}", 2 * STEP_TIMEOUT),
    }
}

/// Connects with TCP and TLS by the ordinary route, to the first address that answers. A relay with
/// another key ends the attempt; `relay` says in the error whose key was expected.
pub(super) async fn connect(
    endpoint: &str,
    config: &Arc<ClientConfig>,
    relay: &str,
) -> anyhow::Result<TlsStream> {
    let addresses: Vec<SocketAddr> =
        resolve(endpoint).await.map_err(|error| anyhow::anyhow!("cannot resolve {endpoint}: {error}"))?;
    let mut failure = anyhow::anyhow!("{endpoint} has no address");
    for address in addresses {
        let tcp = match transport::connect(address, None, STEP_TIMEOUT).await {
            Ok(tcp) => tcp,
            Err(error) => {
                failure = error.into();
                continue;
            }
        };
        match tls::connect(config, tcp, STEP_TIMEOUT).await {
            Ok(stream) => return Ok(stream),
            Err(tls::HandshakeFailure::WrongRelayKey { expected, offered }) => {
                bail!("the server at {address} is not {relay}: it has the key {offered}, not {expected}")
            }
            Err(cause) => {
                failure = match cause.violation() {
                    Some(what) => anyhow::anyhow!(
                        "another service answers at {address}, not a relay: check the port given to `home-relay \
                         invite --endpoint` ({what})"
                    ),
                    None => anyhow::anyhow!("{address}: {cause}"),
                };
            }
        }
    }
    Err(failure)
}
