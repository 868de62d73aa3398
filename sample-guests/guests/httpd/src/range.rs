//! Parts of a file, as a client asks for them (RFC 9110, section 14).
//!
//! One range is served; several at once are answered with the whole, which is allowed.

/// What a `Range` asks for, of a file of some length.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it: there is no range, or none that is understood.
    All,
    /// These bytes, of which there is at least one.
    Bytes(core::ops::Range<u64>),
    /// Bytes that it does not have.
    Outside,
}

/// What the value of a `Range` field asks for.
pub fn parse(value: &str, length: u64) -> Part {
    let understood = || {
        let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        Some(match (first, last) {
            (Some(first), Some(last)) if last < first => return None,
            (Some(first), last) => first..last.map_or(length, |last| last.saturating_add(1).min(length)),
            (None, Some(suffix)) => length.saturating_sub(suffix)..length,
            (None, None) => return None,
        })
    };
    match understood() {
        None => Part::All,
        Some(bytes) if bytes.is_empty() => Part::Outside,
        Some(bytes) => Part::Bytes(bytes),
    }
}

/// Digits, or nothing at all. A number that is too long is a large one.
#[expect(clippy::option_option, reason = "malformed, absent and present are three things")]
fn number(text: &str) -> Option<Option<u64>> {
    if text.is_empty() {
        return Some(None);
    }
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_understood() {
        for (value, part) in [
            ("bytes=0-0", Part::Bytes(0..1)),
            ("bytes=5-", Part::Bytes(5..10)),
            ("bytes=3-99999999999999999999999", Part::Bytes(3..10)),
            ("bytes=-3", Part::Bytes(7..10)),
            ("bytes=-100", Part::Bytes(0..10)),
            ("bytes=10-", Part::Outside),
            ("bytes=-0", Part::Outside),
            ("bytes=4-3", Part::All),
            ("bytes=-", Part::All),
            ("bytes=+1-2", Part::All),
            ("bytes=0-1,4-5", Part::All),
            ("lines=1-2", Part::All),
            ("", Part::All),
        ] {
            assert_eq!(parse(value, 10), part, "{value}");
        }
        assert_eq!(parse("bytes=0-", 0), Part::Outside);
    }
}
