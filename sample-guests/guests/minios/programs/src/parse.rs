//! What a shell's line means: words, quotes, pipelines, and what is between them.
//!
//! ```text
//! line     = pipeline { (";" | "&") pipeline } [";" | "&"]
//! pipeline = command { "|" command }
//! command  = word { word | redirection }
//! redirection = ("<" | ">" | ">>") word
//! ```
//!
//! A word ends at a blank or one of `|;&<>`. Single quotes keep everything; double quotes keep everything but `$` and `\`;
//! a backslash keeps the next character. `$?` is the last status. `#` at a word's start begins a comment.
//!
//! Start at [`line`].

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::iter::Peekable;
use core::str::Chars;

/// One program: its name and arguments, and what it reads and writes instead of what it would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// At least one.
    pub words: Vec<String>,
    /// A file to read.
    pub input: Option<String>,
    /// A file to write, and whether it is at its end.
    pub output: Option<(String, bool)>,
}

/// Commands, each reading what the one before writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pipeline {
    /// At least one.
    pub commands: Vec<Command>,
    /// Nobody waits for it.
    pub background: bool,
}

/// What is wrong with a line.
pub type Fault = &'static str;

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// One of `|;&`.
    Operator(char),
    /// A file to read.
    Input(String),
    /// A file to write, and whether at its end.
    Output(String, bool),
}

/// Reads a line. `status` is what `$?` stands for.
///
/// # Errors
///
/// What is wrong with it, to be told.
pub fn line(text: &str, status: i32) -> Result<Vec<Pipeline>, Fault> {
    let mut pipelines = Vec::new();
    let mut pipeline = Pipeline::default();
    let mut command = Command::default();
    for token in tokens(text, status)? {
        match token {
            Token::Word(word) => command.words.push(word),
            Token::Input(file) => command.input = Some(file),
            Token::Output(file, at_end) => command.output = Some((file, at_end)),
            Token::Operator(_) if command.words.is_empty() => return Err("a command is missing"),
            Token::Operator(operator) => {
                pipeline.commands.push(core::mem::take(&mut command));
                if operator != '|' {
                    pipeline.background = operator == '&';
                    pipelines.push(core::mem::take(&mut pipeline));
                }
            }
        }
    }
    if !command.words.is_empty() {
        pipeline.commands.push(command);
        pipelines.push(pipeline);
    } else if command != Command::default() {
        return Err("a command is missing");
    } else if !pipeline.commands.is_empty() {
        return Err("a command is missing behind `|`");
    }
    Ok(pipelines)
}

fn tokens(text: &str, status: i32) -> Result<Vec<Token>, Fault> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.peek().copied() {
        match next {
            ' ' | '\t' => drop(rest.next()),
            '#' => break,
            '|' | ';' | '&' => tokens.extend(rest.next().map(Token::Operator)),
            '<' => {
                rest.next();
                tokens.push(Token::Input(file(&mut rest, status)?));
            }
            '>' => {
                rest.next();
                let at_end = rest.next_if_eq(&'>').is_some();
                tokens.push(Token::Output(file(&mut rest, status)?, at_end));
            }
            _ => tokens.push(Token::Word(word(&mut rest, status)?)),
        }
    }
    Ok(tokens)
}

/// The word behind a `<` or `>`.
fn file(rest: &mut Peekable<Chars<'_>>, status: i32) -> Result<String, Fault> {
    while rest.next_if(|next| matches!(next, ' ' | '\t')).is_some() {}
    match rest.peek() {
        None | Some('|' | ';' | '&' | '<' | '>') => Err("a file is missing behind `<` or `>`"),
        Some(_) => word(rest, status),
    }
}

fn word(rest: &mut Peekable<Chars<'_>>, status: i32) -> Result<String, Fault> {
    let mut word = String::new();
    let mut double = false;
    while let Some(next) = rest.peek().copied() {
        if !double && matches!(next, ' ' | '\t' | '|' | ';' | '&' | '<' | '>') {
            return Ok(word);
        }
        rest.next();
        match next {
            '"' => double = !double,
            '\'' if !double => single(rest, &mut word)?,
            '\\' => word.push(rest.next().ok_or("nothing is behind the backslash")?),
            '$' if rest.peek() == Some(&'?') => {
                rest.next();
                word.push_str(&status.to_string());
            }
            other => word.push(other),
        }
    }
    if double { Err("a double quote is missing") } else { Ok(word) }
}

fn single(rest: &mut Peekable<Chars<'_>>, word: &mut String) -> Result<(), Fault> {
    for next in rest.by_ref() {
        if next == '\'' {
            return Ok(());
        }
        word.push(next);
    }
    Err("a single quote is missing")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each pipeline as `a b | c`, with words in brackets where they are not plain, and `&` behind it.
    fn shown(text: &str) -> Vec<String> {
        let word = |word: &String| {
            if word.contains([' ', '|']) || word.is_empty() { format!("[{word}]") } else { word.clone() }
        };
        let command = |command: &Command| {
            let mut shown: Vec<_> = command.words.iter().map(word).collect();
            shown.extend(command.input.iter().map(|file| format!("<{file}")));
            shown.extend(
                command
                    .output
                    .iter()
                    .map(|(file, at_end)| format!("{}{file}", if *at_end { ">>" } else { ">" })),
            );
            shown.join(" ")
        };
        let show = |p: Pipeline| {
            let commands = p.commands.iter().map(command).collect::<Vec<_>>().join(" | ");
            commands + if p.background { " &" } else { "" }
        };
        line(text, 7).unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn words_pipes_and_separators() {
        assert_eq!(shown(""), [""; 0]);
        assert_eq!(shown("  # nothing | here"), [""; 0]);
        assert_eq!(shown("primes 100|wc -l"), ["primes 100 | wc -l"]);
        assert_eq!(shown("a; b & c &d;"), ["a", "b &", "c &", "d"]);
        assert_eq!(shown("echo a#b # c"), ["echo a#b"]);
    }

    #[test]
    fn quotes() {
        assert_eq!(shown(r#"echo 'a | b' "c  d" e\ f g"h 'i'"j"#), ["echo [a | b] [c  d] [e f] [gh 'i'j]"]);
        assert_eq!(shown(r#"echo '' "$?" '$?' \$? $x"#), ["echo [] 7 $? $? $x"]);
    }

    #[test]
    fn redirections() {
        assert_eq!(shown("a >b c"), ["a c >b"]);
        assert_eq!(shown("a>>b<c|d >'e f'"), ["a <c >>b | d >e f"]);
        assert_eq!(shown("a '>' \\> \"<\""), ["a > > <"]);
    }

    #[test]
    fn faults() {
        for wrong in [
            "| a", "a | | b", "a |", "; a", "a ;; b", "&", "echo 'a", "echo \"a", "echo \\", "a >",
            "a > | b", "> a", "a > >b", "a | <b",
        ] {
            assert!(line(wrong, 0).is_err(), "{wrong}");
        }
    }
}
