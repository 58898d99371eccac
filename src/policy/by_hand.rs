//! What has an administrator taken out for a while?
//!
//! A rule that is taken out is assessed, counted and logged as a shadow, and refuses nobody; by a
//! bypass every rule is, access and maintenance too. It is no signal of its own: it says in which
//! mode the others are. A restart ends it all, which is one more way back to the settings.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::clock::Time;
use crate::setting::Mode;

/// Rules that can be taken out at once; who asks for more is told so.
const MOST: usize = 64;

/// What is taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every rule: a bypass.
    Everything,
    /// One, by the limit's name or the signal's.
    Rule(Arc<str>),
}

impl Scope {
    fn covers(&self, rule: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Rule(name) => **name == *rule,
        }
    }
}

/// What is taken out until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifted {
    /// What it is.
    pub scope: Scope,
    /// When it holds again.
    pub until: Time,
    /// For how long it was said, which is the longest it is believed.
    span: Duration,
}

/// Everything that is taken out. Bound: `MOST`.
#[derive(Clone, Default)]
pub struct Memory(Arc<ArcSwap<Vec<Lifted>>>);

impl Memory {
    /// Takes it out for so long from now; said again, it gets another end. False: there are too many.
    pub fn begin(&self, scope: &Scope, span: Duration, now: Time) -> bool {
        let mut all = self.without(scope);
        if all.len() >= MOST {
            return false;
        }
        all.push(Lifted { scope: scope.clone(), until: now + span, span });
        self.0.store(Arc::new(all));
        true
    }

    /// It holds again; whether it was taken out.
    pub fn end(&self, scope: &Scope) -> bool {
        let rest = self.without(scope);
        let ended = rest.len() < self.0.load().len();
        self.0.store(Arc::new(rest));
        ended
    }

    /// Forgets what is over. If the clock has stepped back, nothing lasts longer than it was said
    /// for, from now on.
    pub fn tend(&self, now: Time) {
        if self.0.load().is_empty() {
            return;
        }
        let mut all = self.all(now);
        all.retain(|lifted| lifted.until > now);
        self.0.store(Arc::new(all));
    }

    /// What is taken out now.
    pub fn all(&self, now: Time) -> Vec<Lifted> {
        let all = self.0.load();
        let as_of_now = |lifted: &Lifted| Lifted {
            until: lifted.until.at_most(lifted.span, now),
            ..lifted.clone()
        };
        all.iter().filter(|lifted| lifted.until > now).map(as_of_now).collect()
    }

    /// Whether nothing is taken out: the usual case, which costs one look.
    pub(super) fn is_empty(&self) -> bool {
        self.0.load().is_empty()
    }

    /// Whether a rule is taken out.
    pub(super) fn covers(&self, rule: &str, now: Time) -> bool {
        self.0.load().iter().any(|lifted| lifted.until > now && lifted.scope.covers(rule))
    }

    /// The mode of a rule, whose own this is.
    pub fn mode(&self, rule: &str, own: Mode, now: Time) -> Mode {
        match own {
            Mode::Enforce if self.covers(rule, now) => Mode::Shadow,
            own => own,
        }
    }

    fn without(&self, scope: &Scope) -> Vec<Lifted> {
        self.0.load().iter().filter(|lifted| lifted.scope != *scope).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_secs(1_800_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn it_ends_by_itself_and_a_rule_is_taken_out_alone() {
        let memory = Memory::default();
        let velocity = Scope::Rule("velocity".into());
        assert!(memory.begin(&velocity, MINUTE, NOW));
        assert_eq!(memory.mode("velocity", Mode::Enforce, NOW), Mode::Shadow);
        assert_eq!(memory.mode("velocity", Mode::Off, NOW), Mode::Off);
        assert_eq!(memory.mode("greylist", Mode::Enforce, NOW), Mode::Enforce);
        assert!(memory.begin(&Scope::Everything, MINUTE * 2, NOW));
        assert!(memory.covers("greylist", NOW));
        assert!(!memory.covers("greylist", NOW + MINUTE * 2));
        memory.tend(NOW + MINUTE);
        assert!(memory.end(&Scope::Everything) && !memory.end(&velocity));
    }

    #[test]
    fn a_clock_that_steps_back_makes_it_last_no_longer_than_it_was_said_for() {
        let memory = Memory::default();
        memory.begin(&Scope::Everything, MINUTE, NOW + MINUTE * 60 * 24);
        assert_eq!(memory.all(NOW)[0].until, NOW + MINUTE);
        memory.tend(NOW);
        assert!(!memory.covers("access", NOW + MINUTE));
    }

    #[test]
    fn no_more_than_its_bound_is_taken_out() {
        let memory = Memory::default();
        let rule = |number: usize| Scope::Rule(number.to_string().into());
        assert!((0..MOST).all(|number| memory.begin(&rule(number), MINUTE, NOW)));
        assert!(!memory.begin(&rule(MOST), MINUTE, NOW));
        assert!(memory.begin(&rule(0), MINUTE, NOW), "another end");
    }
}
