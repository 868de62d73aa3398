//! What is typed for a guest, until it reads it (`CONSOLE_READ`).
//!
//! Input is taken on demand: whoever has it waits until the guest has looked and found nothing
//! ([`ConsoleInput::wait_until_wanted`]), then gives some. So a guest that never reads costs its user nothing that
//! was typed for somebody else, and one that reads slowly is not run ahead of. The bound of [`CAPACITY`] holds for whoever
//! does not wait.
//!
//! Start at [`ConsoleInput::push`].

use crate::events::Events;
use hv_abi::vcpu::CONSOLE_CHANNEL;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Bytes that are kept for a guest.
pub const CAPACITY: usize = 64 << 10;

/// The end of a VM's console that is typed at. Copies are for the same console.
#[derive(Clone)]
pub struct ConsoleInput(Arc<Shared>);

struct Shared {
    events: Arc<Events>,
    state: Mutex<State>,
    /// `wanted` or `gone` was set.
    changed: Condvar,
}

struct State {
    bytes: VecDeque<u8>,
    /// There will be no more bytes.
    closed: bool,
    /// The guest has looked since the last push, and found nothing.
    wanted: bool,
    /// The VM has ended.
    gone: bool,
}

impl ConsoleInput {
    /// One that is `open`, or has ended from the start.
    pub(crate) fn new(events: Arc<Events>, open: bool) -> Self {
        let state = State { bytes: VecDeque::new(), closed: !open, wanted: false, gone: false };
        Self(Arc::new(Shared { events, state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Waits until the guest has looked for input and found none; false if the VM has ended, and nobody will any more.
    pub fn wait_until_wanted(&self) -> bool {
        let waits = |state: &mut State| !state.wanted && !state.gone;
        let state =
            self.0.changed.wait_while(self.state(), waits).expect("no thread panics with the lock held");
        !state.gone
    }

    /// Gives the guest the first of these bytes, as many as fit. How many that is: none once input has ended.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let room = if state.closed || state.gone { 0 } else { CAPACITY - state.bytes.len() };
        let taken = bytes.len().min(room);
        let first = state.bytes.is_empty() && taken > 0;
        state.bytes.extend(&bytes[..taken]);
        state.wanted &= taken == 0;
        drop(state);
        if first {
            self.fire();
        }
        taken
    }

    /// Ends the input: once the guest has read what was pushed, it is told so.
    pub fn close(&self) {
        let was_closed = std::mem::replace(&mut self.state().closed, true);
        if !was_closed {
            self.fire();
        }
    }

    /// Takes at most so many bytes out; `None` if there will never be any again.
    pub(crate) fn take(&self, most: usize) -> Option<Vec<u8>> {
        let mut state = self.state();
        if state.bytes.is_empty() {
            if state.closed {
                return None;
            }
            state.wanted |= most > 0;
            self.0.changed.notify_all();
        }
        let taken = most.min(state.bytes.len());
        Some(state.bytes.drain(..taken).collect())
    }

    /// The VM has ended: nobody is to wait for it.
    pub(crate) fn let_go(&self) {
        self.state().gone = true;
        self.0.changed.notify_all();
    }

    /// The guest may be asleep, and is to look. The channel is bound to vCPU 0.
    fn fire(&self) {
        self.0.events.raise(0, CONSOLE_CHANNEL);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no thread panics with the lock held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Notify, VcpuPages};
    use std::sync::atomic::Ordering::SeqCst;

    struct Nobody;
    impl Notify for Nobody {
        fn pending(&self, _: u32) {}

        fn notify(&self, _: u32) {}
    }

    fn input(open: bool) -> (ConsoleInput, impl Fn() -> bool) {
        let pages = Arc::new(VcpuPages::new(1).unwrap());
        let events = Arc::new(Events::new(pages.clone(), Arc::new(Nobody)));
        let fired = move || pages.page(0).pending[0].swap(0, SeqCst) == 1 << CONSOLE_CHANNEL;
        (ConsoleInput::new(events, open), fired)
    }

    #[test]
    fn no_more_is_kept_than_fits_and_what_is_read_makes_room() {
        let (input, fired) = input(true);
        assert_eq!((input.push(&[1; CAPACITY - 1]), fired()), (CAPACITY - 1, true));
        assert_eq!((input.push(&[2; 5]), fired()), (1, false), "there was something to read already");
        assert_eq!(input.push(&[3]), 0);
        assert_eq!(input.take(CAPACITY), Some([&[1; CAPACITY - 1][..], &[2]].concat()));
        assert_eq!((input.push(&[4]), fired()), (1, true));
    }

    #[test]
    fn the_end_comes_behind_what_was_pushed() {
        let (input, fired) = input(true);
        input.push(b"ab");
        assert!(fired());
        input.close();
        assert!(fired());
        input.close();
        assert!(!fired(), "it ends once");
        assert_eq!(input.push(b"c"), 0);
        assert_eq!(
            (input.take(1), input.take(2), input.take(2)),
            (Some(b"a".into()), Some(b"b".into()), None)
        );
    }

    #[test]
    fn who_waits_goes_on_when_the_guest_finds_nothing_or_is_gone() {
        let (input, _) = input(true);
        let waiter = {
            let input = input.clone();
            std::thread::spawn(move || {
                let wanted = input.wait_until_wanted();
                input.push(b"a");
                (wanted, input.wait_until_wanted())
            })
        };
        assert_eq!(input.take(0), Some(Vec::new()));
        while input.take(1) != Some(b"a".into()) {
            std::thread::yield_now();
        }
        input.let_go();
        assert_eq!(waiter.join().unwrap(), (true, false));
    }

    #[test]
    fn without_anybody_it_has_ended() {
        let (input, fired) = input(false);
        assert_eq!((input.take(1), input.push(b"a"), input.take(1), fired()), (None, 0, None, false));
    }
}
