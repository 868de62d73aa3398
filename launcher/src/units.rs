//! Sizes and durations, as people write and read them.

use std::time::Duration;

/// Reads a size in bytes: `4096`, `64M`, `64MiB`. Suffixes are powers of 1024, in either case.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    const HINT: &str = "write a whole number of bytes, or one with K, M, G or T behind it, such as 64M";
    let (number, suffix) = split(text);
    let shift = match &*suffix.to_ascii_lowercase() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(HINT.into()),
    };
    let number: u64 = number.parse().map_err(|_| HINT)?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than 64 bits can say".into())
}

/// Reads a duration that is more than zero: `500ms`, `10s`, `2m`, `1h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    const HINT: &str = "write a whole number with ms, s, m or h behind it, such as 10s";
    let (number, suffix) = split(text);
    let number: u64 = number.parse().map_err(|_| HINT)?;
    let milliseconds = match suffix {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(HINT.into()),
    };
    match number.checked_mul(milliseconds) {
        None => Err("that is longer than 64 bits can say".into()),
        Some(0) => Err("no guest is that fast; leave the option out for no limit".into()),
        Some(milliseconds) => Ok(Duration::from_millis(milliseconds)),
    }
}

/// The digits at the beginning, and what follows them.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// A size with three digits or so: `64 MiB`, `13.5 KiB`.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let Some((shift, unit)) = units.into_iter().find(|(shift, _)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    let size = bytes as f64 / (1_u64 << shift) as f64;
    if bytes.is_multiple_of(1 << shift) { format!("{size} {unit}") } else { format!("{size:.1} {unit}") }
}

/// A duration with three digits or so: `870 ns`, `1.52 ms`, `90 s`.
pub(crate) fn show_duration(duration: Duration) -> String {
    let ns = duration.as_nanos() as f64;
    let (value, unit) = match ns {
        ..1e3 => (ns, "ns"),
        ..1e6 => (ns / 1e3, "us"),
        ..1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = match value {
        _ if value.fract() == 0.0 => 0,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// How long something has been: `5s`, `3m 20s`, `2h 5m`, `4d 3h`.
pub(crate) fn show_span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let read =
            [("0", 0), ("4096", 4096), ("64M", 64 << 20), ("2g", 2 << 30), ("1T", 1 << 40), ("8KiB", 8192)];
        for (text, bytes) in read {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "M", "-1", "+1", "1.5G", "64X", "64 M", "64MB", "99999999T", "18446744073709551616", "６４"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read() {
        let read = [("1ms", 1), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000)];
        for (text, milliseconds) in read {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "10", "s", "-1s", "1.5s", "1d", "0s", "0ms", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        let shown = [(0, "0 B"), (1023, "1023 B"), (64 << 20, "64 MiB"), (13_824, "13.5 KiB")];
        for (bytes, text) in shown {
            assert_eq!(show_size(bytes), text);
        }
    }

    #[test]
    fn spans_are_shown() {
        let shown = [(0, "0s"), (59, "59s"), (200, "3m 20s"), (7500, "2h 5m"), (356_400, "4d 3h")];
        for (seconds, text) in shown {
            assert_eq!(show_span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn durations_are_shown() {
        let shown = [(870, "870 ns"), (1_520_000, "1.52 ms"), (90_000_000_000, "90 s"), (34_560, "34.6 us")];
        for (ns, text) in shown {
            assert_eq!(show_duration(Duration::from_nanos(ns)), text);
        }
    }
}
