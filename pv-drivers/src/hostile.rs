//! Drivers whose devices lie: whatever a device says, its driver comes to an end, and takes no memory that it must not.

use crate::fake::{Fake, Ring, alone};
use crate::rng::Rng;
use crate::{Error, hal};
use guest_sdk::task::{Executor, block_on};
use hv_abi::device::{feature, kind, status};
use std::vec;

/// Does all that is asked for, in order.
fn serve_all(ring: &mut Ring) {
    while let Some(chain) = ring.chains.pop_front() {
        ring.serve(&chain, 0x5a);
    }
}

fn entropy(work: impl FnMut(&mut Ring) + 'static) -> Fake {
    Fake::new(kind::ENTROPY, work)
}

#[test]
fn a_good_device_is_waited_for_and_heard() {
    let _alone = alone();
    for at_once in [false, true] {
        let seen = Fake { at_once, ..entropy(serve_all) }.plug();
        let rng = Rng::find().unwrap();
        let mut bytes = vec![0; 10_000];
        rng.fill_blocking(&mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0x5a));
        assert!((1..=3).contains(&seen.borrow().doorbells), "{seen:?}");
        drop(rng);
        assert_eq!(seen.borrow().status, 0, "a driver that goes resets its device");
        assert_eq!(hal::lent(), 0, "memory is lent to nobody");
    }
}

#[test]
fn indices_wrap_with_a_device_that_keeps_to_them() {
    let _alone = alone();
    entropy(serve_all).plug();
    let rng = Rng::find().unwrap();
    for _ in 0..70_000 {
        rng.fill_blocking(&mut [0; 1]).unwrap();
    }
}

#[test]
fn tasks_that_wait_for_room_get_it() {
    let _alone = alone();
    entropy(serve_all).plug();
    let rng = Rng::find().unwrap();
    let rng = alloc::rc::Rc::new(rng);
    let executor = Executor::new();
    for _ in 0..40 {
        let rng = rng.clone();
        executor.spawner().spawn(async move {
            let mut bytes = [0; 3];
            rng.fill(&mut bytes).await.unwrap();
            assert_eq!(bytes, [0x5a; 3]);
        });
    }
    executor.run();
}

/// What a device does that breaks the rules.
type Lie = (&'static str, fn(&mut Ring));

const LIES: &[Lie] = &[
    ("a head that the ring does not have", |ring| ring.give(64, 1)),
    ("one far beyond", |ring| ring.give(0xffff, 1)),
    ("one of no 16 bits", |ring| ring.give(0xffff_fff0, 1)),
    ("a head that it was never given", |ring| {
        let head = ring.chains[0].head;
        ring.give((u32::from(head) + 1) % 8, 1);
    }),
    ("more bytes than there was room for", |ring| {
        let chain = ring.chains[0].clone();
        ring.give(chain.head.into(), chain.writable[0].1.len() as u32 + 1);
    }),
    ("four gigabytes", |ring| ring.give(ring.chains[0].head.into(), u32::MAX)),
    ("an index that jumps", |ring| {
        ring.give(ring.chains[0].head.into(), 0);
        ring.jump(1000);
    }),
    ("an index that goes back", |ring| ring.jump(0xffff)),
];

#[test]
fn a_device_that_lies_is_reset_and_its_driver_says_so() {
    let _alone = alone();
    for (lie, tell) in LIES {
        let seen = entropy(|ring| {
            tell(ring);
            ring.fires = true;
            ring.chains.clear();
        })
        .plug();
        let rng = Rng::find().unwrap();
        let resets = seen.borrow().resets;
        assert_eq!(rng.fill_blocking(&mut [0; 100]), Err(Error::Broken), "{lie}");
        assert_eq!((seen.borrow().resets, seen.borrow().status), (resets + 1, 0), "{lie}");
        // For good, whoever asks.
        let doorbells = seen.borrow().doorbells;
        assert_eq!(rng.fill_blocking(&mut [0; 100]), Err(Error::Broken), "{lie}");
        assert_eq!(block_on(rng.fill(&mut [0; 100])), Err(Error::Broken), "{lie}");
        assert_eq!(seen.borrow().doorbells, doorbells, "{lie}: it was asked again");
        drop(rng);
        assert_eq!(hal::lent(), 0, "{lie}: memory is still lent");
        // A driver that comes after it finds the device as new.
        entropy(serve_all).plug();
        Rng::find().unwrap().fill_blocking(&mut [0; 100]).unwrap();
    }
}

#[test]
fn a_chain_that_is_used_twice_is_one_too_many() {
    let _alone = alone();
    entropy(|ring| {
        let chain = ring.chains.pop_front().unwrap();
        ring.serve(&chain, 1);
        ring.give(chain.head.into(), 1);
    })
    .plug();
    let rng = Rng::find().unwrap();
    // Which of the two is found first is a matter of when it is looked.
    let _ = rng.fill_blocking(&mut [0; 8]);
    assert_eq!(rng.fill_blocking(&mut [0; 8]), Err(Error::Broken));
}

#[test]
fn nothing_filled_is_no_reason_to_ask_forever() {
    let _alone = alone();
    entropy(|ring| {
        let chain = ring.chains.pop_front().unwrap();
        ring.give(chain.head.into(), 0);
    })
    .plug();
    assert_eq!(Rng::find().unwrap().fill_blocking(&mut [0; 8]), Err(Error::Broken));
}

#[test]
fn devices_that_do_not_agree_are_not_used() {
    let _alone = alone();
    let of = |change: fn(&mut Fake)| {
        let mut device = entropy(serve_all);
        change(&mut device);
        let seen = device.plug();
        assert_eq!(Rng::find().err(), Some(Error::Unsupported));
        assert_eq!(seen.borrow().status, 0, "it was left as it was");
    };
    of(|device| device.features = feature::EVENT_IDX);
    of(|device| device.features = feature::VERSION_1);
    of(|device| device.refuses = status::FEATURES_OK);
    of(|device| device.queue_size = 0);
    of(|device| device.queue_size = 4);
    entropy(serve_all).plug();
    Rng::find().unwrap();
}
