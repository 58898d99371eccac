//! One sensor, and how it is read: in passing, or by a task whose last word is taken.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::delay::Lateness;
use super::probe::{Outcome, Probe, Steady};
use super::queue::Counter;
use super::{SILENT_PERIODS, postfix, reading};
use crate::clock::Stopwatch;
use crate::config::load::{Sensor, Source};
use crate::engine::Engine;
use crate::policy::load::Scarce;

/// What a sensor says, in its own unit, or why it says nothing.
pub(super) type Reading = Result<f64, Arc<str>>;

/// How long until Postfix is asked again, when it could not be.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// A sensor, and how it is read.
pub(super) struct Eye {
    pub(super) sensor: Sensor,
    /// What its task has seen last, if it has a task.
    pane: Arc<Pane>,
    task: Option<AbortHandle>,
    /// Cores of this host, for its load.
    cores: usize,
    /// Why it is off, as the log has said.
    off: Option<Arc<str>>,
    /// Whether it fails, as the log has said: of a probe.
    fails: bool,
}

impl Drop for Eye {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where a task leaves what it has seen.
#[derive(Default)]
struct Pane(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    reading: Option<Reading>,
    /// What is short, where it is not what the sensor says.
    scarce: Option<Scarce>,
    /// Why a probe fails.
    why: Option<Arc<str>>,
    /// Since when it is waited for.
    asked: Option<Stopwatch>,
}

impl Pane {
    /// A poisoned pane is as good as any: it holds values only.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) {
        self.lock().asked = Some(Stopwatch::start());
    }

    fn seen(&self, reading: Reading) {
        *self.lock() = Seen { reading: Some(reading), ..Seen::default() };
    }
}

impl Eye {
    /// Of a sensor that was not there before. It sees nothing yet.
    pub(super) fn new(sensor: Sensor) -> Self {
        let (task, cores, off, fails) = (None, 1, None, false);
        Self { sensor, pane: Arc::default(), task, cores, off, fails }
    }

    /// Begins to read the sensor of this name as it is now. Where it reads the same as before, it
    /// goes on, though its marks may be others; but what was asked of Postfix is asked again.
    pub(super) fn turn(
        &mut self,
        sensor: Sensor,
        engine: &Arc<Engine>,
        period: Duration,
        same: bool,
    ) {
        let as_before = self.sensor.source == sensor.source;
        if !as_before {
            (self.pane, self.fails) = (Arc::default(), false);
        }
        self.sensor = sensor;
        if self.task.is_none() || !as_before || !same || self.asks_postfix() {
            self.end();
            self.task = self.begin(engine, period);
        }
    }

    /// Whether Postfix is asked where or against what it reads.
    fn asks_postfix(&self) -> bool {
        use Source::{Queue, Sessions};
        matches!(self.sensor.source, Queue { root: None, .. } | Sessions { max: None })
    }

    fn end(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// Starts the task of a sensor that needs one.
    fn begin(&mut self, engine: &Arc<Engine>, period: Duration) -> Option<AbortHandle> {
        let pane = self.pane.clone();
        let task = match self.sensor.source.clone() {
            Source::LoadPerCore(file) => {
                self.cores = reading::cores(&file);
                return None;
            }
            Source::Pressure { .. } | Source::MemoryAvailable(_) | Source::Delay => return None,
            Source::Sessions { max: Some(_) } => return None,
            Source::Sessions { max: None } => {
                tokio::spawn(sessions_of_postfix(pane, engine.clone(), period))
            }
            Source::FreeBytes(path) => {
                tokio::spawn(aside(pane, period, move || reading::free_bytes(&path)))
            }
            Source::FreeInodes(path) => {
                tokio::spawn(aside(pane, period, move || reading::free_inodes(&path)))
            }
            Source::Queue { root, name, enough } => tokio::spawn(async move {
                let root = match root {
                    Some(root) => root,
                    None if name.is_none() => {
                        let why =
                            "`path` must name Sendmail's queue folder: \"auto\" asks Postfix only";
                        return pane.seen(Err(why.into()));
                    }
                    None => insist(&pane, postfix::queue_folder).await,
                };
                let mut counter = Counter::new(root, name, enough);
                aside(pane, period, move || counter.count().map(|work| work.files as f64)).await;
            }),
            Source::Probe { connect, banner, deadline } => {
                tokio::spawn(probing(pane, period, Probe { connect, banner, deadline }))
            }
        };
        Some(task.abort_handle())
    }

    /// What it says now; nothing, if its task has not seen anything yet.
    pub(super) fn look(
        &self,
        engine: &Engine,
        lateness: &Lateness,
        period: Duration,
    ) -> Option<(Reading, Option<Scarce>)> {
        let read = match &self.sensor.source {
            Source::Pressure { file, full } => reading::pressure(file, *full),
            Source::LoadPerCore(file) => reading::load(file).map(|load| load / self.cores as f64),
            Source::MemoryAvailable(file) => reading::memory_available(file),
            Source::Sessions { max: Some(max) } => Ok(share(engine, *max)),
            Source::Delay => Ok(lateness.take().as_secs_f64()),
            _ => return self.pane.lock().word(period),
        };
        Some((read.map_err(Into::into), None))
    }

    /// Why it fails: of a probe that does.
    pub(super) fn why(&self) -> Option<Arc<str>> {
        self.pane.lock().why.clone().filter(|_| self.fails)
    }

    /// Says in the log what is new.
    pub(super) fn say(&mut self, reading: &Reading) {
        let sensor = &*self.sensor.name;
        match reading {
            Err(why) if self.off.as_ref() != Some(why) => {
                warn!(sensor, %why, "a sensor of the load is off");
            }
            Ok(_) if self.off.is_some() => info!(sensor, "a sensor of the load is on again"),
            _ => {}
        }
        self.off = reading.as_ref().err().cloned();
        if matches!(self.sensor.source, Source::Probe { .. })
            && let Ok(reading) = reading
        {
            let fails = *reading > 0.0;
            match (self.fails, fails) {
                (false, true) => {
                    let why = self.pane.lock().why.clone().unwrap_or_default();
                    warn!(sensor, %why, "a probe fails");
                }
                (true, false) => info!(sensor, "a probe succeeds again"),
                _ => {}
            }
            self.fails = fails;
        }
    }
}

impl Seen {
    /// The last word of a task.
    fn word(&self, period: Duration) -> Option<(Reading, Option<Scarce>)> {
        let silent = self.asked.is_some_and(|asked| asked.elapsed() > period * SILENT_PERIODS);
        if silent {
            return Some((Err("it does not answer".into()), None));
        }
        self.reading.clone().map(|reading| (reading, self.scarce))
    }
}

/// A tick at once and after each period; those that were missed are not made up for.
pub(super) fn every(period: Duration) -> Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Open sessions, as a part of what the MTA bears.
fn share(engine: &Engine, max: u32) -> f64 {
    f64::from(engine.memory().load.open()) / f64::from(max.max(1))
}

/// Reads what may block, on a thread that may.
async fn aside(
    pane: Arc<Pane>,
    period: Duration,
    mut read: impl FnMut() -> Result<f64, String> + Send + 'static,
) {
    let mut ticks = every(period);
    loop {
        ticks.tick().await;
        pane.asked();
        let asked = tokio::task::spawn_blocking(move || (read(), read));
        // Else it has panicked, and the sensor stays silent.
        let Ok((reading, again)) = asked.await else { return };
        pane.seen(reading.map_err(Into::into));
        read = again;
    }
}

/// Asks until there is an answer. Meanwhile the sensor is off.
async fn insist<T>(pane: &Pane, ask: impl AsyncFn() -> Result<T, String>) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(why) => pane.seen(Err(why.into())),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn sessions_of_postfix(pane: Arc<Pane>, engine: Arc<Engine>, period: Duration) {
    let max = insist(&pane, postfix::most_sessions).await;
    let mut ticks = every(period);
    loop {
        ticks.tick().await;
        pane.seen(Ok(share(&engine, max)));
    }
}

async fn probing(pane: Arc<Pane>, period: Duration, probe: Probe) {
    let before = pane.lock().reading.as_ref() == Some(&Ok(1.0));
    let mut steady = Steady::new(before);
    let mut ticks = every(period);
    loop {
        ticks.tick().await;
        let outcome = probe.ask().await;
        let failing = steady.after(outcome.is_ok());
        let mut seen = pane.lock();
        if let Err(outcome) = outcome {
            let (Outcome::Unreachable(why) | Outcome::Wrong(why)) = &outcome;
            seen.why = Some(why.as_str().into());
            seen.scarce = Some(match outcome {
                Outcome::Unreachable(_) => Scarce::Downstream,
                Outcome::Wrong(_) => Scarce::DownstreamFault,
            });
        }
        seen.reading = Some(Ok(if failing { 1.0 } else { 0.0 }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// As a network file system does whose server is gone.
    #[test]
    fn what_does_not_answer_is_off_until_it_does() {
        let period = Duration::from_millis(5);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (answer, question) = mpsc::channel();
        let pane = Arc::new(Pane::default());
        let word = || pane.lock().word(period).map(|(reading, _)| reading);
        runtime.block_on(async {
            let read = move || question.recv().map_err(|_| "the story is over".to_owned());
            let task = tokio::spawn(aside(pane.clone(), period, read));
            let until = async |wanted: Reading| {
                while word() != Some(wanted.clone()) {
                    tokio::time::sleep(period).await;
                }
            };
            assert_eq!(word(), None, "nothing is known yet");
            answer.send(5.0).unwrap();
            until(Ok(5.0)).await;
            until(Err("it does not answer".into())).await;
            answer.send(7.0).unwrap();
            until(Ok(7.0)).await;
            task.abort();
        });
        drop(answer);
    }
}
