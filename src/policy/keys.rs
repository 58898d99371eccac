//! The keys of what a session's limits and triplets are kept under, each made once.
//!
//! Making a key costs more than anything else about a decision, and a message asks for the same
//! ones a dozen times. So it is the parts that are hashed (this network, that sender), and what is
//! kept under several of them has the key of all of them together ([`Key::with`]).

use std::borrow::Cow;
use std::cell::OnceCell;

use super::Policy;
use super::signal::Context;
use crate::meter::key::Key;
use crate::smtp::address::{Address, folded};
use crate::smtp::client::Network;
use crate::smtp::event::Event;
use crate::smtp::pool;

/// The keys of one session that have been asked for.
#[derive(Debug, Default)]
pub struct Keys {
    network: OnceCell<Key>,
    pool: OnceCell<Key>,
    neighbourhood: OnceCell<Key>,
    /// Of the message under way.
    sender: OnceCell<Key>,
    /// The same, without what changes from message to message.
    sender_without_tags: OnceCell<Key>,
    /// Of the last recipient.
    recipient: OnceCell<Key>,
}

impl Keys {
    /// Forgets what this event changes.
    pub fn begin(&mut self, event: &Event) {
        match event {
            Event::Mail { .. } => {
                self.sender = OnceCell::new();
                self.sender_without_tags = OnceCell::new();
            }
            Event::Recipient { .. } => self.recipient = OnceCell::new(),
            _ => {}
        }
    }
}

impl Context<'_> {
    /// The key of one part, which its purpose keeps apart from all others.
    pub fn key(&self, purpose: &str, value: &[u8]) -> Key {
        self.policy.key(purpose, value)
    }

    /// The network's.
    pub fn network_key(&self) -> Key {
        *self.keys.network.get_or_init(|| self.key_of(self.network))
    }

    /// That of any network.
    pub fn key_of(&self, network: Network) -> Key {
        self.key("network", &network.octets())
    }

    /// The pool's.
    pub fn pool_key(&self) -> Key {
        *self.keys.pool.get_or_init(|| self.key("pool", &self.pool().octets()))
    }

    /// That of the networks that the client's is one of: what its neighbours share.
    pub fn neighbourhood_key(&self) -> Key {
        let make =
            || self.key("neighbourhood", &pool::neighbourhood(self.client.address()).octets());
        *self.keys.neighbourhood.get_or_init(make)
    }

    /// The sender's, from MAIL on.
    pub fn sender_key(&self) -> Option<Key> {
        let make = |sender: &Address| self.key("sender", folded(sender.as_str()).as_bytes());
        self.sender().map(|sender| *self.keys.sender.get_or_init(|| make(sender)))
    }

    /// The sender's without what changes from message to message, from MAIL on.
    pub fn sender_key_without_tags(&self) -> Option<Key> {
        let make = |sender: &Address| self.key("sender", sender.without_tags().as_bytes());
        self.sender().map(|sender| *self.keys.sender_without_tags.get_or_init(|| make(sender)))
    }

    /// Of what the sender has written to the recipient, at RCPT.
    pub fn talk_key(&self) -> Option<Key> {
        talk(self.policy, self.sender()?, self.recipient()?)
    }

    /// Of what the recipient has written to the sender, at RCPT.
    pub fn answer_key(&self) -> Option<Key> {
        talk(self.policy, self.recipient()?, self.sender()?)
    }

    /// The recipient's, at RCPT.
    pub fn recipient_key(&self) -> Option<Key> {
        let mailbox = |recipient| self.policy.recipients().mailbox(recipient);
        let make = |recipient| self.key("recipient", mailbox(recipient).as_bytes());
        self.recipient().map(|recipient| *self.keys.recipient.get_or_init(|| make(recipient)))
    }

    /// The mailbox by which the recipient counts, at RCPT.
    pub fn recipient_mailbox(&self) -> Option<Cow<'_, str>> {
        self.recipient().map(|recipient| self.policy.recipients().mailbox(recipient))
    }
}

/// Of what one has written to another; none where it is nobody.
pub(super) fn talk(policy: &Policy, from: &Address, to: &Address) -> Option<Key> {
    let part = |address: &Address| policy.key("talk", address.without_tags().as_bytes());
    (!from.is_null() && !to.is_null()).then(|| part(from).with(part(to)))
}
