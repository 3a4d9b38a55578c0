//! Steps of creating and deleting, at which tests stop a provider as a crash would.
//!
//! Must not do anything in other builds.

/// Where to stop.
#[derive(Default)]
pub(crate) struct Steps {
    #[cfg(test)]
    stop_at: std::sync::Mutex<Option<&'static str>>,
    #[cfg(test)]
    stopped: tokio::sync::Notify,
}

#[cfg(not(test))]
impl Steps {
    /// A step is done.
    #[allow(clippy::unused_async)]
    pub(crate) async fn reached(&self, _step: &'static str) {}
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
impl Steps {
    /// A step is done: whoever is to stop here goes no further.
    pub(crate) async fn reached(&self, step: &'static str) {
        let stop_at = *self.stop_at.lock().unwrap();
        if stop_at == Some(step) {
            self.stopped.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// From now on whoever reaches the step stops there.
    pub(crate) fn stop_at(&self, step: Option<&'static str>) {
        *self.stop_at.lock().unwrap() = step;
    }

    /// Waits until somebody stopped.
    pub(crate) async fn stopped(&self) {
        self.stopped.notified().await;
    }

    /// Starts something, and gives it up at a step as a crash would.
    pub(crate) async fn crash_at<T: std::fmt::Debug>(
        &self,
        step: &'static str,
        work: impl Future<Output = T>,
    ) {
        self.stop_at(Some(step));
        tokio::select! {
            done = work => panic!("{step} was not reached: {done:?}"),
            () = self.stopped() => {}
        }
        self.stop_at(None);
    }
}
