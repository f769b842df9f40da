//! A small HTTP server for `curl`, whose downloads and uploads can be checked by their SHA-256.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /bytes/N` | N pseudorandom bytes, the same in every answer |
//! | `GET /sum/N` | the SHA-256 of those bytes, in hex |
//! | `PUT /sum` | the SHA-256 of the body |
//! | `GET /ip` | the address the request came from |
//! | `GET /page/N` | a page for a browser that loads `/script/N` |
//! | `GET /script/N` | N bytes of comment, then code that writes the request's source address |

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use ring::digest::{Context, SHA256};

/// Serves the HTTP requests of one connection until the client closes it.
pub(crate) fn serve(stream: &TcpStream, peer: SocketAddr) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader) {
        if answer(&request, &mut reader, stream, peer).is_err() {
            return;
        }
    }
}

/// Writes `count` bytes of a fixed pseudorandom pattern.
pub fn pattern(count: u64, mut to: impl Write) -> std::io::Result<()> {
    let (mut state, mut left) = (0x9E37_79B9_7F4A_7C15_u64, count);
    let mut block = [0; 65_536];
    while left > 0 {
        for word in block.as_chunks_mut::<8>().0 {
            // Marsaglia's xorshift64, whose output shows any error of offset and does not compress.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        to.write_all(&block[..part])?;
        left -= part as u64;
    }
    Ok(())
}

/// Returns the SHA-256, in hex, of the first `count` bytes of the pseudorandom pattern that
/// [`pattern`] writes.
#[must_use]
pub fn pattern_sum(count: u64) -> String {
    let mut sum = Sum(Context::new(&SHA256));
    pattern(count, &mut sum).expect("a digest takes everything");
    sum.hex()
}

struct Sum(Context);

impl Sum {
    fn hex(self) -> String {
        self.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Request {
    method: String,
    path: String,
    length: u64,
    wants_continue: bool,
}

impl Request {
    fn read(reader: &mut impl BufRead) -> Option<Self> {
        let first = line(reader)?;
        let mut words = first.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut request = Self { method, path, length: 0, wants_continue: false };
        loop {
            let header = line(reader)?.to_ascii_lowercase();
            if header.is_empty() {
                return Some(request);
            }
            match header.split_once(':') {
                Some(("content-length", value)) => request.length = value.trim().parse().ok()?,
                Some(("expect", value)) => request.wants_continue = value.trim() == "100-continue",
                _ => {}
            }
        }
    }
}

fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    match reader.read_line(&mut line) {
        Ok(1..) => Some(line.trim_end().to_owned()),
        _ => None,
    }
}

fn answer(
    request: &Request,
    body: &mut impl Read,
    mut out: &TcpStream,
    peer: SocketAddr,
) -> std::io::Result<()> {
    let count = |prefix: &str| request.path.strip_prefix(prefix).and_then(|count| count.parse::<u64>().ok());
    if request.method == "PUT" {
        if request.wants_continue {
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut sum = Sum(Context::new(&SHA256));
        let taken = std::io::copy(&mut body.take(request.length), &mut sum)?;
        if taken < request.length {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        return text(out, "200 OK", &sum.hex());
    }
    if let Some(count) = count("/bytes/") {
        write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {count}\r\n\r\n")?;
        return pattern(count, out);
    }
    if let Some(count) = count("/sum/") {
        return text(out, "200 OK", &pattern_sum(count));
    }
    if let Some(count) = count("/page/") {
        let page =
            format!("<!doctype html><title>page</title><p id=seen></p><script src=/script/{count}></script>");
        return typed(out, "text/html", &page);
    }
    if let Some(count) = count("/script/") {
        let comment = "x".repeat(usize::try_from(count).unwrap_or(0));
        let script = format!("/*{comment}*/document.getElementById('seen').textContent = 'seen {peer}'");
        return typed(out, "text/javascript", &script);
    }
    if request.path == "/ip" {
        return text(out, "200 OK", &peer.to_string());
    }
    text(out, "404 Not Found", "no such path")
}

fn text(mut out: &TcpStream, status: &str, body: &str) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}\n", body.len() + 1)
}

fn typed(mut out: &TcpStream, kind: &str, body: &str) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
