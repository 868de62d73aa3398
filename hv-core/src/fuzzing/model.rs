//! What docs/abi.md says that calls do, written down a second time and as plainly as possible.
//!
//! It knows nothing of how the host does it. Where the document leaves a choice (which of several errors, which free
//! channel), the model takes what the host chose if that is allowed. Page tables are in `model_mmu`, free pages
//! in `model_pages`.

use super::machine::{MEMORY, State, VCPUS};
use super::model_mmu::Tables;
use super::model_pages::Pages;
use crate::report::{End, Place};
use hv_abi::{Features, Status};
use std::collections::BTreeMap;

const CHANNELS: u64 = 512;
const FIRST_DYNAMIC: u64 = 16;
const PENDING: u32 = 1;
const CONSOLE: u64 = 3;

/// A call's value, or what it may fail with.
pub(super) type Expected = Result<u64, Vec<Status>>;

pub(super) struct Model {
    pub state: State,
    features: Features,
    /// Open channels and the vCPUs that they are bound to.
    open: BTreeMap<u64, usize>,
    pub(super) tables: Tables,
    pub(super) pages: Pages,
    /// What was typed and is not read yet.
    typed: Vec<u8>,
    input_ended: bool,
}

/// `Ok` if no error applies.
pub(super) fn unless(errors: &[(bool, Status)]) -> Result<(), Vec<Status>> {
    let apply: Vec<_> = errors.iter().filter(|(applies, _)| *applies).map(|(_, status)| *status).collect();
    if apply.is_empty() { Ok(()) } else { Err(apply) }
}

/// Section 11: it changes nothing that a guest or this model could see.
fn trace_ring(ring: u64, records: u64) -> Expected {
    let length = records.saturating_mul(64).saturating_add(64);
    let bad = !ring.is_multiple_of(64) || outside(ring, length);
    let wrong = [
        (records > 65536, Status::OUT_OF_RANGE),
        (!records.is_power_of_two(), Status::BAD_ARGUMENT),
        (bad, Status::BAD_ADDRESS),
    ];
    if records != 0 {
        unless(&wrong)?;
    }
    Ok(0)
}

/// Whether a range is not wholly in guest memory.
pub(super) fn outside(start: u64, length: u64) -> bool {
    length > 0 && u128::from(start) + u128::from(length) > u128::from(MEMORY)
}

/// Whether there is no vCPU of that number.
fn no_vcpu(vcpu: u64) -> bool {
    vcpu >= VCPUS.into()
}

impl Model {
    pub(super) fn new(state: State, features: Features) -> Self {
        let (open, tables, pages) = (BTreeMap::new(), Tables::default(), Pages::default());
        Self { state, features, open, tables, pages, typed: Vec::new(), input_ended: false }
    }

    /// Takes note of a call that the host has made, after which memory was as in `after`.
    pub(super) fn judge(
        &mut self,
        number: u32,
        arguments: [u64; 5],
        given: Result<u64, Status>,
        after: &[u8],
    ) {
        let expected = self.call(number, arguments, given, after);
        let right = match (&expected, given) {
            (Ok(expected), Ok(given)) => *expected == given,
            (Err(allowed), Err(given)) => allowed.contains(&given),
            _ => false,
        };
        assert!(right, "call {number} {arguments:x?} gave {given:x?}, expected {expected:x?}");
    }

    /// A channel fires (section 9).
    pub(super) fn fire(&mut self, vcpu: usize, channel: u64) {
        let page = &mut self.state.pages[vcpu];
        let (word, bit) = (channel as usize / 64, 1 << (channel % 64));
        page.pending[word] |= bit;
        if page.masked[word] & bit == 0 {
            page.notified += u32::from(page.upcall & PENDING == 0);
            page.upcall |= PENDING;
        }
    }

    fn call(&mut self, number: u32, a: [u64; 5], given: Result<u64, Status>, after: &[u8]) -> Expected {
        if !self.is_served(number) {
            return Err(vec![Status::UNKNOWN_CALL]);
        }
        let has = match number {
            0 | 1 | 5 | 15 => 0,
            2 | 7 | 12 | 13 | 21 | 22 | 24 | 26 | 27 => 2,
            14 | 18 | 19 | 25 => 3,
            _ => 1,
        };
        unless(&[(a[has..].iter().any(|unused| *unused != 0), Status::BAD_ARGUMENT)])?;
        match number {
            0 => Ok(1),
            1 => Ok(self.features.bits()),
            2 => self.console_write(a[0], a[1]),
            3 => self.shutdown(a[0]),
            4 => self.panic(a[0]),
            5 => Ok(0),
            6 => unless(&[(no_vcpu(a[0]), Status::NOT_FOUND)]).map(|()| 0),
            7 => self.poll(a[0]),
            8 => {
                self.state.timer = (a[0] != u64::MAX).then_some(a[0]);
                Ok(0)
            }
            9 => self.event_allocate(a[0], given),
            10 => self.event_close(a[0]),
            11 => self.event_send(a[0]),
            12 => self.event_bind(a[0], a[1]),
            14 => {
                let outside = !(0x1_0000..0x7f80_0000_0000).contains(&a[1]);
                unless(&[(no_vcpu(a[0]), Status::NOT_FOUND), (outside, Status::BAD_ADDRESS)])?;
                Err(vec![Status::BUSY]) // none of them is more than its page
            }
            15 => Err(vec![Status::BUSY]),
            16 => self.root_create(a[0]),
            17 => self.root_destroy(a[0]),
            18 => self.mmu_update(a[0], a[1], a[2], after),
            19 => self.mmu_flush(a[0], a[1], a[2]),
            20 => self.user_xstate(a[0]),
            21 => self.pages_report(a[0], a[1]),
            22 => self.pages_claim(a[0], a[1]),
            23 => Ok(self.hold(a[0])),
            24..=26 => Err(vec![Status::NOT_FOUND]), // there are no devices
            27 => self.console_read(a[0], a[1]),
            28 => trace_ring(a[0], a[1]),
            _ => self.multicall(a[0], a[1], after),
        }
    }

    pub(super) fn offers_balloon(&self) -> bool {
        self.features.contains(Features::PAGE_REPORTING)
    }

    /// Sections 11 and 21.
    fn is_served(&self, number: u32) -> bool {
        match number {
            0..=5 => true,
            6 | 14 | 15 => self.features.contains(Features::SMP),
            7..=12 => self.features.contains(Features::EVENTS),
            13 => self.features.contains(Features::MULTICALL),
            16..=20 => self.features.contains(Features::MMU),
            21..=23 => self.features.contains(Features::PAGE_REPORTING),
            24..=26 => self.features.contains(Features::DEVICES),
            27 => self.features.contains(Features::CONSOLE_INPUT),
            28 => self.features.contains(Features::TRACE),
            _ => false,
        }
    }

    fn console_write(&mut self, buffer: u64, length: u64) -> Expected {
        unless(&[(length > 65536, Status::OUT_OF_RANGE), (outside(buffer, length), Status::BAD_ADDRESS)])?;
        let text = self.bytes(buffer, length);
        self.state.console.extend(text);
        Ok(length)
    }

    /// Somebody types.
    pub(super) fn type_bytes(&mut self, bytes: &[u8]) {
        let room = if self.input_ended { 0 } else { 65536 - self.typed.len() };
        let bytes = &bytes[..bytes.len().min(room)];
        let first = self.typed.is_empty() && !bytes.is_empty();
        self.typed.extend(bytes);
        if first {
            self.fire(0, CONSOLE);
        }
    }

    /// Nobody types any more.
    pub(super) fn end_input(&mut self) {
        if !self.input_ended {
            self.fire(0, CONSOLE);
        }
        self.input_ended = true;
    }

    fn console_read(&mut self, buffer: u64, length: u64) -> Expected {
        unless(&[
            (length > 4096, Status::OUT_OF_RANGE),
            (outside(buffer, length), Status::BAD_ADDRESS),
            (self.input_ended && self.typed.is_empty(), Status::NOT_FOUND),
        ])?;
        let taken: Vec<u8> = self.typed.drain(..self.typed.len().min(length as usize)).collect();
        if !taken.is_empty() {
            self.state.memory[buffer as usize..][..taken.len()].copy_from_slice(&taken);
        }
        Ok(taken.len() as u64)
    }

    fn shutdown(&mut self, code: u64) -> Expected {
        unless(&[(code > 255, Status::BAD_ARGUMENT)])?;
        self.state.end = Some(End::Shutdown { code: code as u8 });
        Ok(0)
    }

    fn panic(&mut self, report: u64) -> Expected {
        unless(&[(!report.is_multiple_of(8) || outside(report, 40), Status::BAD_ADDRESS)])?;
        let field = |index: u64| self.word(report + index * 8);
        let (message, message_length, file, file_length) = (field(0), field(1), field(2), field(3));
        let (line, column) = (field(4) as u32, (field(4) >> 32) as u32);
        unless(&[
            (message_length > 4096 || file_length > 4096, Status::OUT_OF_RANGE),
            (outside(message, message_length) || outside(file, file_length), Status::BAD_ADDRESS),
        ])?;
        let text = |start, length| String::from_utf8_lossy(&self.bytes(start, length)).into_owned();
        let place = (file_length > 0).then(|| Place { file: text(file, file_length), line, column });
        self.state.end = Some(End::Panic { message: text(message, message_length), place });
        Ok(0)
    }

    /// By vCPU 0, which does not wait here: what it would wait for is 512, as is a pending upcall.
    fn poll(&mut self, set: u64) -> Expected {
        unless(&[(!set.is_multiple_of(8) || outside(set, 64), Status::BAD_ADDRESS)])?;
        let pending = self.state.pages[0].pending;
        let in_set = |channel: &u64| {
            let (word, bit) = (channel / 64, 1 << (channel % 64));
            self.word(set + word * 8) & pending[word as usize] & bit != 0
        };
        Ok((0..CHANNELS).find(in_set).unwrap_or(CHANNELS))
    }

    fn event_allocate(&mut self, vcpu: u64, given: Result<u64, Status>) -> Expected {
        let full = self.open.len() as u64 == CHANNELS - FIRST_DYNAMIC;
        unless(&[(no_vcpu(vcpu), Status::NOT_FOUND), (full, Status::NO_SPACE)])?;
        let free =
            |channel: &u64| (FIRST_DYNAMIC..CHANNELS).contains(channel) && !self.open.contains_key(channel);
        let channel = given.ok().filter(free).unwrap_or(u64::MAX);
        if channel != u64::MAX {
            self.open.insert(channel, vcpu as usize);
            self.reset(vcpu as usize, channel);
        }
        Ok(channel)
    }

    fn event_close(&mut self, channel: u64) -> Expected {
        let vcpu = self.bound(channel)?;
        self.open.remove(&channel);
        self.reset(vcpu, channel);
        Ok(0)
    }

    fn event_send(&mut self, channel: u64) -> Expected {
        let vcpu = self.bound(channel)?;
        self.fire(vcpu, channel);
        Ok(0)
    }

    fn event_bind(&mut self, channel: u64, vcpu: u64) -> Expected {
        let mut errors = self.bound(channel).err().unwrap_or_default();
        if no_vcpu(vcpu) {
            errors.push(Status::NOT_FOUND);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let vcpu = vcpu as usize;
        let old = self.open.insert(channel, vcpu).expect("it is bound");
        let (word, bit) = (channel as usize / 64, 1 << (channel % 64));
        // Binding to the vCPU to which it is bound changes nothing.
        if old != vcpu && self.state.pages[old].pending[word] & bit != 0 {
            self.state.pages[old].pending[word] &= !bit;
            self.fire(vcpu, channel);
        }
        Ok(0)
    }

    fn multicall(&mut self, entries: u64, count: u64, after: &[u8]) -> Expected {
        let length = count.saturating_mul(64);
        let bad = !entries.is_multiple_of(8) || outside(entries, length);
        unless(&[(count > 128, Status::OUT_OF_RANGE), (bad, Status::BAD_ADDRESS)])?;
        let copied = self.bytes(entries, length);
        let mut results = Vec::new();
        for (index, entry) in copied.chunks(64).enumerate() {
            let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
            let number = word(0) as u32;
            let at = entries as usize + index * 64;
            let status = u32::from_le_bytes(after[at + 4..at + 8].try_into().unwrap());
            let value = u64::from_le_bytes(after[at + 48..at + 56].try_into().unwrap());
            let given = if status == 0 { Ok(value) } else { Err(Status(status)) };
            assert!(status == 0 || value == 0, "[RULE-004]");
            let refused = if !self.is_served(number) {
                Some(Status::UNKNOWN_CALL)
            } else if matches!(number, 3..=7 | 13..=15 | 20) {
                Some(Status::NOT_IN_MULTICALL)
            } else if word(56) != 0 {
                Some(Status::BAD_ARGUMENT)
            } else {
                None
            };
            match refused {
                Some(refused) => assert_eq!(given, Err(refused), "entry {index}, call {number}"),
                None => self.judge(number, core::array::from_fn(|i| word(8 + i * 8)), given, after),
            }
            results.push((at, status, value));
        }
        for (at, status, value) in results {
            self.state.memory[at + 4..at + 8].copy_from_slice(&status.to_le_bytes());
            self.state.memory[at + 48..at + 56].copy_from_slice(&value.to_le_bytes());
        }
        Ok(count)
    }

    /// The vCPU that an open channel is bound to.
    fn bound(&self, channel: u64) -> Result<usize, Vec<Status>> {
        unless(&[(channel >= CHANNELS, Status::OUT_OF_RANGE)])?;
        self.open.get(&channel).copied().ok_or(vec![Status::NOT_FOUND])
    }

    /// Not pending, masked.
    fn reset(&mut self, vcpu: usize, channel: u64) {
        let page = &mut self.state.pages[vcpu];
        page.pending[channel as usize / 64] &= !(1 << (channel % 64));
        page.masked[channel as usize / 64] |= 1 << (channel % 64);
    }

    pub(super) fn bytes(&self, start: u64, length: u64) -> Vec<u8> {
        let range = if length == 0 { 0..0 } else { start as usize..(start + length) as usize };
        self.state.memory[range].to_vec()
    }

    pub(super) fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }
}
