//! The tests that an image lists in itself.

use hv_abi::testing::{SECTION, TestEntry};
use object::{Object, ObjectSection, ObjectSegment};
use serde::Serialize;
use zerocopy::FromBytes;

/// One test of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Case {
    /// Its place in the image's list, which is how the image is told to run it.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Ids of the clauses that it is about.
    pub clauses: Vec<String>,
}

/// Why an image's list cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuiteError {
    /// Not an ELF file.
    #[error("the image is not a readable ELF file: {0}")]
    NotElf(String),
    /// No tests.
    #[error("the image has no section {SECTION} with tests in it; declare them with guest_sdk::tests!")]
    NoTests,
    /// The section is not what it should be.
    #[error("entry {index} of the image's {SECTION} points to {what} outside the image, or that is no text")]
    BadEntry {
        /// Which entry.
        index: usize,
        /// Its name or its clauses.
        what: &'static str,
    },
}

/// A test image and its tests.
#[derive(Clone, Debug)]
pub struct Suite {
    /// The image.
    pub image: &'static [u8],
    /// Its tests, in the image's order.
    pub cases: Vec<Case>,
}

impl Suite {
    /// Reads the list of tests from an image.
    ///
    /// # Errors
    ///
    /// [`SuiteError`] says what is wrong with it.
    pub fn from_image(image: &'static [u8]) -> Result<Self, SuiteError> {
        let file = object::File::parse(image).map_err(|error| SuiteError::NotElf(error.to_string()))?;
        let section = file.section_by_name(SECTION).and_then(|section| section.data().ok());
        let entries = section.map(|data| data.chunks_exact(size_of::<TestEntry>())).into_iter().flatten();
        let case = |(index, bytes)| {
            let entry = TestEntry::read_from_bytes(bytes).expect("chunks are as long as an entry");
            let text = |what, at, length| text(&file, at, length).ok_or(SuiteError::BadEntry { index, what });
            let name = text("a name", entry.name, entry.name_length)?;
            let clauses = text("clauses", entry.clauses, entry.clauses_length)?;
            Ok(Case { index, name, clauses: clauses.split_whitespace().map(str::to_owned).collect() })
        };
        let cases: Vec<Case> = entries.enumerate().map(case).collect::<Result<_, SuiteError>>()?;
        if cases.is_empty() {
            return Err(SuiteError::NoTests);
        }
        Ok(Self { image, cases })
    }
}

/// The text at a guest-virtual address of the image.
fn text(file: &object::File<'_>, at: u64, length: u64) -> Option<String> {
    if length == 0 {
        return Some(String::new()); // wherever it is said to be
    }
    let bytes = file.segments().find_map(|segment| segment.data_range(at, length).ok().flatten())?;
    String::from_utf8(bytes.to_vec()).ok()
}
