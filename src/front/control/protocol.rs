//! The words of the control socket: one request a line, one answer a line, both JSON.
//!
//! ```text
//! {"request":"status"}
//! {"request":"maintenance-on","for":"30m","listener":"inet:127.0.0.1:7421"}
//! {"maintenance":{"now":[...],"ended":[],"kept":true,"warnings":[]}}
//! {"error":{"kind":"request","message":"..."}}
//! ```
//!
//! A new request is a variant of [`Request`], perhaps one of [`Answer`], an arm where the front
//! answers (`desk`), its option in `tool/command`, and what people read of the answer in `tool/ctl`.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::status::{Closed, Status};
use crate::clock::Time;
use crate::engine::recent::Recalled;
use crate::meter::units::Span;
use crate::policy::explain::Explained;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How are you?
    Status {},
    /// Read the settings again.
    Reload {},
    /// Put off new sessions for a while.
    MaintenanceOn {
        /// For so long from now.
        #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
        lasting: Option<Span>,
        /// Until then; not both.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Time>,
        /// At this listener only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
    },
    /// Let them in again.
    MaintenanceOff {
        /// What was closed for this listener; without one, everything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
    },
    /// How does this client stand, or what was this decision?
    Explain {
        /// The client's address, or the id of a decision; without it, the sender is asked about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        what: Option<String>,
        /// The client's name, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// A sender: that of the client, or of any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<String>,
    },
    /// Forget what is known of a client.
    Forget {
        /// Its address.
        client: IpAddr,
    },
    /// Let a client through for a while, as if it stood on the allowlist.
    Allow {
        /// Its address, or a network.
        client: String,
        /// For so long from now.
        #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
        lasting: Option<Span>,
        /// However wide the network is.
        #[serde(default, skip_serializing_if = "is_not")]
        force: bool,
    },
    /// No longer.
    AllowOff {
        /// As it was said.
        client: String,
    },
    /// Let everything pass for a while.
    BypassOn {
        /// For so long from now.
        #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
        lasting: Option<Span>,
    },
    /// The rules hold again.
    BypassOff {},
    /// Make a shadow of one rule for a while.
    Shadow {
        /// The limit's name, or the signal's.
        rule: String,
        /// For so long from now.
        #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
        lasting: Option<Span>,
    },
    /// It holds again.
    ShadowOff {
        /// As it was said.
        rule: String,
    },
}

fn is_not(said: &bool) -> bool {
    !said
}

impl Request {
    /// Reads a line. Who asks for what does not exist is told what does.
    pub fn parse(line: &[u8]) -> Result<Self, Trouble> {
        serde_json::from_slice(line).map_err(|error| {
            let known = Self::names().join(", ");
            let message = format!(
                "expected a line such as {{\"request\":\"status\"}}: {error}; requests are {known}"
            );
            Trouble { kind: Kind::Request, message }
        })
    }

    /// Its name, as it stands in a line.
    pub fn name(&self) -> String {
        let line = serde_json::to_value(self).unwrap_or_default();
        line["request"].as_str().unwrap_or_default().to_owned()
    }

    /// All of them by their names, as the reader of lines has them from the variants.
    pub fn names() -> Vec<String> {
        let none: Result<Self, _> = serde_json::from_str(r#"{"request":""}"#);
        let expected = none.err().map(|error| error.to_string()).unwrap_or_default();
        let names = expected.split('`').skip(1).step_by(2).filter(|name| !name.is_empty());
        names.map(ToOwned::to_owned).collect()
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To `status`.
    Status(Box<Status>),
    /// To `reload`.
    Reload(Reloaded),
    /// To `maintenance-on` and `maintenance-off`.
    Maintenance(Maintained),
    /// To `explain`.
    Explained(Box<Told>),
    /// To `explain` of a sender alone.
    Sender(OfSender),
    /// To `forget`.
    Forgotten(Forgot),
    /// To `allow` and `allow-off`.
    Allowed(AllowedNow),
    /// To `bypass-on`, `bypass-off`, `shadow` and `shadow-off`.
    Lifted(LiftedNow),
    /// It could not be done.
    Error(Trouble),
}

/// A client, and the decision that was asked about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// When this was told.
    pub now: Time,
    /// The decision, if one was asked about.
    pub decision: Option<Recalled>,
    /// Until when everything passes, if it does.
    #[serde(default)]
    pub bypass: Option<Time>,
    /// Until when all listeners are closed for maintenance, if they are.
    #[serde(default)]
    pub maintenance: Option<Time>,
    /// The part of the new sessions of such clients that load lets in.
    #[serde(default = "all")]
    pub admitted: f64,
    /// How its client stands now.
    pub client: Explained,
}

fn all() -> f64 {
    1.0
}

/// The last decisions about a sender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfSender {
    /// When this was told.
    pub now: Time,
    /// As it was asked for.
    pub sender: String,
    /// The newest first.
    pub decisions: Vec<Recalled>,
}

/// What came of forgetting a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forgot {
    /// The client.
    pub client: IpAddr,
    /// What was forgotten.
    pub forgotten: Vec<String>,
    /// What could not be found, or was left.
    pub left: Vec<String>,
    /// What may surprise.
    pub warnings: Vec<String>,
}

/// What came of letting a client through, or of ending that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AllowedNow {
    /// The network it is about.
    pub network: String,
    /// Until when; nothing: no longer.
    pub until: Option<Time>,
    /// Whether it is on disk, and so survives a restart.
    pub kept: bool,
    /// What may surprise.
    pub warnings: Vec<String>,
}

/// What came of taking a rule out, or of letting it hold again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LiftedNow {
    /// The rule it is about; nothing: all of them.
    pub rule: Option<String>,
    /// Until when; nothing: it holds again.
    pub until: Option<Time>,
    /// The time there.
    pub now: Time,
    /// What may surprise.
    pub warnings: Vec<String>,
}

/// What came of a reload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reloaded {
    /// Whether the settings are in force.
    pub done: bool,
    /// The file.
    pub file: String,
    /// Errors and warnings, as `postpone check` prints them.
    pub report: String,
    /// The first thing that is wrong, in one line, if it was refused.
    pub why: String,
    /// What is in force now, in one line.
    pub in_force: String,
    /// Built-in limits that those of the file have replaced.
    pub replaced: Vec<String>,
    /// What takes effect only at a restart.
    pub restart: Vec<String>,
}

/// What came of a change of maintenance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Maintained {
    /// What is closed now.
    pub now: Vec<Closed>,
    /// What was, and is not any more.
    pub ended: Vec<Closed>,
    /// Whether it is on disk, and so survives a restart.
    pub kept: bool,
    /// What may surprise.
    pub warnings: Vec<String>,
}

/// Why something could not be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// Who must act.
    pub kind: Kind,
    /// What is wrong, and what was expected.
    pub message: String,
}

/// Who must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It is no request that we know.
    Request,
    /// It asks for what makes no sense here.
    Value,
    /// The peer may not ask.
    Permission,
    /// It cannot be done now.
    Unavailable,
}

impl Trouble {
    /// It asks for what makes no sense here.
    pub fn value(message: impl Into<String>) -> Self {
        Self { kind: Kind::Value, message: message.into() }
    }

    /// It cannot be done now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { kind: Kind::Unavailable, message: message.into() }
    }
}

impl Display for Trouble {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_read_as_they_are_written() {
        let on = Request::MaintenanceOn {
            lasting: Some(Span::secs(1800)),
            until: None,
            listener: Some("inet:127.0.0.1:7421".into()),
        };
        let off = Request::MaintenanceOff { listener: None };
        for (request, line) in [
            (Request::Status {}, r#"{"request":"status"}"#),
            (Request::Reload {}, r#"{"request":"reload"}"#),
            (on, r#"{"request":"maintenance-on","for":"30m","listener":"inet:127.0.0.1:7421"}"#),
            (off, r#"{"request":"maintenance-off"}"#),
            (
                Request::Explain { what: Some("192.0.2.7".into()), name: None, sender: None },
                r#"{"request":"explain","what":"192.0.2.7"}"#,
            ),
            (
                Request::Forget { client: [192, 0, 2, 7].into() },
                r#"{"request":"forget","client":"192.0.2.7"}"#,
            ),
            (
                Request::Allow {
                    client: "192.0.2.7".into(),
                    lasting: Some(Span::secs(1800)),
                    force: false,
                },
                r#"{"request":"allow","client":"192.0.2.7","for":"30m"}"#,
            ),
            (
                Request::BypassOn { lasting: Some(Span::secs(600)) },
                r#"{"request":"bypass-on","for":"10m"}"#,
            ),
            (
                Request::ShadowOff { rule: "velocity".into() },
                r#"{"request":"shadow-off","rule":"velocity"}"#,
            ),
            (
                Request::AllowOff { client: "192.0.2.7".into() },
                r#"{"request":"allow-off","client":"192.0.2.7"}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), line);
            assert!(line.contains(&request.name()));
            assert_eq!(Request::parse(line.as_bytes()), Ok(request));
        }
    }

    #[test]
    fn what_is_no_request_is_told_what_is() {
        for line in [
            "",
            "status",
            "[]",
            "{}",
            r#"{"request":"explode"}"#,
            r#"{"request":"status","more":1}"#,
            r#"{"request":"maintenance-on","for":"long"}"#,
        ] {
            let Err(trouble) = Request::parse(line.as_bytes()) else { panic!("{line}") };
            assert_eq!(trouble.kind, Kind::Request);
            assert!(
                trouble.message.contains("maintenance-off, explain, forget, allow"),
                "{trouble}"
            );
        }
        assert_eq!(Request::names().len(), 12);
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line: Vec<u8>) {
            let _ = Request::parse(&line);
        }
    }
}
