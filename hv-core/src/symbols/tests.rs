//! An honest image, and images that ask for too much.

use super::*;

/// What addr2line says.
fn expected(context: &addr2line::Context<Bytes<'_>>, address: u64) -> Vec<StackFrame> {
    let mut frames = Vec::new();
    let mut found = context.find_frames(address).skip_all_loads().expect("frames");
    while let Some(frame) = found.next().expect("a frame") {
        let function = frame.function.map(|function| text(function.demangle().expect("a name").as_bytes()));
        let (file, line) = frame.location.map_or((None, None), |location| (location.file, location.line));
        frames.push(StackFrame { address, function, file: file.map(str::to_owned), line });
    }
    frames
}

#[test]
fn an_honest_image_is_read_as_addr2line_reads_it() {
    let image = std::fs::read(std::env::current_exe().expect("a path")).expect("this program");
    let file = object::File::parse(&*image).expect("an ELF file");
    let section = |id: gimli::SectionId| {
        let data = file.section_by_name(id.name()).and_then(|section| section.data().ok());
        Ok::<_, gimli::Error>(EndianSlice::new(data.unwrap_or_default(), LittleEndian))
    };
    let context = gimli::Dwarf::load(section).and_then(addr2line::Context::from_dwarf).expect("DWARF");
    let own = |symbol: &object::Symbol<'_, '_>| {
        symbol.kind() == SymbolKind::Text
            && symbol.name().is_ok_and(|name| name.contains("hv_core") || name.contains("gimli"))
    };
    let functions: Vec<_> = file.symbols().filter(own).map(|s| (s.address(), s.size().max(1))).collect();
    let mut random = fastrand::Rng::with_seed(1);
    let addresses = (0..300).map(|_| {
        let (start, length) = functions[random.usize(..functions.len())];
        start + random.u64(..length)
    });
    let all = find(&image, addresses, usize::MAX);
    assert!(all.iter().any(|found| found.frames.len() > 1), "nothing is inlined");
    let by_symbol = |at: u64| {
        let symbol =
            file.symbols().find(|s| own(s) && (s.address()..s.address() + s.size()).contains(&at))?;
        Some(function_name(symbol.name_bytes().ok()?))
    };
    for found in all {
        let mut expected = expected(&context, found.at);
        if expected.is_empty() {
            expected.push(StackFrame { address: found.at, function: None, file: None, line: None });
        }
        for frame in expected.iter_mut().filter(|frame| frame.function.is_none()) {
            frame.function = by_symbol(found.at);
        }
        assert_eq!(found.frames, expected);
    }
}

/// An ELF file of these sections and nothing else.
fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut names = b"\0.shstrtab\0".to_vec();
    let mut bytes = vec![0; 64];
    let mut headers = vec![[0; 8]];
    let mut add = |name: usize, data: &[u8]| {
        let (offset, length) = (bytes.len() as u64, data.len() as u64);
        headers.push([name as u64 | 1 << 32, 0, 0, offset, length, 0, 1, 0]);
        bytes.extend(data);
    };
    for (name, data) in sections {
        add(names.len(), data);
        names.extend([name.as_bytes(), &[0]].concat());
    }
    add(1, &names);
    let (offset, count) = (bytes.len() as u64, headers.len() as u16);
    bytes.extend(headers.into_iter().flatten().flat_map(u64::to_le_bytes));
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16..24].copy_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    bytes[40..48].copy_from_slice(&offset.to_le_bytes());
    bytes[52..64].copy_from_slice(&[64, 56, 0, 64, count, count - 1].map(u16::to_le_bytes).concat());
    bytes
}

/// A unit of DWARF 4 with its first abbreviation's entry, and others.
fn unit(entries: &[u8]) -> Vec<u8> {
    let length = (7 + entries.len()) as u32;
    [&length.to_le_bytes()[..], &[4, 0, 0, 0, 0, 0, 8], entries].concat()
}

const ANYWHERE: u64 = 0x1234;

/// Abbreviations of entries that are everywhere: a unit with its lines at 0, a function, and what is inlined in it.
#[rustfmt::skip]
const ABBREVIATIONS: &[u8] = &[
    1, 0x11, 1, 0x11, 0x01, 0x12, 0x07, 0x10, 0x17, 0, 0, // compile_unit: low_pc, high_pc, stmt_list
    2, 0x2e, 1, 0x11, 0x01, 0x12, 0x07, 0x03, 0x08, 0, 0, // subprogram: low_pc, high_pc, name
    3, 0x1d, 1, 0x11, 0x01, 0x12, 0x07, 0, 0, // inlined_subroutine: low_pc, high_pc
    0,
];

/// An entry that is everywhere.
fn entry(abbreviation: u8, rest: &[u8]) -> Vec<u8> {
    let (low, high) = (0_u64, u64::MAX / 2);
    [&[abbreviation][..], &low.to_le_bytes(), &high.to_le_bytes(), rest].concat()
}

/// A function with others inlined into each other.
fn nested(depth: usize) -> Vec<u8> {
    let entries = [entry(1, &[0; 4]), entry(2, b"f\0"), entry(3, &[]).repeat(depth)].concat();
    let sections: [(_, &[u8]); 3] = [
        (".debug_abbrev", ABBREVIATIONS),
        (".debug_info", &unit(&entries)),
        (".debug_line", &line_program(0)),
    ];
    elf(&sections)
}

/// A line program with one row for each byte.
fn line_program(rows: usize) -> Vec<u8> {
    let rest = [&[1, 1, 1, 0, 1, 1][..], &[0, 0], &vec![1; rows]].concat(); // header from the least length on
    let header_length = 8_u32;
    let length = (2 + 4 + rest.len()) as u32;
    [&length.to_le_bytes()[..], &[4, 0], &header_length.to_le_bytes(), &rest].concat()
}

#[test]
fn functions_inlined_to_any_depth_take_no_stack() {
    let frames = |depth| {
        let image = nested(depth);
        find(&image, [ANYWHERE].into_iter(), WORK).remove(0).frames
    };
    let few = frames(3);
    assert_eq!((few.len(), few[3].function.as_deref()), (4, Some("f")));
    assert!(frames(1 << 20).len() <= MOST_NESTED);
}

#[test]
fn units_that_share_what_they_refer_to_end_the_work() {
    let units = unit(&entry(1, &[0; 4])).repeat(1 << 14);
    let lines = line_program(1 << 18);
    let sections: [(_, &[u8]); 3] =
        [(".debug_abbrev", ABBREVIATIONS), (".debug_info", &units), (".debug_line", &lines)];
    let image = elf(&sections);
    let found = find(&image, [ANYWHERE].into_iter(), 1 << 22);
    assert_eq!(found[0].frames.len(), 1);
}
