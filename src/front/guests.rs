//! Connections of whoever asks beside the mail path, for metrics or by `ctl`: so many at once, the
//! newest. Who asks is answered within milliseconds, so the oldest is one that does not read, or
//! says nothing; it gives its place to the next, and nobody waits for it.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::counted::counted;
use crate::engine::Engine;

/// Those that are there, the oldest first.
pub(super) struct Guests {
    most: usize,
    engine: Arc<Engine>,
    oldest: VecDeque<JoinHandle<()>>,
}

impl Guests {
    /// Room for so many, whose panics this engine counts.
    pub(super) fn new(most: usize, engine: Arc<Engine>) -> Self {
        Self { most, engine, oldest: VecDeque::new() }
    }

    /// Takes one more.
    pub(super) async fn take(&mut self, conversation: impl Future<Output = ()> + Send + 'static) {
        if self.oldest.len() >= self.most {
            self.oldest.retain(|connection| !connection.is_finished());
        }
        if self.oldest.len() >= self.most
            && let Some(connection) = self.oldest.pop_front()
        {
            connection.abort();
            // Its descriptor is given back before the next one is taken.
            let _ = connection.await;
        }
        self.oldest.push_back(tokio::spawn(counted(self.engine.clone(), conversation)));
    }
}
