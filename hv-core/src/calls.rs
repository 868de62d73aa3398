//! The hypercalls that this version serves.
//!
//! Arguments are claims: each is checked here, and what they point to is copied once through
//! [`GuestMemory`](crate::memory::GuestMemory) before it is looked at.

use crate::devices::Devices;
use crate::dispatch::{CallResult, Hypercalls, dispatch};
use crate::ledger::{Bypass, Ledger};
use crate::memory::BadAddress;
use crate::memory::GuestMemory;
use crate::presence::Held;
use crate::report::{End, Place};
use crate::trace;
use crate::vcpus::NotStarted;
use crate::vm::Shared;
use hv_abi::address::{LOWEST_MAPPABLE, SLOT_255};
use hv_abi::call::{
    CONSOLE_READ_MAX, CONSOLE_WRITE_MAX, Description, MULTICALL_MAX, MulticallEntry, NEVER, PANIC_TEXT_MAX,
    PanicReport,
};
use hv_abi::mmu::{EAGER, MMU_UPDATE_MAX, MmuUpdate};
use hv_abi::pages::{PAGE_RUNS_MAX, PageRun};
use hv_abi::user::UserContext;
use hv_abi::vcpu::{EVENT_CHANNELS, EVENT_WORDS, VcpuPage, upcall};
use hv_abi::{ABI_VERSION, Call, GuestPhys, PAGE_SIZE, Status};
use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, MutexGuard};
use zerocopy::{FromBytes, IntoBytes};

/// First V that is not in the lower half.
const LOWER_HALF_END: u64 = 1 << 47;

/// A vCPU's calls, and what they leave for its loop to do.
pub(crate) struct Calls<'a> {
    pub vm: &'a Arc<Shared>,
    pub vcpu: u32,
    /// Deadline of the vCPU's timer, on the guest's clock.
    pub timer: Option<u64>,
    /// Set by a call that is not to be answered yet, or at all.
    pub then: Option<AfterCall>,
}

/// What a call leaves for its vCPU's loop to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AfterCall {
    /// To end the VM.
    End(End),
    /// To stop the vCPU.
    Stop,
    /// To wait for a channel.
    Poll(Poll),
}

/// A set of channels that a vCPU waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Poll {
    set: [u64; EVENT_WORDS],
    /// On the guest's clock.
    pub deadline: u64,
}

impl Poll {
    /// The lowest channel of the set that is pending; or `EVENT_CHANNELS`, if an upcall is. `None`: neither is.
    pub(crate) fn ready(&self, page: &VcpuPage) -> Option<u32> {
        let words = (0..).zip(self.set.iter().zip(&page.pending));
        let mut ready = words.map(|(word, (set, pending))| (word, set & pending.load(SeqCst)));
        let channel = ready.find(|(_, ready)| *ready != 0);
        let upcall = page.upcall.load(SeqCst) & upcall::PENDING != 0;
        channel.map(|(word, ready)| word * 64 + ready.trailing_zeros()).or(upcall.then_some(EVENT_CHANNELS))
    }
}

impl From<BadAddress> for Status {
    fn from(_: BadAddress) -> Self {
        Self::BAD_ADDRESS
    }
}

impl Hypercalls for Calls<'_> {
    fn version(&mut self) -> CallResult {
        Ok(ABI_VERSION.into())
    }

    fn features(&mut self) -> CallResult {
        Ok(self.vm.features.bits())
    }

    fn console_write(&mut self, buffer: u64, length: u64) -> CallResult {
        let bytes = self.copy_bytes(buffer, length, CONSOLE_WRITE_MAX)?;
        self.vm.write_console(&bytes);
        Ok(length)
    }

    fn console_read(&mut self, buffer: u64, length: u64) -> CallResult {
        if length > CONSOLE_READ_MAX {
            return Err(Status::OUT_OF_RANGE);
        }
        // Before anything is taken, it is seen to that it can be delivered.
        if !self.vm.memory.contains(GuestPhys(buffer), length) {
            return Err(Status::BAD_ADDRESS);
        }
        let bytes = self.vm.console_input.take(length as usize).ok_or(Status::NOT_FOUND)?;
        self.vm.memory.write_bytes(GuestPhys(buffer), &bytes)?;
        Ok(bytes.len() as u64)
    }

    fn shutdown(&mut self, code: u64) -> CallResult {
        let code = u8::try_from(code).map_err(|_| Status::BAD_ARGUMENT)?;
        self.then = Some(AfterCall::End(End::Shutdown { code }));
        Ok(0)
    }

    fn panic(&mut self, report: u64) -> CallResult {
        let report: PanicReport = self.vm.memory.read(GuestPhys(report))?;
        let text = |start: GuestPhys, length| {
            let bytes = self.copy_bytes(start.0, length, PANIC_TEXT_MAX)?;
            Ok::<_, Status>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let message = text(report.message, report.message_length)?;
        let file = text(report.file, report.file_length)?;
        let place = (!file.is_empty()).then_some(Place { file, line: report.line, column: report.column });
        self.then = Some(AfterCall::End(End::Panic { message, place }));
        Ok(0)
    }

    fn yield_now(&mut self) -> CallResult {
        std::thread::yield_now();
        Ok(0)
    }

    fn yield_to(&mut self, vcpu: u64) -> CallResult {
        let vcpu = self.vm.events.vcpu(vcpu)?;
        if vcpu != self.vcpu {
            self.vm.spaces.yield_to(vcpu);
        }
        Ok(0)
    }

    fn poll(&mut self, set: u64, deadline: u64) -> CallResult {
        let poll = Poll { set: self.vm.memory.read(GuestPhys(set))?, deadline };
        match poll.ready(self.vm.pages.page(self.vcpu)) {
            Some(channel) => Ok(channel.into()),
            None => {
                self.then = Some(AfterCall::Poll(poll));
                Ok(EVENT_CHANNELS.into())
            }
        }
    }

    fn vcpu_start(&mut self, vcpu: u64, entry: u64, argument: u64) -> CallResult {
        let vcpu = self.vm.events.vcpu(vcpu)?;
        if !(LOWEST_MAPPABLE..SLOT_255).contains(&entry) {
            return Err(Status::BAD_ADDRESS);
        }
        let vcpus = self.vm.vcpus.as_ref().ok_or(Status::BUSY)?;
        vcpus.start(self.vm, vcpu, entry, argument).map(|()| 0).map_err(|error| {
            if !matches!(error, NotStarted::Busy) {
                tracing::warn!(vcpu, %error, "a vCPU could not be started");
            }
            Status::BUSY
        })
    }

    fn vcpu_stop(&mut self) -> CallResult {
        self.vm.vcpus.as_ref().ok_or(Status::BUSY)?.begin_stop(self.vcpu)?;
        self.then = Some(AfterCall::Stop);
        Ok(0)
    }

    fn timer_set(&mut self, deadline: u64) -> CallResult {
        self.timer = (deadline != NEVER).then_some(deadline);
        Ok(0)
    }

    fn event_allocate(&mut self, vcpu: u64) -> CallResult {
        self.vm.events.allocate(vcpu).map(u64::from)
    }

    fn event_close(&mut self, channel: u64) -> CallResult {
        self.vm.events.close(channel).map(|()| 0)
    }

    fn event_send(&mut self, channel: u64) -> CallResult {
        self.vm.events.send(channel).map(|()| 0)
    }

    fn event_bind(&mut self, channel: u64, vcpu: u64) -> CallResult {
        self.vm.events.bind(channel, vcpu).map(|()| 0)
    }

    fn root_create(&mut self, table: u64) -> CallResult {
        let _alone = self.alone();
        self.vm.roots.create(&self.vm.memory, table)?;
        self.vm.spaces.root_created(table);
        self.check_tables(|ledger, memory| ledger.check(memory, table));
        Ok(0)
    }

    fn root_destroy(&mut self, table: u64) -> CallResult {
        let _alone = self.alone();
        if self.vm.roots.is_kernel(table) {
            return Err(Status::BUSY);
        }
        if !self.vm.roots.is_user(table) {
            return Err(Status::NOT_FOUND);
        }
        if !self.vm.spaces.forget_root(table) {
            return Err(Status::BUSY);
        }
        self.check_tables(|ledger, memory| {
            ledger.check(memory, table)?;
            ledger.forget(memory, table);
            Ok(())
        });
        self.vm.roots.destroy(table).map(|()| 0)
    }

    fn mmu_update(&mut self, updates: u64, count: u64, flags: u64) -> CallResult {
        if count > MMU_UPDATE_MAX {
            return Err(Status::OUT_OF_RANGE);
        }
        if flags & !EAGER != 0 {
            return Err(Status::BAD_ARGUMENT);
        }
        let mut batch: Vec<MmuUpdate> = self.copy_array(updates, count)?;
        let alone = self.alone();
        for update in &mut batch {
            let result = self.update_entry(update);
            update.status = result.err().unwrap_or(Status::SUCCESS);
            update.old = result.unwrap_or(0);
        }
        drop(alone);
        match flags & EAGER {
            0 => self.vm.spaces.flush_kernel(),
            _ => self.vm.spaces.flush(),
        }
        for (i, update) in (0..).zip(&batch) {
            let at = |field: usize| GuestPhys(updates + i * size_of::<MmuUpdate>() as u64 + field as u64);
            self.vm.memory.write(at(offset_of!(MmuUpdate, old)), &update.old)?;
            self.vm.memory.write(at(offset_of!(MmuUpdate, status)), &update.status)?;
        }
        Ok(count)
    }

    fn mmu_flush(&mut self, root: u64, start: u64, length: u64) -> CallResult {
        let end = start.checked_add(length).ok_or(Status::BAD_ARGUMENT)?;
        let aligned = start.is_multiple_of(PAGE_SIZE) && length.is_multiple_of(PAGE_SIZE);
        if !aligned || end > LOWER_HALF_END || (root == 0 && (start, length) != (0, 0)) {
            return Err(Status::BAD_ARGUMENT);
        }
        if root != 0 && !self.vm.roots.is_user(root) && !self.vm.roots.is_kernel(root) {
            return Err(Status::NOT_FOUND);
        }
        self.vm.spaces.flush();
        let _alone = self.alone();
        self.check_tables(|ledger, memory| match root {
            0 => ledger.check_all(memory),
            root => ledger.check(memory, root),
        });
        Ok(0)
    }

    fn user_xstate(&mut self, context: u64) -> CallResult {
        let user = self.vm.memory.read::<UserContext>(GuestPhys(context))?;
        let held = user.xstate_valid <= 1 && self.vm.spaces.release_user(context);
        // With 1, the area is what counts, whether the engine held the context or not.
        if held || user.xstate_valid == 1 { Ok(0) } else { Err(Status::BAD_ARGUMENT) }
    }

    fn pages_report(&mut self, runs: u64, count: u64) -> CallResult {
        let pages = self.copy_runs(runs, count)?;
        self.vm.memory.report(pages);
        // Tables that are in use were not free: it is told here, where it was done.
        let _alone = self.alone();
        self.check_tables(Ledger::check_all);
        Ok(count)
    }

    fn pages_claim(&mut self, runs: u64, count: u64) -> CallResult {
        let pages = self.copy_runs(runs, count)?;
        self.vm.memory.claim(pages).map_err(|Held| Status::BUSY)?;
        Ok(count)
    }

    fn balloon(&mut self, held: u64) -> CallResult {
        Ok(self.vm.memory.presence().hold(held))
    }

    fn device_read(&mut self, device: u64, offset: u64) -> CallResult {
        self.devices()?.read(device, offset).map(u64::from)
    }

    fn device_write(&mut self, device: u64, offset: u64, value: u64) -> CallResult {
        self.devices()?.write(device, offset, value).map(|()| 0)
    }

    fn device_notify(&mut self, device: u64, queue: u64) -> CallResult {
        self.devices()?.notify(device, queue).map(|()| 0)
    }

    fn trace_ring(&mut self, ring: u64, records: u64) -> CallResult {
        let ring = trace::check_guest_ring(&self.vm.memory, ring, records)?;
        self.vm.tracer.vcpu(self.vcpu).set_guest_ring(ring);
        Ok(0)
    }

    fn multicall(&mut self, entries: u64, count: u64) -> CallResult {
        if count > MULTICALL_MAX {
            return Err(Status::OUT_OF_RANGE);
        }
        let batch: Vec<MulticallEntry> = self.copy_array(entries, count)?;
        let results: Vec<CallResult> = batch.iter().map(|entry| self.entry(entry)).collect();
        for (index, result) in results.into_iter().enumerate() {
            // The rest of an entry stays as it is now: another vCPU may have stored to it meanwhile.
            let at = |field| GuestPhys(entries + (index * size_of::<MulticallEntry>() + field) as u64);
            let status = result.err().unwrap_or(Status::SUCCESS);
            self.vm.memory.write(at(offset_of!(MulticallEntry, status)), &status)?;
            self.vm.memory.write(at(offset_of!(MulticallEntry, value)), &result.unwrap_or(0))?;
        }
        Ok(count)
    }
}

impl<'a> Calls<'a> {
    fn devices(&self) -> Result<&'a Devices, Status> {
        self.vm.devices.as_ref().ok_or(Status::NOT_FOUND)
    }

    /// One entry of a multicall. What changes mode or ends something stays outside.
    fn entry(&mut self, entry: &MulticallEntry) -> CallResult {
        let served = |call: &&Description| call.served && self.vm.features.contains(call.call.feature());
        let description = entry.call.description().filter(served).ok_or(Status::UNKNOWN_CALL)?;
        if !description.in_multicall {
            return Err(Status::NOT_IN_MULTICALL);
        }
        if entry.reserved != 0 {
            return Err(Status::BAD_ARGUMENT);
        }
        let Call(number) = entry.call;
        dispatch(self, self.vm.features, number, entry.arguments)
    }

    /// Changes one entry of a page table.
    fn update_entry(&mut self, update: &MmuUpdate) -> CallResult {
        if update.reserved != 0 {
            return Err(Status::BAD_ARGUMENT);
        }
        let old = self.vm.roots.exchange(&self.vm.memory, update.entry, update.new)?;
        if old != update.new {
            self.vm.spaces.entry_changed(update.entry.0);
        }
        self.check_tables(|ledger, memory| ledger.exchanged(memory, update.entry, old, update.new));
        Ok(old)
    }

    /// While tables are checked, no other vCPU changes any.
    fn alone(&self) -> Option<MutexGuard<'a, ()>> {
        self.vm.ledger.as_ref().map(Ledger::alone)
    }

    /// Looks for a store that bypassed `MMU_UPDATE`, if that is wanted; it ends the VM.
    fn check_tables(&mut self, check: impl FnOnce(&Ledger, &GuestMemory) -> Result<(), Bypass>) {
        if let Some(ledger) = &self.vm.ledger
            && let Err(bypass) = check(ledger, &self.vm.memory)
        {
            self.then = Some(AfterCall::End(End::TableBypass(bypass)));
        }
    }

    /// Copies an array out of guest memory. `count` has been checked against a limit.
    fn copy_array<T: FromBytes + IntoBytes>(&self, start: u64, count: u64) -> Result<Vec<T>, Status> {
        if !start.is_multiple_of(align_of::<T>() as u64) {
            return Err(Status::BAD_ADDRESS);
        }
        let mut array: Vec<T> = (0..count).map(|_| T::new_zeroed()).collect();
        self.vm.memory.read_bytes(GuestPhys(start), array.as_mut_slice().as_mut_bytes())?;
        Ok(array)
    }

    /// Copies runs of pages out of guest memory, and gives the numbers of their pages.
    fn copy_runs(&self, start: u64, count: u64) -> Result<Vec<Range<u64>>, Status> {
        if count > PAGE_RUNS_MAX {
            return Err(Status::OUT_OF_RANGE);
        }
        let pages = |run: PageRun| {
            let length = run.count.checked_mul(PAGE_SIZE)?;
            let good = run.start.0.is_multiple_of(PAGE_SIZE) && self.vm.memory.contains(run.start, length);
            let first = run.start.0 / PAGE_SIZE;
            good.then_some(first..first + run.count)
        };
        let runs: Vec<PageRun> = self.copy_array(start, count)?;
        runs.into_iter().map(|run| pages(run).ok_or(Status::BAD_ADDRESS)).collect()
    }

    /// Copies at most `most` bytes out of guest memory.
    fn copy_bytes(&self, start: u64, length: u64, most: u64) -> Result<Vec<u8>, Status> {
        if length > most {
            return Err(Status::OUT_OF_RANGE);
        }
        let mut bytes = vec![0; length as usize];
        self.vm.memory.read_bytes(GuestPhys(start), &mut bytes)?;
        Ok(bytes)
    }
}
