//! One connection: requests in, answers out, in order.
//!
//! Start at [`serve`].

use crate::folder::{Folder, Found};
use crate::path::Path;
use crate::range::{self, Part};
use crate::request::{self, Request};
use crate::response::{self, Head, Status};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::future::Future;
use core::ops::Range;

/// Bytes of a file that are read at once.
const PIECE: usize = 32 << 10;

/// What a server waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A request, which may be long in coming.
    Request,
    /// The rest of one that has begun to come.
    Rest,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The client has gone.
    Closed,
    /// The client took too long.
    Late,
}

/// A stream of bytes to and from a client.
pub trait Connection {
    /// Adds what has come to `bytes`; at least one byte.
    fn read(&mut self, bytes: &mut Vec<u8>, wait: Wait) -> impl Future<Output = Result<(), Gone>>;

    /// Sends all of it.
    fn write(&mut self, bytes: &[u8]) -> impl Future<Output = Result<(), Gone>>;
}

/// Answers requests until the client goes, or is to go.
pub async fn serve<C: Connection, F: Folder>(connection: &mut C, folder: &F) -> Result<(), Gone> {
    let mut bytes = Vec::new();
    loop {
        let request = match request::parse(&bytes) {
            Ok(Some((request, length))) => {
                bytes.drain(..length);
                request
            }
            Ok(None) => {
                let wait = if bytes.is_empty() { Wait::Request } else { Wait::Rest };
                match connection.read(&mut bytes, wait).await {
                    Ok(()) => continue,
                    Err(Gone::Late) if wait == Wait::Rest => {
                        return refuse(connection, Status::TIMEOUT).await;
                    }
                    Err(gone) => return Err(gone),
                }
            }
            Err(status) => return refuse(connection, status).await,
        };
        answer(connection, folder, &request).await?;
        if !request.keep {
            return Ok(());
        }
    }
}

/// Answers what cannot be served, after which nothing more is understood.
async fn refuse<C: Connection>(connection: &mut C, status: Status) -> Result<(), Gone> {
    let mut head = Head::new(status, false);
    if status == Status::METHOD {
        head = head.field("Allow", "GET, HEAD");
    }
    send_page(connection, head, &message(status), false).await
}

fn message(status: Status) -> String {
    format!("<!doctype html>\n<title>{0}</title>\n<h1>{0} {1}</h1>\n", status.0, status.1)
}

/// Sends a page that was made here.
async fn send_page<C: Connection>(
    connection: &mut C,
    head: Head,
    page: &str,
    head_only: bool,
) -> Result<(), Gone> {
    let head = head.field("Content-Type", "text/html; charset=utf-8").field("Content-Length", page.len());
    let mut all = head.finish();
    if !head_only {
        all.push_str(page);
    }
    connection.write(all.as_bytes()).await
}

async fn answer<C: Connection, F: Folder>(
    connection: &mut C,
    folder: &F,
    request: &Request,
) -> Result<(), Gone> {
    let not_found = Status::NOT_FOUND;
    let Some(Path { mut names, is_directory }) = Path::parse(&request.target) else {
        return plain(connection, request, not_found).await;
    };
    match folder.find(&names).await {
        None => plain(connection, request, not_found).await,
        Some(Found::File { .. }) if is_directory => plain(connection, request, not_found).await,
        Some(Found::File { file, size, tag }) => {
            let name = names.last().map_or("", String::as_str);
            send_file(connection, folder, request, &file, File { name, size, tag }).await
        }
        Some(Found::Directory) if !is_directory && !names.is_empty() => {
            let location = response::directory_path(&names);
            let head = Head::new(Status::MOVED, request.keep).field("Location", location);
            send_page(connection, head, &message(Status::MOVED), request.head_only).await
        }
        Some(Found::Directory) => {
            names.push(String::from("index.html"));
            if let Some(Found::File { file, size, tag }) = folder.find(&names).await {
                let about = File { name: "index.html", size, tag };
                return send_file(connection, folder, request, &file, about).await;
            }
            names.pop();
            let Some(entries) = folder.entries(&names).await else {
                return plain(connection, request, Status::FAILED).await;
            };
            let head = Head::new(Status::OK, request.keep);
            send_page(connection, head, &response::listing(&names, &entries), request.head_only).await
        }
    }
}

async fn plain<C: Connection>(connection: &mut C, request: &Request, status: Status) -> Result<(), Gone> {
    send_page(connection, Head::new(status, request.keep), &message(status), request.head_only).await
}

/// What is known of a file.
struct File<'a> {
    name: &'a str,
    size: u64,
    tag: u64,
}

async fn send_file<C: Connection, F: Folder>(
    connection: &mut C,
    folder: &F,
    request: &Request,
    file: &F::File,
    about: File<'_>,
) -> Result<(), Gone> {
    let tag = format!("\"{:x}-{:x}\"", about.tag, about.size);
    let start = |status| Head::new(status, request.keep).field("ETag", &tag);
    let has_it = |tags: &String| tags.split(',').any(|one| matches!(one.trim(), "*") || weak(one) == tag);
    if request.if_none_match.as_ref().is_some_and(has_it) {
        return connection.write(start(Status::NOT_MODIFIED).finish().as_bytes()).await;
    }
    // A part of what has changed would be put together with parts of what was before.
    let same = request.if_range.as_ref().is_none_or(|wanted| *wanted == tag);
    let wanted = request.range.as_ref().filter(|_| same && !request.head_only);
    let (head, bytes) = match wanted.map_or(Part::All, |wanted| range::parse(wanted, about.size)) {
        Part::All => (start(Status::OK), 0..about.size),
        Part::Bytes(bytes) => {
            let of = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, about.size);
            (start(Status::PARTIAL).field("Content-Range", of), bytes)
        }
        Part::Outside => {
            let head = start(Status::RANGE).field("Content-Range", format!("bytes */{}", about.size));
            return send_page(connection, head, &message(Status::RANGE), false).await;
        }
    };
    let head = head
        .field("Accept-Ranges", "bytes")
        .field("Content-Type", response::content_type(about.name))
        .field("Content-Length", bytes.end - bytes.start);
    let bytes = if request.head_only { 0..0 } else { bytes };
    send_bytes(connection, folder, file, head.finish(), bytes).await
}

/// A tag without the mark that it is a weak one, which makes no difference to whether a client has the file.
fn weak(tag: &str) -> &str {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// Sends a head, and bytes of a file.
async fn send_bytes<C: Connection, F: Folder>(
    connection: &mut C,
    folder: &F,
    file: &F::File,
    head: String,
    bytes: Range<u64>,
) -> Result<(), Gone> {
    let mut piece = head.into_bytes();
    let mut at = bytes.start;
    // The head goes with the first piece.
    let mut begin = piece.len();
    loop {
        let length = (bytes.end - at).min(PIECE as u64) as usize;
        piece.resize(begin + length, 0);
        let read = if length == 0 { Some(0) } else { folder.read(file, at, &mut piece[begin..]).await };
        // The client was told a length: a file that has become shorter can only be cut off.
        let read = read.filter(|read| *read > 0 || length == 0).ok_or(Gone::Closed)?;
        connection.write(&piece[..begin + read]).await?;
        at += read as u64;
        begin = 0;
        if at == bytes.end {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Archive;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};

    /// A client that has sent something, in pieces of some length.
    struct Client {
        sent: Vec<u8>,
        piece: usize,
        /// How it ends when all is read.
        end: Gone,
        received: Vec<u8>,
    }

    impl Connection for Client {
        async fn read(&mut self, bytes: &mut Vec<u8>, _: Wait) -> Result<(), Gone> {
            let length = self.piece.min(self.sent.len());
            bytes.extend(self.sent.drain(..length));
            if length == 0 { Err(self.end) } else { Ok(()) }
        }

        async fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
            self.received.extend_from_slice(bytes);
            Ok(())
        }
    }

    /// An archive with `a.txt`, `sub/b c.html`, `sub/index.html`, `big`, and one that names something outside.
    fn archive() -> Archive {
        let mut builder = tar::Builder::new(Vec::new());
        let big: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        for (path, bytes) in [
            ("a.txt", &b"hello"[..]),
            ("sub/b c.html", b"<p>"),
            ("list/x", b"1"),
            ("list/y/z", b"2"),
            ("sub/index.html", b"the index"),
            ("empty", b""),
            ("big", &big),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, bytes).unwrap();
        }
        Archive::new(builder.into_inner().unwrap().leak()).unwrap()
    }

    fn run(sent: &[u8], piece: usize, end: Gone) -> (Result<(), Gone>, String) {
        let mut client = Client { sent: sent.to_vec(), piece, end, received: Vec::new() };
        let archive = archive();
        let result = match pin!(serve(&mut client, &archive)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("nothing here waits"),
        };
        (result, String::from_utf8_lossy(&client.received).into_owned())
    }

    fn get(target: &str, fields: &str) -> String {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        run(request.as_bytes(), usize::MAX, Gone::Closed).1
    }

    #[test]
    fn files_and_directories_are_answered() {
        let file = get("/a.txt", "");
        assert!(file.starts_with("HTTP/1.1 200 OK\r\n") && file.ends_with("\r\n\r\nhello"), "{file}");
        assert!(file.contains("\r\nContent-Length: 5\r\n") && file.contains("text/plain"), "{file}");
        assert!(get("/sub/", "").ends_with("the index"));
        assert!(get("/sub/b%20c.html", "").ends_with("<p>"));
        assert!(get("/empty", "").contains("\r\nContent-Length: 0\r\n"));
        let moved = get("/sub", "");
        assert!(moved.starts_with("HTTP/1.1 301 ") && moved.contains("\r\nLocation: /sub/\r\n"), "{moved}");
        let list = get("/list/", "");
        assert!(list.contains("href=\"./x\"") && list.contains("href=\"./y/\""), "{list}");
        assert!(get("/", "").contains("href=\"./list/\""));
    }

    #[test]
    fn what_is_not_there_or_outside_is_not_found() {
        for target in
            ["/nothing", "/a.txt/", "/a.txt/b", "/../a.txt", "/sub/..%2fa.txt", "/%2e%2e/etc/passwd"]
        {
            assert!(get(target, "").starts_with("HTTP/1.1 404 "), "{target}");
        }
    }

    #[test]
    fn parts_and_what_a_client_has_are_not_sent() {
        let part = get("/a.txt", "Range: bytes=1-2\r\n");
        assert!(part.starts_with("HTTP/1.1 206 ") && part.ends_with("\r\n\r\nel"), "{part}");
        assert!(part.contains("\r\nContent-Range: bytes 1-2/5\r\n"), "{part}");
        let outside = get("/a.txt", "Range: bytes=5-\r\n");
        assert!(outside.starts_with("HTTP/1.1 416 ") && outside.contains("bytes */5"), "{outside}");
        let tag = part.split("ETag: ").nth(1).unwrap().split('\r').next().unwrap();
        assert!(get("/a.txt", &format!("If-None-Match: \"x\", W/{tag}\r\n")).starts_with("HTTP/1.1 304 "));
        assert!(get("/a.txt", "If-None-Match: \"x\"\r\n").starts_with("HTTP/1.1 200 "));
        let if_range = |tag| get("/a.txt", &format!("Range: bytes=1-2\r\nIf-Range: {tag}\r\n"));
        assert!(if_range(tag).starts_with("HTTP/1.1 206 ") && if_range("\"x\"").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn long_files_come_whole() {
        let request = b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut client = Client { sent: request.to_vec(), piece: 7, end: Gone::Closed, received: Vec::new() };
        let archive = archive();
        let served = pin!(serve(&mut client, &archive)).poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(served, Poll::Ready(Err(Gone::Closed)));
        let body = &client.received[client.received.len() - 100_000..];
        assert!(body.iter().zip(0..).all(|(byte, at): (_, u32)| u32::from(*byte) == at % 251));
    }

    #[test]
    fn requests_that_come_at_once_are_answered_in_order_however_they_are_cut() {
        let requests = b"GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\nHEAD /big HTTP/1.1\r\nHost: a\r\n\r\n\
            GET /sub/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\n";
        for piece in [1, 2, 13, 60, usize::MAX] {
            let (result, received) = run(requests, piece, Gone::Closed);
            assert_eq!(result, Ok(()));
            let heads: Vec<_> = received.matches("HTTP/1.1 200 OK").collect();
            assert_eq!(heads.len(), 3, "{received}");
            assert!(received.contains("\r\nContent-Length: 100000\r\n"), "{received}");
            assert!(received.ends_with("the index") && received.contains("Connection: close"));
        }
    }

    #[test]
    fn a_client_that_is_late_or_sends_nonsense_is_told_and_goes() {
        let (result, received) = run(b"GET /a", 3, Gone::Late);
        assert_eq!(result, Ok(()));
        assert!(received.starts_with("HTTP/1.1 408 "), "{received}");
        let (result, received) = run(b"", 3, Gone::Late);
        assert_eq!((result, &*received), (Err(Gone::Late), ""));
        let (_, received) = run(b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", 99, Gone::Closed);
        assert!(received.starts_with("HTTP/1.1 405 ") && received.contains("Allow: GET, HEAD"), "{received}");
    }
}
