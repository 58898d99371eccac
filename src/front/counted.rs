//! A conversation whose panic is counted the moment it happens, whoever looks after its end.

use std::sync::Arc;
use std::thread;

use crate::engine::Engine;
use crate::telemetry::Failure;

/// The same conversation. A panic ends it alone.
pub(super) async fn counted(engine: Arc<Engine>, conversation: impl Future<Output = ()>) {
    let _counter = Counter(engine);
    conversation.await;
}

struct Counter(Arc<Engine>);

impl Drop for Counter {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.failed(Failure::Panic, &"a connection was closed by a panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::runtime;
    use tokio::task::yield_now;

    use super::*;
    use crate::clock::{ManualClock, Time};
    use crate::config::Settings;
    use crate::front::guests::Guests;
    use crate::meter::key::Secret;
    use crate::policy::Memory;

    #[test]
    fn a_guest_that_makes_us_panic_is_counted_and_no_other_is() {
        let settings = Settings::default();
        let memory = Memory::new(&Secret::new([0; 16]), settings.bounds());
        let Ok(policy) = settings.policy(&memory) else { panic!("the defaults hold") };
        let clock = ManualClock::at(Time::from_secs(1_800_000_000));
        let engine = Engine::new(Box::new(clock), memory, policy);
        let runtime = runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut guests = Guests::new(1, engine.clone());
            guests.take(async { panic!("a fault of ours") }).await;
            yield_now().await;
            // Each takes the place of the one before.
            guests.take(pending()).await;
            guests.take(ready(())).await;
        });
        let metrics = engine.metrics();
        assert!(metrics.contains("postpone_failures_total{kind=\"panic\"} 1"), "{metrics}");
    }
}
