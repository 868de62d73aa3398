//! Address spaces: their mappings against a model, and against the tables that the host sees.

use super::*;
use crate::fake;
use crate::frames::{LARGE_ORDER, allocate, allocate_zeroed, available};
use hv_abi::Call;
use std::vec;

const BASE: u64 = 0x40_0000;

fn page(rights: Rights) -> (AddressSpace, Arc<Frame>) {
    let mut space = AddressSpace::new().unwrap();
    let frame = Arc::new(allocate_zeroed(0).unwrap());
    space.map(BASE, frame.clone(), rights).unwrap();
    (space, frame)
}

/// P and rights at `virt`, by the tables in memory.
fn walked(space: &AddressSpace, virt: u64) -> Option<(u64, Rights)> {
    let (entry, level) = space.tables.walk(virt)?;
    let size = if level == 2 { LARGE_PAGE } else { PAGE_SIZE };
    let rights = Rights { write: entry.contains(Entry::WRITE), execute: !entry.contains(Entry::NO_EXECUTE) };
    Some((entry.phys().0 + virt % size, rights))
}

/// P and rights at `virt`, by the mappings.
fn translated(space: &AddressSpace, virt: u64) -> Option<(u64, Rights)> {
    space.translate(virt).map(|found| (found.frame.phys().0 + found.offset as u64, found.rights))
}

#[test]
fn random_changes_are_what_a_model_says_and_what_the_host_sees() {
    const PAGES: u64 = 2048;
    let before = available();
    let mut random = 99_u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let rights = [Rights::READ, Rights::WRITE, Rights::EXECUTE];
    let frames: Vec<Arc<Frame>> =
        [0, 0, 1, 3, LARGE_ORDER].iter().map(|order| Arc::new(allocate(*order).unwrap())).collect();
    let mut space = AddressSpace::new().unwrap();
    let mut model: BTreeMap<u64, (u64, Rights)> = BTreeMap::new();
    for step in 0..1500 {
        let rights = rights[next(3) as usize];
        // Large pages are to fit often.
        let start = if next(3) == 0 { next(4) * 512 } else { next(PAGES) };
        let most = if next(4) == 0 { 1024 } else { 8 };
        let length = next(most);
        let range = BASE + start * PAGE_SIZE..BASE + (start + length) * PAGE_SIZE;
        match next(4) {
            0 | 1 => {
                let frame = &frames[next(frames.len() as u64) as usize];
                let first = if next(2) == 0 { 0 } else { next(frame.pages()) };
                let pages = frame.pages() - first;
                let mapping = Mapping { frame: frame.clone(), first, pages, rights };
                space.insert(range.start, mapping).unwrap();
                for i in 0..pages {
                    let phys = frame.phys().0 + (first + i) * PAGE_SIZE;
                    model.insert(range.start + i * PAGE_SIZE, (phys, rights));
                }
            }
            2 => {
                space.unmap(range.clone()).unwrap();
                model.retain(|virt, _| !range.contains(virt));
            }
            _ => {
                space.protect(range.clone(), rights).unwrap();
                model.range_mut(range).for_each(|(_, found)| found.1 = rights);
            }
        }
        if step % 50 == 0 {
            space.flush();
            for virt in (BASE..BASE + (PAGES + 1024) * PAGE_SIZE).step_by(PAGE_SIZE as usize) {
                let expected = model.get(&virt).copied();
                assert_eq!(translated(&space, virt), expected, "step {step}, V {virt:#x}");
                assert_eq!(walked(&space, virt), expected, "step {step}, V {virt:#x} by the tables");
            }
        }
    }
    drop(space);
    drop(frames);
    assert_eq!(available(), before, "a frame or a table was lost");
    fake::finish();
}

#[test]
fn a_program_is_mapped_by_one_call() {
    let mut space = AddressSpace::new().unwrap();
    for i in 0..100 {
        space.map(BASE + i * PAGE_SIZE, allocate(0).unwrap(), Rights::READ).unwrap();
    }
    fake::calls();
    space.tables.send();
    assert_eq!(fake::calls().len(), 1);
    space.protect(BASE..BASE + 100 * PAGE_SIZE, Rights::WRITE).unwrap();
    assert!(fake::calls().is_empty(), "it waits");
    space.flush();
    let calls: Vec<_> = fake::calls().iter().map(|(call, arguments)| (*call, arguments[1])).collect();
    assert_eq!(calls, [(Call::MMU_UPDATE, 100), (Call::MMU_FLUSH, 0)]);
}

#[test]
fn two_mib_that_are_aligned_are_one_page_until_a_part_is_changed() {
    let mut space = AddressSpace::new().unwrap();
    let frame = Arc::new(allocate(LARGE_ORDER).unwrap());
    space.map(BASE, frame.clone(), Rights::WRITE).unwrap();
    space.flush();
    assert_eq!(space.tables.walk(BASE + 5000).unwrap().1, 2);
    space.protect(BASE + PAGE_SIZE..BASE + 2 * PAGE_SIZE, Rights::READ).unwrap();
    space.flush();
    assert_eq!(space.tables.walk(BASE + 5000).unwrap().1, 1);
    assert_eq!(walked(&space, BASE + 5000), Some((frame.phys().0 + 5000, Rights::READ)));
    assert_eq!(walked(&space, BASE + 9000), Some((frame.phys().0 + 9000, Rights::WRITE)));
    assert_eq!(space.mappings().count(), 3);
}

#[test]
fn a_frame_is_kept_until_no_program_can_reach_it() {
    let (mut space, frame) = page(Rights::WRITE);
    space.unmap(BASE..BASE + PAGE_SIZE).unwrap();
    assert_eq!((space.translate(BASE).is_none(), Arc::strong_count(&frame)), (true, 2));
    space.flush();
    assert_eq!(Arc::strong_count(&frame), 1);
}

#[test]
fn addresses_that_are_no_programs_are_refused() {
    let mut space = AddressSpace::new().unwrap();
    let frame = Arc::new(allocate(1).unwrap());
    for virt in [0, 0x1_0000, 0x1_f000, BASE + 1, SLOT_255 - PAGE_SIZE, u64::MAX - 4095] {
        assert_eq!(space.map(virt, frame.clone(), Rights::READ), Err(MapError::BadAddress), "{virt:#x}");
    }
    for (first, pages) in [(1, 2), (2, 1), (u64::MAX, 2), (0, u64::MAX)] {
        let mapping = Mapping { frame: frame.clone(), first, pages, rights: Rights::READ };
        assert_eq!(space.insert(BASE, mapping), Err(MapError::BadAddress), "{first} {pages}");
    }
    let backwards = Range { start: BASE, end: BASE - PAGE_SIZE };
    assert_eq!(space.unmap(backwards), Err(MapError::BadAddress));
    assert_eq!(space.map(USER.start, frame.clone(), Rights::READ), Ok(()));
    assert_eq!(space.map(SLOT_255 - 2 * PAGE_SIZE, frame, Rights::READ), Ok(()));
    space.flush();
}

#[test]
fn without_memory_nothing_changes() {
    let (mut space, frame) = page(Rights::READ);
    let mut all = vec![];
    while let Ok(frame) = allocate(0) {
        all.push(frame);
    }
    assert_eq!(space.map(1 << 40, frame.clone(), Rights::READ), Err(MapError::OutOfMemory));
    assert!(space.translate(1 << 40).is_none());
    assert!(matches!(AddressSpace::new(), Err(Status::NO_SPACE)));
    drop(all);
    assert_eq!(space.map(1 << 40, frame, Rights::READ), Ok(()));
    space.flush();
    assert_eq!(walked(&space, 1 << 40), translated(&space, 1 << 40));
}

#[test]
fn copies_cross_pages_and_stop_where_the_program_would() {
    let (mut space, one) = page(Rights::WRITE);
    let other = Arc::new(allocate_zeroed(0).unwrap());
    space.map(BASE + PAGE_SIZE, other.clone(), Rights::READ).unwrap();
    let at = BASE + PAGE_SIZE - 3;
    let fault = Fault { address: BASE + PAGE_SIZE, access: Access::Write };
    assert_eq!(space.copy_out(at, b"abcdef"), Err(fault));
    space.protect(BASE..BASE + 2 * PAGE_SIZE, Rights::WRITE).unwrap();
    assert_eq!(space.copy_out(at, b"abcdef"), Ok(()));
    let mut bytes = [0; 3];
    other.read_at(0, &mut bytes);
    assert_eq!(&bytes, b"def");
    one.read_at(4093, &mut bytes);
    assert_eq!(&bytes, b"abc");
    let mut bytes = [0; 8];
    assert_eq!(space.copy_in(at, &mut bytes), Ok(()));
    assert_eq!(&bytes, b"abcdef\0\0");
    for virt in [0, BASE - 1, BASE + 2 * PAGE_SIZE, u64::MAX] {
        let fault = Fault { address: virt, access: Access::Read };
        assert_eq!(space.copy_in(virt, &mut bytes), Err(fault));
        assert_eq!(space.copy_in(virt, &mut []), Ok(()), "nothing is anywhere");
    }
}

#[test]
fn strings_end_at_their_zero() {
    let (space, frame) = page(Rights::READ);
    frame.write_at(4000, b"hello\0");
    assert_eq!(space.copy_in_str(BASE + 4000, 5), Ok(b"hello".to_vec()));
    assert_eq!(space.copy_in_str(BASE + 4000, 4), Err(StringError::TooLong));
    assert_eq!(space.copy_in_str(BASE + 4005, 0), Ok(vec![]));
    frame.fill_at(4006, 90, b'x');
    let fault = Fault { address: BASE + PAGE_SIZE, access: Access::Read };
    assert_eq!(space.copy_in_str(BASE + 4006, 1000), Err(StringError::Fault(fault)));
    assert_eq!(space.copy_in_str(BASE + 4006, 89), Err(StringError::TooLong));
}
