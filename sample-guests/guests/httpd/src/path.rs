//! Which file a target names.
//!
//! Start at [`Path::parse`].

use alloc::string::String;
use alloc::vec::Vec;
use percent_encoding::percent_decode_str;

/// Names from the folder downwards: none of them is empty, `.` or `..`, or has a `/` or a NUL in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Path {
    /// The names.
    pub names: Vec<String>,
    /// A `/` was at the end: a directory is meant.
    pub is_directory: bool,
}

impl Path {
    /// The path in a target. `None`: it names nothing that could be there.
    pub fn parse(target: &str) -> Option<Self> {
        let path = target.split(['?', '#']).next()?;
        let mut names = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let name = percent_decode_str(part).decode_utf8().ok()?;
            if name == "." || name == ".." || name.contains(['/', '\0']) {
                return None;
            }
            names.push(name.into_owned());
        }
        Some(Self { names, is_directory: path.ends_with('/') })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(target: &str) -> Option<Vec<String>> {
        Path::parse(target).map(|path| path.names)
    }

    #[test]
    fn paths_are_decoded_once_and_after_they_were_split() {
        assert_eq!(names("/").unwrap(), [""; 0]);
        assert_eq!(names("//a///b.txt?c=/d").unwrap(), ["a", "b.txt"]);
        assert_eq!(names("/a%20b/%C3%A4%3F").unwrap(), ["a b", "ä?"]);
        assert_eq!(names("/%2541").unwrap(), ["%41"]);
        assert_eq!(names("/100%").unwrap(), ["100%"]);
        assert!(Path::parse("/a/").unwrap().is_directory && !Path::parse("/a").unwrap().is_directory);
    }

    #[test]
    fn no_path_leaves_the_folder() {
        for target in [
            "/..",
            "/a/../b",
            "/%2e%2e/a",
            "/.%2E",
            "/a%2f..%2fb",
            "/a%00",
            "/./a",
            "/%2f",
            "/%ff%fe",
            "/..?/a",
        ] {
            assert_eq!(Path::parse(target), None, "{target}");
        }
    }
}
