//! Metrics over HTTP: `/metrics` for Prometheus, `/healthz` for whoever watches.

mod declared;
mod host;

use std::convert::Infallible;
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

/// The time for each of two steps: for the request, which a scraper sends in one piece, and for the
/// answer to be gathered and read. A connection carries one request, so it lasts at most twice as
/// long, whatever the other side does, and is never idle.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// A scraper or two, a health check and a person: more than this is a mistake or an attack, and waits.
const MAX_CONNECTIONS: usize = 32;

/// A scrape's request is a few hundred bytes.
const MAX_REQUEST: usize = 16 * 1024;

/// The queue of connections not yet accepted.
const BACKLOG: i32 = 32;

/// How long to wait when the process is out of descriptors, before asking for a connection again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A running metrics server; stops when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {source}; change [metrics] listen")]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// Serves `gather`'s text at `/metrics` and `healthy`'s verdict at `/healthz`, to clients that ask
/// for an IP address, for `localhost` or for one of `hosts`. Must be called in a runtime.
///
/// # Errors
/// When the address is busy or not ours.
pub fn serve(
    listen: SocketAddr,
    hosts: &[String],
    gather: impl Fn() -> String + Send + Sync + 'static,
    healthy: impl Fn() -> Result<(), String> + Send + Sync + 'static,
) -> Result<Server, MetricsError> {
    let pages = Pages { gather: Box::new(gather), healthy: Box::new(healthy), hosts: Hosts::new(hosts) };
    start(listen, pages, STEP_TIMEOUT).map_err(|source| MetricsError { address: listen, source })
}

/// The text format 0.0.4 of everything in the registry.
#[must_use]
pub fn encode(registry: &prometheus::Registry) -> String {
    let mut text = String::new();
    for family in registry.gather() {
        // One that has no value or no name is no reason to keep the others back.
        if let Err(error) = TextEncoder::new().encode_utf8(&[family], &mut text) {
            tracing::error!(%error, "a metric cannot be encoded");
        }
    }
    text
}

impl Server {
    /// Where it listens (the port is known even if 0 was asked for).
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
    healthy: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
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
    // A restart finds the port free at once, whatever connections of the last run are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Ends when it is aborted, and its connections with it.
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
                    converse(stream, pages, step_timeout).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "no connection to the metrics server");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, pages: Arc<Pages>, step_timeout: Duration) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = pages.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    // One request for each connection: connecting anew each time costs a scraper nothing, and a
    // kept connection could not be told from one that holds its place without use.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(step_timeout)
        .keep_alive(false)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(2 * step_timeout, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the metrics server ended early"),
        Err(_) => tracing::debug!("closed a connection to the metrics server: its answer is not read"),
    }
}

impl Pages {
    /// Answers one request. Hyper omits the body of an answer to HEAD.
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method(), request.uri().path());
        if let Err(status) = self.hosts.check(request.version(), request.uri(), request.headers()) {
            let help = "not served under this name: ask for the address or localhost, or add the name to \
                        [metrics] hosts\n";
            return text(status, help.to_owned());
        }
        let known = ["/metrics", "/healthz"].contains(&path);
        if !known {
            return text(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n".to_owned());
        }
        if method != Method::GET && method != Method::HEAD {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        if path == "/metrics" {
            let mut answer = text(StatusCode::OK, (self.gather)());
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
            return answer;
        }
        match (self.healthy)() {
            Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn anywhere() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    fn serving() -> (Server, Arc<AtomicBool>) {
        let registry = prometheus::Registry::new();
        let counter = prometheus::IntCounter::new("mobile_handovers_total", "Handovers.").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc_by(3);
        let well = Arc::new(AtomicBool::new(true));
        let verdict = Arc::clone(&well);
        let healthy = move || {
            if verdict.load(Ordering::Relaxed) { Ok(()) } else { Err("no active path".to_owned()) }
        };
        let hosts = ["metrics.example.org".to_owned()];
        (serve(anywhere(), &hosts, move || encode(&registry), healthy).unwrap(), well)
    }

    /// The status line and headers (in lower case), and the body.
    async fn ask(server: &Server, request: &str) -> (String, String) {
        ask_for(server, "localhost", request).await
    }

    /// Sends a request, with `host` as its Host.
    async fn ask_for(server: &Server, host: &str, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn a_scrape_gets_the_text_format() {
        let (server, _) = serving();
        let (head, body) = ask(&server, "GET /metrics").await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert_eq!(
            body,
            "# HELP mobile_handovers_total Handovers.\n# TYPE mobile_handovers_total counter\nmobile_handovers_total 3\n"
        );
    }

    #[tokio::test]
    async fn head_tells_the_length_and_no_more() {
        let (server, _) = serving();
        let (_, body) = ask(&server, "GET /metrics").await;
        let (head, nothing) = ask(&server, "HEAD /metrics?x=y").await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert_eq!(nothing, "");
    }

    #[tokio::test]
    async fn health_changes_with_the_service_and_says_why() {
        let (server, well) = serving();
        let (head, body) = ask(&server, "GET /healthz").await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert_eq!(body, "ok\n");
        well.store(false, Ordering::Relaxed);
        let (head, body) = ask(&server, "GET /healthz").await;
        assert!(head.starts_with("http/1.1 503 "), "{head}");
        assert_eq!(body, "no active path\n");
    }

    #[tokio::test]
    async fn what_is_not_there_and_what_is_not_done_are_refused() {
        let (server, _) = serving();
        assert!(ask(&server, "GET /").await.0.starts_with("http/1.1 404 "));
        assert!(ask(&server, "POST /none").await.0.starts_with("http/1.1 404 "));
        let (head, _) = ask(&server, "POST /metrics").await;
        assert!(head.starts_with("http/1.1 405 ") && head.contains("\r\nallow: get, head"), "{head}");
        assert!(ask(&server, "nonsense").await.0.starts_with("http/1.1 400 "));
    }

    #[tokio::test]
    async fn a_name_that_others_control_gets_nothing() {
        let (server, _) = serving();
        let own = server.local_addr().to_string();
        for path in ["/metrics", "/healthz"] {
            for host in ["evil.example", "evil.example:9478", "metrics.example.org.evil.example"] {
                let (head, body) = ask_for(&server, host, &format!("GET {path}")).await;
                assert!(head.starts_with("http/1.1 421 "), "{host}: {head}");
                assert!(body.contains("[metrics] hosts") && !body.contains("mobile_"), "{body}");
            }
            for host in ["localhost:9478", own.as_str(), "metrics.example.org"] {
                let (head, _) = ask_for(&server, host, &format!("GET {path}")).await;
                assert!(head.starts_with("http/1.1 200 "), "{host}: {head}");
            }
        }
    }

    #[tokio::test]
    async fn a_busy_address_is_named_with_the_setting() {
        let (server, _) = serving();
        let error = serve(server.local_addr(), &[], String::new, || Ok(())).unwrap_err().to_string();
        let address = server.local_addr();
        assert!(
            error.starts_with(&format!("cannot serve metrics on {address}: Address already in use")),
            "{error}"
        );
        assert!(error.ends_with("; change [metrics] listen"), "{error}");
    }

    /// The number of lines in an answer that exceeds all socket buffers: 40 MB.
    const ANSWER: usize = 8 << 20;

    #[tokio::test]
    async fn silent_connections_do_not_keep_a_scrape_out_for_good() {
        let step_timeout = Duration::from_millis(1500);
        let gather = || "text\n".repeat(ANSWER);
        let pages = Pages { gather: Box::new(gather), healthy: Box::new(|| Ok(())), hosts: Hosts::default() };
        let server = start(anywhere(), pages, step_timeout).unwrap();
        let mut silent = Vec::new();
        for number in 0..MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
            // Some connections never complete their request; others do, and do not read the answer.
            let asked = if number % 2 == 0 {
                "GET /metr"
            } else {
                "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
            };
            stream.write_all(asked.as_bytes()).await.unwrap();
            silent.push(stream);
        }
        // All slots are taken until the silent ones are sent away.
        assert!(tokio::time::timeout(step_timeout / 5, ask(&server, "GET /metrics")).await.is_err());
        for _ in 0..MAX_CONNECTIONS {
            let answer = tokio::time::timeout(step_timeout * 10, ask(&server, "GET /metrics")).await;
            assert!(answer.expect("a slot is free").0.starts_with("http/1.1 200 "));
        }
        for mut stream in silent {
            let end = tokio::time::timeout(step_timeout * 10, stream.read_to_end(&mut Vec::new())).await;
            // Closed in the middle of the answer, or without any.
            let _ = end.expect("it was sent away");
        }
    }

    #[tokio::test]
    async fn a_dropped_server_frees_its_port_and_its_connections() {
        let (server, _) = serving();
        let address = server.local_addr();
        let mut open = TcpStream::connect(address).await.unwrap();
        // The connection stays open as long as there is no whole request.
        open.write_all(b"GET /healthz HTTP/1.1\r\nHost: local").await.unwrap();
        assert!(ask(&server, "GET /healthz").await.0.starts_with("http/1.1 200 "));
        drop(server);
        let mut rest = Vec::new();
        // Either a reset or the end of the stream.
        let _ = open.read_to_end(&mut rest).await;
        serve(address, &[], String::new, || Ok(())).unwrap();
    }
}
