//! A worker: a thread with a runtime of its own, which serves MTAs and nothing else.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::runtime;

use super::sampler::delay::Lateness;
use crate::engine::Engine;
use crate::front::listen::{self, Protocol};
use crate::front::listener::{Bound, Serving};
use crate::front::{milter, policyd};

/// A thread that serves MTAs.
pub(super) struct Worker {
    pub(super) engine: Arc<Engine>,
    pub(super) desk: Arc<policyd::Desk>,
    pub(super) lateness: Arc<Lateness>,
    pub(super) sockets: Vec<(Bound, listen::Params)>,
    pub(super) serving: Serving,
}

impl Worker {
    /// Starts the thread.
    pub(super) fn start(self, number: u8) -> io::Result<JoinHandle<io::Result<()>>> {
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || self.serve(number))
    }

    /// One thread for all sessions: tokio's pool would wake a second one for most frames, which
    /// costs a milter more than it brings. See benches/milter.rs.
    fn serve(self, number: u8) -> io::Result<()> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::spawn(self.lateness.beat(number));
            let mut fronts = tokio::task::JoinSet::new();
            for (bound, listen) in self.sockets {
                let (engine, door) = (self.engine.clone(), listen.door());
                let (desk, serving) = (self.desk.clone(), self.serving.clone());
                match listen.address() {
                    Some((_, Protocol::Policy)) => {
                        fronts.spawn(policyd::serve(bound, engine, door, desk, serving))
                    }
                    _ => fronts.spawn(milter::serve(bound, engine, door, serving)),
                };
            }
            while let Some(ended) = fronts.join_next().await {
                ended.map_err(io::Error::other)??;
            }
            Ok(())
        })
    }
}
