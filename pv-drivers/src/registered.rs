//! A device of several queues that tasks wait for, and waiting for what it brings.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::ops::Deref;
use core::task::{Poll, Waker};
use guest_sdk::task::{self, Source};

/// A source that executors look at for as long as this is there.
pub(crate) struct Registered<S: Source + 'static>(Arc<S>);

impl<S: Source + 'static> Registered<S> {
    pub(crate) fn new(source: S) -> Self {
        let source = Arc::new(source);
        task::register(source.clone());
        Self(source)
    }

    /// Waits until `attempt` gives something. It keeps the waker if it does not, and has it woken when it is worth another.
    pub(crate) async fn ready<T>(&self, mut attempt: impl FnMut(&S, Option<&Waker>) -> Option<T>) -> T {
        poll_fn(|context| match attempt(&self.0, Some(context.waker())) {
            Some(value) => Poll::Ready(value),
            None => Poll::Pending,
        })
        .await
    }

    /// Waits until `attempt` gives something; the vCPU sleeps meanwhile.
    pub(crate) fn wait<T>(&self, mut attempt: impl FnMut(&S) -> Option<T>) -> T {
        task::wait(&*self.0, None, || attempt(&self.0)).expect("there is no deadline")
    }
}

impl<S: Source + 'static> Deref for Registered<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0
    }
}

impl<S: Source + 'static> Drop for Registered<S> {
    fn drop(&mut self) {
        task::unregister(&(self.0.clone() as Arc<dyn Source>));
    }
}

/// Who waits for something.
#[derive(Default)]
pub(crate) struct Wakers(Vec<Waker>);

impl Wakers {
    /// Keeps a waker; what an attempt gives that has to wait.
    pub(crate) fn add<T>(&mut self, waker: Option<&Waker>) -> Option<T> {
        if let Some(waker) = waker.filter(|waker| !self.0.iter().any(|kept| kept.will_wake(waker))) {
            self.0.push(waker.clone());
        }
        None
    }

    /// Wakes all.
    pub(crate) fn wake(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}
