//! What an administrator asks of one client: to explain it, to forget it, to let it through.
//!
//! Explaining assesses and never settles: nothing is changed by it. Beside the mail path.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipnet::IpNet;
use tracing::info;

use super::Engine;
use super::recent::{Decided, Most, Recalled};
use super::session::{Id, Visitor};
use super::{Door, Speak};
use crate::clock::Time;
use crate::meter::table::Full;
use crate::policy::Policy;
use crate::policy::allowed::Entry;
use crate::policy::explain::{Explained, Forgotten};
use crate::policy::signal::{Arrival, Ends};
use crate::setting::Mode;
use crate::smtp::address::{Address, ClientText};
use crate::smtp::client::Client;
use crate::smtp::event::{Event, Fate};
use crate::smtp::transaction::Transaction;

impl Engine {
    /// Everything that is known of a client by its address, and of one of its senders if it is said.
    /// Its name is the one that is said, else the one that the last decision about it has told.
    pub fn explain(&self, address: IpAddr, name: Option<&str>, sender: Option<&str>) -> Explained {
        let client = match name {
            Some(name) => Client::new(address).named(name),
            None => self.client(address),
        };
        self.explained(client, "".into(), sender, None)
    }

    /// The last decisions about this sender, or about those of this domain: the newest first, as
    /// many as are asked for.
    pub fn decisions_about(&self, sender: &str, most: usize) -> Vec<Recalled> {
        let recalled = |decided: Decided| {
            let id = Id(decided.id).to_string();
            decided.recalled(id)
        };
        self.recent.about(&address_or_domain(sender), most).into_iter().map(recalled).collect()
    }

    fn explained(
        &self,
        client: Client,
        listener: Arc<str>,
        sender: Option<&str>,
        recipient: Option<&str>,
    ) -> Explained {
        let (at, policy) = (self.moment(), self.policy.load());
        let visitor = self.visitor(&policy, client, listener);
        let transaction = sender.map(|sender| Transaction::new(address(sender), None));
        let begins = Event::Connect;
        let alone = visitor.context(&policy, at, &begins, None);
        // So that neither is asked for with an envelope, which would count as a sighting.
        let _ = (alone.seen(), alone.standing());
        let event = match recipient {
            Some(recipient) => {
                Event::Recipient { address: address(recipient), fate: Fate::Offered }
            }
            None => Event::Connect,
        };
        policy.explain(&alone, &visitor.context(&policy, at, &event, transaction.as_ref()))
    }

    /// The decision of this id as it was told, and everything that is known of its client now;
    /// nothing if it is not among the last [`super::recent::MOST`].
    pub fn explain_decision(&self, id: &str) -> Option<(Recalled, Explained)> {
        let id = Id::parse(id)?;
        let decided = self.recent.find(id.0)?;
        let (sender, recipient) = (decided.sender.as_deref(), decided.recipient.as_deref());
        let listener = decided.listener.clone();
        let explained = self.explained(decided.client(), listener, sender, recipient);
        Some((decided.recalled(id.to_string()), explained))
    }

    /// Whom each rule has refused most in the last hour, and whom it would have while it was a shadow,
    /// among the last [`super::recent::MOST`] decisions.
    pub fn refused_most(&self) -> HashMap<(Arc<str>, Mode), Most> {
        let now = self.clock.now().as_nanos();
        self.recent.most(Time::from_nanos(now.saturating_sub(3_600_000_000_000)))
    }

    /// Forgets what is known of a client, as far as it is kept under the client alone.
    pub fn forget(&self, address: IpAddr) -> Forgotten {
        let (at, policy) = (self.moment(), self.policy.load());
        let visitor = self.visitor(&policy, self.client(address), "".into());
        let event = Event::Connect;
        policy.forget(&visitor.context(&policy, at, &event, None))
    }

    /// Exempts a network until that moment, as if it stood on the allowlist.
    pub fn allow(&self, network: IpNet, until: Time) -> Result<(), Full> {
        self.memory.allowed.begin(network, until, self.clock.now())
    }

    /// Ends that; whether there was anything to end.
    pub fn allow_no_more(&self, network: IpNet) -> bool {
        self.memory.allowed.end(network)
    }

    /// Everything that is allowed by hand now.
    pub fn allowed(&self) -> Vec<Entry> {
        self.memory.allowed.all(self.moment())
    }

    /// Until when behaviour only watches because the database is new.
    pub fn learning_until(&self) -> Option<Time> {
        self.policy.load().learning_until(self.clock.now())
    }

    /// Tells that behaviour only watches, and when that ends; each once.
    pub fn tell_learning(&self) {
        let until = self.learning_until();
        let told = until.map_or(0, Time::as_nanos);
        let before = self.told_learning.swap(told, Ordering::Relaxed);
        match until {
            Some(until) if before != told => info!(%until, "behaviour only watches"),
            None if before != 0 => {
                info!("behaviour no longer only watches: its settings are in force")
            }
            _ => {}
        }
    }

    /// A client of whom nothing but the address is known, and perhaps the name.
    fn client(&self, address: IpAddr) -> Client {
        let client = self.policy.load().recognised(Client::new(address), self.moment());
        match self.recent.name(client.address()) {
            Some(name) => client.named(&name),
            None => client.of_unsure_name(),
        }
    }

    fn visitor(&self, policy: &Policy, client: Client, listener: Arc<str>) -> Visitor {
        let door = Door {
            address: listener.clone(),
            hostname: None,
            listener,
            speak: Speak::default(),
            ends: Ends::Seen,
            rehearsal: true,
        };
        Visitor::new(policy, self.moment(), client, Arrival::Open, door)
    }
}

impl Decided {
    fn client(&self) -> Client {
        let client = Client::new(self.client);
        let mut client = match &self.name {
            Some(name) => client.named(name),
            None => client.of_unsure_name(),
        };
        let text = |text: &Option<Box<str>>| text.as_ref().map(|t| ClientText::new(t.as_bytes()));
        (client.helo, client.user) = (text(&self.helo), text(&self.user));
        client
    }
}

/// `<>` for the null sender, `name@domain` in the words of decisions, or a domain.
fn address_or_domain(text: &str) -> String {
    match text.contains('@') && !text.starts_with('@') {
        true => address(text).as_str().to_owned(),
        false if text == "<>" => String::new(),
        false => format!("@{}", text.trim_start_matches('@').to_ascii_lowercase()),
    }
}

fn address(text: &str) -> Address {
    Address::new(text.as_bytes())
}
