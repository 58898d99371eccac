//! The last decisions that were told, so that one can be explained by its id.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Time;
use crate::policy::decision::Why;
use crate::setting::Mode;
use crate::smtp::event::Kind;
use crate::smtp::harmless::harmless;

/// Decisions that are remembered. Of one more, the oldest is forgotten. At some 500 bytes each, and
/// 2 KiB at most, they take 2 to 8 MiB.
pub const MOST: usize = 4_096;

/// Texts are cut to so many bytes.
const LONGEST: usize = 256;

/// The last decisions. Bound: [`MOST`].
#[derive(Default)]
pub(super) struct Recent(Mutex<VecDeque<Decided>>);

/// One decision. What is to be read of it is made only when somebody asks.
#[derive(Clone)]
pub(super) struct Decided {
    pub id: u64,
    pub at: Time,
    pub event: Kind,
    pub client: IpAddr,
    pub name: Option<Box<str>>,
    pub helo: Option<Box<str>>,
    pub user: Option<Box<str>>,
    pub listener: Arc<str>,
    pub sender: Option<Box<str>>,
    pub recipient: Option<Box<str>>,
    pub mode: Mode,
    pub action: &'static str,
    pub why: Why,
    pub limit: Option<Arc<str>>,
    pub wait: Duration,
    pub reply: Option<Box<str>>,
}

/// A text, cut, and fit to be shown.
pub(super) fn cut(text: &str) -> Box<str> {
    let text = harmless(text);
    text[..text.floor_char_boundary(LONGEST)].into()
}

/// A decision as it was told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recalled {
    /// Its id.
    pub id: String,
    /// When it was told.
    pub at: Time,
    /// The event at which the client heard of it.
    pub event: String,
    /// The client's address.
    pub client: IpAddr,
    /// Its forward-confirmed name.
    pub name: Option<String>,
    /// Its HELO name.
    pub helo: Option<String>,
    /// The name it had authenticated as.
    pub user: Option<String>,
    /// The listener by which it came.
    pub listener: String,
    /// The envelope sender; empty for the null sender.
    pub sender: Option<String>,
    /// The envelope recipient.
    pub recipient: Option<String>,
    /// Whether the rule acted; in shadow the event passed.
    pub mode: Mode,
    /// What the rule did, or would have done.
    pub action: String,
    /// Why.
    pub reason: String,
    /// The limit that spoke, if it was one.
    pub limit: Option<String>,
    /// What was measured.
    pub value: String,
    /// What it was measured against.
    pub threshold: String,
    /// How long it had to wait, in milliseconds.
    pub wait_ms: u64,
    /// What was said, if anything was.
    pub reply: Option<String>,
}

impl Recent {
    /// Remembers a decision. One that is repeated at every command counts once.
    pub(super) fn push(&self, decided: Decided) {
        let mut recent = self.lock();
        if recent.back().is_some_and(|last| last.id == decided.id) {
            return;
        }
        if recent.len() >= MOST {
            recent.pop_front();
        }
        recent.push_back(decided);
    }

    /// The decision of this id, if it is among the last.
    pub(super) fn find(&self, id: u64) -> Option<Decided> {
        self.lock().iter().rev().find(|decided| decided.id == id).cloned()
    }

    /// The last decisions about a sender, or about those of a domain, `@example.org`: the newest
    /// first.
    pub(super) fn about(&self, sender: &str, most: usize) -> Vec<Decided> {
        let is_about = |of: &str| match sender.starts_with('@') {
            true => of.ends_with(sender),
            false => of == sender,
        };
        let recent = self.lock();
        let all = recent.iter().rev().filter(|it| it.sender.as_deref().is_some_and(is_about));
        all.take(most).cloned().collect()
    }

    /// Whom each rule has refused most since then, and whom it would have while it was a shadow: by its
    /// name and that.
    pub(super) fn most(&self, since: Time) -> HashMap<(Arc<str>, Mode), Most> {
        let mut times: HashMap<_, (u64, &Decided)> = HashMap::new();
        let mut all: HashMap<_, u64> = HashMap::new();
        let recent = self.lock();
        for decided in recent.iter().filter(|decided| decided.at >= since) {
            let said = (decided.rule(), decided.mode);
            *all.entry(said).or_default() += 1;
            let of_client = times.entry((said, decided.client));
            of_client.and_modify(|(times, _)| *times += 1).or_insert((1, decided));
        }
        let mut most: HashMap<_, Most> = HashMap::new();
        for ((said, client), (times, decided)) in times {
            let name = decided.name.clone().map(String::from);
            let one = Most { client, name, times, of: all[&said] };
            let known = most.entry((said.0.into(), said.1)).or_insert_with(|| one.clone());
            if (one.times, known.client) > (known.times, one.client) {
                *known = one;
            }
        }
        most
    }

    /// The name of a client, as the last decision about it has it.
    pub(super) fn name(&self, client: IpAddr) -> Option<Box<str>> {
        let recent = self.lock();
        let of_it = recent.iter().rev().find(|decided| decided.client == client);
        of_it.and_then(|decided| decided.name.clone())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Decided>> {
        // Nothing in here is left half-done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whom a rule has refused most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Most {
    /// Its address.
    pub client: IpAddr,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// How often, among the decisions that are remembered.
    pub times: u64,
    /// How often it has refused anybody, among these.
    #[serde(default)]
    pub of: u64,
}

impl Decided {
    fn rule(&self) -> &str {
        self.limit.as_deref().unwrap_or(self.why.reason().name())
    }

    pub(super) fn recalled(self, id: String) -> Recalled {
        let text = |text: Option<Box<str>>| text.map(String::from);
        Recalled {
            id,
            at: self.at,
            event: self.event.name().to_owned(),
            client: self.client,
            name: text(self.name),
            helo: text(self.helo),
            user: text(self.user),
            listener: (*self.listener).to_owned(),
            sender: text(self.sender),
            recipient: text(self.recipient),
            mode: self.mode,
            action: self.action.to_owned(),
            reason: self.why.reason().name().to_owned(),
            limit: self.limit.map(|limit| (*limit).to_owned()),
            value: self.why.value().to_string(),
            threshold: self.why.threshold().to_string(),
            wait_ms: self.wait.as_nanos().div_ceil(1_000_000) as u64,
            reply: text(self.reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(id: u64) -> Decided {
        Decided {
            id,
            at: Time::default(),
            event: Kind::Mail,
            client: [192, 0, 2, 7].into(),
            name: None,
            helo: None,
            user: None,
            listener: "".into(),
            sender: None,
            recipient: None,
            mode: Mode::Enforce,
            action: "close",
            why: Why::Penalty { offences: 1 },
            limit: None,
            wait: Duration::ZERO,
            reply: None,
        }
    }

    #[test]
    fn the_oldest_is_forgotten_and_a_repetition_takes_no_room() {
        let recent = Recent::default();
        (0..=MOST as u64).for_each(|id| (0..3).for_each(|_| recent.push(decided(id))));
        assert!(recent.find(0).is_none() && recent.find(1).is_some());
        assert_eq!(recent.lock().len(), MOST);
    }

    #[test]
    fn what_was_refused_is_not_mixed_with_what_would_have_been() {
        let recent = Recent::default();
        let of = |id, last, mode| {
            let client = [192, 0, 2, last].into();
            recent.push(Decided { mode, client, ..decided(id) });
        };
        (0..3).for_each(|id| of(id, 7, Mode::Shadow));
        (3..5).for_each(|id| of(id, 8, Mode::Enforce));
        of(5, 7, Mode::Enforce);
        let rule: Arc<str> = Arc::from(Why::Penalty { offences: 1 }.reason().name());
        let most = recent.most(Time::default());
        let most = |mode| most.get(&(rule.clone(), mode)).map(|m| (m.client, m.times, m.of));
        assert_eq!(most(Mode::Enforce), Some(([192, 0, 2, 8].into(), 2, 3)));
        assert_eq!(most(Mode::Shadow), Some(([192, 0, 2, 7].into(), 3, 3)));
    }

    #[test]
    fn texts_are_cut_between_letters() {
        assert_eq!(cut("kurz"), "kurz".into());
        assert_eq!(cut(&"ü".repeat(300)).len(), LONGEST);
        assert_eq!(cut(&("x".to_owned() + &"ü".repeat(300))).len(), LONGEST - 1);
    }
}
