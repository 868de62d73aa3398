//! What a client is answered: heads, and bodies that are made here.
//!
//! Start at [`Head::new`].

use crate::folder::Entry;
use alloc::format;
use alloc::string::String;
use core::fmt::Write;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16, pub &'static str);

impl Status {
    /// Here it is.
    pub const OK: Self = Self(200, "OK");
    /// Here is the part of it.
    pub const PARTIAL: Self = Self(206, "Partial Content");
    /// It is elsewhere.
    pub const MOVED: Self = Self(301, "Moved Permanently");
    /// The client has it.
    pub const NOT_MODIFIED: Self = Self(304, "Not Modified");
    /// It cannot be understood.
    pub const BAD_REQUEST: Self = Self(400, "Bad Request");
    /// It is not there.
    pub const NOT_FOUND: Self = Self(404, "Not Found");
    /// Files can only be read.
    pub const METHOD: Self = Self(405, "Method Not Allowed");
    /// It took too long to come.
    pub const TIMEOUT: Self = Self(408, "Request Timeout");
    /// Nothing can be sent here.
    pub const BODY: Self = Self(413, "Content Too Large");
    /// There are no such bytes in it.
    pub const RANGE: Self = Self(416, "Range Not Satisfiable");
    /// Its head is too long.
    pub const HEAD_TOO_LARGE: Self = Self(431, "Request Header Fields Too Large");
    /// It is there, and cannot be read.
    pub const FAILED: Self = Self(500, "Internal Server Error");
    /// It is of a version that is not known.
    pub const VERSION: Self = Self(505, "HTTP Version Not Supported");
}

/// The head of an answer.
pub struct Head(String);

impl Head {
    /// One without fields, but for those that all have.
    pub fn new(status: Status, keep: bool) -> Self {
        let Status(code, reason) = status;
        let connection = if keep { "keep-alive" } else { "close" };
        Self(format!("HTTP/1.1 {code} {reason}\r\nServer: hv-httpd\r\nConnection: {connection}\r\n"))
    }

    /// With one more field. Its value has no line break: what comes from outside is encoded first.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl core::fmt::Display) -> Self {
        write!(self.0, "{name}: {value}\r\n").expect("a string takes it");
        self
    }

    /// As it is sent.
    pub fn finish(mut self) -> String {
        self.0.push_str("\r\n");
        self.0
    }
}

/// The type of a file, by its name.
pub fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" | "htm" => "text/html; charset=utf-8",
        "txt" | "md" | "rs" | "toml" => "text/plain; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        _ => "application/octet-stream",
    }
}

/// What is encoded in a name that becomes a part of a path.
const IN_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'&')
    .add(b'\'')
    .add(b'/')
    .add(b':')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'`');

/// The absolute path of a directory.
pub fn directory_path(names: &[String]) -> String {
    names.iter().fold(String::from("/"), |mut path, name| {
        write!(path, "{}/", utf8_percent_encode(name, IN_PATH)).expect("a string takes it");
        path
    })
}

/// A page with what is in a directory.
pub fn listing(names: &[String], entries: &[Entry]) -> String {
    let title = escape(&format!("/{}", names.join("/")));
    let mut page = format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<h1>{title}</h1>\n<ul>\n"
    );
    if !names.is_empty() {
        page.push_str("<li><a href=\"../\">..</a>\n");
    }
    for Entry { name, is_directory } in entries {
        let slash = if *is_directory { "/" } else { "" };
        let path = utf8_percent_encode(name, IN_PATH);
        let _ = writeln!(page, "<li><a href=\"./{path}{slash}\">{}{slash}</a>", escape(name));
    }
    page.push_str("</ul>\n");
    page
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_a_listing_or_a_head() {
        let name = String::from("<a href=\"x\">&\r\nX: y");
        let entries = [Entry { name: name.clone(), is_directory: false }];
        let page = listing(core::slice::from_ref(&name), &entries);
        assert!(
            !page.contains("<a href=\"x") && page.contains("&lt;a href=&quot;x&quot;&gt;&amp;"),
            "{page}"
        );
        assert!(page.contains("href=\"./%3Ca%20href=%22x%22%3E%26%0D%0AX%3A%20y\""), "{page}");
        let path = directory_path(&[name, String::from("ä")]);
        assert!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{path}");
    }
}
