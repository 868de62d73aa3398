//! What an image says about addresses in it: the functions there, inlined ones included, and their lines.
//!
//! Symbols and DWARF are a stranger's bytes. object and gimli check each offset; how much is read, and what is kept of
//! it, is up to their caller, and DWARF can be written so that units, functions and strings share what they refer to
//! and a small file asks for any amount of work. So every loop here pays out of one [`Budget`], nothing recurses, and
//! nothing is kept but what is found. When the budget is spent, what is missing stays unnamed.
//!
//! (addr2line does what this does, by recursion and with everything it reads kept: it is for images that one trusts.
//! A test compares the two.)
//!
//! Start at [`find`].

mod text;

use crate::backtrace::{MOST_FRAMES, StackFrame};
use gimli::{AttributeValue, DebugInfoOffset, EndianSlice, LittleEndian, Reader, Section, UnitOffset};
use object::{CompressionFormat, Object, ObjectSection, ObjectSymbol, SymbolKind};
use std::sync::Arc;
pub(crate) use text::LONGEST_TEXT;
use text::{function_name, text};

/// Work for one report, in bytes or entries looked at: a second or so, and far more than an honest image takes.
pub(crate) const WORK: usize = 1 << 25;
/// Functions inlined into each other, at one address; functions within each other.
const MOST_NESTED: usize = 64;
/// Steps from an inlined function to the entry that has its name.
const MOST_ORIGINS: usize = 16;
/// Bytes of a table of abbreviations, and of the header of a line program: gimli keeps them while a unit is read.
const LONGEST_TABLE: usize = 1 << 16;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;
type Value<'a> = AttributeValue<Bytes<'a>>;
type Unit<'a> = gimli::Unit<Bytes<'a>>;
type UnitHeader<'a> = gimli::UnitHeader<Bytes<'a>>;

/// How much work is left.
struct Budget(usize);

impl Budget {
    /// Pays for some work. Whoever cannot pay cannot pay later, either.
    fn pay(&mut self, work: usize) -> Option<()> {
        let left = self.0.checked_sub(work);
        self.0 = left.unwrap_or(0);
        left.map(drop)
    }
}

/// What is known about an address.
pub(crate) struct Found<'a> {
    /// The address.
    pub at: u64,
    /// The functions it is in, innermost first; one without a name if nothing is known.
    pub frames: Vec<StackFrame>,
    /// Its function, by the symbol table.
    symbol: Option<&'a [u8]>,
    /// In the unit being read: its place, the function it is in, and this with those inlined there, outermost first,
    /// as indices of entries.
    place: Option<Place>,
    function: Option<UnitOffset>,
    nested: Vec<usize>,
}

/// A place in the source.
#[derive(Clone, Copy)]
struct Place {
    file: Option<u64>,
    line: u32,
}

/// Names the functions at some addresses; the result is in the order of addresses, each once.
pub(crate) fn find(image: &[u8], addresses: impl Iterator<Item = u64>, work: usize) -> Vec<Found<'_>> {
    let mut addresses: Vec<_> = addresses.collect();
    addresses.sort_unstable();
    addresses.dedup();
    let unknown =
        |at| Found { at, frames: Vec::new(), symbol: None, place: None, function: None, nested: Vec::new() };
    let mut found: Vec<_> = addresses.into_iter().map(unknown).collect();
    if let Ok(file) = object::File::parse(image) {
        let mut budget = Budget(work);
        let _ = symbols(&file, &mut found, &mut budget); // as far as it gets
        if let Some(mut dwarf) = Dwarf::new(&file, budget) {
            dwarf.units(&mut found);
        }
    }
    for Found { at, frames, symbol, .. } in &mut found {
        if frames.is_empty() {
            frames.push(StackFrame { address: *at, function: None, file: None, line: None });
        }
        // Line tables alone do not name a function that is not inlined; the symbol table does.
        let nameless = frames.iter_mut().filter(|frame| frame.function.is_none());
        nameless.for_each(|frame| frame.function = symbol.map(function_name));
    }
    found
}

/// Those that are in a range.
fn within<'f, 'a>(found: &'f mut [Found<'a>], begin: u64, end: u64) -> &'f mut [Found<'a>] {
    let index = |address| found.partition_point(|found| found.at < address);
    let range = index(begin)..index(end);
    found.get_mut(range).unwrap_or_default()
}

/// Looks into the symbol table.
fn symbols<'a>(file: &object::File<'a>, found: &mut [Found<'a>], budget: &mut Budget) -> Option<()> {
    for symbol in file.symbols() {
        budget.pay(1)?;
        if !matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Unknown) {
            continue;
        }
        let end = symbol.address().saturating_add(symbol.size().max(1));
        for found in within(found, symbol.address(), end) {
            budget.pay(1)?;
            if found.symbol.is_none() {
                let name = symbol.name_bytes().ok()?;
                budget.pay(name.len())?;
                found.symbol = Some(name);
            }
        }
    }
    Some(())
}

/// What one entry of DWARF says about itself.
#[derive(Clone, Copy, Default)]
struct Entry<'a> {
    low: Option<u64>,
    high: Option<Value<'a>>,
    ranges: Option<gimli::RangeListsOffset>,
    lines: Option<gimli::DebugLineOffset>,
    linkage_name: Option<Value<'a>>,
    name: Option<Value<'a>>,
    origin: Option<Value<'a>>,
    call_file: Option<u64>,
    call_line: u32,
}

/// An image's debugging information, read as far as the budget goes.
struct Dwarf<'a> {
    sections: gimli::Dwarf<Bytes<'a>>,
    headers: Vec<UnitHeader<'a>>,
    /// The table read last: all units of a program that was optimised as a whole share one.
    abbreviations: Option<(usize, Arc<gimli::Abbreviations>)>,
    /// Frames so far, at all addresses.
    frames: usize,
    budget: Budget,
}

impl<'a> Dwarf<'a> {
    fn new(file: &object::File<'a>, mut budget: Budget) -> Option<Self> {
        let mut sections = Vec::new();
        for section in file.sections() {
            let name = section.name_bytes().ok()?;
            budget.pay(1 + name.len())?;
            // Nothing is decompressed: a few bytes could become any number.
            let plain = section.compressed_file_range().is_ok_and(|r| r.format == CompressionFormat::None);
            if name.starts_with(b".debug_") && plain {
                sections.push((name, section.data().ok()?));
            }
        }
        let section = |id: gimli::SectionId| {
            let data = sections.iter().find(|(name, _)| *name == id.name().as_bytes()).map(|(_, data)| *data);
            Ok::<_, gimli::Error>(EndianSlice::new(data.unwrap_or_default(), LittleEndian))
        };
        let sections = gimli::Dwarf::load(section).ok()?;
        let (mut units, mut headers) = (sections.units(), Vec::new());
        while let Ok(Some(header)) = units.next() {
            budget.pay(4 * size_of::<UnitHeader<'_>>())?; // they are kept
            headers.push(header);
        }
        Some(Self { sections, headers, abbreviations: None, frames: 0, budget })
    }

    /// Looks into every unit that has something to do with the addresses.
    fn units(&mut self, found: &mut [Found<'a>]) {
        for index in 0..self.headers.len() {
            let _ = self.unit(self.headers[index], found); // a bad unit says nothing about the others
            if self.budget.0 == 0 {
                return;
            }
        }
    }

    fn unit(&mut self, header: UnitHeader<'a>, found: &mut [Found<'a>]) -> Option<()> {
        let (unit, root) = self.open(header)?;
        let mut wanted = false;
        let has_ranges = self.mark(&unit, &root, found, |found| wanted |= found.frames.is_empty())?;
        if has_ranges && !wanted {
            return Some(());
        }
        self.budget.pay(found.len())?;
        let mut entries = Vec::new();
        let lines = self.lines(&unit, found);
        let functions = self.functions(&unit, found, &mut entries);
        let complete = lines.and(functions).is_some();
        let mut names = vec![None; entries.len()];
        for found in found {
            let (place, nested) = (found.place.take(), core::mem::take(&mut found.nested));
            found.function = None;
            if place.is_some() || (complete && !nested.is_empty()) {
                let nested = if complete { nested } else { Vec::new() };
                self.frames(&unit, &entries, &mut names, place, nested, found);
            }
        }
        Some(())
    }

    /// Puts together what is at an address.
    fn frames(
        &mut self,
        unit: &Unit<'a>,
        entries: &[Entry<'a>],
        names: &mut [Option<Option<String>>],
        mut place: Option<Place>,
        nested: Vec<usize>,
        found: &mut Found<'a>,
    ) {
        let address = found.at;
        let mut add = |dwarf: &mut Self, function: Option<String>, place: Option<Place>| {
            let file = place.and_then(|place| dwarf.file(unit, place.file?));
            let line = place.map(|place| place.line).filter(|line| *line != 0);
            if dwarf.frames == MOST_FRAMES {
                return;
            }
            dwarf.frames += 1;
            found.frames.push(StackFrame { address, function, file, line });
        };
        if nested.is_empty() {
            return add(self, None, place);
        }
        for index in nested.into_iter().rev() {
            let entry = &entries[index];
            let function = names[index].get_or_insert_with(|| self.name(unit, *entry)).clone();
            add(self, function, place);
            place = Some(Place { file: entry.call_file, line: entry.call_line });
        }
    }

    /// Reads a unit's beginning.
    fn open(&mut self, header: UnitHeader<'a>) -> Option<(Unit<'a>, Entry<'a>)> {
        let abbreviations = self.table(header.debug_abbrev_offset().0)?;
        let mut unit = gimli::Unit {
            abbreviations,
            name: None,
            comp_dir: None,
            low_pc: 0,
            str_offsets_base: gimli::DebugStrOffsetsBase(0),
            addr_base: gimli::DebugAddrBase(0),
            loclists_base: gimli::DebugLocListsBase(0),
            rnglists_base: gimli::DebugRngListsBase(0),
            line_program: None,
            dwo_id: None,
            header,
        };
        // What gimli will read is paid for first. Of the root, only where the line program is can be told by now:
        // what is indirect needs bases, which stand in the root, too.
        let root = self.entry_at(&unit, header.root_offset())?;
        if let Some(offset) = root.lines {
            let length = self.line_header_length(offset)?;
            self.budget.pay(length)?;
        }
        unit = gimli::Unit::new_with_abbreviations(&self.sections, header, unit.abbreviations).ok()?;
        self.budget.pay(unit.name.map_or(0, |name| name.len()))?;
        self.budget.pay(unit.comp_dir.map_or(0, |name| name.len()))?;
        let root = self.entry_at(&unit, header.root_offset())?;
        Some((unit, root))
    }

    /// The table of abbreviations at an offset.
    fn table(&mut self, offset: usize) -> Option<Arc<gimli::Abbreviations>> {
        if let Some((of, table)) = &self.abbreviations
            && *of == offset
        {
            return Some(table.clone());
        }
        let bytes = self.sections.debug_abbrev.reader().slice().get(offset..)?;
        let length = table_length(&bytes[..bytes.len().min(LONGEST_TABLE)])?;
        self.budget.pay(length)?;
        let table = gimli::DebugAbbrev::new(&bytes[..length], LittleEndian);
        let table = Arc::new(table.abbreviations(gimli::DebugAbbrevOffset(0)).ok()?);
        self.abbreviations = Some((offset, table.clone()));
        Some(table)
    }

    /// Bytes of the header of a line program, unless it is too long.
    fn line_header_length(&self, offset: gimli::DebugLineOffset) -> Option<usize> {
        let mut bytes = *self.sections.debug_line.reader();
        bytes.skip(offset.0).ok()?;
        let (_, format) = bytes.read_initial_length().ok()?;
        if bytes.read_u16().ok()? >= 5 {
            bytes.skip(2).ok()?;
        }
        bytes.read_length(format).ok().filter(|length| *length <= LONGEST_TABLE)
    }

    fn entry_at(&mut self, unit: &Unit<'a>, offset: UnitOffset) -> Option<Entry<'a>> {
        let mut entries = unit.entries_raw(Some(offset)).ok()?;
        let abbreviation = entries.read_abbreviation().ok()??;
        self.budget.pay(abbreviation.attributes().len())?;
        self.entry(unit, &mut entries, abbreviation)
    }

    /// Reads an entry's attributes.
    fn entry(
        &mut self,
        unit: &Unit<'a>,
        entries: &mut gimli::EntriesRaw<'_, Bytes<'a>>,
        abbreviation: &gimli::Abbreviation,
    ) -> Option<Entry<'a>> {
        let mut entry = Entry::default();
        let start = entries.next_offset();
        for specification in abbreviation.attributes() {
            let attribute = entries.read_attribute(*specification).ok()?;
            let value = attribute.value();
            match attribute.name() {
                gimli::DW_AT_low_pc => entry.low = self.sections.attr_address(unit, value).ok().flatten(),
                gimli::DW_AT_high_pc => entry.high = Some(value),
                gimli::DW_AT_ranges => {
                    entry.ranges = self.sections.attr_ranges_offset(unit, value).ok().flatten();
                }
                gimli::DW_AT_stmt_list => {
                    if let AttributeValue::DebugLineRef(offset) = value {
                        entry.lines = Some(offset);
                    }
                }
                gimli::DW_AT_linkage_name | gimli::DW_AT_MIPS_linkage_name => {
                    entry.linkage_name = Some(value);
                }
                gimli::DW_AT_name => entry.name = Some(value),
                gimli::DW_AT_abstract_origin | gimli::DW_AT_specification => entry.origin = Some(value),
                gimli::DW_AT_call_file => {
                    if let AttributeValue::FileIndex(index) = value {
                        // Before version 5, 0 is no file.
                        entry.call_file = (index > 0 || unit.header.version() >= 5).then_some(index);
                    }
                }
                gimli::DW_AT_call_line => entry.call_line = attribute.udata_value().unwrap_or(0) as u32,
                _ => {}
            }
        }
        self.budget.pay(entries.next_offset().0.saturating_sub(start.0))?;
        Some(entry)
    }

    /// Calls `mark` with those that are in an entry's ranges; whether it has any.
    fn mark(
        &mut self,
        unit: &Unit<'a>,
        entry: &Entry<'a>,
        found: &mut [Found<'a>],
        mut mark: impl FnMut(&mut Found<'a>),
    ) -> Option<bool> {
        let budget = &mut self.budget;
        let mut has_range = false;
        let mut add = |begin: u64, end: u64| {
            has_range |= begin < end;
            let found = within(found, begin, end);
            budget.pay(1 + found.len())?;
            found.iter_mut().for_each(&mut mark);
            Some(())
        };
        if let Some(offset) = entry.ranges {
            let mut ranges = self.sections.ranges(unit, offset).ok()?;
            // `next` would skip any number of entries for one.
            while let Some(raw) = ranges.next_raw().ok()? {
                match ranges.convert_raw(raw).ok()? {
                    Some(range) => add(range.begin, range.end)?,
                    None => add(0, 0)?,
                }
            }
        } else if let (Some(low), Some(high)) = (entry.low, entry.high) {
            let end = match high.udata_value() {
                Some(length) => low.checked_add(length),
                None => self.sections.attr_address(unit, high).ok()?,
            };
            add(low, end?)?;
        }
        Some(has_range)
    }

    /// Runs a unit's line program.
    fn lines(&mut self, unit: &Unit<'a>, found: &mut [Found<'a>]) -> Option<()> {
        let Some(program) = unit.line_program.clone() else { return Some(()) };
        self.budget.pay(program.header().raw_program_buf().len())?;
        let mut rows = program.rows();
        let mut before = None;
        while let Some((_, row)) = rows.next_row().ok()? {
            if let Some((begin, place)) = before {
                for found in within(found, begin, row.address()) {
                    self.budget.pay(1)?;
                    if found.frames.is_empty() && found.place.is_none() {
                        found.place = Some(place);
                    }
                }
            }
            let line = row.line().map_or(0, |line| line.get() as u32);
            let place = Place { file: Some(row.file_index()), line };
            before = (!row.end_sequence()).then_some((row.address(), place));
        }
        Some(())
    }

    /// Finds the functions that addresses are in, and those inlined there; `kept` are their entries.
    fn functions(
        &mut self,
        unit: &Unit<'a>,
        found: &mut [Found<'a>],
        kept: &mut Vec<Entry<'a>>,
    ) -> Option<()> {
        let mut entries = unit.entries_raw(None).ok()?;
        // The functions that the entry is in, outermost first, with their depths.
        let mut around: Vec<(isize, UnitOffset)> = Vec::new();
        while !entries.is_empty() {
            let (depth, at) = (entries.next_depth(), entries.next_offset());
            let abbreviation = entries.read_abbreviation().ok()?;
            self.budget.pay(1 + abbreviation.map_or(0, |abbreviation| abbreviation.attributes().len()))?;
            let Some(abbreviation) = abbreviation else { continue };
            while around.pop_if(|(of, _)| *of >= depth).is_some() {}
            let inlined = match abbreviation.tag() {
                gimli::DW_TAG_subprogram => false,
                gimli::DW_TAG_inlined_subroutine => true,
                _ => {
                    entries.skip_attributes(abbreviation.attributes()).ok()?;
                    self.budget.pay(entries.next_offset().0.saturating_sub(at.0))?;
                    continue;
                }
            };
            let entry = self.entry(unit, &mut entries, abbreviation)?;
            if !inlined {
                around.push((depth, at));
            }
            let (_, function) = around.last()?;
            if around.len() > MOST_NESTED || kept.len() == MOST_FRAMES {
                return None;
            }
            let (index, mut keep) = (kept.len(), false);
            self.mark(unit, &entry, found, |found| {
                let fits = if inlined { found.function == Some(*function) } else { found.function.is_none() };
                let new = found.nested.len() < MOST_NESTED && found.nested.last() != Some(&index);
                if found.frames.is_empty() && fits && new {
                    found.function = Some(*function);
                    found.nested.push(index);
                    keep = true;
                }
            })?;
            kept.extend(keep.then_some(entry));
        }
        Some(())
    }

    /// The name of the function that an entry is about, which may stand with another entry.
    fn name(&mut self, unit: &Unit<'a>, mut entry: Entry<'a>) -> Option<String> {
        let mut other = None;
        for _ in 0..MOST_ORIGINS {
            let unit = other.as_ref().unwrap_or(unit);
            if let Some(value) = entry.linkage_name.or(entry.name) {
                return Some(function_name(self.string(unit, value)?));
            }
            match entry.origin? {
                AttributeValue::UnitRef(offset) => entry = self.entry_at(unit, offset)?,
                AttributeValue::DebugInfoRef(offset) => {
                    let (unit, offset) = self.unit_of(offset)?;
                    entry = self.entry_at(&unit, offset)?;
                    other = Some(unit);
                }
                _ => return None,
            }
        }
        None
    }

    fn unit_of(&mut self, offset: DebugInfoOffset) -> Option<(Unit<'a>, UnitOffset)> {
        let behind = self.headers.partition_point(|header| header.debug_info_offset() <= Some(offset));
        let header = self.headers[behind.checked_sub(1)?];
        let offset = offset.to_unit_offset(&header)?;
        Some((self.open(header)?.0, offset))
    }

    fn string(&mut self, unit: &Unit<'a>, value: Value<'a>) -> Option<&'a [u8]> {
        let string = self.sections.attr_string(unit, value).ok()?.slice();
        self.budget.pay(string.len())?;
        Some(string)
    }

    /// A file's name: what is relative is so to the directory before it.
    fn file(&mut self, unit: &Unit<'a>, index: u64) -> Option<String> {
        let header = unit.line_program.as_ref()?.header();
        let file = header.file(index)?;
        let mut path = unit.comp_dir.map(|directory| text(directory.slice())).unwrap_or_default();
        // Directory 0 is the unit's.
        let directory = Some(file.directory_index()).filter(|index| *index != 0);
        let directory = directory.and_then(|index| header.directory(index));
        for value in directory.into_iter().chain([file.path_name()]) {
            let part = text(self.string(unit, value)?);
            if part.starts_with('/') {
                path = part;
                continue;
            }
            if !path.is_empty() && !path.ends_with('/') {
                path.push('/');
            }
            path.push_str(&part);
        }
        path.truncate(path.floor_char_boundary(LONGEST_TEXT));
        Some(path)
    }
}

/// Bytes of a table of abbreviations: those that a parser reads.
fn table_length(bytes: &[u8]) -> Option<usize> {
    let mut rest = EndianSlice::new(bytes, LittleEndian);
    while !rest.is_empty() && rest.read_uleb128().ok()? != 0 {
        rest.read_uleb128().ok()?; // tag
        rest.read_u8().ok()?; // whether it has children
        loop {
            let (name, form) = (rest.read_uleb128().ok()?, rest.read_uleb128().ok()?);
            if form == u64::from(gimli::DW_FORM_implicit_const.0) {
                rest.read_sleb128().ok()?;
            }
            if (name, form) == (0, 0) {
                break;
            }
        }
    }
    Some(bytes.len() - rest.len())
}

#[cfg(test)]
mod tests;
