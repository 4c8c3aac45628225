//! A thread that closes what takes long to close.
//!
//! The last event on a probe is closed only when no CPU can be in its program any more: the kernel waits for that
//! (`uprobe_unregister_sync` in kernel/events/uprobes.c), a tenth of a second for each probe here. Whoever takes records
//! has no time for it: a process that begins meanwhile would serve its first requests unseen.

use std::any::Any;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

type Thing = Box<dyn Any + Send>;

/// Takes what is to be dropped. Dropping it waits until everything is.
#[derive(Debug, Default)]
pub(super) struct Disposal(Option<(Sender<Thing>, JoinHandle<()>)>);

impl Disposal {
    /// Drops `things`, now or a little later.
    pub(super) fn take(&mut self, things: impl Any + Send) {
        if self.0.is_none() {
            let (sender, receiver) = mpsc::channel::<Thing>();
            let thread = thread::Builder::new().name("disposal".into()).spawn(move || {
                receiver.into_iter().for_each(drop);
            });
            match thread {
                Ok(thread) => self.0 = Some((sender, thread)),
                // Then it takes its time here.
                Err(error) => log::debug!("no thread to close probes: {error}"),
            }
        }
        if let Some((sender, _)) = &self.0 {
            // It ends after its sender only.
            let _ = sender.send(Box::new(things));
        }
    }
}

impl Drop for Disposal {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.0.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn everything_is_dropped_before_its_end() {
        let thing = Arc::new(());
        let mut disposal = Disposal::default();
        for _ in 0..100 {
            disposal.take(Arc::clone(&thing));
        }
        drop(disposal);
        assert_eq!(Arc::strong_count(&thing), 1);
    }
}
