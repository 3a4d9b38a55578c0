//! The conformance suite on tenants in memory.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use nimbus_storage::conformance::{Failure, Fixture};
use nimbus_storage::provider::Provider;
use nimbus_storage::provider::memory::MemoryProvider;

struct InMemory(MemoryProvider);

impl Fixture for InMemory {
    fn provider(&self) -> Arc<dyn Provider> {
        Arc::new(self.0.clone())
    }

    fn restart(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

async fn start() -> InMemory {
    InMemory(MemoryProvider::new())
}

nimbus_storage::conformance_tests!(start);
