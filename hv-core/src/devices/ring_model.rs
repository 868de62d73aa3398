//! Doorbells and interrupts by index under a model checker: what a driver and a device's worker do before they sleep, in every
//! interleaving, with every value that weak memory could show. One that sleeps though there is something for it is a deadlock,
//! which loom reports.
//!
//! The steps are those of [`Ring`](super::ring::Ring), of `virtio-queue` below it, and of `pv_drivers::queue`, in the same order.
//! What a test leaves out to see that the model notices is [`Broken`].
//!
//! Start at [`Model::drive`] and [`Model::work`].

use loom::sync::atomic::{AtomicU32, Ordering::*, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;

/// A step that is left out, to see that it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    No,
    /// The driver does not have its index seen before it looks at the device's wish.
    DriverFence,
    /// The device does not have its wish seen before it looks for more.
    DeviceFence,
    /// The device does not look for more behind its wish.
    DeviceLook,
    /// The driver does not look for what was used behind its wish.
    DriverLook,
}

/// A bell, or a channel: who waits is woken by what came before, too.
struct Bell {
    rings: Mutex<bool>,
    rung: Condvar,
}

impl Bell {
    fn new() -> Self {
        Self { rings: Mutex::new(false), rung: Condvar::new() }
    }

    fn ring(&self) {
        *self.rings.lock().unwrap() = true;
        self.rung.notify_one();
    }

    fn wait(&self) {
        let mut rings = self.rings.lock().unwrap();
        while !*rings {
            rings = self.rung.wait(rings).unwrap();
        }
        *rings = false;
    }
}

/// The indices of a ring, and the bells of both sides. Few requests are made, so no index wraps.
struct Model {
    available: AtomicU32,
    available_event: AtomicU32,
    used: AtomicU32,
    used_event: AtomicU32,
    doorbell: Bell,
    channel: Bell,
    broken: Broken,
}

/// Whether an index that went from `old` to `new` has passed `event`.
fn passed(event: u32, new: u32, old: u32) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl Model {
    fn fence_unless(&self, broken: Broken) {
        if self.broken != broken {
            fence(SeqCst);
        }
    }

    /// Makes so many requests, each after the last has come back, and sleeps until it has.
    fn drive(&self, requests: u32) {
        for request in 1..=requests {
            self.available.store(request, Release);
            self.fence_unless(Broken::DriverFence);
            if passed(self.available_event.load(Relaxed), request, request - 1) {
                self.doorbell.ring();
            }
            while self.used.load(Acquire) != request {
                self.used_event.store(request - 1, Relaxed);
                fence(SeqCst);
                if self.broken == Broken::DriverLook || self.used.load(Acquire) != request {
                    self.channel.wait();
                }
            }
        }
    }

    /// Serves so many, and sleeps while there are none.
    fn work(&self, requests: u32) {
        let mut served = 0;
        while served < requests {
            if self.available.load(Acquire) != served {
                served += 1;
                self.used.store(served, Release);
                fence(SeqCst);
                if passed(self.used_event.load(Relaxed), served, served - 1) {
                    self.channel.ring();
                }
                continue;
            }
            self.available_event.store(served, Relaxed);
            self.fence_unless(Broken::DeviceFence);
            if self.broken == Broken::DeviceLook || self.available.load(Relaxed) == served {
                self.doorbell.wait();
            }
        }
    }
}

fn check(broken: Broken) {
    const REQUESTS: u32 = 2;
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        // Leaked: loom cannot drop what is its own once it has found a deadlock. No event is passed before it is asked for.
        let model: &'static Model = Box::leak(Box::new(Model {
            available: AtomicU32::new(0),
            available_event: AtomicU32::new(u32::MAX / 2),
            used: AtomicU32::new(0),
            used_event: AtomicU32::new(u32::MAX / 2),
            doorbell: Bell::new(),
            channel: Bell::new(),
            broken,
        }));
        let device = thread::spawn(|| model.work(REQUESTS));
        model.drive(REQUESTS);
        device.join().unwrap();
    });
}

#[test]
fn neither_side_sleeps_while_there_is_something_for_it() {
    check(Broken::No);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_driver_without_its_fence_rings_no_doorbell() {
    check(Broken::DriverFence);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_device_without_its_fence_misses_a_request() {
    check(Broken::DeviceFence);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_device_that_does_not_look_again_misses_a_request() {
    check(Broken::DeviceLook);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_driver_that_does_not_look_again_misses_what_was_used() {
    check(Broken::DriverLook);
}
