//! `hv stats --serve`: what VMs say, for a Prometheus that scrapes it.
//!
//! HTTP/1.1, one request a connection, and GET and HEAD of a page or two: that is all a scrape needs. VMs are asked when
//! somebody scrapes, and not before. Each connection has a thread, so a client that is slow holds up no other, and there are few.
//!
//! Start at [`serve`].

use super::{PATIENCE, exposition};
use crate::control::Roster;
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output::{self, Style};
use crate::signals::Signals;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// No request is longer, with its headers.
const LONGEST_REQUEST: usize = 8 << 10;
const MOST_HEADERS: usize = 64;

/// How long a client may take to send its request, or to take its answer.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(5);

/// Connections that are served at one time; more are closed.
const MOST_CONNECTIONS: usize = 16;

/// How long to wait if the host has no descriptor left.
const NO_DESCRIPTOR: Duration = Duration::from_millis(100);

const HOME: &str = "<!doctype html><title>hv</title><p>Running VMs: <a href=\"/metrics\">metrics</a>\n";

/// Serves until a signal asks it to end; gives the exit code.
///
/// # Errors
///
/// The address cannot be listened on, or the directory of control sockets not be had.
pub(super) fn serve(address: SocketAddr) -> Result<u8, Failure> {
    let roster = Arc::new(Mutex::new(Roster::open()?));
    let signals = Signals::catch().map_err(|error| Failure::cannot("signals cannot be caught", error))?;
    let listening = TcpListener::bind(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, listener) = listening.map_err(|error| {
        Failure::cannot(format!("{address} cannot be listened on"), error)
            .advise("choose another port, such as `--serve 127.0.0.1:9465`, or 0 for any")
    })?;
    if !address.ip().is_loopback() {
        let warning = Style::stderr().yellow("warning:");
        output::tell(&format!(
            "{warning} {address} is not this machine's alone: whoever reaches it can read what VMs do\n"
        ));
    }
    output::print(&format!("http://{address}/metrics\n"))?;
    let accept = move || accept(&listener, &roster);
    let thread = std::thread::Builder::new().name("hv-metrics".into()).spawn(accept);
    thread.map_err(|error| Failure::cannot("a thread cannot be made", error))?;
    match signals.wait(None) {
        Cause::HangUp | Cause::Interrupt | Cause::Terminated => Ok(0), // there is no other end
        cause => Ok(cause.code()),
    }
}

fn accept(listener: &TcpListener, roster: &Arc<Mutex<Roster>>) {
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                std::thread::sleep(NO_DESCRIPTOR);
                continue;
            }
        };
        if connections.load(SeqCst) >= MOST_CONNECTIONS {
            continue;
        }
        connections.fetch_add(1, SeqCst);
        let (roster, of_thread) = (roster.clone(), connections.clone());
        let serve = move || {
            if let Err(error) = exchange(stream, &roster) {
                tracing::debug!(%error, "a client has gone");
            }
            of_thread.fetch_sub(1, SeqCst);
        };
        if let Err(error) = std::thread::Builder::new().name("hv-scrape".into()).spawn(serve) {
            tracing::warn!(%error, "a connection cannot be served");
            connections.fetch_sub(1, SeqCst);
        }
    }
}

/// Reads a request, and answers it.
fn exchange(mut stream: TcpStream, roster: &Mutex<Roster>) -> io::Result<()> {
    stream.set_write_timeout(Some(CLIENTS_PATIENCE))?;
    let request = read_head(&mut stream)?;
    let answer = answer(&request, || {
        let mut roster = roster.lock().unwrap_or_else(PoisonError::into_inner);
        roster.look(PATIENCE).map(|seen| exposition::text(&seen))
    });
    stream.write_all(&answer)?;
    stream.flush()
}

/// Reads up to the empty line behind the headers, or as far as a request may go.
fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let until = Instant::now() + CLIENTS_PATIENCE;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < LONGEST_REQUEST {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => head.extend(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(head)
}

/// The answer to a request, whole.
fn answer(request: &[u8], metrics: impl FnOnce() -> Result<String, Failure>) -> Vec<u8> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(status) if status.is_complete() => {}
        Ok(_) => return response("431 Request Header Fields Too Large", PLAIN, "too long\n", true),
        Err(error) => return response("400 Bad Request", PLAIN, &format!("{error}\n"), true),
    }
    let (method, path) = (parsed.method.unwrap_or(""), parsed.path.unwrap_or(""));
    let with_body = method != "HEAD";
    let page = path.split('?').next().unwrap_or("");
    match (method, page) {
        ("GET" | "HEAD", "/metrics") => match metrics() {
            Ok(text) => response("200 OK", exposition::CONTENT_TYPE, &text, with_body),
            Err(_) => {
                let told = "running VMs cannot be looked for\n";
                response("500 Internal Server Error", PLAIN, told, with_body)
            }
        },
        ("GET" | "HEAD", "/") => response("200 OK", "text/html; charset=utf-8", HOME, with_body),
        ("GET" | "HEAD", _) => response("404 Not Found", PLAIN, "see /metrics\n", with_body),
        _ => response("405 Method Not Allowed\r\nAllow: GET, HEAD", PLAIN, "GET or HEAD\n", true),
    }
}

fn response(status: &str, content_type: &str, body: &str, with_body: bool) -> Vec<u8> {
    let length = body.len();
    let body = if with_body { body } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(request: &str) -> String {
        String::from_utf8(answer(request.as_bytes(), || Ok("x 1\n".into()))).unwrap()
    }

    #[test]
    fn a_scrape_gets_the_text_and_a_head_its_length() {
        let got = asked("GET /metrics?x=y HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n");
        assert!(got.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{got}");
        assert!(got.ends_with("Content-Length: 4\r\nConnection: close\r\n\r\nx 1\n"), "{got}");
        let got = asked("HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(got.ends_with("Content-Length: 4\r\nConnection: close\r\n\r\n"), "{got}");
    }

    #[test]
    fn other_requests_are_told_what_is_wrong() {
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "200 OK"),
            ("GET /other HTTP/1.1\r\n\r\n", "404 "),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405 "),
            ("\u{1}\u{2}\r\n\r\n", "400 "),
            ("GET /metrics HTTP/1.1\r\nNever: ending", "431 "),
        ] {
            assert!(asked(request).starts_with(&format!("HTTP/1.1 {status}")), "{request}");
        }
    }
}
