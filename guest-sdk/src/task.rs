//! Asynchronous tasks of a guest kernel, and waiting for what devices do.
//!
//! A [`Source`] is something that happens outside: a device that has used buffers, above all. Whoever waits looks at its sources
//! first, which costs nothing, and asks them for an interrupt only when nothing else is left to do; then the CPU is given back. So
//! a guest that is busy is never interrupted, and an idle one never looks.
//!
//! An [`Executor`] runs tasks on one vCPU. Start at [`Executor::run`], or at [`block_on`] for a single future.

use crate::events::Channel;
use crate::sync::Lock;
use crate::time::Instant;
use crate::upcall::{Masked, take_events};
use crate::{hypercall, smp};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::Future;
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use hv_abi::call::NEVER;

/// Something that happens outside of the guest, and is told by an event channel.
pub trait Source: Send + Sync {
    /// The channel, which has no handler.
    fn channel(&self) -> Channel;

    /// Looks for what has happened, and wakes who waits for it. Whether there was something.
    fn look(&self) -> bool;

    /// Asks for an event at the next thing that happens. Whether something has happened already, for which none may come.
    fn arm(&self) -> bool;
}

/// Waits until `done` gives something, which it is asked after each thing that happens at `source`; at most until `deadline`.
///
/// Only one vCPU at a time can wait for a source: its channel is bound to that one.
pub fn wait<T>(
    source: &dyn Source,
    deadline: Option<Instant>,
    mut done: impl FnMut() -> Option<T>,
) -> Option<T> {
    loop {
        source.look();
        if let Some(value) = done() {
            return Some(value);
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return None;
        }
        sleep(&[source], deadline, &|| false);
    }
}

/// The longest look at sources before a sleep: what it costs to be woken, and as much again for a device that was to be woken, too.
const LOOK: Duration = Duration::from_micros(200);
/// After looks that found nothing, one in so many waits tries again.
const TRY_AGAIN: u32 = 64;

/// How long to look before a sleep, in nanoseconds, and how many sleeps there were.
static PATIENCE: AtomicU32 = AtomicU32::new(LOOK.as_nanos() as u32);
static SLEEPS: AtomicU32 = AtomicU32::new(0);

/// Looks at the sources for as long as a sleep would cost, if that was of use the last times: it is not where the host has no
/// other processor for the device. Whether something has happened, or somebody was `woken` by another event's handler.
fn look_before_sleep(sources: &[&dyn Source], deadline: Option<Instant>, woken: &dyn Fn() -> bool) -> bool {
    let patience = match PATIENCE.load(Ordering::Relaxed) {
        0 if !SLEEPS.fetch_add(1, Ordering::Relaxed).is_multiple_of(TRY_AGAIN) => return false,
        0 => LOOK,
        nanos => Duration::from_nanos(nanos.into()),
    };
    let end = Instant::now() + patience;
    let end = deadline.map_or(end, |deadline| end.min(deadline));
    let mut happened = false;
    while !happened && Instant::now() < end {
        core::hint::spin_loop();
        // All of them, so that none waits for another.
        sources.iter().for_each(|source| happened |= source.look());
        happened |= woken();
    }
    let next = if happened { LOOK } else { patience / 4 };
    PATIENCE.store(if next < LOOK / 16 { 0 } else { next.as_nanos() as u32 }, Ordering::Relaxed);
    happened
}

/// Gives the CPU back until something happens at one of the sources, some other event is handled, or `deadline`; not at all if
/// the handler of some other event has `woken` somebody before.
fn sleep(sources: &[&dyn Source], deadline: Option<Instant>, woken: &dyn Fn() -> bool) {
    // The fake host does nothing while its guest looks.
    let is_fake = cfg!(any(test, all(feature = "fake-host", panic = "unwind")));
    if !is_fake && !sources.is_empty() && look_before_sleep(sources, deadline, woken) {
        return;
    }
    let vcpu = smp::current();
    for source in sources {
        source.channel().ensure_bound(vcpu);
        source.channel().unmask();
    }
    // Masked, so that nothing is taken between the look and the sleep.
    let was_masked = Masked::set();
    let mut happened = woken();
    for source in sources {
        happened |= source.arm();
    }
    if !happened {
        hypercall::block(deadline.map_or(NEVER, Instant::as_nanos));
        take_events();
    }
    for source in sources {
        // What it told is found by looking.
        source.channel().take();
        source.channel().mask();
    }
    Masked::restore(was_masked);
}

/// What the futures of a guest wait for.
struct Waits {
    sources: Lock<Vec<Arc<dyn Source>>>,
    /// Who waits for which moment; a number tells those of one moment apart.
    sleepers: Lock<BTreeMap<(Instant, u64), Waker>>,
}

impl Waits {
    const fn new() -> Self {
        Self { sources: Lock::new(Vec::new()), sleepers: Lock::new(BTreeMap::new()) }
    }
}

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
fn waits() -> &'static Waits {
    static WAITS: Waits = Waits::new();
    &WAITS
}

/// Those of the thread's fake VM. They are leaked, as it is.
#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
fn waits() -> &'static Waits {
    std::thread_local!(static WAITS: &'static Waits = Box::leak(Box::new(Waits::new())));
    WAITS.with(|waits| *waits)
}

/// Has executors, and [`block_on`], look at a source from now on. Those of a guest's sources that futures wait for are waited for
/// on one vCPU.
pub fn register(source: Arc<dyn Source>) {
    waits().sources.lock().push(source);
}

/// Looks at no source any more that `is_it` says it is.
pub fn unregister(source: &Arc<dyn Source>) {
    waits().sources.lock().retain(|registered| !Arc::ptr_eq(registered, source));
}

/// Wakes what can go on; sleeps first if there is nothing, `may_sleep`, and nobody was `woken`.
fn turn(may_sleep: bool, woken: &dyn Fn() -> bool) {
    let sources = waits().sources.lock().clone();
    let mut happened = false;
    for source in &sources {
        happened |= source.look();
    }
    let next = wake_sleepers();
    if may_sleep && !happened && !woken() {
        let sources: Vec<&dyn Source> = sources.iter().map(|source| &**source).collect();
        sleep(&sources, next, woken);
        sources.iter().for_each(|source| _ = source.look());
        wake_sleepers();
    }
}

/// Wakes who has slept enough; gives when the next one will have.
fn wake_sleepers() -> Option<Instant> {
    let mut due = Vec::new();
    let next = {
        let mut sleepers = waits().sleepers.lock();
        if sleepers.is_empty() {
            return None;
        }
        let now = Instant::now();
        while let Some(first) = sleepers.first_entry()
            && first.key().0 <= now
        {
            due.push(first.remove());
        }
        sleepers.first_key_value().map(|((deadline, _), _)| *deadline)
    };
    due.into_iter().for_each(Waker::wake);
    next
}

/// Wakes a task at a moment, which can be changed. Dropping it turns it off.
#[derive(Default)]
pub struct Alarm(Option<(Instant, u64)>);

impl Alarm {
    /// One that is off.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Wakes `waker` at `deadline`, and not when it was to wake before.
    pub fn set(&mut self, deadline: Option<Instant>, waker: &Waker) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut sleepers = waits().sleepers.lock();
        if let Some(key) = self.0 {
            if Some(key.0) == deadline
                && let Some(set) = sleepers.get_mut(&key)
            {
                set.clone_from(waker);
                return;
            }
            sleepers.remove(&key);
        }
        self.0 = deadline.map(|deadline| (deadline, NEXT.fetch_add(1, Ordering::Relaxed)));
        if let Some(key) = self.0 {
            sleepers.insert(key, waker.clone());
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(key) = self.0 {
            waits().sleepers.lock().remove(&key);
        }
    }
}

/// A future that is ready at `deadline`.
pub async fn sleep_until(deadline: Instant) {
    let mut alarm = Alarm::new();
    core::future::poll_fn(|context| {
        if deadline <= Instant::now() {
            return Poll::Ready(());
        }
        alarm.set(Some(deadline), context.waker());
        Poll::Pending
    })
    .await;
}

/// What `future` gives, if it does so before `deadline`. Then it is dropped.
pub async fn until<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut late = pin!(sleep_until(deadline));
    core::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => late.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// A future that lets other tasks run once.
pub async fn yield_now() {
    let mut waited = false;
    core::future::poll_fn(|context| {
        if core::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A task was woken.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs a future to its end on this vCPU, which sleeps while it waits.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(flag.clone());
    let mut context = Context::from_waker(&waker);
    loop {
        if flag.0.swap(false, Ordering::Acquire)
            && let Poll::Ready(value) = future.as_mut().poll(&mut context)
        {
            return value;
        }
        turn(true, &|| flag.0.load(Ordering::Acquire));
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    flag: Arc<Flag>,
    waker: Waker,
}

/// Tasks that are yet to begin.
type New = Rc<RefCell<VecDeque<Pin<Box<dyn Future<Output = ()>>>>>>;

/// Runs tasks on one vCPU, each until it waits.
#[derive(Default)]
pub struct Executor {
    new: New,
}

/// Adds tasks to an [`Executor`], from within one, too.
#[derive(Clone)]
pub struct Spawner(New);

impl Spawner {
    /// Adds a task. It begins when the others wait.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.borrow_mut().push_back(Box::pin(task));
    }
}

impl Executor {
    /// Without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Something by which tasks can be added.
    pub fn spawner(&self) -> Spawner {
        Spawner(self.new.clone())
    }

    /// Runs until all tasks have ended. The vCPU sleeps while all wait.
    pub fn run(self) {
        self.run_while(|| true);
    }

    /// Runs until `main` has ended, and gives its result. Other tasks go no further than they have come by then.
    pub fn run_until<T: 'static>(self, main: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let out = result.clone();
        self.spawner().spawn(async move {
            let value = main.await;
            *out.borrow_mut() = Some(value);
        });
        self.run_while(|| result.borrow().is_none());
        result.take().expect("it has ended, for nothing else ends the loop")
    }

    fn run_while(self, goes_on: impl Fn() -> bool) {
        let mut tasks: Vec<Task> = Vec::new();
        loop {
            while let Some(future) = self.new.borrow_mut().pop_front() {
                let flag = Arc::new(Flag(AtomicBool::new(true)));
                tasks.push(Task { future, waker: Waker::from(flag.clone()), flag });
            }
            if tasks.is_empty() {
                return;
            }
            tasks.retain_mut(|task| {
                let woken = task.flag.0.swap(false, Ordering::Acquire);
                !woken || task.future.as_mut().poll(&mut Context::from_waker(&task.waker)).is_pending()
            });
            if !goes_on() {
                return;
            }
            let woken = || {
                !self.new.borrow().is_empty() || tasks.iter().any(|task| task.flag.0.load(Ordering::Acquire))
            };
            turn(!tasks.is_empty(), &woken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use core::sync::atomic::AtomicU32;
    use core::time::Duration;
    use std::vec;

    /// Counts the events of a channel, and wakes who waits for another one.
    struct Events {
        channel: Channel,
        pending: AtomicU32,
        waker: Lock<Option<Waker>>,
        armed: AtomicU32,
    }

    impl Source for Events {
        fn channel(&self) -> Channel {
            self.channel
        }

        fn look(&self) -> bool {
            let happened = self.channel.take();
            if happened {
                self.pending.fetch_add(1, Ordering::Relaxed);
                if let Some(waker) = self.waker.lock().take() {
                    waker.wake();
                }
            }
            happened
        }

        fn arm(&self) -> bool {
            self.armed.fetch_add(1, Ordering::Relaxed);
            self.look()
        }
    }

    fn events() -> Arc<Events> {
        let channel = Channel::allocate().unwrap();
        Arc::new(Events {
            channel,
            pending: AtomicU32::new(0),
            waker: Lock::new(None),
            armed: AtomicU32::new(0),
        })
    }

    async fn next(events: &Events) {
        core::future::poll_fn(|context| {
            if events.pending.load(Ordering::Relaxed) > 0 {
                events.pending.fetch_sub(1, Ordering::Relaxed);
                return Poll::Ready(());
            }
            *events.waker.lock() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    #[test]
    fn a_wait_ends_with_what_it_waits_for_or_at_its_deadline() {
        let events = events();
        let look = || (events.pending.load(Ordering::Relaxed) > 0).then_some(7);
        assert_eq!(wait(&*events, Some(Instant::now() + Duration::from_secs(1)), look), None);
        assert_eq!(Instant::now() - Instant::START, Duration::from_secs(1));
        fake::raise(events.channel);
        assert_eq!(wait(&*events, None, look), Some(7));
    }

    #[test]
    fn nobody_asks_for_an_event_while_there_is_something_to_do() {
        let events = events();
        register(events.clone());
        for _ in 0..3 {
            fake::raise(events.channel);
            block_on(next(&events));
        }
        assert_eq!(events.armed.load(Ordering::Relaxed), 0);
        unregister(&(events as Arc<dyn Source>));
    }

    /// Nothing happens here, but something else does in the last moment before a sleep.
    struct Meanwhile {
        own: Channel,
        other: Channel,
    }

    impl Source for Meanwhile {
        fn channel(&self) -> Channel {
            fake::raise(self.other);
            self.own
        }

        fn look(&self) -> bool {
            false
        }

        fn arm(&self) -> bool {
            false
        }
    }

    #[test]
    fn who_is_woken_by_a_handler_just_before_a_sleep_is_not_slept_over() {
        static WOKEN: AtomicBool = AtomicBool::new(false);
        let [own, other] = [(); 2].map(|()| Channel::allocate().unwrap());
        other.on_event(|_| WOKEN.store(true, Ordering::Relaxed));
        other.unmask();
        let late = Instant::now() + Duration::from_secs(1);
        sleep(&[&Meanwhile { own, other }], Some(late), &|| WOKEN.load(Ordering::Relaxed));
        assert_eq!(Instant::now(), Instant::START, "it did not sleep");
    }

    #[test]
    fn what_takes_too_long_is_given_up_and_leaves_no_alarm() {
        let at = |millis| Instant::START + Duration::from_millis(millis);
        let late = block_on(until(at(20), sleep_until(at(50))));
        assert_eq!((late, Instant::now()), (None, at(20)));
        let early = block_on(until(at(90), async {
            sleep_until(at(30)).await;
            7
        }));
        assert_eq!((early, Instant::now()), (Some(7), at(30)));
        block_on(sleep_until(at(100)));
        assert_eq!(Instant::now(), at(100), "nothing was left that wakes before");
    }

    #[test]
    fn an_alarm_wakes_when_it_was_last_set_to() {
        let at = |millis| Instant::START + Duration::from_millis(millis);
        let (mut alarm, mut wakes) = (Alarm::new(), vec![]);
        block_on(core::future::poll_fn(|context| {
            wakes.push(Instant::now());
            alarm.set(Some(at(80)), context.waker());
            alarm.set(Some(at(40)), context.waker());
            alarm.set(Some(at(60)), context.waker());
            if wakes.len() == 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert_eq!(wakes, [at(0), at(60)]);
    }

    #[test]
    fn the_end_of_the_main_task_ends_the_others() {
        let executor = Executor::new();
        executor.spawner().spawn(async {
            loop {
                yield_now().await;
            }
        });
        assert_eq!(executor.run_until(async { 7 }), 7);
    }

    #[test]
    fn tasks_take_turns_and_sleep_together() {
        let log = Rc::new(RefCell::new(vec![]));
        let executor = Executor::new();
        for (name, millis) in [("slow", 30), ("fast", 10)] {
            let (log, spawner) = (log.clone(), executor.spawner());
            executor.spawner().spawn(async move {
                sleep_until(Instant::START + Duration::from_millis(millis)).await;
                let inner = log.clone();
                spawner.spawn(async move {
                    yield_now().await;
                    inner.borrow_mut().push((name, "after"));
                });
                log.borrow_mut().push((name, "awake"));
            });
        }
        executor.run();
        let expected = [("fast", "awake"), ("fast", "after"), ("slow", "awake"), ("slow", "after")];
        assert_eq!(*log.borrow(), expected);
        assert_eq!(Instant::now() - Instant::START, Duration::from_millis(30));
    }
}
