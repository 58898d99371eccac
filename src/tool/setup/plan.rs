//! What is to change in Postfix, decided from what `postconf` has told and where postpone listens.
//! Values to values: nothing is read here, and nothing run.

use super::installed::Installed;
use super::list::{self, Kind, Own, words};
use super::service::filters_elsewhere;
use std::net::IpAddr;

use crate::config::Settings;
use crate::engine::Speak;
use crate::front::address::Address;
use crate::front::{listen, packaged};
use crate::smtp::domain::Domain;

/// Where postpone listens.
#[derive(Clone, Debug, Default)]
pub(super) struct Doors {
    /// The milters for a mail exchanger.
    pub(super) mx: Vec<Address>,
    /// The milters for who logs in: `speak = "mail"`.
    pub(super) submission: Vec<Address>,
    /// The policy services.
    pub(super) policy: Vec<Address>,
    /// Where an earlier set-up had the milter, before it had a better place.
    pub(super) outgrown: Option<Address>,
    /// What replies call this host, where that is set.
    pub(super) hostname: Option<String>,
    /// What is delivered to users of this host, where that is set.
    pub(super) own_names: Vec<Domain>,
}

/// What is to be done, and what is to be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Of main.cf.
    pub(super) parameters: Vec<Change>,
    /// Of master.cf: `submission/inet/smtpd_milters`.
    pub(super) services: Vec<Change>,
    /// What holds already.
    pub(super) already: Vec<String>,
    /// What a postmaster may want to know.
    pub(super) remarks: Vec<String>,
    /// What may surprise one.
    pub(super) warnings: Vec<String>,
}

/// A parameter that gets another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) name: String,
    /// Nothing where it is not set.
    pub(super) is: Option<String>,
    /// Nothing where it is removed.
    pub(super) becomes: Option<String>,
}

pub(super) const MILTERS: &str = "smtpd_milters";
pub(super) const RECIPIENT: &str = "smtpd_recipient_restrictions";
pub(super) const END_OF_DATA: &str = "smtpd_end_of_data_restrictions";
pub(super) const RELAY: &str = "smtpd_relay_restrictions";
/// At how many refusals Postfix hangs up.
pub(super) const ERRORS: &str = "smtpd_hard_error_limit";
/// As many under stress as in calm times, of which a milter is not told.
pub(super) const ERRORS_ALWAYS: &str = "20";
/// What the documented set-up calls the milters of the submission ports.
pub(super) const SUBMISSION: &str = "submission_milters";

/// What stands before us where nothing stood: postpone is asked about recipients that exist, by
/// clients that are not our own. It gives nobody more than Postfix's own defaults do.
pub(super) const BEFORE_US: &str = "permit_mynetworks, permit_sasl_authenticated, \
                                    reject_unauth_destination, reject_unlisted_recipient";

/// Refuses recipients that do not exist, as Postfix does at the end of the list by itself.
pub(super) const UNLISTED: &str = "reject_unlisted_recipient";

/// One of these must stand in a list, or Postfix serves nobody; or it would relay for everybody.
const PROTECTING: [&str; 5] =
    ["reject_unauth_destination", "defer_unauth_destination", "reject", "defer", "defer_if_permit"];

/// Nobody comes past these.
const ENDING: [&str; 3] = ["reject", "defer", "permit"];

impl Doors {
    /// The doors that these settings open.
    pub(super) fn new(settings: &Settings) -> Self {
        let hostname = settings.server.hostname.as_option().cloned();
        let own_names = settings.server.own_names.clone();
        let mut doors = Self { hostname, own_names, ..Self::default() };
        for listener in &settings.listen {
            match (&listener.milter, &listener.policy) {
                (Some(address), None) if listener.speak == Speak::Mail => {
                    doors.submission.push(address.clone());
                }
                (Some(address), None) => doors.mx.push(address.clone()),
                (None, Some(address)) => doors.policy.push(address.clone()),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        let packaged = Address::Unix(packaged::FOR_POSTFIX.into());
        doors.outgrown = listen::Params::default().milter.filter(|_| doors.mx.contains(&packaged));
        doors
    }

    /// Those that an `--apply` would use.
    pub(super) fn used(&self) -> Vec<(&Address, Kind)> {
        let mx = self.mx.first().map(|address| (address, Kind::Milter));
        let policy = self.policy.first().map(|address| (address, Kind::Policy));
        let submission = self.submission.first().map(|address| (address, Kind::Milter));
        mx.or(policy).into_iter().chain(submission).collect()
    }

    /// All milters.
    pub(super) fn milters(&self) -> Vec<Address> {
        [&self.mx[..], &self.submission[..], self.outgrown.as_slice()].concat()
    }
}

impl Change {
    /// What this parameter of main.cf is, and what it becomes.
    pub(super) fn of_main(postfix: &Installed, name: &str, becomes: Option<String>) -> Self {
        let is = postfix.named.contains(name).then(|| postfix.raw(name).to_owned());
        Self { name: name.to_owned(), is, becomes }
    }
}

impl Plan {
    /// There is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.parameters.is_empty() && self.services.is_empty()
    }

    /// What it takes for Postfix to ask postpone.
    pub(super) fn set_up(postfix: &Installed, doors: &Doors) -> Self {
        let mut plan = Self::default();
        match (doors.mx.first(), doors.policy.first()) {
            (Some(address), policy) => {
                plan.ask_milter(postfix, doors, address);
                if let Some(policy) = policy {
                    plan.offer_policy(postfix, policy);
                }
            }
            (None, Some(address)) => {
                plan.ask_policy(postfix, doors, address);
                plan.warn_of_origin(postfix, doors);
            }
            (None, None) => {}
        }
        match doors.submission.first() {
            Some(address) => plan.ask_at_submission(postfix, doors, address),
            None if !doors.mx.is_empty() => plan.warn_of_submission(postfix),
            None => {}
        }
        if doors.mx.iter().any(|address| list::endpoint(address, &postfix.queue()).is_some()) {
            plan.remark_who_asks(postfix, MILTERS);
        }
        let called = postfix.expanded("myhostname");
        if let Some(hostname) = doors.hostname.as_ref().filter(|set| **set != called) {
            plan.warnings.push(format!(
                "[server] hostname is {hostname}, but Postfix's myhostname is {called}: senders \
                 see both. Without hostname, replies use Postfix's name"
            ));
        }
        if postfix.expanded("smtpd_peername_lookup") == "no" {
            plan.warnings.push(
                "smtpd_peername_lookup = no: Postfix looks up no client names. A pool is then a \
                 network, and names in lists match no client"
                    .into(),
            );
        }
        plan
    }

    /// Mail that a content filter gives back was taken before: refused there, it would wait in our
    /// own queue. Its port asks nobody, whatever main.cf says.
    fn spare_what_comes_back(&mut self, postfix: &Installed, name: &str) {
        for service in postfix.smtpd().filter(|service| service.takes_back(postfix)) {
            let spared = name == MILTERS && service.asks_no_milter(postfix);
            if spared || service.options.contains_key(name) {
                continue;
            }
            self.remarks.push(format!(
                "{} takes mail back from a content filter: it will not ask postpone",
                service.name
            ));
            let ends = if name == RECIPIENT { "permit_mynetworks,reject" } else { "" };
            self.services.push(Change {
                name: format!("{}/{name}", service.name),
                is: None,
                becomes: Some(ends.to_owned()),
            });
        }
    }

    /// The same from another host, whose port we cannot tell from others.
    pub(super) fn warn_of_filters(&mut self, postfix: &Installed, allows: &dyn Fn(IpAddr) -> bool) {
        for host in filters_elsewhere(postfix) {
            match host.parse() {
                Ok(address) if allows(address) => {}
                Ok(address) => self.warnings.push(format!(
                    "a content filter on {address} returns mail that Postfix has accepted, and \
                     postpone may refuse it: put \"{address}\" into [access] allow"
                )),
                Err(_) => self.warnings.push(format!(
                    "a content filter on {host} returns mail that Postfix has accepted, and \
                     postpone may refuse it: put its address into [access] allow"
                )),
            }
        }
    }

    fn ask_milter(&mut self, postfix: &Installed, doors: &Doors, address: &Address) {
        let places = postfix.places(&[&doors.mx[..], doors.outgrown.as_slice()].concat());
        let list = postfix.raw(MILTERS);
        let found = list::own(list, Kind::Milter, &places);
        let through = list::own(postfix.expanded(MILTERS), Kind::Milter, &places);
        let outgrown = postfix.places(doors.outgrown.as_slice());
        let outgrown = list::own(list, Kind::Milter, &outgrown);
        match (outgrown.first(), found.first(), through.first()) {
            (Some(own), _, _) => self.leave_port(postfix, own, address),
            (None, Some(own), _) => self.keep(postfix, MILTERS, Kind::Milter, own),
            (None, None, Some(own)) => self.keep_reference(postfix, MILTERS, Kind::Milter, own),
            (None, None, None) => {
                let Some(entry) = self.entry(postfix, Kind::Milter, address) else { return };
                let becomes = list::appended(list, &entry);
                self.parameters.push(Change::of_main(postfix, MILTERS, Some(becomes)));
            }
        }
        self.spare_what_comes_back(postfix, MILTERS);
        self.bear_refusals(postfix);
        self.warn_of_chroot(postfix, address);
        self.warn_of_local_mail(postfix, &list::without(list, &ranges(&found)));
        if !postfix.expanded("smtpd_milter_maps").is_empty() {
            self.warnings.push(
                "smtpd_milter_maps is set: for the clients it lists, smtpd_milters is not asked"
                    .into(),
            );
        }
    }

    /// Under stress Postfix hangs up at the first refusal, and who was accepted before is lost, at
    /// every retry. It tells the policy service that it is, but no milter.
    fn bear_refusals(&mut self, postfix: &Installed) {
        let limit = postfix.raw(ERRORS);
        if limit.contains("stress") {
            self.remarks.push(format!(
                "{ERRORS} = {limit} makes Postfix hang up at the first refusal while it is short \
                 of processes, and mail to several recipients may then never get through"
            ));
            let becomes = Some(ERRORS_ALWAYS.to_owned());
            self.parameters.push(Change::of_main(postfix, ERRORS, becomes));
        } else if limit.parse::<u32>().is_ok_and(|limit| limit < 20) {
            self.warnings.push(format!(
                "{ERRORS} = {limit}: Postfix hangs up before postpone stops refusing. Keep \
                 [server] most_refusals a few below it"
            ));
        }
    }

    /// Mail that programs on this host hand in would be refused to somebody who cannot come later.
    fn warn_of_local_mail(&mut self, postfix: &Installed, others: &str) {
        let list = postfix.raw("non_smtpd_milters");
        let references = ["${smtpd_milters}", "$(smtpd_milters)", "$smtpd_milters"];
        if references.iter().any(|reference| list.contains(reference)) {
            let meant = references.iter().fold(list.to_owned(), |list, r| list.replace(r, others));
            self.warnings.push(format!(
                "non_smtpd_milters = {list}: mail submitted on this host is checked too, and \
                 passes only while [access] allow has 127.0.0.0/8. To keep postpone out of it, set non_smtpd_milters = {meant}"
            ));
        }
    }

    /// A milter is told where a recipient without a domain goes, a policy service is not: what is
    /// asked of that domain would not be asked.
    fn warn_of_origin(&mut self, postfix: &Installed, doors: &Doors) {
        let Ok(origin) = postfix.expanded("myorigin").parse::<Domain>() else { return };
        if !doors.own_names.is_empty() && !doors.own_names.contains(&origin) {
            self.warnings.push(format!(
                "Postfix completes recipients without a domain to {origin} (myorigin), which a policy \
                 service is not told: put \"{origin}\" into [server] own_names, or requirements of \
                 that domain do not cover them"
            ));
        }
    }

    fn ask_policy(&mut self, postfix: &Installed, doors: &Doors, address: &Address) {
        let places = postfix.places(&doors.policy);
        for name in [RECIPIENT, END_OF_DATA] {
            let list = postfix.raw(name);
            let found = list::own(list, Kind::Policy, &places);
            let through = list::own(postfix.expanded(name), Kind::Policy, &places);
            match (found.first(), through.first()) {
                (Some(own), _) => self.keep(postfix, name, Kind::Policy, own),
                (None, Some(own)) => self.keep_reference(postfix, name, Kind::Policy, own),
                (None, None) => {
                    let Some(entry) = self.entry(postfix, Kind::Policy, address) else { return };
                    self.restrict(postfix, name, &entry);
                }
            }
            self.spare_what_comes_back(postfix, name);
            self.remark_who_asks(postfix, name);
        }
        let asked = self.parameters.iter().find(|change| change.name == RECIPIENT);
        let recipient = asked.and_then(|change| change.becomes.as_deref());
        let recipient = recipient.unwrap_or(postfix.expanded(RECIPIENT));
        if !protects(postfix.expanded(RELAY)) && !protects(recipient) {
            self.warnings.push(format!(
                "neither {RELAY} nor {RECIPIENT} has reject_unauth_destination: Postfix refuses \
                 to run without it"
            ));
        }
        self.warn_of_chroot(postfix, address);
    }

    /// Puts a check at the end of a restriction list, where those come whom Postfix would take.
    fn restrict(&mut self, postfix: &Installed, name: &str, asks: &str) {
        let list = postfix.raw(name);
        // Postfix looks whether a recipient exists when the list is at its end: we would be asked
        // about guesses.
        let looks_late = name == RECIPIENT
            && postfix.expanded("smtpd_reject_unlisted_recipient") == "yes"
            && !postfix.expanded(name).contains(UNLISTED);
        let entry = if looks_late { format!("{UNLISTED}, {asks}") } else { asks.to_owned() };
        let last = words(list).pop().map(|place| &list[place]);
        let becomes = match last {
            None if name == RECIPIENT => list::appended(BEFORE_US, asks),
            // Behind `permit` nobody would be asked. In front of it all are who come so far.
            Some("permit") => list::put_before_last(list, &entry),
            Some(word) if ENDING.contains(&word) => {
                self.warnings.push(format!(
                    "{name} ends with {word}, so accepted clients never reach its end, and it is \
                     not changed. Put `{entry}` before the entries that permit"
                ));
                return;
            }
            None | Some(_) => list::appended(list, &entry),
        };
        self.parameters.push(Change::of_main(postfix, name, Some(becomes)));
    }

    /// An entry of ours stands there already; it is corrected if mail would wait for us.
    fn keep(&mut self, postfix: &Installed, name: &str, kind: Kind, own: &Own) {
        let list = postfix.raw(name);
        if postfix.fails(own, kind) {
            self.remarks.push(format!(
                "{name} asks postpone already, but without default_action={}: Postfix would defer \
                 mail while postpone is away",
                kind.harmless()
            ));
            let becomes = list::replaced(list, &own.range, &kind.mended(own));
            self.parameters.push(Change::of_main(postfix, name, Some(becomes)));
        } else {
            self.already.push(format!("{name} = {list}"));
        }
        let behind = &list[own.range.end..];
        if kind == Kind::Milter && !words(behind).is_empty() {
            self.remarks.push(format!(
                "in {name} other milters come after postpone: a message that one of them refuses \
                 has been counted by then. The order is not changed: postpone should be last"
            ));
        }
    }

    /// An entry of ours names the port that any local user can take.
    fn leave_port(&mut self, postfix: &Installed, own: &Own, address: &Address) {
        let Some(endpoint) = list::endpoint(address, &postfix.queue()) else { return };
        self.remarks.push(format!(
            "{MILTERS} asks postpone on a port that any local user can take while postpone is away, \
             and that user would answer instead. It becomes {endpoint}, which only root can bind. \
             Where no other MTA asks the port, run afterwards: systemctl disable --now \
             postpone-port.socket"
        ));
        let entry = Kind::Milter.moved(own, &endpoint);
        let becomes = list::replaced(postfix.raw(MILTERS), &own.range, &entry);
        self.parameters.push(Change::of_main(postfix, MILTERS, Some(becomes)));
    }

    /// The same, by way of another parameter. That one may serve more than this: it is not touched.
    fn keep_reference(&mut self, postfix: &Installed, name: &str, kind: Kind, own: &Own) {
        let list = postfix.raw(name);
        if postfix.fails(own, kind) {
            self.warnings.push(format!(
                "{name} = {list} asks postpone through another parameter, without \
                 default_action={}: Postfix would defer mail while postpone is away. It is not changed: correct that parameter yourself",
                kind.harmless()
            ));
        } else {
            self.already.push(format!("{name} = {list}"));
        }
    }

    /// The lines with which the policy service would be asked as well.
    fn offer_policy(&mut self, postfix: &Installed, address: &Address) {
        let Some(endpoint) = list::endpoint(address, &postfix.queue()) else { return };
        self.remarks.push(format!(
            "the settings also have a policy service. Only the milter is set up, because it sees \
             more; to ask both, put `{}` at the end of {RECIPIENT} or {END_OF_DATA}",
            Kind::Policy.entry(&endpoint)
        ));
    }

    /// At a port where people log in, another listener is asked instead of that of the MX. That is
    /// made where it is one clear line: no other milter there, and no override of its own.
    fn ask_at_submission(&mut self, postfix: &Installed, doors: &Doors, address: &Address) {
        let places = postfix.places(&doors.submission);
        let Some(entry) = self.entry(postfix, Kind::Milter, address) else { return };
        let mine = list::own(postfix.raw(MILTERS), Kind::Milter, &postfix.places(&doors.milters()));
        let others = list::without(postfix.raw(MILTERS), &ranges(&mine));
        let written = postfix.raw(SUBMISSION);
        let ours = list::own(written, Kind::Milter, &places);
        let free = written.is_empty() || ours.len() == words(written).len();
        let asks = |list: &str| !list::own(list, Kind::Milter, &places).is_empty();
        let mut defined = !written.is_empty();
        let services: Vec<_> =
            postfix.smtpd().filter(|service| service.is_submission(postfix)).collect();
        for service in &services {
            let option = service.options.get(MILTERS);
            let effective = option.map_or(postfix.expanded(MILTERS), String::as_str);
            if asks(effective) {
                self.already.push(format!("{}/{MILTERS} = {effective}", service.name));
            } else if option.is_none() && others.is_empty() && free {
                if !defined {
                    self.parameters.push(Change::of_main(postfix, SUBMISSION, Some(entry.clone())));
                    defined = true;
                }
                self.services.push(Change {
                    name: format!("{}/{MILTERS}", service.name),
                    is: None,
                    becomes: Some(format!("${SUBMISSION}")),
                });
            } else {
                let has = match option {
                    Some(option) => format!("its own -o {MILTERS}={option}"),
                    None => "other milters".to_owned(),
                };
                let list = option.map_or(others.as_str(), String::as_str);
                let said = format!(
                    "{} has {has}, and is not changed. For users who log in there, put \
                     `{SUBMISSION} = {}` into main.cf, and `-o {MILTERS}=${SUBMISSION}` below the service in master.cf",
                    service.name,
                    list::appended(list, &entry),
                );
                // Until then it asks the listener of the MX, which speaks before they log in.
                let asks_mx = option.is_none() && !doors.mx.is_empty();
                if asks_mx { &mut self.warnings } else { &mut self.remarks }.push(said);
            }
        }
        if let Some(own) = ours.first().filter(|own| free && postfix.fails(own, Kind::Milter)) {
            self.keep(postfix, SUBMISSION, Kind::Milter, own);
        }
        if services.is_empty() {
            self.remarks.push(format!(
                "master.cf has no submission service that could ask {address}, the listener with \
                 speak = \"mail\""
            ));
        }
    }

    fn warn_of_submission(&mut self, postfix: &Installed) {
        for service in postfix.smtpd().filter(|service| service.is_submission(postfix)) {
            if !service.options.contains_key(MILTERS) && !service.asks_no_milter(postfix) {
                self.warnings.push(format!(
                    "{} asks postpone too, which checks users there at EHLO, before they can log \
                     in. Add a [[listen]] with speak = \"mail\" for it, and run this again",
                    service.name
                ));
            }
        }
    }

    /// Says which services of master.cf take the list over, and which have one of their own.
    /// Whether a service gets a list of its own.
    fn gives(&self, service: &str, name: &str) -> bool {
        let option = format!("{service}/{name}");
        self.services.iter().any(|change| change.name == option && change.becomes.is_some())
    }

    fn remark_who_asks(&mut self, postfix: &Installed, name: &str) {
        let (mut asking, mut own, mut never) = (Vec::new(), Vec::new(), Vec::new());
        for service in postfix.smtpd() {
            let list = match service {
                service if service.options.contains_key(name) => &mut own,
                service if name == MILTERS && service.asks_no_milter(postfix) => &mut never,
                service if service.takes_back(postfix) => continue,
                service if self.gives(&service.name, name) => continue,
                _ => &mut asking,
            };
            list.push(service.name.as_str());
        }
        let submission = |name: &&str| {
            postfix.services.iter().any(|s| s.name == *name && s.is_submission(postfix))
        };
        if asking.is_empty() {
            self.warnings.push(format!(
                "no service in master.cf uses {name} of main.cf: none asks postpone"
            ));
        } else {
            self.remarks.push(format!("{name} of main.cf applies to {}", asking.join(", ")));
        }
        let takes_back =
            |name: &&str| postfix.smtpd().any(|s| s.name == *name && s.takes_back(postfix));
        for name_of in own.iter().filter(|name| !submission(name) && !takes_back(name)) {
            self.warnings.push(format!(
                "{name_of} has its own -o {name} in master.cf, which overrides main.cf"
            ));
        }
        for name_of in never {
            self.remarks
                .push(format!("{name_of} asks no milter, because of its receive_override_options"));
        }
    }

    fn warn_of_chroot(&mut self, postfix: &Installed, address: &Address) {
        let Address::Unix(path) = address else { return };
        if path.starts_with(postfix.queue()) {
            return;
        }
        let chrooted: Vec<_> =
            postfix.smtpd().filter(|s| s.chrooted).map(|s| s.name.as_str()).collect();
        if !chrooted.is_empty() {
            self.warnings.push(format!(
                "{} is chrooted to {} and will not find {}: mail would pass unchecked. Listen below \
                 that folder",
                chrooted.join(", "),
                postfix.queue().display(),
                path.display()
            ));
        }
    }

    fn entry(&mut self, postfix: &Installed, kind: Kind, address: &Address) -> Option<String> {
        let endpoint = list::endpoint(address, &postfix.queue());
        if endpoint.is_none() {
            self.warnings.push(format!("Postfix has no way to write the address {address}"));
        }
        endpoint.map(|endpoint| kind.entry(&endpoint))
    }
}

/// Where they stand.
pub(super) fn ranges(found: &[Own]) -> Vec<std::ops::Range<usize>> {
    found.iter().map(|own| own.range.clone()).collect()
}

/// Whether a list keeps Postfix from relaying for everybody.
pub(super) fn protects(list: &str) -> bool {
    words(list).into_iter().any(|word| PROTECTING.contains(&&list[word]))
}

#[cfg(test)]
mod tests;
