//! Images: the built-in ones, and what `hv run` makes of its argument.

use crate::cli::ImagesOptions;
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output::{self, Style};
use crate::units::show_size;
use hv_core::{Image, ImageError};
use sample_guests::{IMAGES, Sample};
use serde::Serialize;
use std::borrow::Cow;
use std::error::Error;
use std::fmt::Write;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// No image is larger; a device that never ends must not fill the host's memory.
const LARGEST: u64 = 1 << 30;

/// Finds and checks an image.
///
/// # Errors
///
/// There is none, or it cannot run.
pub(crate) fn load(path: &Path) -> Result<Image, Failure> {
    Image::parse(bytes(path)?).map_err(|error| bad(path, error))
}

/// Finds an image, and does not look into it.
///
/// # Errors
///
/// There is none.
pub(crate) fn bytes(path: &Path) -> Result<Cow<'static, [u8]>, Failure> {
    match built_in(path) {
        Some(sample) => Ok(sample.image.into()),
        None => Ok(read(path).map_err(|error| unreadable(path, error))?.into()),
    }
}

/// Reads what a guest is to find in its memory.
///
/// # Errors
///
/// It cannot be read.
pub(crate) fn ramdisk(path: &Path) -> Result<Vec<u8>, Failure> {
    read(path)
        .map_err(|error| Failure::cannot(format!("the ramdisk `{}` cannot be read", path.display()), error))
}

/// An image that is there and is of no use.
pub(crate) fn bad(path: &Path, error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
    Failure::new(Cause::BadImage, format!("`{}` cannot run", path.display())).because(error)
}

/// Whether a file is a program of this host's and no guest: it has no note, or is not even static.
pub(crate) fn is_native(path: &Path) -> bool {
    let program =
        |error| matches!(error, ImageError::Dynamic | ImageError::NotExecutable { .. } | ImageError::NoNote);
    built_in(path).is_none() && read(path).is_ok_and(|bytes| Image::parse(bytes).is_err_and(program))
}

/// Whether the name is a built-in image's.
pub(crate) fn is_built_in(path: &Path) -> bool {
    built_in(path).is_some()
}

/// An image as a process in another directory finds it.
pub(crate) fn location(path: &Path) -> PathBuf {
    if is_built_in(path) { path.into() } else { std::path::absolute(path).unwrap_or_else(|_| path.into()) }
}

/// The built-in image of that name, unless it is plainly a path.
fn built_in(path: &Path) -> Option<Sample> {
    path.to_str().and_then(sample_guests::find)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = std::fs::metadata(path)?;
    if !file.is_file() && !file.is_dir() {
        // Opening a pipe would wait for its writer, past any --timeout.
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it is larger than {}, which is the most", show_size(LARGEST))));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    let shown = path.display();
    match error.kind() {
        ErrorKind::NotFound => Failure::new(Cause::NoImage, format!("there is no image `{shown}`"))
            .because("it is neither a file nor a built-in guest")
            .advise(what_there_is(&path.to_string_lossy())),
        ErrorKind::IsADirectory => {
            Failure::new(Cause::BadImage, format!("`{shown}` is a directory, not an image"))
                .advise("if it is a guest's crate, run `cargo run` in it")
        }
        _ => Failure::new(Cause::BadImage, format!("the image `{shown}` cannot be read")).because(error),
    }
}

fn what_there_is(wrong: &str) -> String {
    let names: Vec<_> = IMAGES.iter().map(|sample| sample.name).collect();
    let mut text = String::new();
    if let Some(name) = nearest(wrong, &names) {
        writeln!(text, "did you mean `{name}`?").expect("a string takes it");
    }
    write!(text, "built-in guests: {}", names.join(", ")).expect("a string takes it");
    text
}

/// The name that takes the fewest changes, if it takes few for its length.
fn nearest<'a>(wrong: &str, names: &[&'a str]) -> Option<&'a str> {
    let with_distance = names.iter().map(|name| (distance(wrong, name), *name));
    let (changes, name) = with_distance.min()?;
    (changes <= 1 + name.len() / 4).then_some(name)
}

/// How many characters to insert, delete or replace to make one text of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A built-in image, as `hv images` tells it.
#[derive(Serialize)]
struct Listed {
    name: &'static str,
    about: &'static str,
    size: u64,
    abi_version: u32,
    least_memory: u64,
}

/// Lists the built-in images; gives the exit code.
///
/// # Errors
///
/// The list could not be written, or an image is broken.
pub(crate) fn list(options: &ImagesOptions) -> Result<u8, Failure> {
    let listed = IMAGES.iter().map(describe).collect::<Result<Vec<_>, _>>()?;
    output::print(&if options.json { json(&listed) } else { table(&listed, &Style::stdout()) })?;
    Ok(0)
}

fn describe(sample: &Sample) -> Result<Listed, Failure> {
    let image = load(Path::new(sample.name))?;
    Ok(Listed {
        name: sample.name,
        about: sample.about,
        size: sample.image.len() as u64,
        abi_version: image.note.abi_version,
        least_memory: image.note.least_memory,
    })
}

fn json(listed: &[Listed]) -> String {
    let json = serde_json::to_string_pretty(listed).expect("names and numbers are JSON");
    format!("{json}\n")
}

fn table(listed: &[Listed], style: &Style) -> String {
    let name = listed.iter().map(|image| image.name.len()).max().unwrap_or(0).max(4);
    let heading = format!("{:name$}  {:>9}  {:>3}  {:>9}  WHAT IT SHOWS", "NAME", "SIZE", "ABI", "MEMORY");
    let mut text = format!("{}\n", style.bold(&heading));
    for Listed { name: n, about, size, abi_version, least_memory } in listed {
        let (size, memory) = (show_size(*size), show_size(*least_memory));
        writeln!(text, "{n:name$}  {size:>9}  {abi_version:>3}  {memory:>9}  {about}")
            .expect("a string takes it");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, changes) in [("", "", 0), ("helo", "hello", 1), ("hlelo", "hello", 2), ("", "abc", 3)] {
            assert_eq!(distance(a, b), changes, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["bench", "crash", "hello"];
        assert_eq!(nearest("helo", &names), Some("hello"));
        assert_eq!(nearest("crahs", &names), Some("crash"));
        assert_eq!(nearest("something", &names), None);
    }
}
