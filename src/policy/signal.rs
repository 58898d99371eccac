//! What every signal is: it assesses, which reads, and it settles, the one moment it writes.

use super::decision::{Decision, Exemption, Refusal};
use super::greylist::Ready;
use super::limit::{Charge, Hold};
use crate::clock::Time;
use crate::smtp::client::{Client, Network};
use crate::smtp::event::Event;
use crate::smtp::transaction::Transaction;

/// One reason to think less or more of an event.
pub trait Signal: Send + Sync {
    /// Its one name in settings, logs and the manual.
    fn name(&self) -> &'static str;

    /// Whether it is asked even about clients that are exempt.
    fn binds_exempt(&self) -> bool {
        false
    }

    /// Judges an event. Reads only: the same call explains, and a round may be thrown away.
    fn assess(&self, cx: &Context<'_>, ledger: &Ledger, round: &mut Round);

    /// Takes note of what was decided.
    fn settle(&self, cx: &Context<'_>, decision: &Decision, ledger: &mut Ledger);
}

/// What an event is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The moment, read once for the event.
    pub now: Time,
    /// What has happened.
    pub event: &'a Event,
    /// Who did it.
    pub client: &'a Client,
    /// What the client counts under.
    pub network: Network,
    /// The transaction under way, without what this event would add to it.
    pub transaction: Option<&'a Transaction>,
}

/// The assessments of one event, gathered.
#[derive(Debug, Default)]
pub struct Round {
    pub(super) exemption: Option<Exemption>,
    pub(super) refusals: Vec<Refusal>,
}

impl Round {
    /// Nobody but signals that bind the exempt is asked any more.
    pub fn exempt(&mut self, exemption: Exemption) {
        self.exemption = Some(exemption);
    }

    /// Speaks against the event.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.refusals.push(refusal);
    }

    /// Why the client is exempt, if it is.
    pub fn exemption(&self) -> Option<Exemption> {
        self.exemption
    }
}

/// What a session has taken and must give back, and what it must remember until its end. Its size
/// depends on the number of limits, and not on what a client does.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Places in gauges, until the session ends.
    pub(super) holds: Vec<Hold>,
    /// Charges for the message under way, until it is complete or has failed.
    pub(super) charges: Vec<Charge>,
    /// When the last recipient of this transaction may come back, if one must.
    pub(super) ready: Option<Ready>,
}
