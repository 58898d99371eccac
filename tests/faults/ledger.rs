//! What became of every message and recipient, by the mailbox of the Postfix that receives and the
//! log of the one that sends.

use std::collections::{BTreeMap, HashMap};

use super::load::{Fate, MARK, Sent};
use super::support::daemon::HOSTNAME;
use super::support::postfix::Postfix;

/// What the sending Postfix says of a message that it may have handed over without knowing.
const UNSURE: &str = "message may be sent more than once";

/// What the sending Postfix's log says of one recipient of one message.
#[derive(Default)]
struct Attempts {
    /// How the last one ended.
    status: String,
    dsn: String,
    reason: String,
    /// How often it could not know whether the message had been taken.
    unsure: u32,
}

/// A run's account, message by message and recipient by recipient.
#[derive(Default)]
pub struct Account {
    pub messages: usize,
    pub recipients: usize,
    pub delivered: usize,
    /// By the reason the sender last heard.
    pub deferred: BTreeMap<String, usize>,
    /// Not yet tried, or just being tried.
    pub untried: usize,
    /// Recipients with more than one copy, each after a connection that was lost between the dot and
    /// its reply (RFC 1047).
    pub twice: usize,
    /// Of clients without a queue: refused, with no copy; and without an answer to the dot, with a copy
    /// and without.
    pub refused: usize,
    pub unknown: (usize, usize),
    /// What must not be.
    pub wrong: Vec<String>,
}

impl Account {
    pub fn of(sent: &[Sent], sender: &Postfix, mx: &Postfix) -> Self {
        // The log first: what it says was sent is in the mailbox or on its way there.
        let log = sender.log();
        let (copies, attempts) = (copies(mx), attempts(&log));
        let mut account = Self { messages: sent.len(), ..Self::default() };
        for message in sent {
            for to in &message.recipients {
                account.recipients += 1;
                let key = (message.mark.clone(), to.clone());
                let copies = copies.get(&key).copied().unwrap_or(0);
                match &message.fate {
                    Fate::Queued(id) => {
                        let attempts = attempts.get(&(id.as_str(), to.as_str()));
                        account.queued(&key, attempts, copies);
                    }
                    fate => account.visitor(&key, fate, copies),
                }
            }
        }
        let permanent = |line: &&str| {
            ["status=bounced", "status=expired"].iter().any(|status| line.contains(status))
        };
        let mx_log = mx.log();
        account
            .wrong
            .extend(log.lines().chain(mx_log.lines()).filter(permanent).map(str::to_owned));
        account
    }

    fn queued(&mut self, key: &(String, String), attempts: Option<&Attempts>, copies: usize) {
        let Some(attempts) = attempts else {
            self.untried += 1;
            return self.none_of(key, copies, "before any attempt");
        };
        match (attempts.status.as_str(), copies) {
            ("sent", 0) => self.wrong.push(format!("{key:?} is lost")),
            ("sent", 1) => self.delivered += 1,
            // One that may have been taken, and waits for another attempt.
            ("deferred", 1) if attempts.unsure > 0 => self.delivered += 1,
            (_, 2..) if copies <= attempts.unsure as usize + 1 => {
                self.delivered += 1;
                self.twice += 1;
            }
            ("deferred", 0) if attempts.dsn.starts_with('4') => {
                *self.deferred.entry(attempts.reason.clone()).or_default() += 1;
            }
            (status, copies) => {
                let Attempts { dsn, reason, .. } = attempts;
                self.wrong.push(format!("{key:?}: {copies} copies, {status} {dsn} {reason}"));
            }
        }
    }

    fn visitor(&mut self, key: &(String, String), fate: &Fate, copies: usize) {
        match (fate, copies) {
            (Fate::Accepted, 0) => self.wrong.push(format!("{key:?} is lost")),
            (Fate::Accepted, 1) => self.delivered += 1,
            (Fate::Unknown, 0) => self.unknown.1 += 1,
            (Fate::Unknown, 1) => self.unknown.0 += 1,
            (Fate::Refused, _) => {
                self.refused += 1;
                self.none_of(key, copies, "though it was refused");
            }
            _ => self.wrong.push(format!("{key:?}: {copies} copies of one message")),
        }
    }

    fn none_of(&mut self, key: &(String, String), copies: usize, when: &str) {
        if copies > 0 {
            self.wrong.push(format!("{key:?}: {copies} copies {when}"));
        }
    }

    /// How many are in a queue.
    pub fn waiting(&self) -> usize {
        self.untried + self.deferred.values().sum::<usize>()
    }
}

/// How many copies there are of each message for each recipient.
fn copies(mx: &Postfix) -> HashMap<(String, String), usize> {
    let mut copies = HashMap::new();
    for message in mx.mailbox() {
        let header = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
        let to = header("Delivered-To: ").expect("virtual(8) writes it");
        let mark =
            header(MARK).unwrap_or_else(|| panic!("a message that was never sent: {message}"));
        *copies.entry((mark.to_owned(), to.to_owned())).or_default() += 1;
    }
    copies
}

/// By queue id and recipient.
fn attempts(log: &str) -> HashMap<(&str, &str), Attempts> {
    let mut attempts: HashMap<_, Attempts> = HashMap::new();
    for line in log.lines() {
        let Some((before, rest)) = line.split_once(": to=<") else { continue };
        let Some((to, rest)) = rest.split_once('>') else { continue };
        let id = before.rsplit(' ').next().expect("a split has a part");
        let value = |name: &str| rest.split_once(name).map_or("", |(_, rest)| rest);
        let (status, text) = value("status=").split_once(" (").unwrap_or_default();
        let attempt = attempts.entry((id, to)).or_default();
        attempt.status = status.to_owned();
        attempt.dsn = value("dsn=").split(',').next().unwrap_or_default().to_owned();
        attempt.reason = reason(text);
        attempt.unsure += u32::from(text.contains(UNSURE));
    }
    attempts
}

/// The reply that was heard, without what varies: `451 4.7.1 First contact`.
fn reason(text: &str) -> String {
    let said = text.split_once(" said: ").or_else(|| text.split_once("refused to talk to me: "));
    let said = said.map_or(text, |(_, said)| said);
    let said = said.split([';', '(']).next().unwrap_or_default().replace(HOSTNAME, "");
    let words: Vec<&str> = said.split_whitespace().take(12).collect();
    words.join(" ")
}
