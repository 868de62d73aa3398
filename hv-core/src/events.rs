//! Event channels: how the host, and vCPUs among each other, tell a vCPU that something happened.
//!
//! The state that the guest sees is in its vCPU page (`hv_abi::vcpu`); here is who owns which channel, and the
//! order of steps by which an event is raised without losing a wake-up.

use crate::shared::SharedFile;
use hv_abi::clock::ClockPage;
use hv_abi::vcpu::{EVENT_CHANNELS, FIRST_DYNAMIC_CHANNEL, NO_PROCESSOR, VcpuPage, run_state, upcall};
use hv_abi::{PAGE_SIZE, Status};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU32};
use std::sync::{Arc, Mutex};

/// Which vCPU each dynamic channel is bound to, or [`UNBOUND`]: where guests see it, and engines that send for them. What
/// counts is the monitor's own copy.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Bindings(pub [AtomicU8; EVENT_CHANNELS as usize]);

/// In [`Bindings`]: the channel is not open, or a fixed one.
pub(crate) const UNBOUND: u8 = 0xff;

/// The vCPU pages of a VM, and the clock page that stands behind each.
#[derive(Debug)]
pub(crate) struct VcpuPages {
    file: SharedFile,
    vcpus: u32,
}

impl VcpuPages {
    pub(crate) fn new(vcpus: u32) -> std::io::Result<Self> {
        let file = SharedFile::new("hv-vcpu-pages", Self::offset(vcpus) + PAGE_SIZE)?;
        let pages = Self { file, vcpus };
        for vcpu in 0..vcpus {
            let page = pages.page(vcpu);
            page.vcpu.store(vcpu, Relaxed);
            pages.reset(vcpu, run_state::STOPPED);
            page.processor.store(NO_PROCESSOR, Relaxed);
        }
        pages.bindings().0.iter().for_each(|vcpu| vcpu.store(UNBOUND, Relaxed));
        Ok(pages)
    }

    pub(crate) fn file(&self) -> &SharedFile {
        &self.file
    }

    pub(crate) fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Offset in the file of a vCPU's page. The clock page is at 0.
    pub(crate) fn offset(vcpu: u32) -> u64 {
        (u64::from(vcpu) + 1) * PAGE_SIZE
    }

    pub(crate) fn page(&self, vcpu: u32) -> &VcpuPage {
        self.file.at(Self::offset(vcpu))
    }

    /// Offset in the file of [`Bindings`], of a VM with so many vCPUs.
    pub(crate) fn bindings_offset(vcpus: u32) -> u64 {
        Self::offset(vcpus)
    }

    fn bindings(&self) -> &Bindings {
        self.file.at(Self::bindings_offset(self.vcpus))
    }

    /// Readies the page of a vCPU that is to be started. What is pending stays so.
    pub(crate) fn start(&self, vcpu: u32) {
        self.reset(vcpu, run_state::RUNNING);
    }

    fn reset(&self, vcpu: u32, state: u32) {
        let page = self.page(vcpu);
        page.masked.iter().for_each(|word| word.store(u64::MAX, SeqCst));
        page.upcall.store(upcall::MASKED, SeqCst);
        page.run_state.store(state, SeqCst);
    }

    pub(crate) fn clock(&self) -> &ClockPage {
        self.file.at(0)
    }
}

/// Gets a vCPU's attention after its page has changed; each engine has its way.
pub(crate) trait Notify: Send + Sync {
    /// An upcall is pending in the vCPU's page. If the vCPU runs with upcalls unmasked, or is blocked, it must
    /// see it soon.
    fn notify(&self, vcpu: u32);

    /// A channel has become pending in its page, masked or not. If it waits in [`POLL`](hv_abi::Call::POLL), it must look.
    fn pending(&self, vcpu: u32);
}

/// Who owns which channel of a VM.
pub(crate) struct Events {
    pages: Arc<VcpuPages>,
    notify: Arc<dyn Notify>,
    /// The vCPU that each dynamic channel is bound to.
    bound: Mutex<Vec<Option<u32>>>,
    /// Channels below this one are fixed, or a device's.
    of_devices: AtomicU32,
}

impl Events {
    pub(crate) fn new(pages: Arc<VcpuPages>, notify: Arc<dyn Notify>) -> Self {
        Self {
            pages,
            notify,
            bound: Mutex::new(vec![None; EVENT_CHANNELS as usize]),
            of_devices: AtomicU32::new(0),
        }
    }

    /// Sets a channel's pending bit on a vCPU and, unless it is masked, gets the vCPU's attention.
    pub(crate) fn raise(&self, vcpu: u32, channel: u32) {
        let page = self.pages.page(vcpu);
        let (word, bit) = (channel as usize / 64, 1_u64 << (channel % 64));
        page.pending[word].fetch_or(bit, SeqCst);
        self.notify.pending(vcpu);
        if page.masked[word].load(SeqCst) & bit == 0 {
            // Once is enough: until the guest clears the bit, it has yet to look. A flood of events is one upcall.
            if page.upcall.fetch_or(upcall::PENDING, SeqCst) & upcall::PENDING == 0 {
                self.notify.notify(vcpu);
            }
        }
    }

    pub(crate) fn allocate(&self, vcpu: u64) -> Result<u32, Status> {
        let vcpu = self.vcpu(vcpu)?;
        let mut bound = self.bound();
        let free = (FIRST_DYNAMIC_CHANNEL as usize..bound.len()).find(|i| bound[*i].is_none());
        let channel = free.ok_or(Status::NO_SPACE)?;
        bound[channel] = Some(vcpu);
        self.reset(vcpu, channel as u32);
        self.show(channel as u32, Some(vcpu));
        Ok(channel as u32)
    }

    /// Opens a device's channel, bound to vCPU 0. It stays open.
    pub(crate) fn open_for_device(&self, channel: u32) {
        self.bound()[channel as usize] = Some(0);
        self.show(channel, Some(0));
        self.of_devices.fetch_max(channel + 1, SeqCst);
    }

    pub(crate) fn close(&self, channel: u64) -> Result<(), Status> {
        let mut bound = self.bound();
        let (channel, owner) = slot(&mut bound, channel)?;
        if channel < self.of_devices.load(SeqCst) {
            return Err(Status::NOT_FOUND);
        }
        let vcpu = owner.take().ok_or(Status::NOT_FOUND)?;
        self.show(channel, None);
        self.reset(vcpu, channel);
        Ok(())
    }

    pub(crate) fn send(&self, channel: u64) -> Result<(), Status> {
        let mut bound = self.bound();
        let (channel, owner) = slot(&mut bound, channel)?;
        let vcpu = owner.ok_or(Status::NOT_FOUND)?;
        self.raise(vcpu, channel);
        Ok(())
    }

    pub(crate) fn bind(&self, channel: u64, vcpu: u64) -> Result<(), Status> {
        let mut bound = self.bound();
        let (channel, owner) = slot(&mut bound, channel)?;
        let old = owner.ok_or(Status::NOT_FOUND)?;
        let vcpu = self.vcpu(vcpu)?;
        if vcpu == old {
            return Ok(()); // a pending event stays pending; it does not fire anew
        }
        *owner = Some(vcpu);
        // Who sends to the old one meanwhile looks at the binding again afterwards; here it is the other way round.
        self.show(channel, Some(vcpu));
        let (word, bit) = (channel as usize / 64, 1_u64 << (channel % 64));
        let was = self.pages.page(old).pending[word].fetch_and(!bit, SeqCst);
        if was & bit != 0 {
            self.raise(vcpu, channel);
        }
        Ok(())
    }

    /// Shows guests whom a channel is bound to.
    fn show(&self, channel: u32, vcpu: Option<u32>) {
        let vcpu = vcpu.map_or(UNBOUND, |vcpu| vcpu as u8);
        self.pages.bindings().0[channel as usize].store(vcpu, SeqCst);
    }

    /// A vCPU that exists.
    pub(crate) fn vcpu(&self, vcpu: u64) -> Result<u32, Status> {
        u32::try_from(vcpu).ok().filter(|vcpu| *vcpu < self.pages.vcpus()).ok_or(Status::NOT_FOUND)
    }

    /// Not pending, masked.
    fn reset(&self, vcpu: u32, channel: u32) {
        let page = self.pages.page(vcpu);
        let (word, bit) = (channel as usize / 64, 1_u64 << (channel % 64));
        page.masked[word].fetch_or(bit, SeqCst);
        page.pending[word].fetch_and(!bit, SeqCst);
    }

    fn bound(&self) -> std::sync::MutexGuard<'_, Vec<Option<u32>>> {
        self.bound.lock().expect("no thread panics with the lock held")
    }
}

/// A channel's number, and who owns it.
fn slot(bound: &mut [Option<u32>], channel: u64) -> Result<(u32, &mut Option<u32>), Status> {
    let index = usize::try_from(channel).map_err(|_| Status::OUT_OF_RANGE)?;
    let owner = bound.get_mut(index).ok_or(Status::OUT_OF_RANGE)?;
    Ok((index as u32, owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);
    impl Notify for Count {
        fn notify(&self, _: u32) {
            self.0.fetch_add(1, Relaxed);
        }
        fn pending(&self, _: u32) {}
    }

    fn events() -> (Events, Arc<VcpuPages>, Arc<Count>) {
        let pages = Arc::new(VcpuPages::new(2).unwrap());
        let count = Arc::new(Count::default());
        (Events::new(pages.clone(), count.clone()), pages, count)
    }

    #[test]
    fn a_masked_channel_becomes_pending_and_notifies_nobody() {
        let (events, pages, count) = events();
        let channel = events.allocate(0).unwrap();
        events.send(channel.into()).unwrap();
        assert_eq!(pages.page(0).pending[0].load(SeqCst), 1 << channel);
        assert_eq!(pages.page(0).upcall.load(SeqCst), upcall::MASKED);
        assert_eq!(count.0.load(Relaxed), 0);
    }

    #[test]
    fn an_unmasked_channel_sets_the_summary_and_notifies() {
        let (events, pages, count) = events();
        let channel = events.allocate(1).unwrap();
        pages.page(1).masked[0].fetch_and(!(1 << channel), SeqCst);
        events.send(channel.into()).unwrap();
        assert_eq!(pages.page(1).upcall.load(SeqCst), upcall::MASKED | upcall::PENDING);
        assert_eq!(count.0.load(Relaxed), 1);
    }

    #[test]
    fn channels_run_out_and_come_back() {
        let (events, ..) = events();
        let all: Vec<_> = std::iter::from_fn(|| events.allocate(0).ok()).collect();
        assert_eq!(all, (FIRST_DYNAMIC_CHANNEL..EVENT_CHANNELS).collect::<Vec<_>>());
        assert_eq!(events.allocate(0), Err(Status::NO_SPACE));
        events.close(77).unwrap();
        assert_eq!(events.close(77), Err(Status::NOT_FOUND));
        assert_eq!(events.allocate(1), Ok(77));
    }

    #[test]
    fn channels_that_do_not_exist_are_told_apart_from_closed_ones() {
        let (events, ..) = events();
        assert_eq!(events.send(EVENT_CHANNELS.into()), Err(Status::OUT_OF_RANGE));
        assert_eq!(events.send(0), Err(Status::NOT_FOUND));
        assert_eq!(events.close(FIRST_DYNAMIC_CHANNEL.into()), Err(Status::NOT_FOUND));
        assert_eq!(events.allocate(2), Err(Status::NOT_FOUND));
        let channel = events.allocate(0).unwrap();
        assert_eq!(events.bind(channel.into(), 2), Err(Status::NOT_FOUND));
    }

    #[test]
    fn binding_to_the_same_vcpu_fires_nothing_anew() {
        let (events, pages, count) = events();
        let channel = events.allocate(0).unwrap();
        events.send(channel.into()).unwrap();
        pages.page(0).masked[0].fetch_and(!(1 << channel), SeqCst);
        events.bind(channel.into(), 0).unwrap();
        assert_eq!(pages.page(0).pending[0].load(SeqCst), 1 << channel);
        assert_eq!((pages.page(0).upcall.load(SeqCst), count.0.load(Relaxed)), (upcall::MASKED, 0));
    }

    #[test]
    fn a_pending_event_moves_with_its_channel() {
        let (events, pages, _) = events();
        let channel = events.allocate(0).unwrap();
        events.send(channel.into()).unwrap();
        events.bind(channel.into(), 1).unwrap();
        assert_eq!(pages.page(0).pending[0].load(SeqCst), 0);
        assert_eq!(pages.page(1).pending[0].load(SeqCst), 1 << channel);
    }
}
