//! What limits have counted of a client, for people; and how they forget it.

use std::time::Duration;

use super::dimension::Dimension;
use super::{Limit, Limits, Measure};
use crate::meter::quota::Unit;
use crate::meter::units::{Size, Span};
use crate::policy::explain::{Forgotten, Limited};
use crate::policy::signal::Context;
use crate::smtp::event::Kind;

/// What is in use, of how much, and how long until the next may pass and until all is clear.
struct Reading {
    value: String,
    next: Duration,
    clears: Duration,
    offences: u8,
}

impl Limits {
    /// Every limit, as far as the context knows what it counts under. Reads only.
    pub(in crate::policy) fn explain(&self, cx: &Context<'_>) -> Vec<Limited> {
        self.limits.iter().map(|limit| self.explain_one(limit, cx)).collect()
    }

    fn explain_one(&self, limit: &Limit, cx: &Context<'_>) -> Limited {
        let needs = limit.needs(cx);
        let applies = limit.when.holds(cx);
        let key = if needs.is_empty() { self.key(limit, cx) } else { None };
        let reading = key.map(|key| self.reading(limit, key, cx));
        let at = |wait: Duration| (!wait.is_zero()).then(|| cx.now + wait);
        Limited {
            name: limit.name.to_string(),
            mode: cx.mode(&limit.name, limit.mode),
            count: limit.count.name().to_owned(),
            per: limit.per.iter().map(ToString::to_string).collect(),
            needs,
            applies,
            threshold: self.threshold(limit, cx),
            next: reading.as_ref().and_then(|reading| at(reading.next)),
            clears: reading.as_ref().and_then(|reading| at(reading.clears)),
            offences: reading.as_ref().map_or(0, |reading| reading.offences),
            value: reading.map(|reading| reading.value),
        }
    }

    fn threshold(&self, limit: &Limit, cx: &Context<'_>) -> String {
        match &limit.measure {
            Measure::AtOnce { max, .. } => format!("{} at once", super::some_of(*max, cx)),
            Measure::InTime(quota) => quota.times(cx.allowance()).to_string(),
            Measure::Distinct { max, window } => {
                format!("{} in {}", super::some_of(*max, cx), Span::from(*window))
            }
        }
    }

    fn reading(&self, limit: &Limit, key: crate::meter::key::Key, cx: &Context<'_>) -> Reading {
        let now = cx.now;
        let (value, next, clears) = match &limit.measure {
            Measure::AtOnce { .. } => {
                let open =
                    self.memory.gauges.read(key, cx.at, |gauge| gauge.map_or(0, |g| g.admitted));
                (open.to_string(), Duration::ZERO, Duration::ZERO)
            }
            Measure::InTime(quota) => {
                let quota = quota.times(cx.allowance());
                let meter = self.memory.meters.read(key, cx.at, |m| m.copied().unwrap_or_default());
                let used = meter.used(&quota, now);
                let value = match quota.unit() {
                    Unit::Events => used.to_string(),
                    Unit::Bytes => Size::bytes(used).to_string(),
                };
                // When a whole burst has room, nothing is in use.
                (value, meter.wait(&quota, now, 1), meter.wait(&quota, now, quota.burst()))
            }
            Measure::Distinct { max, window } => self.memory.sketches.read(key, cx.at, |sketch| {
                let Some(sketch) = sketch else {
                    return ("0".to_owned(), Duration::ZERO, Duration::ZERO);
                };
                // A value that is hardly among them.
                let other = u64::MAX;
                let max = super::some_of(*max, cx);
                (
                    sketch.count(*window, now).to_string(),
                    sketch.wait(other, max, *window, now),
                    sketch.wait(other, 1, *window, now),
                )
            }),
        };
        let (rest, offences) = match limit.penalty {
            Some(_) => self.memory.penalties.read(key, cx.at, |penalty| {
                let longest = limit.longest_wait(cx.allowance());
                penalty.map_or((Duration::ZERO, 0), |p| {
                    (p.at_most(longest, now).rest(now), p.offences())
                })
            }),
            None => (Duration::ZERO, 0),
        };
        Reading { value, next: next.max(rest), clears: clears.max(rest), offences }
    }

    /// Forgets what is counted under the client's network or pool alone.
    pub(in crate::policy) fn forget(&self, cx: &Context<'_>, to: &mut Forgotten) {
        for limit in &self.limits {
            let name = format!("limit {}", limit.name);
            if limit.whole_host() {
                to.left.push(format!("{name}: it counts for the whole host"));
                continue;
            }
            let further = |d: &&Dimension| !is_of_client(**d);
            if let Some(further) = limit.per.iter().find(further) {
                to.left.push(format!("{name}: it also counts by {further}, which is not known"));
                continue;
            }
            let Some(key) = limit.key(cx) else { continue };
            let mut known = self.memory.penalties.forget(key);
            match limit.measure {
                // Sessions that are open are: that is no memory.
                Measure::AtOnce { .. } => {}
                Measure::InTime(_) => known |= self.memory.meters.forget(key),
                Measure::Distinct { .. } => known |= self.memory.sketches.forget(key),
            }
            match known {
                true => to.forgotten.push(name),
                false => to.left.push(format!("{name}: nothing was counted")),
            }
        }
    }
}

/// Whether its value follows from the client's address and name.
fn is_of_client(dimension: Dimension) -> bool {
    matches!(dimension, Dimension::Network | Dimension::Wider(_) | Dimension::Pool)
}

impl Limit {
    /// What must be known besides, before it can be told what has been counted.
    fn needs(&self, cx: &Context<'_>) -> Vec<String> {
        let unknown = |dimension: &&Dimension| match dimension {
            Dimension::Listener => cx.listener.is_empty(),
            dimension => dimension.key(cx).is_none(),
        };
        let mut needs: Vec<_> =
            self.per.iter().filter(unknown).map(|dimension| dimension.to_string()).collect();
        let (at, condition) = self.when.known_at();
        let is_known = match at {
            Kind::Recipient => cx.recipient().is_some(),
            Kind::Mail => cx.sender().is_some(),
            _ => true,
        };
        if !is_known && !needs.iter().any(|need| need == condition) {
            needs.push(condition.to_owned());
        }
        if self.when.listener.is_some() && cx.listener.is_empty() {
            needs.push("listener".to_owned());
        }
        needs.dedup();
        needs
    }
}
