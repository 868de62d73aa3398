//! Patterns for keys: `*`, `?`, `[abc]`, `[^a-z]`, and `\` before a character that means itself.
//!
//! The work is bounded by the product of both lengths, whatever the pattern: of several stars, only the last one is tried
//! again.

/// Whether all of `text` is as `pattern` says.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern_at, mut text_at) = (0, 0);
    // Where to go on after a star that is to stand for one byte more.
    let mut retry = None;
    loop {
        let rest = &pattern[pattern_at..];
        if rest.first() == Some(&b'*') {
            pattern_at += 1;
            retry = Some((pattern_at, text_at));
            continue;
        }
        let matched = match (rest.is_empty(), text.get(text_at)) {
            (true, None) => return true,
            (true, Some(_)) => None,
            (false, None) => return false,
            (false, Some(byte)) => one(rest, *byte),
        };
        match (matched, &mut retry) {
            (Some(length), _) => (pattern_at, text_at) = (pattern_at + length, text_at + 1),
            (None, Some((after_star, from))) => {
                *from += 1;
                (pattern_at, text_at) = (*after_star, *from);
            }
            (None, None) => return false,
        }
    }
}

/// The length of the pattern's first item if `byte` is as it says. The pattern is not empty.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', exact, ..] => (*exact == byte).then_some(2),
        [b'[', class @ ..] => one_of(class, byte).map(|length| length + 1),
        [exact, ..] => (*exact == byte).then_some(1),
        [] => None,
    }
}

/// The same for what follows a `[`, up to its `]` or the end.
fn one_of(class: &[u8], byte: u8) -> Option<usize> {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        let rest = &class[at..];
        let (low, high, length) = match rest {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', exact, ..] => (*exact, *exact, 2),
            [low, b'-', high, ..] if *high != b']' => (*low.min(high), *low.max(high), 3),
            [exact, ..] => (*exact, *exact, 1),
        };
        found |= (low..=high).contains(&byte);
        at += length;
    }
    (found != negated).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_what_they_say() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("", &[""], &["a"]),
            ("*", &["", "abc"], &[]),
            ("a*c", &["ac", "abc", "abcc"], &["a", "abcd", "bac"]),
            ("*a*b", &["ab", "aab", "xaxbxb"], &["ba", "abx"]),
            ("a?c", &["abc"], &["ac", "abbc"]),
            ("[ab]x", &["ax", "bx"], &["cx", "x", "a"]),
            ("[^a-c]", &["d"], &["b", ""]),
            ("[c-a]", &["b"], &["d"]),
            ("\\*", &["*"], &["a"]),
            ("[\\]]", &["]"], &["\\"]),
            ("[a", &["a"], &["b"]),
            ("\\", &["\\"], &["a"]),
        ];
        for (pattern, matching, others) in cases {
            for text in *matching {
                assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
            }
            for text in *others {
                assert!(!matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn many_stars_take_no_longer_than_the_product_of_the_lengths() {
        let pattern = "a*".repeat(50) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(10_000).as_bytes()));
    }
}
