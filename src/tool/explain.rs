//! What an explanation looks like to people: the answer first, then what it rests on.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::lines::{ago, number, row, span};
use super::status::Detail;
use crate::clock::Time;
use crate::engine::recent::Recalled;
use crate::front::control::protocol::{OfSender, Told};
use crate::front::control::status::whole;
use crate::policy::explain::{Accessed, Behaved, Explained, Greylisted, Limited, Paced};
use crate::setting::Mode;

/// An explanation in lines.
pub(super) fn explained(told: &Told, detail: Detail) -> impl Display {
    Text(told, detail)
}

/// The last decisions about a sender in lines.
pub(super) fn of_sender(told: &OfSender) -> impl Display {
    Sender(told)
}

struct Text<'a>(&'a Told, Detail);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(told, detail) = *self;
        let (now, client) = (told.now, &told.client);
        row(f, "answer", &answer(told))?;
        if let Some(asked) = &told.decision {
            decision(f, asked, now)?;
            writeln!(f)?;
            row(f, "now", &whole(now))?;
        }
        let Explained { name, network, pool, standing, .. } = client;
        let name = match name {
            Some(name) => format!(" ({name})"),
            // A decision is explained by what was known of it.
            None if told.decision.is_some() => ", its name is not known".to_owned(),
            None => ", its name is not known: give it with --name".to_owned(),
        };
        row(f, "client", &format!("{}{name}", client.client))?;
        row(f, "counts under", &format!("{network}, of the mail system {pool}"))?;
        row(f, "standing", standing.name())?;
        match &client.behaviour {
            Some(behaved) => behaviour(f, behaved, now, detail)?,
            None => row(f, "behaviour", "off")?,
        }
        limits(f, &client.limits, now, detail)?;
        match &client.greylist {
            Some(told) => greylist(f, told, now)?,
            None => row(f, "greylist", "off")?,
        }
        access(f, &client.access, &client.client.to_string(), now)
    }
}

/// Whether it may send, when, and why not before.
fn answer(told: &Told) -> String {
    let Told { now, client: told_of, .. } = told;
    let (client, access) = (told_of.client, &told_of.access);
    if let Some(until) = told.bypass {
        return format!("{client} may send now: everything passes until {}", whole(until));
    }
    if let Some(until) = told.maintenance {
        let rest = span(until.since(*now));
        return format!("{client} may begin a session in {rest}, because of maintenance");
    }
    if access.allowed_until.is_some() || access.allowed.is_some() {
        return format!(
            "{client} may send now: it is exempt, except from limits of the whole host"
        );
    }
    if let Some(entry) = &access.denied {
        return format!("{client} may not send, because it is on the denylist ({entry})");
    }
    if let Some((next, why)) = waits(told_of, *now) {
        let rest = span(next.since(*now));
        return format!("{client} may send the next message in {rest}, because {why}");
    }
    let full = told_of.limits.iter().find(|limit| is_full(limit));
    if let Some(limit) = full {
        let value = limit.value.as_deref().unwrap_or_default();
        return format!(
            "{client} may begin another session when one ends, because limit {} counts {value}, \
             and \
             allows {}",
            limit.name, limit.threshold
        );
    }
    let load = match told.admitted {
        share if share < 1.0 => format!(
            ", if load permits: {:.0}% of new sessions of such clients are accepted",
            share * 100.0
        ),
        _ => String::new(),
    };
    let first = told_of.greylist.as_ref().filter(|greylist| waits_at_first(greylist)).map(|it| {
        let delay = span(Duration::from_secs(it.delay_secs));
        format!("; a first contact of its sender and recipient waits {delay}")
    });
    format!("{client} may send now{load}{}", first.unwrap_or_default())
}

/// The rule that makes it wait longest, and until when.
fn waits(client: &Explained, now: Time) -> Option<(Time, String)> {
    let limits = client.limits.iter().filter(|limit| acts(limit)).filter_map(|limit| {
        let value = limit.value.as_deref().unwrap_or("0");
        let why = match limit.offences {
            0 => format!("limit {} has counted {value} of {}", limit.name, limit.threshold),
            number => format!("limit {} remembers {}", limit.name, offences(number)),
        };
        Some((limit.next?, why))
    });
    let behaved = client.behaviour.as_ref().filter(|behaved| behaved.mode == Mode::Enforce);
    let pace = behaved.and_then(|behaved| {
        let rate = behaved.pace.per_hour?;
        let why = format!(
            "its behaviour is {} (score {:.1}): it may send {rate:.0} messages an hour",
            behaved.stage, behaved.score
        );
        Some((behaved.pace.next, why))
    });
    let greylist = client.greylist.as_ref().filter(|greylist| waits_at_first(greylist));
    let triplet = greylist.and_then(|greylist| {
        Some((greylist.ready?, "its sender and recipient are a first contact (greylist)".into()))
    });
    let all = limits.chain(pace).chain(triplet);
    all.filter(|(next, _)| *next > now).max_by_key(|(next, _)| *next)
}

fn acts(limit: &Limited) -> bool {
    limit.mode == Mode::Enforce && limit.applies && limit.needs.is_empty()
}

fn waits_at_first(greylist: &Greylisted) -> bool {
    greylist.mode == Mode::Enforce && greylist.applies && !greylist.waited
}

/// Of sessions at once, which have no time.
fn is_full(limit: &Limited) -> bool {
    let of = |text: &str| text.split(' ').next().and_then(|number| number.parse::<u64>().ok());
    let open = limit.value.as_deref().and_then(of);
    limit.count == "sessions" && acts(limit) && open.is_some() && open >= of(&limit.threshold)
}

/// A moment, and how far off it is.
fn at(time: Time, now: Time) -> String {
    match time.since(now) {
        Duration::ZERO => whole(time),
        rest => format!("{} (in {})", whole(time), span(rest)),
    }
}

fn decision(f: &mut Formatter<'_>, told: &Recalled, now: Time) -> fmt::Result {
    let Recalled { id, at, event, action, reason, value, threshold, wait_ms, .. } = told;
    let would = if told.mode == Mode::Shadow { "would have been (shadow): " } else { "" };
    let when = format!("{} ({})", whole(*at), ago(*at, now));
    row(f, "decision", &format!("{id}, {would}{action} at {event}, {when}"))?;
    let limit = told.limit.as_ref().map(|limit| format!(", limit {limit}")).unwrap_or_default();
    row(f, "reason", &format!("{reason}{limit}: {value}, threshold {threshold}"))?;
    row(f, "wait", &span(Duration::from_millis(*wait_ms)))?;
    let name = told.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    row(f, "from", &format!("{}{name} by {}", told.client, told.listener))?;
    let texts = [
        ("helo", &told.helo),
        ("user", &told.user),
        ("sender", &told.sender),
        ("recipient", &told.recipient),
        ("reply", &told.reply),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            row(f, name, if text.is_empty() { "<>" } else { text })?;
        }
    }
    Ok(())
}

fn behaviour(f: &mut Formatter<'_>, told: &Behaved, now: Time, detail: Detail) -> fmt::Result {
    let [suspect, abnormal, extreme] = told.from;
    let from = format!("suspect from {suspect}, abnormal from {abnormal}, extreme from {extreme}");
    row(f, "score", &format!("{:.1}, {} ({from})", told.score, told.stage))?;
    match (told.learning_until, told.mode) {
        (Some(until), _) => row(f, "behaviour", &format!("only watches until {}", at(until, now)))?,
        (None, Mode::Shadow) => row(f, "behaviour", "only watches (shadow)")?,
        (None, _) => {}
    }
    match (told.first, told.last) {
        (Some(first), Some(last)) => {
            let last = format!("{} ({})", whole(last), ago(last, now));
            row(f, "seen", &format!("first {}, last {last}", whole(first)))?;
        }
        _ => row(f, "seen", "nothing is remembered")?,
    }
    let speaks = |adds: f64| adds.abs() >= 0.05 || detail == Detail::All;
    for term in told.terms.iter().filter(|term| told.known && speaks(term.adds)) {
        row(f, "term", &format!("{} {:+.1}: {}", term.term, term.adds, term.inputs))?;
    }
    let Paced { per_hour, next, shared, .. } = &told.pace;
    let Some(per_hour) = per_hour else { return row(f, "pace", "not limited") };
    let shared = if *shared { ", shared by all new hosts of its network" } else { "" };
    let next = if *next <= now { "now".to_owned() } else { at(*next, now) };
    row(f, "pace", &format!("{per_hour:.0} messages an hour{shared}; the next one may come {next}"))
}

/// Those that have counted something; the rest on request.
fn limits(f: &mut Formatter<'_>, all: &[Limited], now: Time, detail: Detail) -> fmt::Result {
    let counts = |limit: &Limited| {
        let used = limit.value.as_deref().is_some_and(|value| !value.starts_with('0'));
        limit.applies && (used || limit.next.is_some() || limit.offences > 0)
    };
    let shown = |limit: &&Limited| detail == Detail::All || counts(limit);
    all.iter().filter(shown).try_for_each(|shown| limit(f, shown, now))?;
    let quiet: Vec<_> = all.iter().filter(|limit| !shown(limit)).collect();
    if quiet.is_empty() {
        return Ok(());
    }
    let of_sender = |need: &String| need.starts_with("sender");
    let unknown = match quiet.iter().flat_map(|limit| &limit.needs).collect::<Vec<_>>() {
        needs if needs.is_empty() => "",
        needs if needs.iter().any(|need| of_sender(need)) => ", or more must be known (--sender)",
        _ => ", or more must be known",
    };
    let names: Vec<_> = quiet.iter().map(|limit| &*limit.name).collect();
    let names = names.join(", ");
    row(f, "limits", &format!("nothing counted{unknown}: {names}; --all shows them"))
}

fn limit(f: &mut Formatter<'_>, told: &Limited, now: Time) -> fmt::Result {
    let Limited { name, count, threshold, .. } = told;
    let per = if told.per.is_empty() { "the whole host".into() } else { told.per.join(", ") };
    let mode = match told.mode {
        Mode::Enforce => String::new(),
        mode => format!(", mode {}", mode.name()),
    };
    let head = format!("{name} ({count} per {per}{mode}): ");
    if !told.needs.is_empty() {
        let needs = told.needs.join(", ");
        return row(
            f,
            "limit",
            &format!(
                "{head}{threshold}; the count depends on {needs} \
                       (--sender)"
            ),
        );
    }
    let value = told.value.as_deref().unwrap_or("0");
    let clears = match (told.next, told.clears) {
        (Some(next), _) => format!("; the next one may come {}", at(next, now)),
        (None, Some(clears)) => format!("; clear at {}", at(clears, now)),
        (None, None) => String::new(),
    };
    let penalty = match told.offences {
        0 => String::new(),
        number => format!("; {}", offences(number)),
    };
    let not = if told.applies { "" } else { "; its `when` does not apply to this client" };
    row(f, "limit", &format!("{head}{value} of {threshold}{clears}{penalty}{not}"))
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
    let (pending, most) = (number(u64::from(*pending)), number(u64::from(*max_pending)));
    let passes =
        format!("{passes} of {proven_after} passes; {pending} of {most} first contacts wait");
    row(f, "greylist", &format!("{proven}: {passes}; {applies}"))?;
    told.triplet.iter().try_for_each(|triplet| row(f, "triplet", triplet))
}

fn access(f: &mut Formatter<'_>, told: &Accessed, client: &str, now: Time) -> fmt::Result {
    if let Some(until) = told.allowed_until {
        row(f, "exempt", &format!("allowed by hand until {}", at(until, now)))?;
    }
    if let Some(entry) = &told.allowed {
        row(f, "exempt", &format!("allowlist entry {entry}"))?;
    }
    if let Some(entry) = &told.denied {
        row(f, "denied", &format!("denylist entry {entry}"))?;
    }
    if told.allowed_until.is_some() || told.allowed.is_some() {
        return Ok(());
    }
    let login = if told.authentication_exempts { ", authenticating" } else { "" };
    let text = format!("`postpone ctl allow {client}`, an entry in `[access] allow`{login}");
    row(f, "would exempt", &text)
}

struct Sender<'a>(&'a OfSender);

impl Display for Sender<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let OfSender { now, sender, decisions } = self.0;
        let Some(last) = decisions.first() else {
            let text = format!(
                "no remembered decision is about {sender}: it has not been refused recently, not \
                 even in shadow mode; the log may have more"
            );
            return row(f, "answer", &text);
        };
        let Recalled { client, at, reason, .. } = last;
        let rule = last.limit.as_deref().unwrap_or(reason);
        let refused = if last.mode == Mode::Shadow { "would have been refused" } else { "refused" };
        let over = *at + Duration::from_millis(last.wait_ms);
        let then = match over.since(*now) {
            Duration::ZERO => "it may come again".to_owned(),
            rest => format!("it may come again in {}", span(rest)),
        };
        let when = ago(*at, *now);
        row(f, "answer", &format!("{sender}: {refused} {when} from {client} by {rule}; {then}"))?;
        for told in decisions {
            let rule = told.limit.as_deref().unwrap_or(&told.reason);
            let shadow = if told.mode == Mode::Shadow { " (shadow)" } else { "" };
            let wait = span(Duration::from_millis(told.wait_ms));
            let to = told.recipient.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
            let from = told.sender.as_deref().filter(|from| !from.is_empty()).unwrap_or("<>");
            let text = format!(
                "{} {} {from}{to}: {} {rule}{shadow}, wait {wait}",
                whole(told.at),
                told.client,
                told.action
            );
            row(f, &told.id, &text)?;
        }
        Ok(())
    }
}

fn offences(number: u8) -> String {
    if number == 1 { "1 offence".into() } else { format!("{number} offences") }
}
