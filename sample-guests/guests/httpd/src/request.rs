//! What a client asks for.
//!
//! The bytes come from anybody. Heads are parsed by the crate `httparse`; what it lets through, and a server must not, is refused
//! here.
//!
//! Start at [`parse`].

use crate::response::Status;
use alloc::string::String;
use httparse::Header;

/// The longest head of a request.
pub const HEAD_MAX: usize = 8 << 10;
/// The most header fields in one.
const FIELDS_MAX: usize = 64;

/// A request whose head is complete.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Only the head of the answer is wanted.
    pub head_only: bool,
    /// What is asked for: a path, perhaps with a query, as it was sent.
    pub target: String,
    /// The connection is to stay for another request.
    pub keep: bool,
    /// The part of it that is wanted, as it was sent.
    pub range: Option<String>,
    /// The part is wanted only of what has this tag.
    pub if_range: Option<String>,
    /// It is not wanted if it has one of these tags.
    pub if_none_match: Option<String>,
}

/// Takes a request from the front of `bytes`: gives it and its length, or `None` if there is more to come.
///
/// # Errors
///
/// The status with which to refuse it. Nothing behind it can be understood.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Status> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(&bytes[..bytes.len().min(HEAD_MAX)]) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Status::HEAD_TOO_LARGE);
        }
        Err(httparse::Error::Version) => return Err(Status::VERSION),
        Err(_) => return Err(Status::BAD_REQUEST),
    };
    let fields = Fields(head.headers);
    let head_only = match head.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Status::METHOD),
    };
    let is_1_1 = head.version == Some(1);
    if is_1_1 != (fields.count("host") == 1) && (is_1_1 || fields.count("host") > 1) {
        return Err(Status::BAD_REQUEST);
    }
    if fields.has_body() {
        return Err(Status::BODY);
    }
    let text = |name| fields.first(name).and_then(|value| core::str::from_utf8(value).ok()).map(String::from);
    let request = Request {
        head_only,
        target: String::from(origin_form(head.path.unwrap_or_default())?),
        keep: if is_1_1 { !fields.connection_has("close") } else { fields.connection_has("keep-alive") },
        range: text("range"),
        if_range: text("if-range"),
        if_none_match: text("if-none-match"),
    };
    Ok(Some((request, length)))
}

/// The path in a target, which a client may send with the server's name before it.
fn origin_form(target: &str) -> Result<&str, Status> {
    if target.starts_with('/') {
        return Ok(target);
    }
    let rest = target.strip_prefix("http://").ok_or(Status::BAD_REQUEST)?;
    Ok(rest.find('/').map_or("/", |slash| &rest[slash..]))
}

/// The fields of a head.
struct Fields<'a>(&'a [Header<'a>]);

impl Fields<'_> {
    fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    fn first(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    fn count(&self, name: &str) -> usize {
        self.all(name).count()
    }

    /// Whether a body follows, or may follow: none is of use to this server.
    fn has_body(&self) -> bool {
        self.count("transfer-encoding") > 0 || self.all("content-length").any(|length| length != b"0")
    }

    fn connection_has(&self, option: &str) -> bool {
        let is_it = |word: &[u8]| word.trim_ascii().eq_ignore_ascii_case(option.as_bytes());
        self.all("connection").any(|value| value.split(|byte| *byte == b',').any(is_it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(text: &str) -> Request {
        let (request, length) = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        request
    }

    #[test]
    fn what_a_browser_sends_is_understood() {
        let request = good(
            "GET /a%20b?x=1 HTTP/1.1\r\nHost: here\r\nRange: bytes=1-2\r\nIf-Range: \"t\"\r\n\
             If-None-Match: \"a\", \"b\"\r\nAccept: */*\r\n\r\n",
        );
        assert_eq!(request.target, "/a%20b?x=1");
        assert!(request.keep && !request.head_only);
        assert_eq!(request.range.as_deref(), Some("bytes=1-2"));
        assert_eq!(request.if_range.as_deref(), Some("\"t\""));
        assert_eq!(request.if_none_match.as_deref(), Some("\"a\", \"b\""));
        assert!(good("HEAD http://here HTTP/1.1\r\nHost: here\r\n\r\n").head_only);
    }

    #[test]
    fn a_connection_stays_as_its_version_and_client_say() {
        assert!(!good("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, Close\r\n\r\n").keep);
        assert!(!good("GET / HTTP/1.0\r\n\r\n").keep);
        assert!(good("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keep);
    }

    #[test]
    fn a_head_is_complete_at_its_end_and_not_before() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET";
        for end in 0..text.len() - 3 {
            assert_eq!(parse(&text[..end]), Ok(None), "{end}");
        }
        assert_eq!(parse(text).unwrap().unwrap().1, text.len() - 3);
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(HEAD_MAX));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(FIELDS_MAX));
        for (text, status) in [
            ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", Status::METHOD),
            ("GET / HTTP/1.1\r\n\r\n", Status::BAD_REQUEST),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Status::BAD_REQUEST),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Status::BAD_REQUEST),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Status::BAD_REQUEST),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n", Status::BAD_REQUEST),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Status::VERSION),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", Status::BODY),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Status::BODY),
            ("\0\u{1}\u{2}", Status::BAD_REQUEST),
            (&long, Status::HEAD_TOO_LARGE),
            (&many, Status::HEAD_TOO_LARGE),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(status), "{text:.60}");
        }
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let mut random = fastrand::Rng::with_seed(1);
        let good = b"GET /a/b HTTP/1.1\r\nHost: a\r\nRange: bytes=0-\r\nConnection: close\r\n\r\n";
        for _ in 0..20_000 {
            let mut bytes = good.to_vec();
            for _ in 0..random.usize(1..5) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            if let Ok(Some((request, length))) = parse(&bytes) {
                assert!(request.target.starts_with('/') && length <= bytes.len());
            }
        }
    }
}
