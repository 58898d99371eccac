//! What is known of a client, put so that people can read it. Made by reading only.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::standing::Standing;
use crate::clock::Time;
use crate::setting::Mode;

/// How a client stands, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// Its address.
    pub client: IpAddr,
    /// Its name, where one of the last decisions about it has told it.
    pub name: Option<String>,
    /// What it counts under.
    pub network: String,
    /// The mail system it belongs to, as far as its name is known.
    pub pool: String,
    /// What it has earned.
    pub standing: Standing,
    /// Its behaviour; nothing where `[behaviour]` is off.
    pub behaviour: Option<Behaved>,
    /// Every limit in force.
    pub limits: Vec<Limited>,
    /// What greylisting makes of it; nothing where `[greylist]` is off.
    pub greylist: Option<Greylisted>,
    /// What exempts it, or would.
    pub access: Accessed,
}

/// How it behaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Behaved {
    /// Whether the signal acts now.
    pub mode: Mode,
    /// Until when it only watches, if the database is new.
    pub learning_until: Option<Time>,
    /// Whether anything is remembered of the client.
    pub known: bool,
    /// When it was first seen.
    pub first: Option<Time>,
    /// When it was last seen.
    pub last: Option<Time>,
    /// The score, as of now.
    pub score: f64,
    /// What that amounts to: `calm`, `suspect`, `abnormal` or `extreme`.
    pub stage: String,
    /// The scores at which suspect, abnormal and extreme begin.
    pub from: [f64; 3],
    /// Every term, those that speak loudest first.
    pub terms: Vec<Spoken>,
    /// How fast it may send.
    pub pace: Paced,
}

/// One term of the score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spoken {
    /// Its name.
    pub term: String,
    /// What it adds.
    pub adds: f64,
    /// What it rests on, in plain words.
    pub inputs: String,
}

/// How fast a client may send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paced {
    /// Messages an hour; nothing: as many as it likes.
    pub per_hour: Option<f64>,
    /// When the next one may come.
    pub next: Time,
    /// How long that is from now, in milliseconds.
    pub wait_ms: u64,
    /// Whether its whole network shares this pace.
    pub shared: bool,
}

/// What one limit has counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limited {
    /// Its name.
    pub name: String,
    /// Whether it acts.
    pub mode: Mode,
    /// What it counts.
    pub count: String,
    /// What it counts under.
    pub per: Vec<String>,
    /// What must be known besides, before it can be told what has been counted.
    pub needs: Vec<String>,
    /// Whether its `when` does not apply to this client.
    pub applies: bool,
    /// What is in use.
    pub value: Option<String>,
    /// What it is measured against.
    pub threshold: String,
    /// When the next one may pass; nothing: now, or when a session ends.
    pub next: Option<Time>,
    /// When nothing is in use any more; nothing: now, or when sessions end.
    pub clears: Option<Time>,
    /// Offences that lengthen the wait.
    pub offences: u8,
}

/// What greylisting makes of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Greylisted {
    /// Whether it acts.
    pub mode: Mode,
    /// Whether first contacts of this client wait, as far as can be told without an envelope.
    pub applies: bool,
    /// How often it has come back.
    pub passes: u32,
    /// How often it takes to be proven.
    pub proven_after: u32,
    /// Until when it is proven, if it is.
    pub proven_until: Option<Time>,
    /// First contacts of its network that wait, at most.
    pub pending: u32,
    /// How many may.
    pub max_pending: u32,
    /// How long a first contact waits, in seconds.
    pub delay_secs: u64,
    /// What is known of the sender and recipient of the decision that was asked about.
    pub triplet: Option<String>,
    /// Whether these have waited long enough, or are known.
    #[serde(default)]
    pub waited: bool,
    /// When these may come back, if they must.
    pub ready: Option<Time>,
}

/// What exempts a client, or would.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accessed {
    /// The entry of the allowlist that exempts it.
    pub allowed: Option<String>,
    /// The entry of the denylist that puts it off.
    pub denied: Option<String>,
    /// Until when it is allowed by hand.
    pub allowed_until: Option<Time>,
    /// Whether it would be exempt if it authenticated.
    pub authentication_exempts: bool,
}

/// What came of forgetting a client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forgotten {
    /// What was forgotten.
    pub forgotten: Vec<String>,
    /// What could not be found, or was left.
    pub left: Vec<String>,
}
