//! A ring of records in guest memory ([`hv_abi::trace`]), and taking them out of it. The guest may have written anything.

use crate::memory::{BadAddress, GuestMemory};
use hv_abi::trace::{TRACE_RECORDS_MAX, TraceRecord, TraceRing};
use hv_abi::{GuestPhys, Status};
use std::mem::offset_of;

const RECORD: u64 = size_of::<TraceRecord>() as u64;

/// Where a vCPU's records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestRing {
    at: u64,
    /// A power of two.
    records: u32,
    /// Records that were taken so far: what is in guest memory is for the guest alone.
    tail: u32,
    /// What the guest last said that it dropped.
    dropped: u64,
}

/// What `TRACE_RING` is told; `None` for a vCPU that is to have no ring.
pub(crate) fn check(memory: &GuestMemory, ring: u64, records: u64) -> Result<Option<GuestRing>, Status> {
    if records == 0 {
        return Ok(None);
    }
    if records > TRACE_RECORDS_MAX {
        return Err(Status::OUT_OF_RANGE);
    }
    if !records.is_power_of_two() {
        return Err(Status::BAD_ARGUMENT);
    }
    let length = size_of::<TraceRing>() as u64 + records * RECORD;
    if !ring.is_multiple_of(align_of::<TraceRing>() as u64) || !memory.contains(GuestPhys(ring), length) {
        return Err(Status::BAD_ADDRESS);
    }
    Ok(Some(GuestRing { at: ring, records: records as u32, tail: 0, dropped: 0 }))
}

impl GuestRing {
    fn field(&self, offset: usize) -> GuestPhys {
        GuestPhys(self.at + offset as u64)
    }

    fn head(&self, memory: &GuestMemory) -> Result<u32, BadAddress> {
        memory.load_word(self.field(offset_of!(TraceRing, head)))
    }

    fn set_tail(&mut self, memory: &GuestMemory, tail: u32) -> Result<(), BadAddress> {
        self.tail = tail;
        memory.store_word(self.field(offset_of!(TraceRing, tail)), tail)
    }

    /// The record at the tail, if it is complete.
    fn next(&self, memory: &GuestMemory) -> Result<Option<TraceRecord>, BadAddress> {
        let place = u64::from(self.tail & (self.records - 1));
        let at = GuestPhys(self.at + size_of::<TraceRing>() as u64 + place * RECORD);
        // Its number first: once that is there, the rest is.
        if memory.load_word(at)? != self.tail.wrapping_add(1) {
            return Ok(None);
        }
        memory.read(at).map(Some)
    }

    /// Takes all that is there, for nobody.
    pub(super) fn forget(&mut self, memory: &GuestMemory) {
        let forgotten = self.head(memory).and_then(|head| self.set_tail(memory, head));
        debug_assert!(forgotten.is_ok(), "the ring was seen to be in guest memory");
        self.dropped = self.said_dropped(memory);
    }

    /// Takes the oldest records that are complete, at most so many; and how many were lost since.
    pub(super) fn take(&mut self, memory: &GuestMemory, most: usize) -> (Vec<TraceRecord>, u64) {
        let mut records = Vec::new();
        // An error cannot be: the ring was seen to be in guest memory, which stays as large as it is.
        let lost = self.take_into(memory, most, &mut records).unwrap_or_default();
        let dropped = self.said_dropped(memory);
        let lost = lost.saturating_add(dropped.saturating_sub(std::mem::replace(&mut self.dropped, dropped)));
        (records, lost)
    }

    fn said_dropped(&self, memory: &GuestMemory) -> u64 {
        memory.read(self.field(offset_of!(TraceRing, dropped))).unwrap_or(0)
    }

    /// Gives how many were lost, in a ring that is garbage.
    fn take_into(
        &mut self,
        memory: &GuestMemory,
        most: usize,
        records: &mut Vec<TraceRecord>,
    ) -> Result<u64, BadAddress> {
        let head = self.head(memory)?;
        let written = head.wrapping_sub(self.tail);
        if written > self.records {
            self.set_tail(memory, head)?;
            return Ok(written.into());
        }
        let before = self.tail;
        while self.tail != head && records.len() < most {
            let Some(record) = self.next(memory)? else { break };
            records.push(record);
            self.tail = self.tail.wrapping_add(1);
        }
        if self.tail != before {
            self.set_tail(memory, self.tail)?;
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 4096;
    const RECORDS: u32 = 4;

    fn memory() -> GuestMemory {
        GuestMemory::new(4 * 4096).expect("a small one")
    }

    fn ring(memory: &GuestMemory) -> GuestRing {
        check(memory, AT, RECORDS.into()).expect("it is in memory").expect("it has records")
    }

    fn write(memory: &GuestMemory, number: u32, sequence: u32) {
        let place = AT + 64 + u64::from(number % RECORDS) * 64;
        let record = TraceRecord { sequence, value: number.into(), ..TraceRecord::default() };
        memory.write(GuestPhys(place), &record).expect("in memory");
    }

    fn set_head(memory: &GuestMemory, head: u32) {
        memory.write(GuestPhys(AT), &head).expect("in memory");
    }

    fn values(taken: (Vec<TraceRecord>, u64)) -> (Vec<u64>, u64) {
        (taken.0.into_iter().map(|record| record.value).collect(), taken.1)
    }

    #[test]
    fn what_is_said_of_a_ring_is_checked() {
        let memory = memory();
        assert_eq!(check(&memory, 1, 0), Ok(None));
        for (ring, records, status) in [
            (AT, 3, Status::BAD_ARGUMENT),
            (AT, TRACE_RECORDS_MAX * 2, Status::OUT_OF_RANGE),
            (AT, u64::MAX, Status::OUT_OF_RANGE),
            (AT + 8, 4, Status::BAD_ADDRESS),
            (4 * 4096 - 4 * 64, 4, Status::BAD_ADDRESS),
            (u64::MAX - 63, 4, Status::BAD_ADDRESS),
        ] {
            assert_eq!(check(&memory, ring, records), Err(status), "{ring:#x} {records}");
        }
        assert!(check(&memory, 4 * 4096 - 5 * 64, 4).is_ok());
    }

    #[test]
    fn records_are_taken_once_in_order_and_as_far_as_they_are_complete() {
        let memory = memory();
        let mut ring = ring(&memory);
        assert_eq!(values(ring.take(&memory, 9)), (vec![], 0));
        for number in 0..10 {
            write(&memory, number, number + 1);
            set_head(&memory, number + 1);
            assert_eq!(values(ring.take(&memory, 9)), (vec![number.into()], 0));
            assert_eq!(memory.read::<u32>(GuestPhys(AT + 4)), Ok(number + 1), "the guest is told");
        }
        set_head(&memory, 12);
        write(&memory, 11, 12); // 10 is being written
        assert_eq!(values(ring.take(&memory, 9)), (vec![], 0));
        write(&memory, 10, 11);
        assert_eq!(values(ring.take(&memory, 1)), (vec![10], 0));
        assert_eq!(values(ring.take(&memory, 9)), (vec![11], 0));
        memory.write(GuestPhys(AT + 8), &5_u64).expect("in memory");
        assert_eq!(values(ring.take(&memory, 9)), (vec![], 5));
        assert_eq!(values(ring.take(&memory, 9)), (vec![], 0));
    }

    #[test]
    fn numbers_wrap_around() {
        let memory = memory();
        let mut ring = ring(&memory);
        set_head(&memory, u32::MAX);
        ring.forget(&memory);
        write(&memory, u32::MAX, 0);
        write(&memory, 0, 1);
        set_head(&memory, 1);
        assert_eq!(values(ring.take(&memory, 9)), (vec![u32::MAX.into(), 0], 0));
    }

    #[test]
    fn a_ring_of_garbage_gives_nothing_and_begins_anew() {
        let memory = memory();
        let mut ring = ring(&memory);
        for head in [5, u32::MAX, 1 << 31, 77] {
            set_head(&memory, head);
            memory.write(GuestPhys(AT + 4), &head.wrapping_add(9)).expect("in memory"); // the tail is not looked at
            let (records, lost) = values(ring.take(&memory, 9));
            assert!(records.is_empty() && lost > 4);
            write(&memory, head, head.wrapping_add(1));
            set_head(&memory, head.wrapping_add(1));
            assert_eq!(values(ring.take(&memory, 9)), (vec![head.into()], 0));
        }
        memory.write(GuestPhys(AT + 8), &u64::MAX).expect("in memory");
        assert_eq!(ring.take(&memory, 9).1, u64::MAX);
        memory.write(GuestPhys(AT + 8), &0_u64).expect("in memory");
        assert_eq!(ring.take(&memory, 9).1, 0);
    }
}
