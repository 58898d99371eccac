//! What an explanation looks like to people.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::clock::Time;
use crate::engine::recent::Recalled;
use crate::front::control::protocol::Told;
use crate::front::control::status::whole;
use crate::policy::explain::{Accessed, Behaved, Explained, Greylisted, Limited, Paced};
use crate::setting::Mode;

/// An explanation in lines.
pub(super) fn explained(told: &Told) -> impl Display {
    Text(told)
}

struct Text<'a>(&'a Told);

/// Names stand in a column of this width.
const WIDTH: usize = 14;

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Told { now, decision: asked, client } = self.0;
        if let Some(asked) = asked {
            decision(f, asked)?;
            writeln!(f)?;
            writeln!(f, "{:WIDTH$}{}", "now", whole(*now))?;
        }
        let Explained { name, network, pool, standing, .. } = client;
        let name = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        writeln!(f, "{:WIDTH$}{}{name}", "client", client.client)?;
        writeln!(f, "{:WIDTH$}{network}, of the mail system {pool}", "counts under")?;
        writeln!(f, "{:WIDTH$}{}", "standing", standing.name())?;
        match &client.behaviour {
            Some(behaved) => behaviour(f, behaved, *now)?,
            None => writeln!(f, "{:WIDTH$}off", "behaviour")?,
        }
        client.limits.iter().try_for_each(|l| limit(f, l, *now))?;
        match &client.greylist {
            Some(told) => greylist(f, told, *now)?,
            None => writeln!(f, "{:WIDTH$}off", "greylist")?,
        }
        access(f, &client.access, &client.client.to_string(), *now)
    }
}

/// A moment, and how far off it is.
fn at(time: Time, now: Time) -> String {
    let rest = Duration::from_secs(time.since(now).as_nanos().div_ceil(1_000_000_000) as u64);
    match rest.is_zero() {
        true => whole(time),
        false => format!("{} (in {})", whole(time), humantime::format_duration(rest)),
    }
}

fn decision(f: &mut Formatter<'_>, told: &Recalled) -> fmt::Result {
    let Recalled { id, at, event, action, reason, value, threshold, wait_ms, .. } = told;
    let would = if told.mode == Mode::Shadow { "would have been (shadow): " } else { "" };
    writeln!(f, "{:WIDTH$}{id}, {would}{action} at {event}, {}", "decision", whole(*at))?;
    let limit = told.limit.as_ref().map(|limit| format!(", limit {limit}")).unwrap_or_default();
    writeln!(f, "{:WIDTH$}{reason}{limit}: {value}, threshold {threshold}", "reason")?;
    let wait = humantime::format_duration(Duration::from_millis(*wait_ms));
    writeln!(f, "{:WIDTH$}{wait}", "wait")?;
    let name = told.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    writeln!(f, "{:WIDTH$}{}{name} by {}", "from", told.client, told.listener)?;
    let texts = [
        ("helo", &told.helo),
        ("user", &told.user),
        ("sender", &told.sender),
        ("recipient", &told.recipient),
        ("reply", &told.reply),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            let text = if text.is_empty() { "<>" } else { text };
            writeln!(f, "{name:WIDTH$}{}", text.replace(char::is_control, "\u{fffd}"))?;
        }
    }
    Ok(())
}

fn behaviour(f: &mut Formatter<'_>, told: &Behaved, now: Time) -> fmt::Result {
    let [suspect, abnormal, extreme] = told.from;
    writeln!(
        f,
        "{:WIDTH$}{:.1}, {} (suspect from {suspect}, abnormal from {abnormal}, extreme from \
         {extreme})",
        "score", told.score, told.stage
    )?;
    match (told.learning_until, told.mode) {
        (Some(until), _) => {
            writeln!(f, "{:WIDTH$}only watches until {}", "behaviour", at(until, now))?;
        }
        (None, Mode::Shadow) => writeln!(f, "{:WIDTH$}only watches (shadow)", "behaviour")?,
        (None, _) => {}
    }
    match (told.first, told.last) {
        (Some(first), Some(last)) => {
            writeln!(f, "{:WIDTH$}first {}, last {}", "seen", whole(first), whole(last))?;
        }
        _ => writeln!(f, "{:WIDTH$}nothing is remembered of it", "seen")?,
    }
    if told.known {
        for term in &told.terms {
            writeln!(f, "{:WIDTH$}{} {:+.1}: {}", "term", term.term, term.adds, term.inputs)?;
        }
    }
    let Paced { per_hour, next, shared, .. } = &told.pace;
    match per_hour {
        None => writeln!(f, "{:WIDTH$}as fast as it likes", "pace"),
        Some(per_hour) => {
            let shared = if *shared { ", shared by all new hosts of its network" } else { "" };
            let next = if *next <= now { "now".to_owned() } else { at(*next, now) };
            writeln!(
                f,
                "{:WIDTH$}{per_hour:.0} messages an hour{shared}; the next one may come {next}",
                "pace"
            )
        }
    }
}

fn limit(f: &mut Formatter<'_>, told: &Limited, now: Time) -> fmt::Result {
    let Limited { name, count, threshold, .. } = told;
    let per = if told.per.is_empty() { "the whole host".into() } else { told.per.join(", ") };
    write!(f, "{:WIDTH$}{name} ({count} per {per}", "limit")?;
    if told.mode != Mode::Enforce {
        write!(f, ", mode {}", told.mode.name())?;
    }
    write!(f, "): ")?;
    if !told.needs.is_empty() {
        return writeln!(f, "{threshold}; to say more, {} must be known", told.needs.join(", "));
    }
    write!(f, "{} of {threshold}", told.value.as_deref().unwrap_or("0"))?;
    match (told.next, told.clears) {
        (Some(next), _) => write!(f, "; the next one may come {}", at(next, now))?,
        (None, Some(clears)) => write!(f, "; clear at {}", at(clears, now))?,
        (None, None) => {}
    }
    if told.offences > 0 {
        write!(f, "; {} offences", told.offences)?;
    }
    let not = if told.applies { "" } else { "; its `when` leaves this client out" };
    writeln!(f, "{not}")
}

fn greylist(f: &mut Formatter<'_>, told: &Greylisted, now: Time) -> fmt::Result {
    let Greylisted { passes, proven_after, pending, max_pending, .. } = told;
    let proven = match told.proven_until {
        Some(until) => format!("proven until {}", at(until, now)),
        None => "not proven".to_owned(),
    };
    let applies = match (told.mode, told.applies) {
        (Mode::Shadow, true) => "its first contacts would wait (shadow)",
        (_, true) => "its first contacts wait",
        (_, false) => "its first contacts need not wait",
    };
    writeln!(
        f,
        "{:WIDTH$}{proven}: {passes} of {proven_after} passes; {pending} of {max_pending} first \
         contacts wait; {applies}",
        "greylist"
    )?;
    match &told.triplet {
        Some(triplet) => writeln!(f, "{:WIDTH$}{triplet}", "triplet"),
        None => Ok(()),
    }
}

fn access(f: &mut Formatter<'_>, told: &Accessed, client: &str, now: Time) -> fmt::Result {
    if let Some(until) = told.allowed_until {
        writeln!(f, "{:WIDTH$}allowed by hand until {}", "exempt", at(until, now))?;
    }
    if let Some(entry) = &told.allowed {
        writeln!(f, "{:WIDTH$}allowlist entry {entry}", "exempt")?;
    }
    if let Some(entry) = &told.denied {
        writeln!(f, "{:WIDTH$}denylist entry {entry}", "denied")?;
    }
    if told.allowed_until.is_none() && told.allowed.is_none() {
        let login = if told.authentication_exempts { ", authenticating" } else { "" };
        writeln!(
            f,
            "{:WIDTH$}`postpone ctl allow {client}`, an entry in `[access] allow`{login}",
            "would exempt"
        )?;
    }
    Ok(())
}
