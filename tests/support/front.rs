//! The real milter front on a real socket, in a thread of its own, over an engine whose clock the
//! test moves.

use super::daemon::metric;
use super::{Folder, wait_until};
use postpone::clock::{ManualClock, Time};
use postpone::config::{Settings, Unusable};
use postpone::engine::Engine;
use postpone::front::listener::{Bound, Serving};
use postpone::front::milter;
use postpone::meter::key::Secret;
use postpone::policy::Memory;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::watch;

pub struct Front {
    pub engine: Arc<Engine>,
    pub clock: Arc<ManualClock>,
    /// Where it listens, in Postfix's words.
    pub endpoint: String,
    stop: watch::Sender<Option<Duration>>,
    serving: Option<JoinHandle<()>>,
}

impl Front {
    /// Serves this policy on a free port.
    pub fn start(policy: &str) -> Self {
        Self::listening("inet:127.0.0.1:0", "helo", policy)
    }

    /// Serves on a unix socket in this folder.
    pub fn on_unix_socket(folder: &Folder, policy: &str) -> Self {
        let endpoint = format!("unix:{}/milter.sock", folder.path().display());
        Self::listening(&endpoint, "helo", policy)
    }

    /// Serves on a free port, where refused sessions hear of it at that command.
    pub fn speaking(speak: &str, policy: &str) -> Self {
        Self::listening("inet:127.0.0.1:0", speak, policy)
    }

    fn listening(endpoint: &str, speak: &str, policy: &str) -> Self {
        let text = format!("{policy}\n[[listen]]\nmilter = \"{endpoint}\"\nspeak = \"{speak}\"\n");
        let settings = match Settings::parse("the policy", &text) {
            Ok(checked) => checked.settings,
            Err(Unusable(report)) => panic!("{report}"),
        };
        let memory = Memory::new(&Secret::new([0; 16]), settings.bounds());
        let policy = settings.policy(&memory).expect("the lists can be read");
        let clock = Arc::new(ManualClock::at(Time::from_secs(1_800_000_000)));
        let engine = Engine::new(Box::new(clock.clone()), memory, policy);
        let listen = settings.listen[0].clone();
        let bound = listen.bind(&[]).expect("an address to listen on");
        bound.listen().expect("a socket that can listen");
        let endpoint = match &bound {
            Bound::Inet(listener) => format!("inet:{}", listener.local_addr().unwrap()),
            Bound::Unix(_) => endpoint.to_owned(),
        };
        let (stop, stopping) = watch::channel(None);
        let serving = thread::spawn({
            let engine = engine.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let serving = Serving::new(1000, stopping);
                let front = milter::serve(bound, engine, listen.door(), serving);
                runtime.unwrap().block_on(front).unwrap();
            }
        });
        Self { engine, clock, endpoint, stop, serving: Some(serving) }
    }

    /// The sum of the samples of this metric that have these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metric(&self.engine.metrics(), name, labels)
    }

    /// How often our own trouble of this kind has let mail pass.
    pub fn failures(&self, kind: &str) -> f64 {
        self.metric("postpone_failures_total", &[("kind", kind)])
    }

    /// Waits until every session has ended, and checks that they have given back what they held.
    pub fn nothing_is_held(&self) {
        wait_until("every session to end", || {
            (self.metric("postpone_sessions_open", &[]) == 0.0).then_some(())
        });
        self.engine.sweep(1);
        assert_eq!(self.metric("postpone_table_entries", &[("table", "gauges")]), 0.0);
    }

    /// Takes no new sessions from now on; those that run go on.
    pub fn stop(&self) {
        // Longer than any test: a session that is not given back keeps the thread.
        self.stop.send_replace(Some(Duration::from_secs(3600)));
    }

    /// Waits until the last session has ended after `stop`.
    pub fn ended(mut self) {
        self.stop();
        let serving = self.serving.take().unwrap();
        wait_until("the front to end", || serving.is_finished().then_some(()));
        serving.join().unwrap();
    }
}
