//! What an administrator takes out for a while: one rule, or all of them. Beside the mail path.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use crate::policy::by_hand::{Lifted, Scope};
use crate::setting::Mode;

impl Engine {
    /// Takes it out for so long; false if too much is taken out already.
    pub fn lift(&self, scope: &Scope, span: Duration) -> bool {
        let begun = self.memory.by_hand.begin(scope, span, self.clock.now());
        self.tell_lifted();
        begun
    }

    /// It holds again; whether it was taken out.
    pub fn restore(&self, scope: &Scope) -> bool {
        let ended = self.memory.by_hand.end(scope);
        self.tell_lifted();
        ended
    }

    /// What is taken out now.
    pub fn lifted(&self) -> Vec<Lifted> {
        self.memory.by_hand.all(self.clock.now())
    }

    /// Every rule in force, with the mode that it is in by the settings.
    fn own_rules(&self) -> Vec<(Arc<str>, Mode)> {
        self.policy.load().rules(self.clock.now())
    }

    /// Every rule in force, with the mode that it is in now.
    pub fn rules(&self) -> Vec<(Arc<str>, Mode)> {
        let (now, by_hand) = (self.clock.now(), &self.memory.by_hand);
        let in_force = |(rule, own): (Arc<str>, Mode)| {
            let mode = by_hand.mode(&rule, own, now);
            (rule, mode)
        };
        self.own_rules().into_iter().map(in_force).collect()
    }

    /// Forgets what is over, and tells what has begun or ended.
    pub fn tell_lifted(&self) {
        self.memory.by_hand.tend(self.clock.now());
        self.telemetry.lifted(&self.lifted());
    }
}
