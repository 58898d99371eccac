//! How late our own workers are: what waits in a worker's runtime waits as long as an event does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Stopwatch;

/// How often a worker shows that it is alive, while its delay is measured.
const BEAT: Duration = Duration::from_millis(100);

/// Nobody is waited for.
const NOBODY: u64 = u64::MAX;

/// By how much workers were late, all of them together.
pub(in crate::daemon) struct Lateness {
    since: Stopwatch,
    looks: watch::Sender<Looks>,
    /// The worst since it was read last, in microseconds.
    worst: AtomicU64,
    /// When each worker is to show itself next, in microseconds from the start.
    due: Box<[AtomicU64]>,
}

/// Who looks at workers.
#[derive(Clone, Copy, Default)]
struct Looks {
    /// The sensor of the load.
    sensor: bool,
    /// The watchdog: how often it wants a sign.
    watchdog: Option<Duration>,
}

impl Looks {
    /// How often a worker is to show itself; nothing: nobody looks.
    fn beat(self) -> Option<Duration> {
        let most = self.watchdog.unwrap_or(BEAT);
        if self.sensor { Some(most.min(BEAT)) } else { self.watchdog }
    }
}

impl Lateness {
    /// Of so many workers. Nothing is measured until it is turned on.
    pub(in crate::daemon) fn new(workers: u8) -> Arc<Self> {
        Arc::new(Self {
            since: Stopwatch::start(),
            looks: watch::Sender::default(),
            worst: AtomicU64::new(0),
            due: (0..workers).map(|_| AtomicU64::new(NOBODY)).collect(),
        })
    }

    /// Begins or ends to measure. While it is off, workers are not woken for it.
    pub(in crate::daemon) fn turn(&self, on: bool) {
        if on && !self.looks.borrow().sensor {
            // What was seen for the watchdog is of another time.
            self.worst.store(0, Ordering::Relaxed);
        }
        self.looks.send_modify(|looks| looks.sensor = on);
    }

    /// Wants a sign of every worker this often from now on, measured or not; of one, too, that has
    /// not given any yet.
    pub(in crate::daemon) fn watch(&self, every: Duration) {
        if self.looks.borrow().watchdog.is_none() {
            let first = self.now() + every.as_micros() as u64;
            for due in &self.due {
                let (now, order) = (NOBODY, Ordering::Relaxed);
                // One that is waited for already has said itself when.
                let _ = due.compare_exchange(now, first, order, order);
            }
        }
        self.looks.send_modify(|looks| looks.watchdog = Some(every));
    }

    /// For how long some worker has not shown itself though it was to.
    pub(in crate::daemon) fn overdue(&self) -> Duration {
        let now = self.now();
        let overdue = self.due.iter().map(|due| now.saturating_sub(due.load(Ordering::Relaxed)));
        Duration::from_micros(overdue.max().unwrap_or(0))
    }

    /// The worst since the last call; a worker that is stuck right now counts as well.
    pub(in crate::daemon) fn take(&self) -> Duration {
        let worst = Duration::from_micros(self.worst.swap(0, Ordering::Relaxed));
        self.overdue().max(worst)
    }

    /// Runs in a worker, by its number, as long as the worker does.
    pub(in crate::daemon) async fn beat(self: Arc<Self>, worker: u8) {
        let Some(due) = self.due.get(usize::from(worker)) else { return };
        let mut looks = self.looks.subscribe();
        loop {
            let Ok(wanted) = looks.wait_for(|looks| looks.beat().is_some()).await.map(|l| *l)
            else {
                return;
            };
            let Some(beat) = wanted.beat() else { continue };
            let expected = Expected { due, at: self.now() + beat.as_micros() as u64 };
            due.store(expected.at, Ordering::Relaxed);
            tokio::time::sleep(beat).await;
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

    /// Lets the workers run until this is so.
    async fn until(so: impl Fn() -> bool) {
        let passed = Stopwatch::start();
        while !so() {
            assert!(passed.elapsed() < Duration::from_secs(30), "it never came to that");
            tokio::task::yield_now().await;
        }
    }

    /// Every worker has been asked to show itself.
    fn all_begun(lateness: &Lateness) -> bool {
        lateness.due.iter().all(|due| {
            let due = due.load(Ordering::Relaxed);
            due != NOBODY && due > lateness.now()
        })
    }

    #[test]
    fn a_worker_that_is_busy_is_as_late_as_it_is_busy() {
        let (lateness, held) = (Lateness::new(1), BEAT * 3);
        lateness.turn(true);
        runtime().block_on(async {
            let beats = tokio::spawn(lateness.clone().beat(0));
            until(|| all_begun(&lateness)).await;
            busy(held);
            // Not even waited for: it is overdue.
            assert!(lateness.take() >= held / 2, "while it lasts");
            until(|| all_begun(&lateness)).await;
            assert!(lateness.take() >= held / 2, "after it");
            beats.abort();
            let _ = beats.await;
            busy(BEAT * 2);
            assert_eq!(lateness.take(), Duration::ZERO, "gone");
        });
    }

    #[test]
    fn a_worker_that_hangs_is_overdue_for_the_watchdog_though_nothing_is_measured() {
        let (lateness, every) = (Lateness::new(2), BEAT / 5);
        lateness.watch(every);
        runtime().block_on(async {
            tokio::spawn(lateness.clone().beat(0));
            tokio::spawn(lateness.clone().beat(1));
            until(|| all_begun(&lateness)).await;
            busy(every * 5);
            assert!(lateness.overdue() >= every * 3);
            until(|| lateness.overdue() < every * 3).await; // it answers again
        });
    }

    #[test]
    fn a_worker_that_never_begins_hangs_and_one_that_has_ended_does_not() {
        let (lateness, every) = (Lateness::new(1), BEAT / 10);
        assert_eq!(lateness.overdue(), Duration::ZERO, "nobody looks");
        lateness.watch(every);
        busy(every * 3);
        assert!(lateness.overdue() >= every);
        runtime().block_on(async {
            tokio::spawn(lateness.clone().beat(0));
            until(|| all_begun(&lateness)).await;
        });
        lateness.watch(every);
        busy(every * 3);
        assert_eq!(lateness.overdue(), Duration::ZERO, "its runtime is gone");
    }

    #[test]
    fn nothing_is_measured_while_it_is_off() {
        let lateness = Lateness::new(1);
        runtime().block_on(async {
            tokio::spawn(lateness.clone().beat(0));
            tokio::task::yield_now().await;
            busy(BEAT * 2);
            assert_eq!(lateness.take(), Duration::ZERO);
        });
    }
}
