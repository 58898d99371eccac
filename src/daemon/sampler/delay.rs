//! How late our own workers are: what waits in a worker's runtime waits as long as an event does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Stopwatch;

/// How often a worker shows that it is alive, while somebody looks.
const BEAT: Duration = Duration::from_millis(100);

/// Nobody is waited for.
const NOBODY: u64 = u64::MAX;

/// By how much workers were late, all of them together.
pub(in crate::daemon) struct Lateness {
    since: Stopwatch,
    on: watch::Sender<bool>,
    /// The worst since it was read last, in microseconds.
    worst: AtomicU64,
    /// When each worker is to show itself next, in microseconds from the start.
    due: Box<[AtomicU64]>,
}

impl Lateness {
    /// Of so many workers. Nothing is measured until it is turned on.
    pub(in crate::daemon) fn new(workers: u8) -> Arc<Self> {
        Arc::new(Self {
            since: Stopwatch::start(),
            on: watch::Sender::new(false),
            worst: AtomicU64::new(0),
            due: (0..workers).map(|_| AtomicU64::new(NOBODY)).collect(),
        })
    }

    /// Begins or ends to measure. While it is off, workers are not woken for it.
    pub(in crate::daemon) fn turn(&self, on: bool) {
        self.on.send_replace(on);
    }

    /// The worst since the last call; a worker that is stuck right now counts as well.
    pub(in crate::daemon) fn take(&self) -> Duration {
        let now = self.now();
        let overdue = self.due.iter().map(|due| now.saturating_sub(due.load(Ordering::Relaxed)));
        let worst = overdue.fold(self.worst.swap(0, Ordering::Relaxed), u64::max);
        Duration::from_micros(worst)
    }

    /// Runs in a worker, by its number, as long as the worker does.
    pub(in crate::daemon) async fn beat(self: Arc<Self>, worker: u8) {
        let Some(due) = self.due.get(usize::from(worker)) else { return };
        let mut on = self.on.subscribe();
        while on.wait_for(|on| *on).await.is_ok() {
            let expected = Expected { due, at: self.now() + BEAT.as_micros() as u64 };
            due.store(expected.at, Ordering::Relaxed);
            tokio::time::sleep(BEAT).await;
            self.worst.fetch_max(self.now().saturating_sub(expected.at), Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_micros() as u64
    }
}

/// A worker that has ended is not waited for.
struct Expected<'a> {
    due: &'a AtomicU64,
    at: u64,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.due.store(NOBODY, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// Blocks the thread, as a worker that is busy does.
    fn busy(time: Duration) {
        let passed = Stopwatch::start();
        while passed.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_worker_that_is_busy_is_as_late_as_it_is_busy() {
        let (lateness, held) = (Lateness::new(1), BEAT * 3);
        lateness.turn(true);
        runtime().block_on(async {
            let beats = tokio::spawn(lateness.clone().beat(0));
            tokio::time::sleep(BEAT / 10).await;
            busy(held);
            // Not even waited for: it is overdue.
            assert!(lateness.take() >= held / 2, "while it lasts");
            tokio::time::sleep(BEAT / 10).await;
            assert!(lateness.take() >= held / 2, "after it");
            beats.abort();
            let _ = beats.await;
            busy(BEAT * 2);
            assert_eq!(lateness.take(), Duration::ZERO, "gone");
        });
    }

    #[test]
    fn nothing_is_measured_while_it_is_off() {
        let lateness = Lateness::new(1);
        runtime().block_on(async {
            tokio::spawn(lateness.clone().beat(0));
            tokio::time::sleep(BEAT / 10).await;
            busy(BEAT * 2);
            assert_eq!(lateness.take(), Duration::ZERO);
        });
    }
}
