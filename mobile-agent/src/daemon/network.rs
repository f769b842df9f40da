//! The thread that reads and changes the kernel's network configuration. On a thread of its own,
//! this work delays no packet, however many routes or changes there are.

use anyhow::Context;
use mobile_host::confine::Confinement;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The Tokio runtime of a thread that reads and changes the kernel's network configuration.
pub(super) struct NetworkThread {
    handle: Handle,
    /// Ends the thread when dropped.
    _stop: oneshot::Sender<()>,
}

impl NetworkThread {
    /// Starts the thread in the calling thread's network namespace, with the confinement of the
    /// running agent.
    pub(super) fn start(confinement: &Confinement) -> anyhow::Result<Self> {
        let confinement = confinement.clone();
        let runtime =
            Builder::new_current_thread().enable_all().build().context("cannot start the network thread")?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || {
                confinement.apply().expect("a new thread can drop its privileges");
                // An error means that the sender was dropped, which is the signal to end.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })
            .context("cannot start the network thread")?;
        Ok(Self { handle, _stop: stop })
    }

    /// Returns the handle of the runtime, to spawn tasks.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs a closure on the calling thread, in the context of the runtime, so that sockets opened
    /// in the closure belong to the runtime.
    pub(super) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let _inside = self.handle.enter();
        work()
    }

    /// Runs a future on the thread and returns its result.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.handle.spawn(work).await.context("a task of the network thread failed")?
    }
}
