//! What each term rests on, in plain words.

use std::fmt::Display;

use super::{DAY, EARNED_BY_NETWORK, Hygiene, Neighbourhood, Returns, Sender, Term, seconds};
use crate::clock::Time;

impl Sender {
    /// What a term rests on, as of now. Both have been faded.
    pub fn inputs(
        &self,
        term: Term,
        network: &Neighbourhood,
        returns: &Returns,
        now: Time,
    ) -> String {
        let whole = |number: f32| rounded(f64::from(number)).to_string();
        let of = |part: f32, all: f32| format!("{part:.0} of {all:.0}");
        let enough = |text: String, has: f32, least: f32| match has >= least {
            true => text,
            false => format!("{text} (too few to tell: {least:.0} are needed)"),
        };
        let messages = self.messages[0].saturating_add(self.messages[1]);
        match term {
            Term::Velocity => {
                let (sent, earned) = (whole(self.per_hour), self.earned());
                let new = of(self.hour_new, self.hour);
                format!("{sent} messages an hour, {earned:.0} earned; new recipients: {new}")
            }
            Term::ColdBurst => {
                let age = seconds(now).saturating_sub(u64::from(self.first)) as f64;
                match age < DAY {
                    true => format!("{} messages on its first day", whole(self.per_day)),
                    false => "its first day is over".to_owned(),
                }
            }
            Term::Regular => {
                let variance = self.gap_m2 / self.gaps.max(1.0);
                let factor = variance.max(0.0).sqrt().exp();
                let text = format!(
                    "the gaps between {} sessions vary by a factor of {factor:.1}; people's vary \
                     by 4 and more",
                    whole(self.gaps)
                );
                enough(text, self.gaps, 14.0)
            }
            Term::Nightless => {
                let total: f32 = self.hours.iter().sum();
                let busy = self.hours.iter().filter(|hour| **hour >= 0.5).count();
                let text =
                    format!("{total:.0} messages in two weeks, in {busy} of the day's 24 hours");
                enough(text, total, 48.0)
            }
            Term::FirstContact => {
                let text = of(self.week_new, self.week);
                let text = format!("{text} recipients of the last week were new to its network");
                enough(text, self.week, 12.0)
            }
            Term::SenderChurn => {
                let domains = some(self.domains.count(), "sender domain");
                let text = format!("{domains} in {messages} messages of a day");
                enough(text, messages.into(), 8.0)
            }
            Term::UnknownRecipients => {
                let all = self.known + self.unknown;
                let text = of(self.unknown, all);
                enough(format!("{text} recipients of the last day do not exist"), all, 4.0)
            }
            Term::Helo => self.hygiene.words().to_owned(),
            Term::HeloChurn => format!("{} in a day", some(self.helos.count(), "HELO name")),
            Term::Swarm | Term::NetworkVelocity if !self.is_new() => {
                "it is not a new host in its network".to_owned()
            }
            Term::Swarm => {
                format!("new hosts of {} in its network", some(network.names.count(), "name"))
            }
            Term::NetworkVelocity => {
                let others = whole((network.per_hour - self.per_hour).max(0.0));
                format!(
                    "{others} messages an hour of other new hosts of its network, \
                     {EARNED_BY_NETWORK:.0} are usual"
                )
            }
            Term::Retry => {
                let [never, early, proper] =
                    [returns.never, returns.early, returns.proper].map(tenths);
                format!(
                    "deferred in the last week: {never} never retried, {early} retried within a \
                     minute, {proper} in time"
                )
            }
            Term::Trust => {
                let (days, good) = (self.clean_days, whole(self.trust));
                format!("{days} clean days, {good} good recipients recently")
            }
            Term::Conversation => {
                let text = of(self.answered, self.week);
                let text =
                    format!("{text} recipients of the last week have written to its senders");
                enough(text, self.week, 5.0)
            }
        }
    }

    /// When it was first seen.
    pub fn first(&self) -> Time {
        Time::from_secs(self.first.into())
    }
}

/// So many of it: one name, two names.
fn some(number: f64, what: &str) -> String {
    let plural = if (number - 1.0).abs() < 0.5 { "" } else { "s" };
    format!("{} {what}{plural}", rounded(number))
}

/// To the next whole number, which is never "-0".
fn rounded(number: f64) -> impl Display {
    number.round() + 0.0
}

fn tenths(number: f32) -> impl Display {
    (f64::from(number) * 10.0).round() / 10.0 + 0.0
}

impl Hygiene {
    /// What it says, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Good => "nothing odd about its names",
            Self::Literal => "its HELO is a bare address",
            Self::NotQualified => "its HELO is a word without a dot",
            Self::Nameless => "its address has no forward-confirmed name",
            Self::Generic => "its name is made from its address, as access networks do",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Peer, Sighting, Weights};
    use super::*;
    use std::time::Duration;

    use crate::clock::Moment;

    const NOW: Time = Time::from_secs(1_800_000_000);

    #[test]
    fn no_number_is_less_than_nothing() {
        assert_eq!(some(-0.0, "name"), "0 names");
        assert_eq!(some(-0.3, "name"), "0 names");
        assert_eq!(some(1.2, "name"), "1 name");
    }

    /// A client that has sent so many messages at once, all to recipients that do not exist.
    fn harvester(messages: u64) -> Sender {
        let mut sender = Sender::default();
        sender.fade(Moment::of(NOW));
        for number in 0..messages {
            let sighting = Sighting {
                message: true,
                session: number == 0,
                peer: Peer { hygiene: Hygiene::Literal, helo: 1 },
                domain: 7,
                organisation: 9,
                stranger: true,
                exists: false,
                answered: false,
                awaited: None,
                known_by_size: false,
            };
            sender.see(&sighting, Duration::ZERO, NOW);
        }
        sender
    }

    #[test]
    fn terms_are_told_with_what_they_rest_on() {
        let (sender, network) = (harvester(85), Neighbourhood::default());
        let returns = Returns::default();
        let says = |term| sender.inputs(term, &network, &returns, NOW);
        assert_eq!(
            says(Term::Velocity),
            "85 messages an hour, 30 earned; new recipients: 85 of 85"
        );
        assert_eq!(says(Term::ColdBurst), "85 messages on its first day");
        assert_eq!(
            says(Term::UnknownRecipients),
            "60 of 60 recipients of the last day do not exist"
        );
        assert_eq!(says(Term::Helo), "its HELO is a bare address");
        assert_eq!(says(Term::HeloChurn), "1 HELO name in a day");
        assert_eq!(says(Term::SenderChurn), "1 sender domain in 85 messages of a day");
        let score = sender.score(&network, &returns, &Weights::default(), NOW);
        let loudest = score.largest().map(|(term, _)| term).next();
        assert_eq!(loudest, Some(Term::UnknownRecipients));
    }

    #[test]
    fn what_is_too_little_to_tell_is_said_so() {
        let (network, returns) = (Neighbourhood::default(), Returns::default());
        let says = harvester(2).inputs(Term::UnknownRecipients, &network, &returns, NOW);
        assert_eq!(
            says,
            "2 of 2 recipients of the last day do not exist (too few to tell: 4 are \
                          needed)"
        );
        let nothing = Sender::default();
        for term in Term::ALL {
            let says = nothing.inputs(term, &network, &returns, NOW);
            assert!(!says.is_empty() && !says.contains("NaN"), "{says}");
        }
    }
}
