//! `when = { … }`: to whom and to what a rule applies.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::access::is_known_by_another;
use super::signal::Context;
use super::standing::Standing;
use crate::setting::Complaint;
use crate::smtp::address::Address;
use crate::smtp::domain::Domain;
use crate::smtp::event::Kind;
use crate::smtp::pool::NameKind;
use crate::smtp::translation::Translation;

/// Conditions of a rule. All that are named must hold; one about something that is not known at
/// the event does not hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct When {
    /// The client's standing is one of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standing: Option<Vec<Standing>>,
    /// The client's score is above this. Where `[behaviour]` is off, it never is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_above: Option<f64>,
    /// The client came by one of these listeners, by their addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<Vec<String>>,
    /// The client's address is in one of these networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Vec<IpNet>>,
    /// Whether the session is encrypted. Known from MAIL on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// Whether the client has authenticated. Known from MAIL on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticated: Option<bool>,
    /// The sender's domain is one of these. Known from MAIL on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_domain: Option<Vec<Domain>>,
    /// The recipient's domain is one of these, or cannot be told from its spelling. Known at RCPT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient_domain: Option<Vec<Domain>>,
    /// What the client is called. While its name cannot be looked up, it is none of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Vec<NameKind>>,
}

impl When {
    /// Whether nothing is asked.
    pub fn is_always(&self) -> bool {
        *self == Self::default()
    }

    /// The first event at which everything asked is known, and the condition that is known last.
    pub fn known_at(&self) -> (Kind, &'static str) {
        let conditions = [
            (self.recipient_domain.is_some(), Kind::Recipient, "recipient_domain"),
            (self.sender_domain.is_some(), Kind::Mail, "sender_domain"),
            (self.tls.is_some(), Kind::Mail, "tls"),
            (self.authenticated.is_some(), Kind::Mail, "authenticated"),
        ];
        let asked = conditions.into_iter().find(|(asked, ..)| *asked);
        asked.map_or((Kind::Connect, "standing"), |(_, kind, name)| (kind, name))
    }

    /// Why no client is in one of the networks, with these translators.
    pub fn check(&self, translators: &[Translation]) -> Option<Complaint> {
        let networks = self.network.iter().flatten();
        let mut wrong = networks.filter_map(|net| is_known_by_another(net, translators));
        wrong.next().map(|why| Complaint::error("when", why.to_string()))
    }

    /// Whether the rule applies to this event.
    pub fn holds(&self, cx: &Context<'_>) -> bool {
        let is_domain = |domains: &Vec<Domain>, sender: &Address| {
            domains.iter().any(|domain| domain.as_str() == sender.domain())
        };
        let may_be_at = |domains: &Vec<Domain>, recipient: &Address| {
            let recipients = cx.policy.recipients();
            domains.iter().any(|domain| recipients.may_be_at(recipient, domain.as_str()))
        };
        let within = |networks: &Vec<IpNet>, address: IpAddr| {
            networks.iter().any(|network| network.contains(&address))
        };
        let asked = |condition: Option<bool>| condition.unwrap_or(true);
        let from_mail_on = cx.sender().is_some();
        asked(self.standing.as_ref().map(|standings| standings.contains(&cx.standing())))
            && asked(self.score_above.map(|above| cx.score().total > above))
            && asked(self.listener.as_ref().map(|all| all.iter().any(|l| l == cx.listener)))
            && asked(self.network.as_ref().map(|all| within(all, cx.client.address())))
            && asked(self.tls.map(|tls| from_mail_on && tls == cx.client.tls))
            && asked(self.authenticated.map(|a| from_mail_on && a == cx.client.authenticated()))
            && asked(
                self.sender_domain
                    .as_ref()
                    .map(|all| cx.sender().is_some_and(|sender| is_domain(all, sender))),
            )
            && asked(
                self.recipient_domain
                    .as_ref()
                    .map(|all| cx.recipient().is_some_and(|to| may_be_at(all, to))),
            )
            && asked(
                self.name
                    .as_ref()
                    .map(|kinds| !cx.client.name_is_unsure() && kinds.contains(&cx.name_kind())),
            )
    }
}
