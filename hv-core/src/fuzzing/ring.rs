//! Rings of devices, in which a driver may have put anything, against a model of `docs/abi.md`, section 15.
//!
//! Start at [`ring`].

use super::machine::NoSpaces;
use crate::devices::ring::{Layout, Ring};
use crate::memory::GuestMemory;
use arbitrary::{Result, Unstructured};
use hv_abi::GuestPhys;
use std::sync::Arc;

/// Bytes of guest memory.
const MEMORY: u64 = 8192;
/// The most bytes that a step reads or writes of a chain, which may be 4 GiB long by naming the same ones again.
const MOST: usize = 5000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Sets a ring up and works on it, while its driver stores what it likes. Panics if it does what the model does not.
///
/// # Panics
///
/// That is the point.
pub fn ring(input: &[u8]) {
    let _ = run(&mut Unstructured::new(input)); // an input that has come to its end
}

/// A chain as the model has it: its head, and the addresses of its bytes, as far as they are looked at.
struct Chain {
    head: u16,
    readable: Part,
    writable: Part,
}

/// Where the bytes of a part are, the first [`MOST`] of them, and how many there are.
#[derive(Default)]
struct Part(Vec<u64>, u64);

impl Part {
    fn add(&mut self, start: u64, length: u32) {
        let looked_at = (length as usize).min(MOST - self.0.len());
        self.0.extend((start..).take(looked_at));
        self.1 += u64::from(length);
    }
}

/// A chain that is not, or not whole.
struct Broken;

struct Model {
    bytes: Vec<u8>,
    layout: Layout,
    event_idx: bool,
    next_available: u16,
    next_used: u16,
    /// Pushed since it was last asked whether the driver wants to know.
    added: u16,
}

impl Model {
    fn half(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.bytes[at as usize..][..2].try_into().expect("two bytes"))
    }

    fn store(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn is_memory(start: u64, length: u64) -> bool {
        length == 0 || start.checked_add(length).is_some_and(|end| end <= MEMORY)
    }

    /// Whether a driver may set a ring up so.
    fn is_good(layout: &Layout) -> bool {
        let Layout { size, descriptors, available, used } = *layout;
        let entries = u64::from(size);
        descriptors.is_multiple_of(16)
            && available.is_multiple_of(2)
            && used.is_multiple_of(4)
            && available != 0
            && Self::is_memory(descriptors, 16 * entries)
            && Self::is_memory(available, 6 + 2 * entries)
            && Self::is_memory(used, 6 + 8 * entries)
    }

    fn index(&self) -> u16 {
        self.half(self.layout.available + 2)
    }

    fn pop(&mut self) -> std::result::Result<Option<Chain>, Broken> {
        let ahead = self.index().wrapping_sub(self.next_available);
        if ahead == 0 {
            return Ok(None);
        }
        let size = self.layout.size;
        if ahead > size {
            return Err(Broken);
        }
        let head = self.half(self.layout.available + 4 + 2 * u64::from(self.next_available % size));
        if head >= size {
            return Err(Broken);
        }
        self.next_available = self.next_available.wrapping_add(1);
        let (mut table, mut length, mut index, mut indirect) =
            (self.layout.descriptors, u32::from(size), head, false);
        let mut chain = Chain { head, readable: Part::default(), writable: Part::default() };
        let (mut descriptors, mut has_writable) = (0, false);
        loop {
            let at = table.wrapping_add(16 * u64::from(index));
            if u32::from(index) >= length || !Self::is_memory(at, 16) {
                return Err(Broken);
            }
            let bytes = &self.bytes[at as usize..][..16];
            let address = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            let bytes_long = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
            let (flags, next) = (self.half(at + 12), self.half(at + 14));
            if flags & INDIRECT != 0 {
                if indirect || !bytes_long.is_multiple_of(16) || bytes_long / 16 > 0xffff {
                    return Err(Broken);
                }
                (table, length, index, indirect) = (address, bytes_long / 16, 0, true);
                continue;
            }
            descriptors += 1;
            let writable = flags & WRITE != 0;
            let total = chain.readable.1 + chain.writable.1 + u64::from(bytes_long);
            let inside = Self::is_memory(address, bytes_long.into());
            if has_writable && !writable || !inside || descriptors > size || total > u32::MAX.into() {
                return Err(Broken);
            }
            has_writable |= writable;
            if writable { &mut chain.writable } else { &mut chain.readable }.add(address, bytes_long);
            if flags & NEXT == 0 {
                return Ok(Some(chain));
            }
            index = next;
        }
    }

    fn push(&mut self, head: u16, written: u32) {
        let slot = u64::from(self.next_used % self.layout.size);
        let entry = [u32::from(head).to_le_bytes(), written.to_le_bytes()].concat();
        self.store(self.layout.used + 4 + 8 * slot, &entry);
        self.next_used = self.next_used.wrapping_add(1);
        self.added = self.added.wrapping_add(1);
        self.store(self.layout.used + 2, &self.next_used.to_le_bytes());
    }

    fn wants_interrupt(&mut self) -> bool {
        let added = std::mem::take(&mut self.added);
        let event = self.half(self.layout.available + 4 + 2 * u64::from(self.layout.size));
        !self.event_idx || self.next_used.wrapping_sub(event).wrapping_sub(1) < added
    }

    fn ask_for_doorbell(&mut self) -> bool {
        if self.event_idx {
            let at = self.layout.used + 4 + 8 * u64::from(self.layout.size);
            self.store(at, &self.next_available.to_le_bytes());
        } else {
            self.store(self.layout.used, &0_u16.to_le_bytes());
        }
        self.index() != self.next_available
    }

    fn want_no_doorbell(&mut self) {
        if !self.event_idx {
            self.store(self.layout.used, &1_u16.to_le_bytes());
        }
    }
}

/// A place in memory, most often one of a few, and seldom one that is none.
fn place(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=31)? {
        0 => u.arbitrary()?,
        1 => MEMORY.wrapping_add_signed(u.arbitrary::<i8>()?.into()),
        2 => u.int_in_range(0..=MEMORY)?,
        _ => u.int_in_range(1..=7_u64)? * (MEMORY / 8),
    })
}

fn layout(u: &mut Unstructured<'_>) -> Result<Layout> {
    let size = 1 << u.int_in_range(0..=4)?;
    Ok(Layout { size, descriptors: place(u)?, available: place(u)?, used: place(u)? })
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Vec<u8> {
    [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
}

/// Memory that is full of tables of descriptors: each eighth has chains that are longer by one than those of the eighth before it,
/// half of them to read and half to write.
fn tables() -> Vec<u8> {
    const IN_AN_EIGHTH: u16 = MEMORY as u16 / 8 / 16;
    let of_chain = |number: u16| {
        let (length, index) = (number / IN_AN_EIGHTH + 1, number % IN_AN_EIGHTH);
        let place = index % length;
        let next = if place + 1 < length { NEXT } else { 0 };
        let write = if place >= length / 2 { WRITE } else { 0 };
        descriptor(1024 * u64::from(index % 8), 24, next | write, index + 1)
    };
    (0..8 * IN_AN_EIGHTH).flat_map(of_chain).collect()
}

/// What a driver stores, and where.
fn store(u: &mut Unstructured<'_>, model: &Model) -> Result<(u64, Vec<u8>)> {
    let size = u64::from(model.layout.size);
    Ok(match u.int_in_range(0..=7)? {
        0 => (place(u)?, u.arbitrary::<[u8; 8]>()?.to_vec()),
        1..=3 => {
            let table = if u.ratio(2, 3)? { model.layout.descriptors } else { place(u)? };
            let index = u.int_in_range(0..=size - 1)?;
            let length = if u.ratio(1, 16)? { u.arbitrary()? } else { 16 * u.int_in_range(0..=8_u32)? };
            let flags =
                if u.ratio(1, 8)? { u.arbitrary()? } else { *u.choose(&[0, NEXT, WRITE, NEXT | WRITE])? };
            let next = if u.ratio(1, 16)? { u.arbitrary()? } else { (index + 1) as u16 };
            let descriptor = [
                &place(u)?.to_le_bytes()[..],
                &length.to_le_bytes(),
                &flags.to_le_bytes(),
                &next.to_le_bytes(),
            ];
            (table.wrapping_add(16 * index), descriptor.concat())
        }
        4 => {
            let head = if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=size - 1)? as u16 };
            (model.layout.available + 4 + 2 * u.int_in_range(0..=size)?, head.to_le_bytes().to_vec())
        }
        _ => {
            let ahead = if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=size)? as u16 };
            let index = model.next_available.wrapping_add(ahead);
            (model.layout.available + 2, index.to_le_bytes().to_vec())
        }
    })
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let memory = Arc::new(GuestMemory::new(MEMORY).expect("a small memory can be had"));
    let (layout, event_idx) = (layout(u)?, u.arbitrary()?);
    let made = Ring::new(memory.clone(), Arc::new(NoSpaces), &layout, event_idx);
    assert_eq!(made.is_ok(), Model::is_good(&layout), "{layout:?}");
    let Ok(mut ring) = made else { return Ok(()) };
    let bytes = tables();
    memory.write_bytes(GuestPhys(0), &bytes).expect("it is as long as memory");
    let mut model = Model { bytes, layout, event_idx, next_available: 0, next_used: 0, added: 0 };
    let index = model.layout.available + 2;
    memory.write_bytes(GuestPhys(index), &[0; 2]).expect("a ring is in memory");
    model.store(index, &[0; 2]);
    let mut popped = Vec::new();
    for _ in 0..200 {
        match u.int_in_range(0..=15)? {
            0..=7 => {
                let (at, bytes) = store(u, &model)?;
                if Model::is_memory(at, bytes.len() as u64) {
                    memory.write_bytes(GuestPhys(at), &bytes).expect("it is memory");
                    model.store(at, &bytes);
                }
            }
            8..=10 => match (ring.pop(), model.pop()) {
                (Ok(None), Ok(None)) => {}
                (Err(_), Err(Broken)) => return Ok(()),
                (Ok(Some(chain)), Ok(Some(expected))) => {
                    let lengths = (chain.readable() as u64, chain.writable() as u64);
                    assert_eq!(lengths, (expected.readable.1, expected.writable.1), "{layout:?}");
                    if u.ratio(1, 8)? {
                        ring.put_back(chain);
                        model.next_available = model.next_available.wrapping_sub(1);
                    } else {
                        popped.push((chain, expected));
                    }
                }
                (found, expected) => {
                    panic!("{found:?} instead of a chain: {}", matches!(expected, Ok(Some(_))))
                }
            },
            11 | 12 if !popped.is_empty() => {
                let (mut chain, expected) = popped.swap_remove(u.choose_index(popped.len())?);
                let mut found = vec![0; chain.readable().min(MOST)];
                chain.read(&mut found).expect("there are so many");
                let in_model: Vec<u8> = expected
                    .readable
                    .0
                    .iter()
                    .take(found.len())
                    .map(|at| model.bytes[*at as usize])
                    .collect();
                assert!(found == in_model, "other bytes than the driver's");
                let length = u.int_in_range(0..=chain.writable().min(64))?;
                let bytes: Vec<u8> = (0..length as u8).collect();
                chain.write(&bytes).expect("there is room");
                for (at, byte) in expected.writable.0.iter().zip(bytes) {
                    model.bytes[*at as usize] = byte;
                }
                assert_eq!(chain.written() as usize, length);
                ring.push(chain);
                model.push(expected.head, length as u32);
            }
            13 => assert_eq!(ring.wants_interrupt(), model.wants_interrupt()),
            14 => assert_eq!(ring.ask_for_doorbell(), model.ask_for_doorbell()),
            _ => {
                ring.want_no_doorbell();
                model.want_no_doorbell();
                assert_eq!(ring.has_available(), model.index() != model.next_available);
            }
        }
        assert_eq!(ring.in_flight() as usize, popped.len());
        let mut bytes = vec![0; MEMORY as usize];
        memory.read_bytes(GuestPhys(0), &mut bytes).expect("all of it is memory");
        if bytes != model.bytes {
            let at = bytes.iter().zip(&model.bytes).position(|(found, expected)| found != expected);
            panic!("memory is wrong at {at:?}, with {layout:?}");
        }
    }
    Ok(())
}
