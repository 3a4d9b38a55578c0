//! stub
use nimbus_storage::{StoreResult, Tenant};
#[derive(Clone)]
pub struct StoredKey {
    pub id: String,
    pub name: Option<String>,
    pub scope: String,
    pub digest: [u8; 32],
    pub created_ms: u64,
    pub expires_ms: Option<u64>,
}
pub trait Stub {
    fn keys(&self) -> impl Future<Output = StoreResult<Vec<StoredKey>>> + Send;
    fn put_key(&self, k: StoredKey) -> impl Future<Output = StoreResult<()>> + Send;
    fn remove_key(&self, id: &str) -> impl Future<Output = StoreResult<bool>> + Send;
    fn latest_timestamp(&self) -> u64;
}
impl Stub for Tenant {
    async fn keys(&self) -> StoreResult<Vec<StoredKey>> {
        Ok(Vec::new())
    }
    async fn put_key(&self, _: StoredKey) -> StoreResult<()> {
        Ok(())
    }
    async fn remove_key(&self, _: &str) -> StoreResult<bool> {
        Ok(false)
    }
    fn latest_timestamp(&self) -> u64 {
        0
    }
}
