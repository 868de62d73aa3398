//! Messages: one datagram each, text.
//!
//! They come from any VM of the network, so a name or a text is what is printable of it, and no longer than it may be: nobody can
//! write escape sequences to the terminals of others. Who a message is from is what it says; nothing proves it.
//!
//! Start at [`Message::parse`].

use alloc::format;
use alloc::string::String;

/// The most characters of a name, and of a text.
const NAME_MAX: usize = 24;
const TEXT_MAX: usize = 400;
/// The longest datagram.
pub const LONGEST: usize = 2048;

/// How every datagram begins.
const MAGIC: &str = "hv-chat 1";

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Somebody has come, and wants to know who is there.
    Comes,
    /// Somebody is there, and tells one who has come.
    IsHere,
    /// Somebody goes.
    Goes,
    /// Somebody says something.
    Says(String),
}

/// What happens, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who.
    pub name: String,
    /// What.
    pub what: What,
}

/// What is printable of a text, and not too long.
fn printable(text: &str, most: usize) -> String {
    text.chars().filter(|character| !character.is_control()).take(most).collect()
}

/// A name as it may be: printable, without spaces, not too long. `None`: nothing is left of it.
pub fn name(text: &str) -> Option<String> {
    let name = printable(&text.split_whitespace().collect::<String>(), NAME_MAX);
    (!name.is_empty()).then_some(name)
}

impl Message {
    /// That somebody says something. `None`: it is nothing.
    pub fn say(name: &str, text: &str) -> Option<Self> {
        let text = printable(text.trim(), TEXT_MAX);
        (!text.is_empty()).then(|| Self { name: name.into(), what: What::Says(text) })
    }

    /// As a datagram.
    pub fn datagram(&self) -> String {
        let (kind, text) = match &self.what {
            What::Comes => ("comes", ""),
            What::IsHere => ("here", ""),
            What::Goes => ("goes", ""),
            What::Says(text) => ("says", &**text),
        };
        format!("{MAGIC} {kind} {}\n{text}", self.name)
    }

    /// What a datagram says. `None`: it is none of these.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(datagram).ok()?;
        let (head, text) = text.strip_prefix(MAGIC)?.split_once('\n')?;
        let (kind, from) = head.trim_start().split_once(' ')?;
        let name = name(from)?;
        let what = match kind {
            "comes" => What::Comes,
            "here" => What::IsHere,
            "goes" => What::Goes,
            "says" => return Self::say(&name, text),
            _ => return None,
        };
        Some(Self { name, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        for what in [What::Comes, What::IsHere, What::Goes, What::Says("hällo, all".into())] {
            let message = Message { name: "bob".into(), what };
            assert_eq!(Message::parse(message.datagram().as_bytes()), Some(message));
        }
        let longest = Message::say(&"ü".repeat(NAME_MAX), &"\u{1f600}".repeat(TEXT_MAX)).unwrap();
        assert!(longest.datagram().len() <= LONGEST);
        assert_eq!(Message::parse(longest.datagram().as_bytes()), Some(longest));
    }

    #[test]
    fn nobody_writes_to_anothers_terminal_what_is_not_text() {
        let message = Message::parse(b"hv-chat 1 says b\x1b[2Job\n\x1b]0;title\x07 hi\r\nthere").unwrap();
        assert_eq!(message.name, "b[2Job");
        assert_eq!(message.what, What::Says("]0;title hithere".into()));
        let long = format!("hv-chat 1 says {}\n{}", "n".repeat(1000), "t".repeat(5000));
        let Message { name, what: What::Says(text) } = Message::parse(long.as_bytes()).unwrap() else {
            panic!()
        };
        assert_eq!((name.len(), text.len()), (NAME_MAX, TEXT_MAX));
    }

    #[test]
    fn what_is_no_message_is_none() {
        for datagram in [
            &b""[..],
            b"hv-chat 1",
            b"hv-chat 1 says bob",
            b"hv-chat 1 says \x1b\nhi",
            b"hv-chat 1 says bob\n \n",
            b"hv-chat 1 dances bob\n",
            b"hv-chat 2 says bob\nhi",
            b"hv-chat 1 says \xff\nhi",
        ] {
            assert_eq!(Message::parse(datagram), None, "{}", String::from_utf8_lossy(datagram));
        }
    }
}
