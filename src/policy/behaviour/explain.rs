//! What the signal says of a client, for people; and how it forgets one.

use super::evidence::{Score, Term};
use super::pace::Stage;
use super::{Behaviour, Look, Memory};
use crate::clock::Time;
use crate::policy::explain::{Behaved, Paced, Spoken};
use crate::policy::signal::Context;
use crate::setting::Mode;

impl Stage {
    /// Its one name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Suspect => "suspect",
            Self::Abnormal => "abnormal",
            Self::Extreme => "extreme",
        }
    }
}

impl Behaviour {
    /// Until when it only watches because the database is new; nothing where that is over, or where
    /// it would not act anyway.
    pub fn learning_until(&self, now: Time) -> Option<Time> {
        let begun = self.memory.begun_at().unwrap_or(now);
        let until = (begun + self.learn_for).at_most(self.learn_for, now);
        (self.mode == Mode::Enforce && self.own_mode(now) == Mode::Shadow).then_some(until)
    }

    /// Everything about a client, as of now. Reads only.
    pub fn explain(&self, cx: &Context<'_>) -> Behaved {
        let key = cx.network_key();
        let times =
            self.memory.senders.read(key, cx.at, |sender| sender.map(|s| (s.first(), s.last())));
        let look = self.look(cx);
        let score = look.seen.score;
        let (pace, stage, shared) = self.pace(&look, cx.now);
        let (wait, per_hour) = match stage {
            Stage::Calm => (std::time::Duration::ZERO, None),
            stage => (pace.wait(stage, &self.rates), Some(pace.per_hour(stage, &self.rates))),
        };
        Behaved {
            mode: self.mode(cx),
            learning_until: self.learning_until(cx.now),
            known: times.is_some(),
            first: times.map(|(first, _)| first),
            last: times.map(|(_, last)| last),
            score: hundredths(score.total),
            stage: stage.name().to_owned(),
            from: self.from,
            terms: terms(&look, &score, cx.now),
            pace: Paced {
                per_hour: per_hour.map(hundredths),
                next: cx.now + wait,
                wait_ms: wait.as_nanos().div_ceil(1_000_000) as u64,
                shared,
            },
        }
    }

    /// Forgets how a client has behaved; whether anything was known.
    pub fn forget(&self, cx: &Context<'_>) -> bool {
        self.memory.returns.forget(Self::returns_key(cx));
        self.memory.senders.forget(cx.network_key())
    }
}

/// All terms, the loudest first; those that say nothing in their own order.
fn terms(look: &Look, score: &Score, now: Time) -> Vec<Spoken> {
    let spoken = |term: Term| Spoken {
        term: term.name().to_owned(),
        adds: hundredths(score.of(term)),
        inputs: look.sender.inputs(term, &look.network, &look.returns, now),
    };
    let mut terms = Term::ALL.map(spoken).to_vec();
    terms.sort_by(|one, other| other.adds.abs().total_cmp(&one.adds.abs()));
    terms
}

fn hundredths(number: f64) -> f64 {
    // No zero has a sign.
    (number * 100.0).round() / 100.0 + 0.0
}

impl Memory {
    /// When the database was begun, if anybody has said so.
    fn begun_at(&self) -> Option<Time> {
        let begun = self.begun.load(std::sync::atomic::Ordering::Relaxed);
        (begun > 0).then(|| Time::from_nanos(begun))
    }
}
