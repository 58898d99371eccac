//! What greylisting makes of a client, for people; and how it forgets one.

use super::{Acquaintance, Dimension, Greylist};
use crate::policy::explain::{Forgotten, Greylisted};
use crate::policy::signal::Context;

impl Greylist {
    /// What is known of a client, and of a triplet where the context has one. Reads only.
    pub(in crate::policy) fn explain(&self, cx: &Context<'_>) -> Greylisted {
        let proven = self.proven.read(self.client(cx), cx.at, |proven| proven.copied());
        let passes = proven.map_or(0, |proven| proven.passes);
        let crowd = self.crowds.read(self.crowd(cx), cx.at, |crowd| crowd.copied());
        let pending = crowd.map_or(0, |crowd| crowd.stored);
        let met = cx.sender().and(cx.recipient()).map(|_| self.acquaintance(cx));
        let ready = match &met {
            Some(Acquaintance::Waiting { first }) => Some(*first + self.delay),
            _ => None,
        };
        let waited = matches!(met, Some(Acquaintance::Known { .. } | Acquaintance::Back));
        let triplet = met.map(|met| match met {
            Acquaintance::Known { until } => format!("known until {}", until.whole()),
            Acquaintance::Back => "has waited long enough: it passes".to_owned(),
            Acquaintance::Waiting { first } => {
                let back = (first + self.delay).whole();
                format!("waits since {}; it may come back at {back}", first.whole())
            }
            Acquaintance::New => "a first contact".to_owned(),
        });
        Greylisted {
            mode: self.mode(cx),
            applies: self.applies(cx),
            passes,
            proven_after: self.proven_after,
            proven_until: proven.filter(|p| p.passes >= self.proven_after).map(|p| p.until),
            pending,
            max_pending: self.max_pending_per_network,
            delay_secs: self.delay.as_secs(),
            triplet,
            waited,
            ready: ready.filter(|ready| *ready > cx.now),
        }
    }

    /// Forgets that a client is proven, and how many of its first contacts wait.
    pub(in crate::policy) fn forget(&self, cx: &Context<'_>, to: &mut Forgotten) {
        let proven = self.proven.forget(self.client(cx));
        let crowd = self.crowds.forget(self.crowd(cx));
        let mut said = |known: bool, what: &str| match known {
            true => to.forgotten.push(format!("greylist: {what}")),
            false => to.left.push(format!("greylist: {what}: nothing was known")),
        };
        said(proven, "how many of its triplets have come back");
        said(crowd, "how many triplets of its network wait");
        // Where an envelope belongs to the key, it cannot be made without one.
        if self.per.iter().any(|d| matches!(d, Dimension::Sender | Dimension::Recipient)) {
            let text = "greylist: its triplets, since they can be found only with sender and \
                        recipient";
            to.left.push(text.to_owned());
        } else {
            let triplet = self.triplet(cx);
            let waits = self.pending.forget(triplet);
            said(self.passed.forget(triplet) || waits, "its triplet");
        }
    }
}
