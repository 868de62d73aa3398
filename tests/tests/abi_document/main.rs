//! `docs/abi.md` and the crate `hv-abi` say the same.
//!
//! The document is read as lines: headings, tables, and the `Name: text` lines below the heading of a call.
//! Everything is compared both ways, so that neither side can have something that the other lacks. Constants and
//! structures cannot be listed at run time; that none is forgotten is checked against the crate's source.
//!
//! Start at [`document::Document`]. A failure names the place, what the crate says and what the document says.

mod document;

use bitflags::Flags;
use document::*;
use hv_abi::call::{CALLS, Description};
use hv_abi::{
    CpuFeatures, Features, Status, address, boot, call, clock, device, mmu, note, pages, testing, trace,
    user, vcpu,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::mem::{offset_of, size_of};
#[test]
fn call_sections_are_the_table_of_calls() {
    const KEYS: [&str; 7] = ["Status", "Arguments", "Value", "Errors", "Multicall", "Blocks", "Copied"];
    let document = Document::read();
    let mut report = Report::default();
    let calls = document.calls();
    let in_crate: Vec<_> = CALLS.iter().map(|d| (d.call.0, d.name)).collect();
    let in_document: Vec<_> = calls.iter().map(|&(number, name, _)| (number, name)).collect();
    report.compare(document.chapter("Calls").at, "numbers and names of calls", in_crate, in_document);

    for (_, name, section) in &calls {
        let Some(description) = CALLS.iter().find(|d| d.name == *name) else { continue };
        let Description { arguments, result, errors, in_multicall, served, .. } = *description;
        let error_names: Vec<_> = errors.iter().filter_map(|status| status.name()).collect();
        if section.lines.len() < KEYS.len() {
            report.fault(section.at, &format!("{name}: expected the lines {KEYS:?} below its heading"));
        }
        for (key, &(at, line)) in KEYS.into_iter().zip(&section.lines) {
            let Some(text) = line.strip_prefix(key).and_then(|rest| rest.strip_prefix(": ")) else {
                report.fault(at, &format!("{name}: expected a line \"{key}: ..\", found {line:?}"));
                break;
            };
            let what = format!("{name}, {key}");
            match key {
                "Status" => {
                    report.compare(at, &what, if served { "served" } else { "not yet served" }, text);
                }
                "Arguments" => report.compare(at, &what, arguments.to_vec(), list(text)),
                "Value" => report.compare(at, &what, result, text),
                "Errors" => report.compare(at, &what, error_names.clone(), list(text)),
                "Multicall" => report.compare(at, &what, if in_multicall { "yes" } else { "no" }, text),
                _ => {}
            }
        }
    }
    report.end();
}

#[test]
fn entries_are_those_of_the_hypercall_page() {
    use address::entry::{BLOCK, CALL, ENTER_USER, UPCALL_RETURN};
    let document = Document::read();
    let sections = document.sections();
    let found: Vec<_> = sections
        .iter()
        .filter_map(|s| s.title.strip_prefix("Entry ")?.split_once(" at "))
        .map(|(name, offset)| (name, number(offset)))
        .collect();
    let expected =
        [("CALL", CALL), ("BLOCK", BLOCK), ("UPCALL_RETURN", UPCALL_RETURN), ("ENTER_USER", ENTER_USER)];
    let expected: Vec<_> = expected.into_iter().map(|(name, offset)| (name, Some(offset))).collect();
    let at = document.chapter("The hypercall page").at;
    let mut report = Report::default();
    report.compare(at, "entries of the hypercall page", expected, found);
    report.end();
}

#[test]
fn statuses_are_the_crates() {
    let document = Document::read();
    let chapter = document.chapter("Statuses");
    let found: Vec<_> = chapter.table(0).iter().map(|(_, row)| (number(row[0]), Some(row[1]))).collect();
    let expected: Vec<_> = Status::ALL.iter().map(|s| (Some(u64::from(s.0)), s.name())).collect();
    let mut report = Report::default();
    report.compare(chapter.at, "statuses", expected, found);
    report.end();
}

/// The names and bit numbers of a set of flags.
fn flags<F: Flags<Bits = u64>>() -> Vec<(Option<u64>, &'static str)> {
    let named = F::FLAGS.iter().filter(|flag| flag.is_named());
    named.map(|flag| (Some(u64::from(flag.value().bits().trailing_zeros())), flag.name())).collect()
}

#[test]
fn features_are_the_crates() {
    let document = Document::read();
    let chapter = document.chapter("Features");
    let mut report = Report::default();
    for (table, what, expected) in
        [(0, "features", flags::<Features>()), (1, "processor features", flags::<CpuFeatures>())]
    {
        let found: Vec<_> = chapter.table(table).iter().map(|(_, row)| (number(row[0]), row[1])).collect();
        report.compare(chapter.at, what, expected, found);
    }

    // A served call belongs to no feature or to a served one, and no name in the table is made up.
    let mut seen = BTreeSet::new();
    for (at, row) in chapter.table(0) {
        for name in list(row[3]) {
            let served = CALLS.iter().find(|d| d.name == name).map(|d| d.served);
            if served.is_none() && name != "ENTER_USER" {
                report
                    .fault(at, &format!("feature {}: found call {name}, which hv-abi does not have", row[1]));
            }
            if served == Some(true) && row[2] != "served" {
                report.fault(at, &format!("feature {} is {}, but its call {name} is served", row[1], row[2]));
            }
            if !seen.insert(name) {
                report.fault(at, &format!("call {name} belongs to two features"));
            }
        }
    }
    report.end();
}

/// A constant's value as the register shows it.
#[derive(Debug, PartialEq)]
enum Value {
    Number(u64),
    Text(String),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// Pairs of a constant's path in the crate and its value.
macro_rules! constants {
    ($($first:ident $(:: $rest:ident)*,)+) => {
        vec![$((
            concat!(stringify!($first) $(, "::", stringify!($rest))*),
            Value::from(hv_abi::$first $(::$rest)*),
        )),+]
    };
}

fn constants() -> Vec<(&'static str, Value)> {
    constants! {
        ABI_VERSION,
        PAGE_SIZE,
        address::LOWEST_MAPPABLE,
        address::SLOT_255,
        address::HYPERCALL_PAGE,
        address::VCPU_PAGES,
        address::VCPU_STRIDE,
        address::CLOCK_PAGE,
        address::MAX_VCPUS,
        address::DIRECT_MAP,
        address::MAX_MEMORY,
        address::KERNEL_SPACE,
        address::entry::CALL,
        address::entry::BLOCK,
        address::entry::UPCALL_RETURN,
        address::entry::ENTER_USER,
        boot::MAGIC,
        boot::region::USABLE,
        boot::region::IMAGE,
        boot::region::BOOT,
        boot::region::RAMDISK,
        boot::region::DEVICE,
        boot::region::ROOT,
        boot::region::ZERO,
        call::CONSOLE_WRITE_MAX,
        call::CONSOLE_READ_MAX,
        call::MULTICALL_MAX,
        call::PANIC_TEXT_MAX,
        call::NEVER,
        call::woken_by::EVENT,
        call::woken_by::DEADLINE,
        device::DEVICES_MAX,
        device::kind::NETWORK,
        device::kind::BLOCK,
        device::kind::CONSOLE,
        device::kind::ENTROPY,
        device::kind::BALLOON,
        device::kind::VSOCK,
        device::kind::FILE_SYSTEM,
        device::register::MAGIC_VALUE,
        device::register::VERSION,
        device::register::DEVICE_ID,
        device::register::VENDOR_ID,
        device::register::DEVICE_FEATURES,
        device::register::DEVICE_FEATURES_SEL,
        device::register::DRIVER_FEATURES,
        device::register::DRIVER_FEATURES_SEL,
        device::register::QUEUE_SEL,
        device::register::QUEUE_SIZE_MAX,
        device::register::QUEUE_SIZE,
        device::register::QUEUE_READY,
        device::register::INTERRUPT_STATUS,
        device::register::INTERRUPT_ACK,
        device::register::STATUS,
        device::register::QUEUE_DESC_LOW,
        device::register::QUEUE_DESC_HIGH,
        device::register::QUEUE_DRIVER_LOW,
        device::register::QUEUE_DRIVER_HIGH,
        device::register::QUEUE_DEVICE_LOW,
        device::register::QUEUE_DEVICE_HIGH,
        device::register::SHM_SEL,
        device::register::SHM_LEN_LOW,
        device::register::SHM_LEN_HIGH,
        device::register::SHM_BASE_LOW,
        device::register::SHM_BASE_HIGH,
        device::register::QUEUE_RESET,
        device::register::CONFIG_GENERATION,
        device::register::CONFIG,
        device::MAGIC,
        device::VENDOR,
        device::status::ACKNOWLEDGE,
        device::status::DRIVER,
        device::status::DRIVER_OK,
        device::status::FEATURES_OK,
        device::status::NEEDS_RESET,
        device::status::FAILED,
        device::interrupt::USED_BUFFER,
        device::interrupt::CONFIG_CHANGE,
        device::feature::INDIRECT_DESC,
        device::feature::EVENT_IDX,
        device::feature::VERSION_1,
        mmu::ROOTS_MAX,
        mmu::MMU_UPDATE_MAX,
        mmu::EAGER,
        note::OWNER,
        note::TYPE,
        pages::PAGE_RUNS_MAX,
        testing::SECTION,
        trace::TRACE_RECORDS_MAX,
        trace::TRACE_NAME_MAX,
        trace::kind::MARK,
        trace::kind::SPAN,
        trace::kind::CROSSING,
        user::GATE,
        user::LOWEST_USER,
        user::RFLAGS,
        user::RFLAGS_FIXED,
        user::trap::SYSCALL,
        user::trap::PAGE_FAULT,
        user::trap::EXCEPTION,
        user::trap::INTERRUPTED,
        user::trap::KILLED,
        user::access::READ,
        user::access::WRITE,
        user::access::EXECUTE,
        vcpu::EVENT_CHANNELS,
        vcpu::EVENT_WORDS,
        vcpu::TIMER_CHANNEL,
        vcpu::BALLOON_CHANNEL,
        vcpu::NO_PROCESSOR,
        vcpu::CONSOLE_CHANNEL,
        vcpu::FIRST_DYNAMIC_CHANNEL,
        vcpu::upcall::PENDING,
        vcpu::upcall::MASKED,
        vcpu::run_state::RUNNING,
        vcpu::run_state::BLOCKED,
        vcpu::run_state::STOPPED,
    }
}

#[test]
fn register_has_every_constant() {
    let document = Document::read();
    let chapter = document.chapter("Register of constants");
    let expected = constants();
    let found = chapter.table(0);
    let mut report = Report::default();
    let names = expected.iter().map(|&(name, _)| name).collect();
    report.compare_sets(chapter.at, "register", &names, &found.iter().map(|(_, row)| row[0]).collect());
    for (at, row) in &found {
        let Some((name, value)) = expected.iter().find(|(name, _)| *name == row[0]) else { continue };
        let in_document = match row[1].strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
            Some(text) => Value::Text(text.into()),
            None => number(row[1]).map_or(Value::Text(row[1].into()), Value::Number),
        };
        report.compare(*at, name, value, &in_document);
    }
    report.end();
}

/// A structure's layout: path, size, and per field its name, offset and size.
struct Layout {
    name: &'static str,
    size: usize,
    fields: Vec<(&'static str, usize, usize)>,
}

/// The size of the field that `_field` picks.
fn field_size<S, F>(_field: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! layouts {
    ($($module:ident::$name:ident { $($field:ident),+ $(,)? })+) => {
        vec![$(Layout {
            name: concat!(stringify!($module), "::", stringify!($name)),
            size: size_of::<$module::$name>(),
            fields: vec![$((
                stringify!($field),
                offset_of!($module::$name, $field),
                field_size(|s: &$module::$name| &s.$field),
            )),+],
        }),+]
    };
}

fn layouts() -> Vec<Layout> {
    layouts! {
        note::ElfNote { owner_size, descriptor_size, kind, owner, image }
        note::ImageNote { abi_version, reserved, needed, liked, least_memory }
        testing::TestEntry { name, name_length, clauses, clauses_length, function }
        boot::BootInfo {
            magic, abi_version, size, features, memory_size, direct_map, vcpus, reserved, command_line, ramdisk,
            memory_map, devices, kernel_root, cpu_features, xstate_size, xstate_mask, tsc_hz, seed,
        }
        boot::Blob { start, length }
        boot::MemoryRegion { start, length, kind, flags }
        vcpu::VcpuPage {
            upcall, vcpu, upcall_entry, run_state, preempted, steal_ns, engine0, processor, engine1, pending, masked,
            trace, reserved,
        }
        vcpu::UpcallFrame { rip, engine0, rflags, rsp, engine1 }
        clock::ClockPage { sequence, reserved, tsc_base, ns_base, scale, wall_base, generation }
        call::PanicReport { message, message_length, file, file_length, line, column }
        call::MulticallEntry { call, status, arguments, value, reserved }
        device::DeviceEntry { device, kind, channel, queues, page, reserved }
        device::DevicePage { interrupt_status, config_generation, config_size, reserved, config }
        mmu::MmuUpdate { entry, new, old, status, reserved }
        pages::PageRun { start, count }
        trace::TraceRing { head, tail, dropped, reserved }
        trace::TraceRecord { sequence, kind, begin, end, value, name }
        user::UserContext {
            rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8_to_r15, rip, rflags, fs_base, xstate, xstate_valid, trap,
            access, vector, address, reserved,
        }
    }
}

#[test]
fn layouts_are_the_crates() {
    let document = Document::read();
    let lines: Vec<Line<'_>> = document.numbered().collect();
    let mut expected: BTreeMap<_, _> = layouts().into_iter().map(|layout| (layout.name, layout)).collect();
    let mut report = Report::default();
    for (i, &(at, line)) in lines.iter().enumerate() {
        let Some(heading) = line.strip_prefix("Layout of `") else { continue };
        let Some((name, rest)) = heading.split_once("` (") else {
            report.fault(at, "expected \"Layout of `NAME` (N bytes):\"");
            continue;
        };
        let (size, planned) = match rest.strip_suffix(" bytes):") {
            Some(size) => (number(size), false),
            None => (rest.strip_suffix(" bytes, not yet served):").and_then(number), true),
        };
        let below = &lines[i + 1..];
        let start = below.iter().position(|(_, line)| line.starts_with('|')).unwrap_or(0);
        let table = below[start..].split(|(_, line)| !line.starts_with('|')).next();

        // No hidden padding, whether the crate has the structure or not.
        let mut end = 0;
        let mut found = Vec::new();
        for (at, row) in rows(table) {
            let (Some(offset), Some(size)) = (number(row[0]), number(row[1])) else {
                report.fault(at, &format!("{name}: offset and size are not numbers"));
                continue;
            };
            if offset != end {
                report.fault(
                    at,
                    &format!("{name}.{}: at {offset}, but the field before ends at {end}", row[2]),
                );
            }
            end = offset + size;
            found.push((row[2], offset as usize, size as usize));
        }
        if size != Some(end) {
            report.fault(at, &format!("{name}: is said to have {size:?} bytes, but its fields have {end}"));
        }

        match expected.remove(name) {
            Some(_) if planned => {
                report.fault(at, &format!("{name}: hv-abi has it; found \"not yet served\""))
            }
            Some(layout) => {
                report.compare(at, &format!("{name}, size"), Some(layout.size as u64), size);
                report.compare(at, &format!("{name}, fields (name, offset, size)"), layout.fields, found);
            }
            None if planned => {}
            None => report.fault(at, &format!("{name}: hv-abi does not have it, or it is described twice")),
        }
    }
    for name in expected.keys() {
        report.fault(0, &format!("{name}: expected a table \"Layout of `{name}`\"; not found"));
    }
    report.end();
}

/// The paths in the crate of what its source declares by `keyword` and a name, at the level of a module, when
/// `is_wanted` likes what follows the name. Expects the layout that rustfmt gives.
fn declared(keyword: &str, is_wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let source = root().join("hv-abi/src");
    for file in fs::read_dir(&source).expect("hv-abi/src is readable") {
        let path = file.expect("hv-abi/src is readable").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("file names are UTF-8");
        if stem == "fuse" {
            continue; // Linux's protocol, which the document does not repeat
        }
        let text = fs::read_to_string(&path).expect("a source file is readable");
        let mut inner = None;
        for line in text.lines() {
            if let Some(module) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(" {")) {
                inner = Some(module);
            } else if line == "}" {
                inner = None;
            }
            let Some(rest) = line.trim_start().strip_prefix(keyword) else { continue };
            // What is inside an `impl` or a macro is not a module's.
            let in_impl = line.starts_with(' ') && inner.is_none();
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if in_impl || name.is_empty() || !is_wanted(&rest[name.len()..]) {
                continue;
            }
            let file = if stem == "lib" { None } else { Some(stem) };
            let path: Vec<_> = file.into_iter().chain(inner).chain([name.as_str()]).collect();
            names.insert(path.join("::"));
        }
    }
    names
}

#[test]
fn no_constant_or_structure_of_the_crate_is_forgotten() {
    let mut report = Report::default();
    let in_source = declared("pub const ", |rest| rest.starts_with(": "));
    let listed = constants();
    report.compare_sets(
        0,
        "constants in this test",
        &in_source.iter().map(String::as_str).collect(),
        &listed.iter().map(|&(name, _)| name).collect(),
    );
    // `struct Name(..)` is a number, and `Description` does not cross the boundary.
    let in_source = declared("pub struct ", |rest| rest.starts_with(" {"));
    let listed = layouts();
    report.compare_sets(
        0,
        "structures in this test",
        &in_source.iter().map(String::as_str).filter(|name| *name != "call::Description").collect(),
        &listed.iter().map(|layout| layout.name).collect(),
    );
    report.end();
}

/// Whether `text` is the inside of a clause's brackets, as in `[BLOCK-001]`; if so, its stem.
fn clause_stem(text: &str) -> Option<&str> {
    let (stem, digits) = text.split_once('-')?;
    let is_stem = !stem.is_empty() && stem.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    (is_stem && digits.len() == 3 && digits.chars().all(|c| c.is_ascii_digit())).then_some(stem)
}

/// The stems that clauses of a section may have: a call's or entry's name, or a chapter's in parentheses.
fn stems(section: &Section<'_>) -> Vec<String> {
    let title = without_number(section.title);
    if section.level == 2 {
        let listed = title.rsplit_once(" (").and_then(|(_, rest)| rest.strip_suffix(')'));
        return listed.map(|stems| stems.split(", ").map(str::to_owned).collect()).unwrap_or_default();
    }
    let title = title.strip_prefix("Entry ").unwrap_or(title);
    vec![title.split(' ').next().unwrap_or_default().to_owned()]
}

#[test]
fn clauses_are_unique_and_stand_where_they_belong() {
    let document = Document::read();
    let mut report = Report::default();
    let mut defined: BTreeMap<&str, usize> = BTreeMap::new();
    let mut mentioned: Vec<(usize, &str)> = Vec::new();
    let mut with_clauses: BTreeSet<&str> = BTreeSet::new();
    let sections = document.sections();
    for section in &sections {
        let stems = stems(section);
        for &(at, line) in &section.lines {
            let definition =
                line.strip_prefix("- [").and_then(|rest| rest.split_once("] ")).map(|(id, _)| id);
            if let Some((id, stem)) = definition.and_then(|id| Some((id, clause_stem(id)?))) {
                with_clauses.insert(stem);
                if !stems.iter().any(|s| s == stem) {
                    report
                        .fault(at, &format!("[{id}]: its stem is not of this section, which has {stems:?}"));
                }
                if let Some(first) = defined.insert(id, at) {
                    report.fault(at, &format!("[{id}]: found twice, first at line {first}"));
                }
            } else if line.starts_with("- [") {
                report.fault(at, "expected a clause id such as [BLOCK-001]");
            }
            mentioned.extend(
                line.split('[').skip(1).filter_map(|rest| rest.split_once(']')).map(|(text, _)| (at, text)),
            );
        }
    }
    for (at, id) in mentioned {
        if clause_stem(id).is_some() && !defined.contains_key(id) {
            report.fault(at, &format!("[{id}]: mentioned, but no sentence begins with it"));
        }
    }
    for (_, name, section) in document.calls() {
        let served = CALLS.iter().any(|d| d.name == name && d.served);
        if served != with_clauses.contains(name) {
            let expected =
                if served { "clauses, since it is served" } else { "no clauses until it is served" };
            report.fault(section.at, &format!("{name}: expected {expected}"));
        }
    }
    for chapter in sections.iter().filter(|s| s.level == 2) {
        for stem in stems(chapter).iter().filter(|stem| !with_clauses.contains(stem.as_str())) {
            report.fault(chapter.at, &format!("chapter stem {stem}: no clause has it"));
        }
    }
    report.end();
}
