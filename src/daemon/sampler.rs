//! Reads the sensors of the load, on a thread of its own beside the mail path, and tells the
//! engine.
//!
//! What answers at once, such as the kernel's own files, is read in passing. What may not (a disk
//! that hangs, a queue of a million files, a server that is asked) has a task of its own, whose
//! last word is taken; so one of them that is stuck leaves the others as they are. One that has not
//! answered for [`SILENT_PERIODS`] is off, like one that cannot be read at all: the level it has
//! asked for does not hold for ever. A sensor that is off is told once, until its reason changes.

pub(super) mod delay;
mod eye;
pub(super) mod postfix;
mod probe;
mod queue;
mod reading;

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::watch;
use tracing::error;

use self::delay::Lateness;
use self::eye::{Eye, Reading, every};
use crate::clock::Pulse;
use crate::config::load::{Load, Sensor, Source};
use crate::engine::Engine;
use crate::policy::load::{Sample, Scarce};
use crate::telemetry::Failure;

/// After so many periods without a word, a sensor is off; and so are all, if nothing reads them.
/// Ten, since a second of silence is no news on a host under stress.
const SILENT_PERIODS: u32 = 10;

/// What is to be read, and how often.
#[derive(Clone, Default)]
struct Task {
    sensors: Vec<Sensor>,
    period: Duration,
}

/// The thread that reads sensors, as the main thread holds it. It ends when this is dropped.
pub(super) struct Sampler {
    engine: Arc<Engine>,
    task: watch::Sender<Task>,
    lateness: Arc<Lateness>,
    thread: Mutex<Option<JoinHandle<io::Result<()>>>>,
    /// Beats when the engine is told.
    pulse: Arc<Pulse>,
}

impl Sampler {
    /// Nothing is read yet.
    pub(super) fn new(engine: &Arc<Engine>, lateness: Arc<Lateness>) -> Self {
        Self {
            engine: engine.clone(),
            task: watch::Sender::default(),
            lateness,
            thread: Mutex::default(),
            pulse: Arc::new(Pulse::start()),
        }
    }

    /// Reads what these settings ask for from now on. Without a sensor no thread is started; one
    /// that runs goes on, so that the level comes down.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub(super) fn watch(&self, load: &Load) -> io::Result<()> {
        let task = Task { sensors: load.sensors(), period: load.period.duration() };
        self.lateness.turn(task.sensors.iter().any(|sensor| sensor.source == Source::Delay));
        let any = !task.sensors.is_empty();
        self.engine.count_only(task.sensors.iter().map(|sensor| sensor.name.clone()).collect());
        self.task.send_replace(task);
        // What was a long time by then may be a short one now.
        self.pulse.beat();
        let mut thread = self.thread();
        if any && thread.is_none() {
            *thread = Some(self.start()?);
        }
        Ok(())
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<io::Result<()>>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) -> io::Result<JoinHandle<io::Result<()>>> {
        let (engine, task) = (self.engine.clone(), self.task.subscribe());
        let (lateness, pulse) = (self.lateness.clone(), self.pulse.clone());
        let serve = move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let (period, eyes) = (Duration::ZERO, Vec::new());
            let round = Round { engine, lateness, period, eyes, pulse };
            runtime.block_on(round.serve(task));
            // A disk that hangs keeps its thread, and must not keep this one.
            runtime.shutdown_background();
            Ok(())
        };
        self.pulse.beat();
        thread::Builder::new().name("sampler".into()).spawn(serve)
    }

    /// Looks every now and then whether the thread does its work.
    pub(super) async fn tended(&self, every: Duration) -> Infallible {
        let mut ticks = tokio::time::interval(every);
        loop {
            ticks.tick().await;
            self.tend();
        }
    }

    /// If the thread does not do its work, every sensor is off, and one that has ended is started
    /// again.
    fn tend(&self) {
        let mut holder = self.thread();
        let task = self.task.borrow().clone();
        if holder.is_none() && task.sensors.is_empty() {
            return;
        }
        let ended = holder.as_ref().is_none_or(JoinHandle::is_finished);
        if !ended && self.pulse.silent() < task.period * SILENT_PERIODS {
            return;
        }
        let why: Arc<str> = "the thread that reads the sensors hangs or has ended".into();
        self.engine.failed(Failure::Panic, &why);
        let off = |sensor: &Sensor| sample(sensor, sensor.scarce, Err(why.clone()));
        self.engine.observe(task.sensors.iter().map(off).collect());
        if ended {
            match self.start() {
                Ok(thread) => *holder = Some(thread),
                Err(error) => error!(%error, "cannot start the thread that reads sensors"),
            }
        }
    }
}

fn sample(sensor: &Sensor, scarce: Scarce, reading: Reading) -> Sample {
    let (name, marks) = (sensor.name.clone(), sensor.marks.clone());
    Sample { sensor: name, scarce, marks, reading, why: None }
}

/// What the thread holds.
struct Round {
    engine: Arc<Engine>,
    lateness: Arc<Lateness>,
    period: Duration,
    eyes: Vec<Eye>,
    pulse: Arc<Pulse>,
}

impl Round {
    async fn serve(mut self, mut tasks: watch::Receiver<Task>) {
        loop {
            let Task { sensors, period } = tasks.borrow_and_update().clone();
            self.take(sensors, period);
            let mut ticks = every(period);
            loop {
                tokio::select! {
                    changed = tasks.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    _ = ticks.tick() => self.tell(),
                }
            }
        }
    }

    /// Takes other sensors; those of the same name go on as what they were.
    fn take(&mut self, sensors: Vec<Sensor>, period: Duration) {
        let mut before = std::mem::take(&mut self.eyes);
        for sensor in sensors {
            let known = before.iter().position(|eye| eye.sensor.name == sensor.name);
            let mut eye =
                known.map_or_else(|| Eye::new(sensor.clone()), |place| before.swap_remove(place));
            eye.turn(sensor, &self.engine, period, period == self.period);
            self.eyes.push(eye);
        }
        self.period = period;
    }

    /// Tells the engine what all sensors say now.
    fn tell(&mut self) {
        let (lateness, period) = (&self.lateness, self.period);
        let samples = self.eyes.iter_mut().filter_map(|eye| {
            let (reading, scarce) = eye.look(&self.engine, lateness, period)?;
            eye.say(&reading);
            let sample = sample(&eye.sensor, scarce.unwrap_or(eye.sensor.scarce), reading);
            Some(Sample { why: eye.why(), ..sample })
        });
        let samples = samples.collect();
        self.engine.observe(samples);
        self.pulse.beat();
    }
}
