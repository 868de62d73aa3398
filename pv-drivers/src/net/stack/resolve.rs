//! Addresses of names.

use super::{IpAddress, Stack};
use core::task::Poll;
use smoltcp::socket::dns::{GetQueryResultError, QueryHandle, Socket};
use smoltcp::wire::DnsQueryType;

/// Why a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// It is none.
    #[error("this cannot be a name")]
    BadName,
    /// The name server does not know it or does not answer, or the network has none.
    #[error("the name has no address, or no name server answers")]
    NotFound,
}

impl Stack {
    /// The IPv4 address of a name.
    ///
    /// # Errors
    ///
    /// [`ResolveError`].
    pub async fn resolve(&self, name: &str) -> Result<IpAddress, ResolveError> {
        if let Ok(address) = name.parse() {
            return Ok(address);
        }
        let query = self.with_dns(|dns, context| dns.start_query(context, name, DnsQueryType::A));
        let query = query.map_err(|_| ResolveError::BadName)?;
        self.0.borrow().used();
        let query = Query { stack: self, handle: Some(query) };
        query.result().await
    }

    fn with_dns<R>(&self, run: impl FnOnce(&mut Socket<'_>, &mut smoltcp::iface::Context) -> R) -> R {
        let inner = &mut *self.0.borrow_mut();
        run(inner.sockets.get_mut::<Socket<'_>>(inner.dns), inner.interface.context())
    }
}

/// A question that is taken back when this is dropped.
struct Query<'a> {
    stack: &'a Stack,
    /// Until it is answered.
    handle: Option<QueryHandle>,
}

impl Query<'_> {
    async fn result(mut self) -> Result<IpAddress, ResolveError> {
        core::future::poll_fn(|context| {
            let Some(handle) = self.handle else { return Poll::Ready(Err(ResolveError::NotFound)) };
            let result = self.stack.with_dns(|dns, _| {
                let result = dns.get_query_result(handle);
                if matches!(result, Err(GetQueryResultError::Pending)) {
                    dns.register_query_waker(handle, context.waker());
                }
                result
            });
            if matches!(result, Err(GetQueryResultError::Pending)) {
                return Poll::Pending;
            }
            self.handle = None;
            let first = result.ok().and_then(|addresses| addresses.first().copied());
            Poll::Ready(first.ok_or(ResolveError::NotFound))
        })
        .await
    }
}

impl Drop for Query<'_> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            self.stack.with_dns(|dns, _| dns.cancel_query(handle));
        }
    }
}
