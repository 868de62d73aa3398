//! The hypercalls that this version serves.
//!
//! Arguments are claims: each is checked here, and what they point to is copied once through
//! [`GuestMemory`](crate::memory::GuestMemory) before it is looked at.

use crate::dispatch::{CallResult, Hypercalls, dispatch};
use crate::memory::BadAddress;
use crate::report::{End, Place};
use crate::vm::Shared;
use hv_abi::call::{
    CONSOLE_WRITE_MAX, Description, MULTICALL_MAX, MulticallEntry, NEVER, PANIC_TEXT_MAX, PanicReport,
};
use hv_abi::{ABI_VERSION, Call, GuestPhys, Status};
use std::mem::offset_of;
use zerocopy::IntoBytes;

/// A vCPU's calls, and what they leave for its loop to do.
pub(crate) struct Calls<'a> {
    pub vm: &'a Shared,
    /// Deadline of the vCPU's timer, on the guest's clock.
    pub timer: Option<u64>,
    /// Set by the call that ends the VM.
    pub end: Option<End>,
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

    fn shutdown(&mut self, code: u64) -> CallResult {
        let code = u8::try_from(code).map_err(|_| Status::BAD_ARGUMENT)?;
        self.end = Some(End::Shutdown { code });
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
        self.end = Some(End::Panic { message, place });
        Ok(0)
    }

    fn yield_now(&mut self) -> CallResult {
        std::thread::yield_now();
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

    fn multicall(&mut self, entries: u64, count: u64) -> CallResult {
        if count > MULTICALL_MAX {
            return Err(Status::OUT_OF_RANGE);
        }
        let start = GuestPhys(entries);
        if !entries.is_multiple_of(align_of::<MulticallEntry>() as u64) {
            return Err(Status::BAD_ADDRESS);
        }
        let mut batch = vec![MulticallEntry::default(); count as usize];
        self.vm.memory.read_bytes(start, batch.as_mut_slice().as_mut_bytes())?;
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

impl Calls<'_> {
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
