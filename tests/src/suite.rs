//! The tests of a suite: those that an image lists in itself, and scenarios.

use crate::scenarios::{self, Judgement, Stand};
use hv_abi::testing::{SECTION, TestEntry};
use object::{Object, ObjectSection, ObjectSegment};
use serde::Serialize;
use zerocopy::FromBytes;

/// One test.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Ids of the clauses that it is about.
    pub clauses: Vec<String>,
    /// How it is made.
    #[serde(flatten)]
    pub kind: Kind,
}

/// Where a test is made.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Kind {
    /// In a guest: the image's test of this index, which is how the image is told to run it.
    Guest {
        /// The index.
        index: usize,
    },
    /// On the host: this boots the machines that it needs, and looks at how they end and at what they write.
    Scenario {
        /// The test.
        #[serde(skip)]
        check: fn(&Stand<'_>) -> Judgement,
    },
}

impl Case {
    /// A test of these clauses, which are separated by spaces.
    pub(crate) fn new(name: &str, clauses: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), clauses: clauses.split_whitespace().map(str::to_owned).collect(), kind }
    }
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

/// A test image and the tests that are made with it.
#[derive(Clone, Debug)]
pub struct Suite {
    /// The image.
    pub image: &'static [u8],
    /// The tests: those in the image, in its order, then scenarios.
    pub cases: Vec<Case>,
}

impl Suite {
    /// The conformance suite of the ABI: the tests in its image, and the scenarios for which the image has acts.
    ///
    /// # Errors
    ///
    /// As [`from_image`](Self::from_image).
    pub fn conformance() -> Result<Self, SuiteError> {
        let image = sample_guests::find("conformance").expect("the suite's image is built in").image;
        let mut suite = Self::from_image(image)?;
        suite.cases.extend(scenarios::all());
        Ok(suite)
    }

    /// Reads the list of tests from an image.
    ///
    /// # Errors
    ///
    /// [`SuiteError`] says what is wrong with it.
    pub fn from_image(image: &'static [u8]) -> Result<Self, SuiteError> {
        let file = object::File::parse(image).map_err(|error| SuiteError::NotElf(error.to_string()))?;
        let section = file.section_by_name(SECTION).and_then(|section| section.data().ok());
        let entries =
            section.map(|data| data.as_chunks::<{ size_of::<TestEntry>() }>().0).unwrap_or_default();
        let case = |(index, bytes): (usize, &[u8; size_of::<TestEntry>()])| {
            let entry = TestEntry::read_from_bytes(bytes).expect("chunks are as long as an entry");
            let text = |what, at, length| text(&file, at, length).ok_or(SuiteError::BadEntry { index, what });
            let name = text("a name", entry.name, entry.name_length)?;
            let clauses = text("clauses", entry.clauses, entry.clauses_length)?;
            Ok(Case::new(&name, &clauses, Kind::Guest { index }))
        };
        let cases: Vec<Case> = entries.iter().enumerate().map(case).collect::<Result<_, SuiteError>>()?;
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
