//! The policy: a list of signals that assess an event, fold into one decision, and settle.
//!
//! Assessing only reads, so two threads may pass the same limit at once: by at most as many events
//! as there are threads, less one.

pub mod access;
pub mod allowed;
pub mod behaviour;
pub mod by_hand;
pub mod decision;
pub mod explain;
pub mod greylist;
pub mod imported;
pub mod keys;
pub mod limit;
pub mod load;
pub mod maintenance;
pub mod names;
pub mod patience;
pub mod recipients;
pub mod signal;
pub mod standing;
pub mod when;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::decision::{Decision, Reason, Refusal};
use self::explain::{Accessed, Explained, Forgotten};
use self::patience::Patience;
use self::recipients::Recipients;
use self::signal::{Context, Ledger, Round, Signal};
use self::standing::Standing;
use crate::clock::{Moment, Time};
use crate::meter::changes::Changes;
use crate::meter::key::{Key, KeyMaker, Secret};
use crate::meter::table::{Kept, Size};
use crate::setting::{Complaint, Mode};
use crate::smtp::address::Address;
use crate::smtp::client::{Client, Network, Prefixes};
use crate::smtp::event::{Event, Fate};
use crate::smtp::reply::{Action, Code, Enhanced};
use crate::smtp::translation::{self, Translation};

/// What the signals remember. It outlives every policy.
pub struct Memory {
    secret: Secret,
    /// Meters and gauges of limits.
    pub limits: limit::Memory,
    /// Triplets.
    pub greylist: greylist::Memory,
    /// How clients have behaved.
    pub behaviour: behaviour::Memory,
    /// The host.
    pub load: load::Memory,
    /// When it is being worked on.
    pub maintenance: maintenance::Memory,
    /// What clients were called.
    pub names: names::Memory,
    /// Who is let through by hand.
    pub allowed: allowed::Memory,
    /// What is taken out by hand. A restart ends it.
    pub by_hand: by_hand::Memory,
}

/// How much memory may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Client networks that each table of clients may hold.
    pub max_clients: usize,
    /// Triplets, pending and passed together.
    pub max_triplets: usize,
}

impl Memory {
    /// Empty memory.
    pub fn new(secret: &Secret, bounds: Bounds) -> Self {
        Self {
            secret: secret.clone(),
            limits: limit::Memory::new(secret, bounds),
            greylist: greylist::Memory::new(secret, bounds),
            behaviour: behaviour::Memory::new(bounds),
            load: load::Memory::new(bounds),
            maintenance: maintenance::Memory::new(secret),
            names: names::Memory::new(secret, bounds.max_clients),
            allowed: allowed::Memory::new(secret),
            by_hand: by_hand::Memory::default(),
        }
    }

    /// The secret that keys are made with.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Forgets what has faded in the next of so many parts of every table.
    pub fn sweep(&self, at: Moment, parts: usize) {
        self.limits.sweep(at, parts);
        self.greylist.sweep(at, parts);
        self.behaviour.sweep(at, parts);
        self.load.sweep(at, parts);
        self.maintenance.sweep(at);
        self.names.sweep(at, parts);
        self.allowed.sweep(at);
    }

    /// What every table has come to, by its name.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, Size)> {
        let others =
            [self.load.size(), self.maintenance.size(), self.allowed.size(), self.names.size()];
        let (limits, greylist) = (self.limits.sizes(), self.greylist.sizes());
        limits.into_iter().chain(greylist).chain(self.behaviour.sizes()).chain(others)
    }

    /// Entries that outlive the process.
    pub fn kept_entries(&self) -> usize {
        self.kept().map(|(_, table)| table.entries()).sum()
    }

    /// Changes that have not been written down yet.
    pub fn behind(&self) -> usize {
        let behind = |(_, table): (_, Arc<dyn Kept>)| {
            table.changes().map_or(0, Changes::behind) + table.forgotten().behind()
        };
        self.kept().map(behind).sum()
    }

    /// What outlives the process, by the table's name: what is missed most comes first.
    pub fn kept(&self) -> impl Iterator<Item = (&'static str, Arc<dyn Kept>)> {
        // Pools hang on names.
        let first = [self.maintenance.kept(), self.allowed.kept(), self.names.kept()];
        let (limits, greylist) = (self.limits.kept(), self.greylist.kept());
        first.into_iter().chain(self.behaviour.kept()).chain(limits).chain(greylist)
    }
}

/// `[client]`: what a client counts under.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientParams {
    /// Leading bits of an IPv4 address that make its network.
    pub ipv4_prefix: u8,
    /// Networks of IPv6 in which IPv4 addresses stand.
    pub nat64: Vec<Translation>,
    /// Leading bits of an IPv6 address that make its network.
    pub ipv6_prefix: u8,
}

impl Default for ClientParams {
    fn default() -> Self {
        Self { ipv4_prefix: 32, nat64: vec![Translation::WELL_KNOWN], ipv6_prefix: 64 }
    }
}

impl ClientParams {
    /// What makes no sense.
    pub fn check(&self) -> Vec<Complaint> {
        let range = |key, value, max| match (1..=max).contains(&value) {
            true => None,
            false => Some(Complaint::error(key, format!("expected 1 to {max} bits, not {value}"))),
        };
        [range("ipv4_prefix", self.ipv4_prefix, 32), range("ipv6_prefix", self.ipv6_prefix, 128)]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// The signals in force, and what they have in common.
pub struct Policy {
    /// The host's name, for replies, if it is set.
    hostname: Option<Box<str>>,
    /// What the host calls itself.
    host: Box<str>,
    /// Where a postmaster finds help, for replies; empty if nowhere.
    pub help_url: Box<str>,
    most_refusals: u32,
    prefixes: Prefixes,
    nat64: Vec<Translation>,
    names: names::Memory,
    recipients: Recipients,
    /// Begins the key of every part.
    parts: KeyMaker,
    load: Arc<load::Load>,
    maintenance: Arc<maintenance::Maintenance>,
    behaviour: Option<Arc<behaviour::Behaviour>>,
    greylist: Option<Arc<greylist::Greylist>>,
    access: Arc<access::Access>,
    allowed: allowed::Memory,
    by_hand: by_hand::Memory,
    limits: Arc<limit::Limits>,
    signals: Vec<Box<dyn Signal>>,
}

/// What a policy is made of.
pub struct Parts<'a> {
    /// The host's name, for replies, if it is set.
    pub hostname: Option<&'a str>,
    /// What the host calls itself.
    pub host: &'a str,
    /// Where a postmaster finds help; empty if nowhere.
    pub help_url: &'a str,
    /// Which recipients are the same, and where mail to them goes.
    pub recipients: Recipients,
    /// Refusals in a session since its last delivery, beyond which no recipient is refused beside
    /// one that was accepted.
    pub most_refusals: u32,
    /// `[client]`
    pub client: ClientParams,
    /// `[access]`, its lists read.
    pub access: access::Access,
    /// `[[limit]]`
    pub limits: &'a [limit::Params],
    /// `[greylist]`
    pub greylist: &'a greylist::Params,
    /// `[behaviour]`
    pub behaviour: &'a behaviour::Params,
    /// `[load]`
    pub load: load::Params,
    /// `[maintenance]`, its list read.
    pub maintenance: maintenance::Params,
}

impl Policy {
    /// Builds the list of signals, in the order in which they are asked.
    pub fn new(parts: Parts<'_>, memory: &Memory) -> Self {
        let load = Arc::new(memory.load.signal(&parts.load));
        let maintenance = Arc::new(memory.maintenance.signal(parts.maintenance));
        let access = Arc::new(parts.access);
        let limits = Arc::new(memory.limits.signal(parts.limits));
        let mut signals: Vec<Box<dyn Signal>> = vec![
            // Before the denylist, which it overrides.
            Box::new(memory.allowed.clone()),
            Box::new(access.clone()),
            Box::new(maintenance.clone()),
            Box::new(load.clone()),
            Box::new(limits.clone()),
        ];
        let greylist = memory.greylist.signal(parts.greylist).map(Arc::new);
        signals.extend(greylist.clone().map(|signal| Box::new(signal) as Box<_>));
        let behaviour = memory.behaviour.signal(parts.behaviour, &memory.greylist).map(Arc::new);
        // The last to settle, since it takes in what the others have seen.
        signals.extend(behaviour.clone().map(|signal| Box::new(signal) as Box<_>));
        Self {
            hostname: parts.hostname.map(Into::into),
            host: parts.host.into(),
            help_url: parts.help_url.into(),
            most_refusals: parts.most_refusals,
            prefixes: Prefixes { ipv4: parts.client.ipv4_prefix, ipv6: parts.client.ipv6_prefix },
            nat64: parts.client.nat64,
            names: memory.names.clone(),
            recipients: parts.recipients,
            parts: memory.secret().key("part"),
            load,
            maintenance,
            behaviour,
            greylist,
            access,
            allowed: memory.allowed.clone(),
            by_hand: memory.by_hand.clone(),
            limits,
            signals,
        }
    }

    /// Which recipients are the same, and where mail to them goes.
    pub fn recipients(&self) -> &Recipients {
        &self.recipients
    }

    /// Refusals in a session that its MTA bears.
    pub fn most_refusals(&self) -> u32 {
        self.most_refusals
    }

    /// A client as it is known here: by its IPv4 address, where it stands in an IPv6 one, and by
    /// its last name while the present one is unsure.
    pub fn recognised(&self, client: Client, at: Moment) -> Client {
        self.names.recall(client.translated_by(&self.nat64), at)
    }

    /// The network by which clients of this one are known here.
    pub fn known_by(&self, network: IpNet) -> IpNet {
        let IpNet::V6(ipv6) = network else { return network };
        translation::known_by(ipv6, &self.nat64).map_or(network, IpNet::V4)
    }

    /// The host's name, for replies: as it is set, else as the MTA calls it, else as the host does.
    pub fn hostname<'a>(&'a self, mta: Option<&'a str>) -> &'a str {
        self.hostname.as_deref().or(mta).unwrap_or(&self.host)
    }

    /// What a client counts under.
    pub fn network(&self, address: IpAddr) -> Network {
        Network::of(address, self.prefixes)
    }

    /// What a client that begins a session has earned: trusted if anybody says so, else the least
    /// that is said of it.
    pub fn standing(&self, cx: &Context<'_>) -> Standing {
        let mut said = self.signals.iter().filter_map(|signal| signal.standing(cx));
        let Some(mut standing) = said.next() else { return Standing::Unknown };
        for other in said {
            if standing == Standing::Trusted {
                break;
            }
            standing = if other == Standing::Trusted { other } else { standing.min(other) };
        }
        standing
    }

    /// Somebody has written to somebody else: an answer will be no first contact.
    pub fn has_written(&self, from: &Address, to: &Address, at: Moment) {
        if let (Some(behaviour), Some(key)) = (&self.behaviour, keys::talk(self, from, to)) {
            behaviour.has_talked(key, at);
        }
    }

    /// What an event shows of its client's behaviour.
    fn see(&self, cx: &Context<'_>) -> behaviour::Seen {
        self.behaviour.as_ref().map_or_else(Default::default, |behaviour| behaviour.see(cx))
    }

    /// Whether new triplets of this client wait, whoever it is.
    fn suspects(&self, cx: &Context<'_>) -> bool {
        self.behaviour.as_ref().is_some_and(|behaviour| behaviour.suspects(cx))
    }

    /// Since when this triplet is awaited, if it has been told to come back.
    fn awaits(&self, cx: &Context<'_>) -> Option<Time> {
        self.greylist.as_ref()?.awaits(cx)
    }

    /// Whether a triplet that is awaited since then will be put off at DATA.
    fn puts_off_at_data(&self, cx: &Context<'_>, first: Time) -> bool {
        self.greylist.as_ref().is_some_and(|greylist| greylist.puts_off_at_data(cx, first))
    }

    /// This triplet is awaited no more.
    fn has_returned(&self, cx: &Context<'_>) {
        self.greylist.as_ref().inspect(|greylist| greylist.has_returned(cx));
    }

    /// Everything that is known of a client. Reads only: `client` is a context without an
    /// envelope, `all` one with what else is known; both share what was looked up.
    pub fn explain(&self, client: &Context<'_>, all: &Context<'_>) -> Explained {
        let (allowed, denied, authentication_exempts) = self.access.explain(client.client);
        Explained {
            client: client.client.address(),
            name: client.client.name().map(ToOwned::to_owned),
            network: client.network.to_string(),
            pool: client.pool().to_string(),
            // The score is that of the client alone: found before anybody asks with an envelope.
            standing: client.standing(),
            behaviour: self.behaviour.as_ref().map(|behaviour| {
                client.seen();
                behaviour.explain(client)
            }),
            limits: self.limits.explain(all),
            greylist: self.greylist.as_ref().map(|greylist| greylist.explain(all)),
            access: Accessed {
                allowed: allowed.map(|entry| entry.to_string()),
                denied: denied.map(|entry| entry.to_string()),
                allowed_until: self.allowed.until(client.client.address(), client.at),
                authentication_exempts,
            },
        }
    }

    /// Forgets what is known of a client, as far as it is kept under the client alone.
    pub fn forget(&self, cx: &Context<'_>) -> Forgotten {
        let mut said = Forgotten::default();
        match self.behaviour.as_ref().map(|behaviour| behaviour.forget(cx)) {
            Some(true) => said.forgotten.push("behaviour: its score and history".to_owned()),
            Some(false) => said.left.push("behaviour: nothing was known".to_owned()),
            None => said.left.push("behaviour: it is off".to_owned()),
        }
        self.limits.forget(cx, &mut said);
        if let Some(greylist) = &self.greylist {
            greylist.forget(cx, &mut said);
        }
        said
    }

    /// Until when behaviour only watches because the database is new.
    pub fn learning_until(&self, now: Time) -> Option<Time> {
        self.behaviour.as_ref()?.learning_until(now)
    }

    /// How the load is answered.
    pub fn load(&self) -> &load::Params {
        self.load.params()
    }

    /// Whether the host is being worked on.
    pub fn maintenance(&self) -> &maintenance::Maintenance {
        &self.maintenance
    }

    /// A decision about a whole session of this listener that was made at `since`, as it is now:
    /// maintenance may have been ended before its time, or made longer, and a rule taken out by
    /// hand. A session that is let in after all is not charged as a new one; that concerns the few
    /// that came just before.
    pub fn reconsidered(
        &self,
        decision: Decision,
        listener: &str,
        since: Time,
        now: Time,
    ) -> Decision {
        let lifted = |refusal: &Refusal| self.by_hand.covers(refusal.rule(), now);
        let decision = if self.by_hand.is_empty() { decision } else { decision.lifted(lifted) };
        match decision.reasons().iter().any(|r| r.why.reason() == Reason::Maintenance) {
            true => decision.in_maintenance(self.maintenance.over(listener, now), since.min(now)),
            false => decision,
        }
    }

    /// The factor on the quotas of a client, 1.0 while the host bears what comes.
    fn allowance(&self, cx: &Context<'_>) -> f32 {
        self.load.allowance(cx)
    }

    /// Whether anything may be refused at DATA where every recipient was judged before. A front
    /// that is told no may leave DATA out.
    pub fn speaks_at_data(&self) -> bool {
        self.signals.iter().any(|signal| signal.speaks_at_data())
    }

    /// Whether greylisting lets first contacts pass, because it forgets them before they can come
    /// back.
    pub fn greylist_is_suspended(&self, now: Time) -> bool {
        self.signals.iter().any(|signal| signal.is_suspended(now))
    }

    /// The key of one part, which its purpose keeps apart from all others.
    fn key(&self, purpose: &str, value: &[u8]) -> Key {
        self.parts.clone().part(purpose.as_bytes()).part(value).finish()
    }

    /// Judges an event. Reads only.
    pub fn assess(&self, cx: &Context<'_>, ledger: &Ledger) -> Decision {
        // What a front may leave out is never refused where it comes all the same.
        let left_out = matches!(cx.event, Event::Data { unseen: 0 }) && !self.speaks_at_data();
        if left_out || !can_be_refused(cx.event) {
            return Decision::default();
        }
        let mut round = Round::default();
        for signal in &self.signals {
            if round.exemption.is_none() || signal.binds_exempt() {
                signal.assess(cx, ledger, &mut round);
                self.by_hand_in(&mut round, cx.now);
            }
        }
        if let (Event::Data { .. }, Some(refusal)) = (cx.event, &ledger.at_data)
            && round.exemption.is_none()
        {
            round.refuse(patience::at_data(refusal));
            self.by_hand_in(&mut round, cx.now);
        }
        if cx.patience.is_spent(self.most_refusals) {
            let bend = |refusal| patience::bend(cx, ledger, refusal);
            return Decision::bent(round.exemption, round.refusals, bend);
        }
        if cx.transaction.is_some_and(|transaction| transaction.accepted > 0) {
            round.refusals.iter_mut().for_each(|refusal| spare_the_accepted(cx, refusal));
        }
        Decision::new(round.exemption, round.refusals)
    }

    /// A decision about a whole session as it is said again, at another command: nothing is
    /// accepted there, so that it is closed before the MTA does it without a reason.
    pub fn said_again(&self, decision: Decision, patience: Patience) -> Decision {
        if patience.is_spent(self.most_refusals) { decision.closing() } else { decision }
    }

    /// What is taken out by hand is a shadow.
    fn by_hand_in(&self, round: &mut Round, now: Time) {
        if !round.refusals.is_empty() && !self.by_hand.is_empty() {
            for refusal in &mut round.refusals {
                refusal.mode = self.by_hand.mode(refusal.rule(), refusal.mode, now);
            }
        }
    }

    /// Every rule in force and its own mode, in the order in which they are asked.
    pub fn rules(&self, now: Time) -> Vec<(Arc<str>, Mode)> {
        let always = [Reason::Access, Reason::Maintenance].map(|reason| (reason, Mode::Enforce));
        let load = (Reason::Load, self.load.params().mode);
        let first = always.into_iter().chain([load]);
        let greylist = self.greylist.as_ref().map(|rule| (Reason::Greylist, rule.own_mode()));
        let behaviour = self.behaviour.as_ref().map(|rule| (Reason::Behaviour, rule.own_mode(now)));
        let named = |(reason, mode): (Reason, Mode)| (Arc::from(reason.name()), mode);
        let last = greylist.into_iter().chain(behaviour).map(named);
        let all = first.map(named).chain(self.limits.modes()).chain(last);
        all.filter(|(_, own)| *own != Mode::Off).collect()
    }

    /// Takes note of what was decided: the only writer.
    pub fn settle(&self, cx: &Context<'_>, decision: &Decision, ledger: &mut Ledger) {
        match cx.event {
            Event::Recipient { .. } => {
                ledger.at_data = ledger.at_data.take().or_else(|| decision.at_data().cloned());
            }
            Event::Mail { .. } | Event::EndOfMessage { .. } | Event::Abort | Event::Disconnect => {
                (ledger.at_data, ledger.one_has_waited) = (None, false);
            }
            Event::Connect | Event::Helo { .. } | Event::Data { .. } => {}
        }
        for signal in &self.signals {
            signal.settle(cx, decision, ledger);
        }
        self.names.note(cx);
    }

    #[cfg(test)]
    pub(crate) fn add_signal(&mut self, signal: Box<dyn Signal>) {
        self.signals.push(signal);
    }
}

/// At the end of a message a refusal would come too late, and a recipient that the MTA has refused
/// cannot be refused again.
pub fn can_be_refused(event: &Event) -> bool {
    match event {
        Event::Connect | Event::Helo { .. } | Event::Mail { .. } | Event::Data { .. } => true,
        Event::Recipient { fate, .. } => matches!(fate, Fate::Offered | Fate::Doomed),
        Event::EndOfMessage { .. } | Event::Abort | Event::Disconnect => false,
    }
}

/// A 421 at a recipient throws away those accepted before it, and a real Postfix repeats exactly
/// that at every retry: the message would never arrive. So once one is accepted, only the surplus
/// is put off (RFC 5321 section 4.5.3.1.10: 452 for too many recipients).
fn spare_the_accepted(cx: &Context<'_>, refusal: &mut Refusal) {
    if !matches!(cx.event, Event::Recipient { .. }) || refusal.action() != Action::Close {
        return;
    }
    refusal.code = match refusal.why.reason() {
        Reason::Rate if refusal.surplus => Code::Code452,
        Reason::Rate | Reason::Access | Reason::Sessions | Reason::Greylist => Code::Code451,
        // These speak at the beginning of a session only.
        Reason::Behaviour => Code::Code451,
        Reason::Load | Reason::Maintenance => refusal.code,
    };
    if refusal.code == Code::Code452 {
        refusal.enhanced = Enhanced::TOO_MANY_RECIPIENTS;
    }
}
