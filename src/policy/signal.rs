//! What every signal is: it assesses, which reads, and it settles, the one moment it writes.

use std::cell::OnceCell;

use super::Policy;
use super::behaviour::Seen;
use super::behaviour::evidence::Score;
use super::decision::{Decision, Exemption, Refusal};
use super::greylist::Ready;
use super::keys::Keys;
use super::limit::{Charge, Hold};
use super::load::Place;
use super::patience::Patience;
use super::standing::Standing;
use crate::clock::{Moment, Time};
use crate::setting::Mode;
use crate::smtp::address::Address;
use crate::smtp::client::{Client, Network};
use crate::smtp::event::Event;
use crate::smtp::pool::{NameKind, Pool};
use crate::smtp::transaction::Transaction;

/// One reason to think less or more of an event.
pub trait Signal: Send + Sync {
    /// Its one name in settings, logs and the manual.
    fn name(&self) -> &'static str;

    /// Whether it is asked even about clients that are exempt.
    fn binds_exempt(&self) -> bool {
        false
    }

    /// What a client that begins a session has earned, as far as this signal knows.
    fn standing(&self, _: &Context<'_>) -> Option<Standing> {
        None
    }

    /// Whether it lets pass whom it would stop, because its memory is too small for what comes.
    fn is_suspended(&self, _: Time) -> bool {
        false
    }

    /// Whether it may refuse at DATA though every recipient was judged at RCPT. Where no signal may,
    /// none is asked: see [`Policy::speaks_at_data`].
    fn speaks_at_data(&self) -> bool {
        false
    }

    /// Judges an event. Reads only: the same call explains, and a round may be thrown away.
    fn assess(&self, cx: &Context<'_>, ledger: &Ledger, round: &mut Round);

    /// Takes note of what was decided.
    fn settle(&self, cx: &Context<'_>, decision: &Decision, ledger: &mut Ledger);
}

/// What an event is judged by.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The moment, read once for the event.
    pub now: Time,
    /// The same, and whether it is to be believed.
    pub at: Moment,
    /// What has happened.
    pub event: &'a Event,
    /// Who did it.
    pub client: &'a Client,
    /// What the client counts under.
    pub network: Network,
    /// The mail system it belongs to, once somebody has asked for it: see [`Context::pool`].
    pub pool: &'a OnceCell<Pool>,
    /// What its name says, once somebody has asked for it: see [`Context::name_kind`].
    pub kind: &'a OnceCell<NameKind>,
    /// What it has earned, once somebody has asked for it: see [`Context::standing`].
    pub earned: &'a OnceCell<Standing>,
    /// What the event shows of its behaviour, once somebody has asked for it: see
    /// [`Context::seen`].
    pub shows: &'a OnceCell<Seen>,
    /// Recipients that it has asked for before.
    pub asked: Asked,
    /// What it has used of its MTA's patience.
    pub patience: Patience,
    /// Whether nothing follows from what is decided, and what is noted is only what was seen.
    pub rehearsal: bool,
    /// The keys that were asked for.
    pub keys: &'a Keys,
    /// The policy of the session.
    pub policy: &'a Policy,
    /// What the listener is called by which it came.
    pub listener: &'a str,
    /// That listener's address.
    pub address: &'a str,
    /// Whether its going will be noticed.
    pub ends: Ends,
    /// Whether its connection counts.
    pub arrival: Arrival,
    /// The transaction under way, without what this event would add to it.
    pub transaction: Option<&'a Transaction>,
}

/// Whether a connection counts when its session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It does.
    Open,
    /// The policy service has judged and counted it a moment ago, before the milter was asked.
    Counted,
}

/// Recipients that a client has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// In this session.
    pub in_session: u32,
    /// In this message.
    pub in_message: u32,
}

/// Whether a front reports that a session, or a message that never came, has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// It does: the milter protocol.
    Seen,
    /// It does not: the policy service. What only an end gives back must not be taken.
    Unseen,
    /// It does not, but a milter listener of ours holds the same session and judges it by every
    /// limit: here nothing is, or it would be charged twice.
    SeenElsewhere,
}

impl<'a> Context<'a> {
    /// The mail system the client belongs to. Found when it is first asked for, since it takes as
    /// long as all the rest of a decision.
    pub fn pool(&self) -> &'a Pool {
        self.pool.get_or_init(|| Pool::of_kind(self.client, self.name_kind()))
    }

    /// What the client's name says. It is looked through once in a session.
    pub fn name_kind(&self) -> NameKind {
        *self.kind.get_or_init(|| NameKind::of(self.client))
    }

    /// What the client has earned. Looked up when it is first asked for in a message, since it is
    /// a look into a large table.
    pub fn standing(&self) -> Standing {
        match self.client.authenticated() {
            true => Standing::Trusted,
            false => *self.earned.get_or_init(|| self.policy.standing(self)),
        }
    }

    /// The factor on its quotas, 1.0 while the host bears what comes.
    pub fn allowance(&self) -> f32 {
        self.policy.allowance(self)
    }

    /// The mode of a rule, whose own this is: an administrator may have taken it out.
    pub fn mode(&self, rule: &str, own: Mode) -> Mode {
        self.policy.by_hand.mode(rule, own, self.now)
    }

    /// What the event shows of the client's behaviour.
    pub fn seen(&self) -> &'a Seen {
        self.shows.get_or_init(|| self.policy.see(self))
    }

    /// How abnormal the client's sending is, with this event.
    pub fn score(&self) -> &'a Score {
        &self.seen().score
    }

    /// The envelope sender, from MAIL on.
    pub fn sender(&self) -> Option<&'a Address> {
        match self.event {
            Event::Mail { sender, .. } => Some(sender),
            _ => self.transaction.map(|transaction| &transaction.sender),
        }
    }

    /// The envelope recipient, at RCPT.
    pub fn recipient(&self) -> Option<&'a Address> {
        match self.event {
            Event::Recipient { address, .. } => Some(address),
            _ => None,
        }
    }
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

    /// Whether anybody has spoken against the event whose word counts.
    pub fn refuses(&self) -> bool {
        self.refusals.iter().any(|refusal| refusal.mode == Mode::Enforce)
    }

    /// Why the client is exempt, if it is.
    pub fn exemption(&self) -> Option<Exemption> {
        self.exemption
    }
}

/// What a session has taken and must give back, and what it must remember until its end. Its size
/// depends on the number of limits and on the recipients of one message, which the MTA bounds.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Places in gauges, until the session ends.
    pub(super) holds: Vec<Hold>,
    /// Charges for the message under way, until it is complete or has failed.
    pub(super) charges: Vec<Charge>,
    /// When the last recipient of this transaction may come back, if one must.
    pub(super) ready: Option<Ready>,
    /// Whether a recipient of this transaction was accepted that has waited, or is known.
    pub(super) one_has_waited: bool,
    /// What this transaction is refused for at DATA, since it could not be said at RCPT.
    pub(super) at_data: Option<Refusal>,
    /// Whether greylisting has just told this recipient's triplet to come back.
    pub(super) told_to_return: bool,
    /// Whether this message has been timed at MAIL, and whether it has been paid for.
    pub(super) paced: bool,
    pub(super) paid: bool,
    /// What it counts for among the open sessions, until it ends.
    pub(super) place: Option<Place>,
}
