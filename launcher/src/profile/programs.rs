//! The ELF files in which a guest's addresses are looked up: its kernel's image, and those of its user programs.
//!
//! A guest does not say which program it runs. So a sample has a digest of the code at its addresses, and the program is
//! the one that has the same code there. Programs are searched for in the kernel's image, where some kernels carry them,
//! and in files that the user names. All of these are a stranger's bytes.
//!
//! Start at [`Programs::find`].

use crate::failure::Failure;
use crate::images;
use hv_core::profile::{CODE_LINE, Digest, Sample};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSegment};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Programs in one image, at the most.
const MOST_EMBEDDED: usize = 256;

/// An ELF file.
pub(super) struct Program {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Where each segment is, and the bytes it has in the file.
    segments: Vec<(u64, Vec<u8>)>,
}

/// All that are known.
#[derive(Default)]
pub(super) struct Programs {
    pub kernel: Option<Cow<'static, [u8]>>,
    users: Vec<Program>,
}

impl Program {
    /// `None` if it is no program.
    fn parse(name: String, bytes: &[u8]) -> Option<Self> {
        let file = ElfFile64::<object::LittleEndian>::parse(bytes).ok()?;
        let segments = file.segments().filter_map(|segment| {
            let data = segment.data().ok()?;
            Some((segment.address(), data.to_vec()))
        });
        let segments: Vec<_> = segments.collect();
        (!segments.is_empty()).then(|| Self { name, bytes: bytes.to_vec(), segments })
    }

    /// The line of code that is at an address; zeros where there is none.
    fn line(&self, at: u64) -> [u8; CODE_LINE as usize] {
        let mut line = [0; CODE_LINE as usize];
        for (start, data) in &self.segments {
            for (address, byte) in (at..).zip(&mut line) {
                let offset = address.checked_sub(*start).and_then(|offset| usize::try_from(offset).ok());
                if let Some(found) = offset.and_then(|offset| data.get(offset)) {
                    *byte = *found;
                }
            }
        }
        line
    }

    fn has(&self, sample: &Sample) -> bool {
        let lines = sample.frames.iter().map(|at| self.line(at - at % CODE_LINE));
        lines.fold(Digest::default(), |digest, line| digest.with(&line)).value() == sample.code
    }
}

impl Programs {
    /// Those that the user names.
    ///
    /// # Errors
    ///
    /// One cannot be read, or is no program.
    pub(super) fn of_files(paths: &[PathBuf]) -> Result<Self, Failure> {
        let read = |path: &PathBuf| {
            let shown = path.display();
            let failed = |why: &str| Failure::cannot(format!("`{shown}` has no symbols to look up"), why);
            let bytes = std::fs::read(path).map_err(|error| failed(&error.to_string()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Program::parse(name, &bytes)
                .ok_or_else(|| failed("expected an ELF file of a 64-bit program, found something else"))
        };
        let users = paths.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { kernel: None, users })
    }

    /// Adds the image, and the programs in it. One that is not found is worth a warning: addresses stay numbers.
    pub(super) fn add_kernel(&mut self, image: Option<&Path>) {
        let Some(path) = image else { return };
        match images::bytes(path) {
            Ok(bytes) => {
                self.users.extend(embedded(&bytes));
                self.kernel = Some(bytes);
            }
            Err(_) => tracing::warn!(
                "the image `{}` cannot be read, so functions have no names; --image says where it is",
                path.display()
            ),
        }
    }

    /// The program that a sample was taken of.
    pub(super) fn find(&self, sample: &Sample) -> Option<&Program> {
        self.users.iter().find(|program| program.has(sample))
    }
}

/// ELF files within an image, as in an archive that it was built with.
fn embedded(image: &[u8]) -> Vec<Program> {
    const MAGIC: &[u8] = b"\x7fELF\x02\x01\x01";
    let mut found = Vec::new();
    let mut at = 1;
    while let Some(offset) = image.get(at..).and_then(|rest| find(rest, MAGIC)) {
        at += offset;
        let name = archived_name(&image[..at]).unwrap_or_else(|| format!("program at {at:#x}"));
        found.extend(Program::parse(name, &image[at..archived_end(image, at)]));
        if found.len() == MOST_EMBEDDED {
            break;
        }
        at += MAGIC.len();
    }
    found
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Of a tar archive: the header of a file.
const HEADER: usize = 512;

/// What is before a file, if that is the header of a tar archive.
fn header(before: &[u8]) -> Option<&[u8]> {
    let header = &before[before.len().checked_sub(HEADER)?..];
    (&header[257..262] == b"ustar").then_some(header)
}

/// The name that an archive gives a file.
fn archived_name(before: &[u8]) -> Option<String> {
    let name = header(before)?[..100].split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// Where a file ends that begins at `at`: where an archive says, or else at the end.
fn archived_end(image: &[u8], at: usize) -> usize {
    let size = header(&image[..at]).and_then(|header| {
        let digits = str::from_utf8(&header[124..135]).ok()?;
        usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).ok()
    });
    size.map_or(image.len(), |size| at.saturating_add(size).min(image.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minios() -> Vec<Program> {
        embedded(sample_guests::find("minios").expect("a sample guest").image)
    }

    fn sample(program: &Program, frames: &[u64]) -> Sample {
        let lines = frames.iter().map(|at| program.line(at - at % CODE_LINE));
        let code = lines.fold(Digest::default(), |digest, line| digest.with(&line)).value();
        Sample { vcpu: 0, user: true, frames: frames.to_vec(), complete: true, code }
    }

    #[test]
    fn the_programs_of_minios_are_found_in_its_image_with_their_symbols() {
        let programs = minios();
        let names: Vec<_> = programs.iter().map(|program| &*program.name).collect();
        for name in ["sh", "cat", "primes", "spin"] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
        let shell = programs.iter().find(|program| program.name == "sh").expect("it is there");
        let file = object::File::parse(&*shell.bytes).expect("an ELF file");
        assert!(object::Object::symbols(&file).next().is_some(), "it has no symbols");
    }

    #[test]
    fn a_program_is_known_by_its_code() {
        let programs = Programs { kernel: None, users: minios() };
        for program in &programs.users {
            let file = object::File::parse(&*program.bytes).expect("an ELF file");
            let found = programs.find(&sample(program, &[file.entry(), file.entry() + 100]));
            let found = found.expect("it has its own code");
            // Another may begin with the very same code; then it is as good.
            assert_eq!(found.line(file.entry() & !63), program.line(file.entry() & !63));
        }
        let other = Sample { code: 1, ..sample(&programs.users[0], &[0x40_0000]) };
        assert!(programs.find(&other).is_none());
    }

    #[test]
    fn what_looks_like_a_program_and_is_none_is_left_out() {
        let mut image = vec![0; 4096];
        for at in [1, 600, 4096 - 7] {
            image[at..at + 7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        }
        assert!(embedded(&image).is_empty());
        assert!(embedded(b"").is_empty());
    }
}
