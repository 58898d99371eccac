//! How often may a session be refused before the MTA hangs up by itself?
//!
//! Postfix does at the 20th refused command of a session, its own refusals included, unless a
//! message was delivered between (`smtpd_hard_error_limit`; under stress at the first). Then the
//! recipients accepted before are lost, and the client repeats exactly that at every retry. So
//! beyond `most_refusals` no recipient is refused beside one that was accepted:
//!
//! - a limit lets it pass, as a debt: it is charged, and later messages wait for it;
//! - greylisting lets it pass, where one that has waited was accepted beside it;
//! - a requirement of `[access]` never passes: the whole transaction is refused at DATA.
//!
//! Where nothing was accepted there is nothing to lose: the answer is 421, which a client takes as
//! it takes every 421, whatever the rule. The same where all that was accepted is exempt: else a
//! message to the postmaster would carry a thousand others past every limit.
//!
//! Every refusal of a recipient goes through `bend`, and every answer to an MTA through the
//! [`Patience`] of its session.

use super::decision::{Reason, Refusal};
use super::signal::{Context, Ends, Ledger};
use crate::setting::Mode;
use crate::smtp::event::Event;
use crate::smtp::reply::{Action, Code};

/// What a session has used of its MTA's patience.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// Refusals since the last delivery, the MTA's own that we see among them.
    pub refused: u32,
    /// Whether the MTA hangs up at the next one already.
    pub stress: bool,
}

impl Patience {
    /// Something was refused.
    pub fn strain(&mut self) {
        self.refused = self.refused.saturating_add(1);
    }

    /// A message was delivered.
    pub fn restore(&mut self) {
        self.refused = 0;
    }

    /// Whether another refusal may make the MTA hang up.
    pub fn is_spent(self, most_refusals: u32) -> bool {
        self.stress || self.refused >= most_refusals
    }
}

/// What becomes of a refusal that the MTA would have hung up at.
pub(super) enum Bent {
    /// It is said.
    Said(Refusal),
    /// It is not: the recipient passes.
    Spared(Refusal),
    /// The recipient passes, and the transaction is refused at DATA.
    AtData(Refusal),
}

/// What is said instead of this refusal, once patience is spent.
pub(super) fn bend(cx: &Context<'_>, ledger: &Ledger, refusal: Refusal) -> Bent {
    if refusal.mode != Mode::Enforce || refusal.action() == Action::Close && !accepted(cx) {
        return Bent::Said(refusal);
    }
    match (cx.event, refusal.why.reason()) {
        // It refuses what was accepted before as well, so that nothing more is lost with the session.
        (Event::Data { .. }, _) => Bent::Said(refusal),
        (Event::Recipient { .. }, Reason::Rate)
            if judged(cx) || refusal.binds_exempt && accepted(cx) =>
        {
            Bent::Spared(refusal)
        }
        (Event::Recipient { .. }, Reason::Greylist) if ledger.one_has_waited => {
            Bent::Spared(refusal)
        }
        // A policy service may never be asked about DATA.
        (Event::Recipient { .. }, Reason::Access) if accepted(cx) && cx.ends == Ends::Seen => {
            Bent::AtData(refusal)
        }
        _ => Bent::Said(closing(refusal)),
    }
}

/// The same, and the session is closed.
pub(super) fn closing(refusal: Refusal) -> Refusal {
    Refusal { code: Code::Code421, ..refusal }
}

/// As it is said at DATA: the session goes on.
pub(super) fn at_data(refusal: &Refusal) -> Refusal {
    Refusal { code: Code::Code450, ..refusal.clone() }
}

fn accepted(cx: &Context<'_>) -> bool {
    cx.transaction.is_some_and(|transaction| transaction.accepted > 0)
}

/// Whether a recipient was accepted that no exemption covers.
fn judged(cx: &Context<'_>) -> bool {
    cx.transaction.is_some_and(|transaction| transaction.judged > 0)
}
