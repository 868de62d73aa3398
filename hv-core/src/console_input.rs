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
        let state = self.0.changed.wait_while(self.state(), waits).expect("no thread panics with the lock held");
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
