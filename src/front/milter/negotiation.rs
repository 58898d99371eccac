//! The negotiation: which steps of a session the MTA shows us, and which macros with them.

use indymilter::message::PROTOCOL_VERSION;
use indymilter::message::reply::ReplyKind;
use indymilter::{Actions, MacroStage, ProtoOpts};

use super::wire::{Nonsense, put};
use crate::engine::Speak;
use crate::policy::Policy;

/// No unknown commands, headers or body, but recipients that the MTA has refused: seven round
/// trips a message, and the body never crosses the socket.
const ALWAYS: ProtoOpts = ProtoOpts::NO_UNKNOWN
    .union(ProtoOpts::NO_HEADER)
    .union(ProtoOpts::NO_EOH)
    .union(ProtoOpts::NO_BODY)
    .union(ProtoOpts::REJECTED_RCPT);

/// What is asked of an MTA for sessions under this policy, by a listener that speaks then.
pub(super) fn wanted(policy: &Policy, speak: Speak) -> ProtoOpts {
    let mut wanted = ALWAYS;
    // Never together with unknown commands: then Postfix hangs.
    wanted.set(ProtoOpts::NO_DATA, !policy.speaks_at_data());
    // HELO still comes and counts; what it brings up is said at MAIL.
    wanted.set(ProtoOpts::NOREPLY_HELO, speak == Speak::Mail);
    wanted
}

/// Macros by the stage in which they are read, in the order of the stages' numbers.
const MACROS: [(MacroStage, &[u8]); 5] = [
    (
        MacroStage::Connect,
        b"j {client_addr} {client_ptr} {client_resolve} {client_connections} {daemon_name} {daemon_port}\0",
    ),
    (MacroStage::Mail, b"{auth_authen} {auth_type} {mail_addr} {tls_version}\0"),
    (MacroStage::Rcpt, b"{rcpt_mailer} {rcpt_host} {rcpt_addr}\0"),
    (MacroStage::Eom, b"i {msg_size}\0"),
    // Sendmail 8.17 sends the macros of the end of message only to who has asked for some at the
    // end of the header as well: its milter.c tests the wrong flag.
    (MacroStage::Eoh, b"i\0"),
];

/// What an MTA offers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    version: u32,
    actions: Actions,
    options: ProtoOpts,
}

/// The oldest version that is spoken, and what an MTA of it means by offering nothing: libmilter's
/// SMFI_V1_ACTS and SMFI_V1_PROT.
const OLDEST: u32 = 2;
const OLD_OPTIONS: ProtoOpts = ProtoOpts::NO_CONNECT
    .union(ProtoOpts::NO_HELO)
    .union(ProtoOpts::NO_MAIL)
    .union(ProtoOpts::NO_RCPT)
    .union(ProtoOpts::NO_HEADER)
    .union(ProtoOpts::NO_BODY);

impl Offer {
    /// Reads it. Three numbers; what a newer MTA adds is passed over.
    pub(super) fn read(payload: &[u8]) -> Result<Self, Nonsense> {
        let incomplete = Nonsense::Payload(indymilter::message::command::CommandKind::OptNeg);
        let number = |at: usize| {
            let bytes = payload.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or(incomplete)
        };
        let (version, actions, options) = (number(0)?, number(4)?, number(8)?);
        if version < OLDEST {
            return Err(Nonsense::Version(version));
        }
        let options = match ProtoOpts::from_bits_truncate(options) {
            nothing if nothing.is_empty() => OLD_OPTIONS,
            options => options,
        };
        Ok(Self { version, actions: Actions::from_bits_truncate(actions), options })
    }

    /// Of what we want, what it offers.
    pub(super) fn agree(&self, wanted: ProtoOpts) -> ProtoOpts {
        wanted & self.options
    }

    /// Answers it: no message is ever changed, so no action is asked for.
    pub(super) fn answer(&self, agreed: ProtoOpts, out: &mut Vec<u8>) {
        put(out, ReplyKind::OptNeg, |out| {
            let version = self.version.min(PROTOCOL_VERSION);
            for number in [version, Actions::empty().bits(), agreed.bits()] {
                out.extend_from_slice(&number.to_be_bytes());
            }
            if self.actions.contains(Actions::REQUEST_MACROS) {
                for (stage, names) in MACROS {
                    out.extend_from_slice(&i32::from(stage).to_be_bytes());
                    out.extend_from_slice(names);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_the_mta_is_what_the_design_measured() {
        assert_eq!(ALWAYS.bits(), 0x970);
    }
}
