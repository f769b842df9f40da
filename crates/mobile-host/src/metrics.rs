//! Serves metrics over HTTP: `/metrics` for Prometheus and `/healthz` for health checks.

mod declared;
mod host;

use std::convert::Infallible;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{TEXT_FORMAT, TextEncoder};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

pub use declared::{Metric, MetricKind};
use host::Hosts;
pub use host::is_host_name;

/// The time allowed for each of two steps of a connection: receiving the request, and gathering and
/// sending the reply.
///
/// A scraper sends its request in one piece. A connection carries one request, so it lasts at most
/// twice this time, whatever the peer does.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of open connections: several scrapers, a health check and a person. Further
/// connections wait until one is closed.
const MAX_CONNECTIONS: usize = 32;

/// The maximum size of a request in bytes; a scrape sends a few hundred.
const MAX_REQUEST: usize = 16 * 1024;

/// The number of connections that the kernel queues for acceptance.
const BACKLOG: i32 = 32;

/// The delay before accepting again after a failure, such as a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A running metrics server, which stops when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// The reason why the metrics server cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {source}; change [metrics] listen")]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// Serves the text of `gather` at `/metrics`, and the result of `healthy` at `/healthz`: status 200
/// for `Ok`, otherwise status 503 with the error as the text.
///
/// Only requests whose `Host` header is an IP address, `localhost` or one of `hosts` are answered.
/// Must be called in a tokio runtime.
///
/// # Errors
/// When the address is in use or does not belong to this host.
pub fn serve<E: Display>(
    listen: SocketAddr,
    hosts: &[String],
    gather: impl Fn() -> String + Send + Sync + 'static,
    healthy: impl Fn() -> Result<(), E> + Send + Sync + 'static,
) -> Result<Server, MetricsError> {
    let fault = move || healthy().err().map(|error| error.to_string());
    let pages = Pages { gather: Box::new(gather), fault: Box::new(fault), hosts: Hosts::new(hosts) };
    start(listen, pages, STEP_TIMEOUT).map_err(|source| MetricsError { address: listen, source })
}

/// Encodes all metrics of `registry` in the Prometheus text format 0.0.4.
#[must_use]
pub fn encode(registry: &prometheus::Registry) -> String {
    let mut text = String::new();
    for family in registry.gather() {
        // A metric without a value or name must not prevent the others from being served.
        if let Err(error) = TextEncoder::new().encode_utf8(&[family], &mut text) {
            tracing::error!(%error, "cannot encode a metric: skipped it");
        }
    }
    text
}

impl Server {
    /// Returns the address the server listens on, with the actual port if 0 was requested.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Pages {
    gather: Box<dyn Fn() -> String + Send + Sync>,
    /// Returns the reason why the daemon cannot do its work, or `None` if it can.
    fault: Box<dyn Fn() -> Option<String> + Send + Sync>,
    hosts: Hosts,
}

fn start(listen: SocketAddr, pages: Pages, step_timeout: Duration) -> io::Result<Server> {
    let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
    let listener = bind(listen)?;
    let address = listener.local_addr()?;
    Ok(Server { address, task: runtime.spawn(accept(listener, Arc::new(pages), step_timeout)) })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // A restarted program can bind the port although earlier connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts connections until the task is aborted, which also ends the open connections.
async fn accept(listener: TcpListener, pages: Arc<Pages>, step_timeout: Duration) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let pages = Arc::clone(&pages);
                connections.spawn(async move {
                    serve_connection(stream, pages, step_timeout).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection to the metrics server: retrying");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, pages: Arc<Pages>, step_timeout: Duration) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = pages.respond(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    // Each connection carries one request. Reconnecting costs a scraper nothing, and a connection
    // kept alive could not be distinguished from one that only occupies a slot.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(step_timeout)
        .keep_alive(false)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(2 * step_timeout, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the metrics server ended early"),
        Err(_) => tracing::debug!(
            "closed a connection to the metrics server: the client did not read the reply in time"
        ),
    }
}

impl Pages {
    /// Answers one request; hyper omits the body of the reply to HEAD.
    fn respond<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method(), request.uri().path());
        if let Err(status) = self.hosts.check(request.version(), request.uri(), request.headers()) {
            let help = "host name not allowed: use the IP address or localhost, or add the name to \
                        [metrics] hosts\n";
            return text(status, help.to_owned());
        }
        let known = ["/metrics", "/healthz"].contains(&path);
        if !known {
            return text(
                StatusCode::NOT_FOUND,
                "not found: this server has /metrics and /healthz\n".to_owned(),
            );
        }
        if method != Method::GET && method != Method::HEAD {
            let mut response =
                text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if path == "/metrics" {
            let mut response = text(StatusCode::OK, (self.gather)());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
            return response;
        }
        match (self.fault)() {
            None => text(StatusCode::OK, "ok\n".to_owned()),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn any_port() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    fn serving() -> (Server, Arc<AtomicBool>) {
        let registry = prometheus::Registry::new();
        let counter = prometheus::IntCounter::new("mobile_handovers_total", "Handovers.").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc_by(3);
        let is_healthy = Arc::new(AtomicBool::new(true));
        let health = Arc::clone(&is_healthy);
        let healthy = move || {
            if health.load(Ordering::Relaxed) { Ok(()) } else { Err("no active path".to_owned()) }
        };
        let hosts = ["metrics.example.org".to_owned()];
        (serve(any_port(), &hosts, move || encode(&registry), healthy).unwrap(), is_healthy)
    }

    /// Sends `request` and returns the reply: the status line and headers, in lower case, and the
    /// body.
    async fn request(server: &Server, request: &str) -> (String, String) {
        request_from_host(server, "localhost", request).await
    }

    /// Sends `request` with `host` as its Host header; returns the status line and headers, in
    /// lower case, and the body.
    async fn request_from_host(server: &Server, host: &str, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn a_scrape_gets_the_text_format() {
        let (server, _) = serving();
        let (head, body) = request(&server, "GET /metrics").await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert_eq!(
            body,
            "# HELP mobile_handovers_total Handovers.\n# TYPE mobile_handovers_total counter\nmobile_handovers_total 3\n"
        );
    }

    #[tokio::test]
    async fn a_head_request_returns_the_length_only() {
        let (server, _) = serving();
        let (_, body) = request(&server, "GET /metrics").await;
        let (head, nothing) = request(&server, "HEAD /metrics?x=y").await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert_eq!(nothing, "");
    }

    #[tokio::test]
    async fn health_follows_the_service_and_gives_the_reason() {
        let (server, is_healthy) = serving();
        let (head, body) = request(&server, "GET /healthz").await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert_eq!(body, "ok\n");
        is_healthy.store(false, Ordering::Relaxed);
        let (head, body) = request(&server, "GET /healthz").await;
        assert!(head.starts_with("http/1.1 503 "), "{head}");
        assert_eq!(body, "no active path\n");
    }

    #[tokio::test]
    async fn unknown_paths_and_methods_are_refused() {
        let (server, _) = serving();
        assert!(request(&server, "GET /").await.0.starts_with("http/1.1 404 "));
        assert!(request(&server, "POST /none").await.0.starts_with("http/1.1 404 "));
        let (head, _) = request(&server, "POST /metrics").await;
        assert!(head.starts_with("http/1.1 405 ") && head.contains("\r\nallow: get, head"), "{head}");
        assert!(request(&server, "nonsense").await.0.starts_with("http/1.1 400 "));
    }

    #[tokio::test]
    async fn requests_for_other_host_names_are_refused() {
        let (server, _) = serving();
        let own = server.local_addr().to_string();
        for path in ["/metrics", "/healthz"] {
            for host in ["evil.example", "evil.example:9478", "metrics.example.org.evil.example"] {
                let (head, body) = request_from_host(&server, host, &format!("GET {path}")).await;
                assert!(head.starts_with("http/1.1 421 "), "{host}: {head}");
                assert!(body.contains("[metrics] hosts") && !body.contains("mobile_"), "{body}");
            }
            for host in ["localhost:9478", own.as_str(), "metrics.example.org"] {
                let (head, _) = request_from_host(&server, host, &format!("GET {path}")).await;
                assert!(head.starts_with("http/1.1 200 "), "{host}: {head}");
            }
        }
    }

    #[tokio::test]
    async fn a_busy_address_is_named_with_the_setting() {
        let (server, _) = serving();
        let error =
            serve(server.local_addr(), &[], String::new, || Ok::<(), String>(())).unwrap_err().to_string();
        let address = server.local_addr();
        assert!(
            error.starts_with(&format!("cannot serve metrics on {address}: Address already in use")),
            "{error}"
        );
        assert!(error.ends_with("; change [metrics] listen"), "{error}");
    }

    /// The number of lines of a reply of 40 MB, which exceeds all socket buffers.
    const REPLY_LINES: usize = 8 << 20;

    #[tokio::test]
    async fn silent_connections_do_not_block_scrapes_for_ever() {
        let step_timeout = Duration::from_millis(1500);
        let gather = || "text\n".repeat(REPLY_LINES);
        let pages = Pages { gather: Box::new(gather), fault: Box::new(|| None), hosts: Hosts::default() };
        let server = start(any_port(), pages, step_timeout).unwrap();
        let mut silent = Vec::new();
        for number in 0..MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
            // Some connections never complete their request; others do, but do not read the reply.
            let partial = if number % 2 == 0 {
                "GET /metr"
            } else {
                "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
            };
            stream.write_all(partial.as_bytes()).await.unwrap();
            silent.push(stream);
        }
        // All slots are taken until the silent connections time out.
        assert!(tokio::time::timeout(step_timeout / 5, request(&server, "GET /metrics")).await.is_err());
        for _ in 0..MAX_CONNECTIONS {
            let response = tokio::time::timeout(step_timeout * 10, request(&server, "GET /metrics")).await;
            assert!(response.expect("a slot is free").0.starts_with("http/1.1 200 "));
        }
        for mut stream in silent {
            let end = tokio::time::timeout(step_timeout * 10, stream.read_to_end(&mut Vec::new())).await;
            // The server closes the connection in the middle of the reply or without one.
            let _ = end.expect("the connection was not closed");
        }
    }

    #[tokio::test]
    async fn a_dropped_server_frees_its_port_and_its_connections() {
        let (server, _) = serving();
        let address = server.local_addr();
        let mut open = TcpStream::connect(address).await.unwrap();
        // The connection stays open as long as the request is incomplete.
        open.write_all(b"GET /healthz HTTP/1.1\r\nHost: local").await.unwrap();
        assert!(request(&server, "GET /healthz").await.0.starts_with("http/1.1 200 "));
        drop(server);
        let mut rest = Vec::new();
        // The connection ends with a reset or with the end of the stream.
        let _ = open.read_to_end(&mut rest).await;
        serve(address, &[], String::new, || Ok::<(), String>(())).unwrap();
    }
}
