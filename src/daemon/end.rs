//! The end, and that it comes. Told to stop, the daemon has the grace of its sessions and a second,
//! and beyond that what saving takes on a disk that answers; told once more, it has no time at all.
//!
//! A thread of its own looks at the time, since any other may be the one that hangs: the main
//! thread, a worker, a disk, whoever reads the log. It ends the process, and says what was waited for.

use std::io;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use tokio::runtime::{self, Runtime};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tracing::error;

use super::attend::Deadly;
use super::log::Logging;
use super::service::Service;
use crate::clock::{Pulse, Stopwatch};
use crate::exit;

/// What there is beside the grace, for all that is no session.
const BESIDE: Duration = Duration::from_secs(1);

/// How long the main thread waits for workers when the grace is over, before it saves without them.
pub(super) const WORKERS_HANG: Duration = Duration::from_millis(500);

/// How long a disk may take for one step of saving. A large state takes longer on the whole, but
/// moves on.
const LONGEST_STEP: Duration = Duration::from_secs(10);

/// How often it is looked at the time.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How far the end has come.
enum Step {
    /// There is none yet.
    Serving,
    /// Sessions finish.
    Sessions(Stopwatch),
    /// State is saved; each step beats.
    Saving(Arc<Pulse>),
    /// What is left is to go.
    Last(Stopwatch),
}

/// The end, as the main thread knows it.
pub(super) struct End {
    watch: Arc<Watch>,
    thread: JoinHandle<()>,
}

impl End {
    /// Watches from now on. The calling thread, and those it starts, hear no signals any more: the
    /// kernel could choose one that hangs.
    ///
    /// # Errors
    ///
    /// Signals cannot be watched, or the system gives no thread.
    pub(super) fn watch(
        grace: Duration,
        logging: Arc<Logging>,
        service: Arc<Service>,
    ) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let signals = Deadly::new()?;
        drop(inside);
        let (step, begun) = (Mutex::new(Step::Serving), Notify::new());
        let watch = Arc::new(Watch { grace, logging, service, step, begun });
        let watching = watch.clone();
        let thread = thread::Builder::new().name("end".into());
        let thread = thread.spawn(move || watching.run(&runtime, signals))?;
        hear_no_signals();
        Ok(Self { watch, thread })
    }

    /// The end has begun; nothing changes if it had already.
    pub(super) fn begin(&self) {
        self.watch.begin();
        self.watch.begun.notify_one();
    }

    /// State is saved from now on.
    pub(super) fn saving(&self, pulse: Arc<Pulse>) {
        pulse.beat();
        *self.watch.step() = Step::Saving(pulse);
    }

    /// All is done but to go.
    pub(super) fn last(&self) {
        *self.watch.step() = Step::Last(Stopwatch::start());
    }

    /// Whether nobody watches any more.
    pub(super) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Signals are for other threads than this one, and those that it starts.
pub(super) fn hear_no_signals() {
    let heard = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    // It fails only for what is no signal.
    let _ = heard.thread_block();
}

struct Watch {
    grace: Duration,
    logging: Arc<Logging>,
    service: Arc<Service>,
    step: Mutex<Step>,
    begun: Notify,
}

impl Watch {
    fn run(&self, runtime: &Runtime, mut signals: Deadly) {
        runtime.block_on(async {
            let mut look = interval(LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (mut told, mut begun) = (false, false);
            loop {
                tokio::select! {
                    () = signals.recv() => {
                        if std::mem::replace(&mut told, true) {
                            self.end_now("told to stop once more", exit::UNFINISHED);
                        }
                    }
                    () = self.begun.notified() => {}
                    _ = look.tick(), if begun => self.look(),
                }
                begun = true;
                self.begin();
            }
        });
    }

    fn begin(&self) {
        let mut step = self.step();
        if matches!(*step, Step::Serving) {
            *step = Step::Sessions(Stopwatch::start());
        }
    }

    /// Ends the process if there is no time left.
    fn look(&self) {
        let overdue = match &*self.step() {
            Step::Serving => None,
            Step::Sessions(begun) => (begun.elapsed() > self.grace.saturating_add(BESIDE))
                .then_some(("the grace is over, and something hangs", exit::UNFINISHED)),
            Step::Saving(pulse) => (pulse.silent() > LONGEST_STEP).then_some((
                "state was not saved completely: the disk has not answered for ten seconds",
                exit::STATE,
            )),
            Step::Last(begun) => (begun.elapsed() > BESIDE)
                .then_some(("all is saved, and something hangs", exit::UNFINISHED)),
        };
        if let Some((why, code)) = overdue {
            self.end_now(why, code);
        }
    }

    fn end_now(&self, why: &str, code: u8) {
        error!("ended before everything was done: {why}");
        self.service.failed(&why);
        self.logging.finish();
        process::exit(code.into());
    }

    fn step(&self) -> MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until it is so.
pub(super) async fn until(so: impl Fn() -> bool) {
    let mut look = interval(LOOK_EVERY);
    while !so() {
        look.tick().await;
    }
}
