//! The settings: the sum of every part's parameters. Read, check, print, and what a reload may
//! change.

mod force;
pub mod load;
mod memory;
pub mod read;
mod words;

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use self::read::{Problem, Reader};
use crate::front::address::{Address, UnixPath};
use crate::front::listen::{self, Permissions, Protocol};
use crate::front::packaged::Listening;
use crate::front::socket_file::Ownership;
use crate::front::takeable;
use crate::meter::units::Span;
use crate::policy::access::Lists;
use crate::policy::limit::dimension::Dimension;
use crate::policy::limit::params::{Count, Measured};
use crate::policy::recipients::Recipients;
use crate::policy::standing::Standing;
use crate::policy::{
    Bounds, ClientParams, Memory, Parts, Policy, access, behaviour, greylist, limit, maintenance,
};
use crate::setting::{Complaint, Expected, OrNone};
use crate::smtp::domain::Domain;
use crate::smtp::template::{LONGEST_HOSTNAME, LONGEST_URL, Placeholder, is_host_name};

/// Everything that can be set. What is not set has its default.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// `[server]`
    pub server: Server,
    /// `[[listen]]`
    pub listen: Vec<listen::Params>,
    /// `[control]`
    pub control: Control,
    /// `[client]`
    pub client: ClientParams,
    /// `[access]`
    pub access: access::Params,
    /// `[[limit]]`
    pub limit: Vec<limit::Params>,
    /// `[greylist]`
    pub greylist: greylist::Params,
    /// `[behaviour]`
    pub behaviour: behaviour::Params,
    /// `[load]`
    pub load: load::Load,
    /// `[maintenance]`
    pub maintenance: load::Maintenance,
    /// `[state]`
    pub state: State,
    /// `[log]`
    pub log: Log,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            server: Server::default(),
            listen: vec![listen::Params::default()],
            control: Control::default(),
            client: ClientParams::default(),
            access: access::Params::default(),
            limit: limit::Params::built_in(),
            greylist: greylist::Params::default(),
            behaviour: behaviour::Params::default(),
            load: load::Load::default(),
            maintenance: load::Maintenance::default(),
            state: State::default(),
            log: Log::default(),
        }
    }
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The host's name, in replies; none: what the MTA calls it.
    pub hostname: OrNone<String>,
    /// How long running sessions may go on at shutdown.
    pub grace: Span,
    /// Where a sender's postmaster finds help, in replies.
    pub help_url: OrNone<String>,
    /// Names that the MTA delivers to users of the host itself; none where they are not known.
    pub own_names: Vec<Domain>,
    /// What begins a detail in the local part of a recipient: each of these characters.
    pub recipient_delimiter: String,
    /// Refusals in a session since its last delivery, the MTA's own among them, beyond which no
    /// recipient is refused beside one that was accepted.
    pub most_refusals: NonZeroU32,
    /// Threads that serve MTAs, each with a runtime of its own.
    pub workers: u8,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            hostname: OrNone::None,
            grace: Span::secs(30),
            help_url: OrNone::None,
            own_names: Vec::new(),
            recipient_delimiter: "+".into(),
            most_refusals: NonZeroU32::new(15).expect("fifteen is not zero"),
            workers: 1,
        }
    }
}

/// What the host calls itself.
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".into() } else { name }
}

/// What is said of a host's name in replies if it has no dot.
pub fn without_dot(name: &str) -> Option<String> {
    let message = || {
        format!(
            "replies name this host {name}, which has no dot: set [server] hostname to its full \
             name, such as \"mx1.example.org\""
        )
    };
    (!name.contains('.')).then(message)
}

impl Server {
    fn check(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        if self.hostname.as_option().is_some_and(|name| !is_host_name(name)) {
            let message = format!(
                "expected a host name such as \"mx1.example.org\", of at most {LONGEST_HOSTNAME} characters"
            );
            complaints.push(Complaint::error("hostname", message));
        } else if let Some(message) = self.hostname.as_option().and_then(|name| without_dot(name)) {
            complaints.push(Complaint::warning("hostname", message));
        }
        let url = self.help_url.as_option().map_or("", String::as_str);
        if url.len() > LONGEST_URL || !url.chars().all(|c| c.is_ascii_graphic()) {
            let message = format!("expected a URL of at most {LONGEST_URL} ASCII characters");
            complaints.push(Complaint::error("help_url", message));
        }
        let delimits = |c: char| c.is_ascii_punctuation() && !matches!(c, '@' | '"' | '.');
        if !self.recipient_delimiter.chars().all(delimits) {
            let message = r#"expected signs such as "+", or "" for none"#;
            complaints.push(Complaint::error("recipient_delimiter", message));
        }
        if self.workers == 0 {
            complaints.push(Complaint::error("workers", "expected at least 1"));
        }
        complaints
    }
}

/// `[control]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    /// The socket for `ctl`.
    pub socket: OrNone<UnixPath>,
    /// Its owner.
    pub socket_owner: OrNone<String>,
    /// Its group.
    pub socket_group: OrNone<String>,
    /// Its permission bits.
    pub socket_mode: Permissions,
    /// Where metrics are served.
    pub http: OrNone<SocketAddr>,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: OrNone::Some(UnixPath::new("/run/postpone/control.sock")),
            socket_owner: OrNone::None,
            socket_group: OrNone::None,
            socket_mode: Permissions::default(),
            http: OrNone::Some(SocketAddr::from(([127, 0, 0, 1], 7423))),
        }
    }
}

impl Control {
    /// What makes no sense beside these listeners.
    fn check(&self, listen: &[listen::Params]) -> Vec<Complaint> {
        let socket = self.socket.as_option().map(|socket| Address::Unix(socket.path().into()));
        let taken = |listen: &listen::Params| listen.address().map(|(a, _)| a) == socket.as_ref();
        match socket.is_some() && listen.iter().any(taken) {
            true => vec![Complaint::error(
                "socket",
                "expected a path of its own: a [[listen]] uses this one",
            )],
            false => Vec::new(),
        }
    }

    /// Who may use the socket.
    pub fn ownership(&self) -> Ownership {
        Ownership::new(&self.socket_owner, &self.socket_group, self.socket_mode)
    }

    /// The socket that a file names, or the default one where it names none. Whatever else is
    /// wrong with the file does not matter here: who mends it must reach the daemon.
    pub fn socket_in(text: &str) -> OrNone<UnixPath> {
        let (_, root) = Reader::open(text);
        let control = root.get("control").and_then(|control| control.get_ref().as_table());
        let socket = control.and_then(|control| control.get("socket")?.get_ref().as_str());
        match socket {
            Some("none") => OrNone::None,
            Some(socket) => socket.parse().map_or_else(|_| Self::default().socket, OrNone::Some),
            None => Self::default().socket,
        }
    }
}

/// `[state]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// The folder where state is kept.
    pub path: OrNone<Folder>,
    /// How late a change is on disk at most, if the disk keeps up.
    pub flush: Span,
    /// Client networks that each table of clients may hold.
    pub max_clients: u32,
    /// Triplets, pending and passed together.
    pub max_triplets: u32,
}

impl Default for State {
    fn default() -> Self {
        Self {
            path: OrNone::Some(Folder("/var/lib/postpone".into())),
            flush: Span::secs(1),
            max_clients: 1_000_000,
            max_triplets: 10_000_000,
        }
    }
}

impl State {
    fn check(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        if self.flush < SHORTEST_FLUSH || self.flush > LONGEST_FLUSH {
            let message = format!("expected {SHORTEST_FLUSH} to {LONGEST_FLUSH}");
            complaints.push(Complaint::error("flush", message));
        }
        for (key, max) in [("max_clients", self.max_clients), ("max_triplets", self.max_triplets)] {
            if max < 1_000 {
                let message = format!("expected at least 1000, not {max}");
                complaints.push(Complaint::error(key, message));
            }
        }
        complaints
    }
}

const SHORTEST_FLUSH: Span = Span::millis(10);
const LONGEST_FLUSH: Span = Span::secs(60);

/// An absolute path of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Folder {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let path = PathBuf::from(text);
        let absolute = path.is_absolute().then_some(Self(path));
        absolute.ok_or_else(|| Expected::new("an absolute path of a folder"))
    }
}

impl std::fmt::Display for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

/// `[log]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// How lines look.
    pub format: Format,
    /// The least severe lines that are written.
    pub level: Level,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `journald` under systemd, else `text`.
    #[default]
    Auto,
    /// For people: time, level, `key=value`.
    Text,
    /// One JSON object a line.
    Json,
    /// Without time, and with the priority in front as journald reads it.
    Journald,
}

/// The least severe lines that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// We fail to serve.
    Error,
    /// Somebody must look.
    Warn,
    /// Decisions that are not `pass`, starts, reloads.
    #[default]
    Info,
    /// The rest.
    Debug,
    /// The libraries' too.
    Trace,
}

impl Settings {
    /// Reads settings from a file.
    pub fn load(path: &Path) -> Result<Checked, Unusable> {
        let file = path.display().to_string();
        match fs::read(path).and_then(as_text) {
            Ok(text) => Self::parse_on(&Listening::here(), &file, &text),
            Err(error) => {
                let problem = Problem::whole_file(error.to_string());
                Err(Unusable(read::Report::new(file, String::new(), vec![problem])))
            }
        }
    }

    /// The settings where there is no file.
    pub fn built_in() -> Result<Checked, Unusable> {
        Self::parse_on(&Listening::here(), "built-in settings", "")
    }

    /// Reads settings from a text; `file` is its name in messages.
    pub fn parse(file: &str, text: &str) -> Result<Checked, Unusable> {
        Self::parse_beside(&[listen::Params::default()], file, text)
    }

    /// Why another user might answer the MTA at what is listened on, where nobody else holds it.
    pub fn can_be_taken(&self, is_held: impl Fn(&Address) -> bool) -> Option<String> {
        let addresses = self.listen.iter().filter_map(|listen| Some(listen.address()?.0));
        takeable::warning(addresses.filter(|address| !is_held(address)))
    }

    /// Reads settings from a text, on a host that listens so by default.
    fn parse_on(here: &Listening, file: &str, text: &str) -> Result<Checked, Unusable> {
        let mut checked = Self::parse_beside(&here.listeners(), file, text)?;
        checked.can_be_taken = match checked.named.listen {
            true => checked.settings.can_be_taken(|address| here.holds(address)),
            false => here.warning(),
        };
        Ok(checked)
    }

    fn parse_beside(
        by_default: &[listen::Params],
        file: &str,
        text: &str,
    ) -> Result<Checked, Unusable> {
        let (mut reader, mut root) = Reader::open(text);
        let server = reader.section(&mut root, "server", Server::check);
        let listen = reader.list(&mut root, "listen", listen::Params::check);
        let named = |section, key| {
            root.get(section).is_some_and(|section| section.get_ref().get(key).is_some())
        };
        let named = Named {
            listen: false,
            socket: named("control", "socket"),
            http: named("control", "http"),
            state: named("state", "path"),
        };
        let control = reader.section(&mut root, "control", |control: &Control| {
            control.check(listen.as_deref().unwrap_or_default())
        });
        let client = reader.section(&mut root, "client", ClientParams::check);
        let access =
            reader.section(
                &mut root,
                "access",
                |params: &access::Params| match access::Access::new(
                    params,
                    &client.nat64,
                    list_text,
                ) {
                    Ok(access) => access.misses_loopback().into_iter().collect(),
                    Err(complaints) => complaints,
                },
            );
        let listeners = listen.clone().filter(|listen| !listen.is_empty());
        let named = Named { listen: listeners.is_some(), ..named };
        let listeners = listeners.unwrap_or_else(|| by_default.to_vec());
        let mut earlier = Vec::new();
        let limit = reader.list(&mut root, "limit", |limit: &limit::Params| {
            let mut complaints = limit.check();
            complaints.extend(beside_others(limit, &earlier));
            complaints.extend(can_never_fire(limit, &access, &listeners));
            complaints.extend(names_no_url(limit, &server));
            complaints.extend(limit.when.check(&client.nat64));
            earlier.push(limit.clone());
            complaints
        });
        let greylist = reader.section(&mut root, "greylist", |greylist: &greylist::Params| {
            let mut complaints = greylist.check();
            complaints.extend(greylist.when.check(&client.nat64));
            complaints
        });
        let behaviour = reader.section(&mut root, "behaviour", behaviour::Params::check);
        let load = reader.section(&mut root, "load", load::Load::check);
        let maintenance = reader.section(&mut root, "maintenance", |m: &load::Maintenance| {
            let lists = Lists::of("allow", &m.allow, &client.nat64, list_text);
            let mut complaints = lists.err().unwrap_or_default();
            complaints.extend(m.check());
            complaints
        });
        let state = reader.section(&mut root, "state", State::check);
        let log = reader.section(&mut root, "log", |_: &Log| Vec::new());
        reader.nothing_left(root, &SECTIONS, sections_of);
        let report = reader.report(file);
        if report.has_errors() {
            return Err(Unusable(report));
        }
        let built_in = Self::default();
        let settings = Self {
            server,
            listen: listeners,
            control,
            client,
            access,
            limit: limit.unwrap_or(built_in.limit),
            greylist,
            behaviour,
            load,
            maintenance,
            state,
            log,
        };
        Ok(Checked { settings, report, named, can_be_taken: None })
    }

    /// The same settings as TOML, every key spelled out; as comments, the built-in limits that they
    /// replace.
    pub fn print(&self) -> String {
        let settings = toml::to_string_pretty(self);
        settings.expect("every setting is a TOML value: a test prints them all")
            + &self.lines_that_keep_them()
    }

    /// Whether replies need a name of this host that nobody tells: a policy service is not told
    /// what the MTA calls it, as a milter is.
    pub fn must_ask_for_the_name(&self) -> bool {
        let is_policy = |listen: &listen::Params| {
            listen.address().is_some_and(|(_, protocol)| protocol == Protocol::Policy)
        };
        self.server.hostname == OrNone::None && self.listen.iter().any(is_policy)
    }

    /// How much memory may hold.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            max_clients: self.state.max_clients as usize,
            max_triplets: self.state.max_triplets as usize,
        }
    }

    /// The policy they describe. Reads the lists that `[access]` names.
    pub fn policy(&self, memory: &Memory) -> Result<Policy, Vec<Complaint>> {
        Ok(Policy::new(
            Parts {
                hostname: self.server.hostname.as_option().map(String::as_str),
                host: &host_name(),
                most_refusals: self.server.most_refusals.get(),
                help_url: self.server.help_url.as_option().map_or("", String::as_str),
                recipients: Recipients::new(
                    self.server.hostname.as_option().map_or(&host_name(), String::as_str),
                    &self.server.own_names,
                    &self.server.recipient_delimiter,
                ),
                client: self.client.clone(),
                access: access::Access::new(&self.access, &self.client.nat64, list_text)?,
                limits: &self.limit,
                greylist: &self.greylist,
                behaviour: &self.behaviour,
                load: self.load.params(),
                maintenance: maintenance::Params {
                    until: self.maintenance.until.as_option().copied(),
                    allow: Lists::of(
                        "allow",
                        &self.maintenance.allow,
                        &self.client.nat64,
                        list_text,
                    )?,
                    reply: Arc::new(self.maintenance.reply.clone()),
                },
            },
            memory,
        ))
    }

    /// What differs from `running` and takes effect only at a restart.
    pub fn needs_restart(&self, running: &Self) -> Vec<&'static str> {
        [
            ("[[listen]]", self.listen != running.listen),
            ("[control]", self.control != running.control),
            ("[state]", self.state != running.state),
            ("server.workers", self.server.workers != running.server.workers),
            ("server.grace", self.server.grace != running.server.grace),
            ("log.format", self.log.format != running.log.format),
        ]
        .into_iter()
        .filter_map(|(what, differs)| differs.then_some(what))
        .collect()
    }
}

/// The text of a list that settings name. Only a regular file is read: a pipe would keep us
/// waiting.
fn list_text(path: &Path) -> io::Result<String> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let mut file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "expected a regular file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    as_text(bytes)
}

/// What a file holds, if it is text; else an error with the line where it is not.
fn as_text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
        io::Error::new(ErrorKind::InvalidData, format!("line {line}: expected UTF-8"))
    })
}

/// What makes no sense of a limit beside those before it.
fn beside_others(limit: &limit::Params, earlier: &[limit::Params]) -> Vec<Complaint> {
    let key = match limit.count.measured() {
        Measured::InTime => "quota",
        Measured::AtOnce | Measured::Distinct => "max",
    };
    let mut complaints = Vec::new();
    for other in earlier {
        if other.name == limit.name {
            let message = format!("expected a name of its own; {:?} is taken", limit.name);
            complaints.push(Complaint::error("name", message));
        } else if limit.is_shadowed_by(other) {
            let message =
                format!("it can never fire: {:?} above is at least as strict", other.name);
            complaints.push(Complaint::warning(key, message));
        } else if other.is_shadowed_by(limit) {
            let message = format!("{:?} above can never fire: this one is stricter", other.name);
            complaints.push(Complaint::warning(key, message));
        }
    }
    complaints
}

fn names_no_url(limit: &limit::Params, server: &Server) -> Option<Complaint> {
    let asks = limit.reply.as_ref().is_some_and(|reply| reply.asks_for(Placeholder::Url));
    (asks && server.help_url == OrNone::None)
        .then(|| Complaint::warning("reply", "{url} is empty: server.help_url is \"none\""))
}

/// Why nobody can ever meet a limit, in the light of the other settings.
fn can_never_fire(
    limit: &limit::Params,
    access: &access::Params,
    listeners: &[listen::Params],
) -> Option<Complaint> {
    let serves = |protocol| {
        listeners.iter().filter_map(listen::Params::address).any(|(_, served)| served == protocol)
    };
    let milter_only = matches!(limit.count, Count::Sessions | Count::UnknownRecipients);
    if milter_only && !serves(Protocol::Milter) {
        let message = format!(
            "the policy service is not told of {}: this needs a milter listener",
            match limit.count {
                Count::Sessions => "the end of sessions",
                _ => "recipients that Postfix refuses",
            }
        );
        return Some(Complaint::warning("count", message));
    }
    // What comes by a policy service may be called anything: by `policy_context` in main.cf.
    let called = |wanted: &str| {
        serves(Protocol::Policy) || listeners.iter().any(|l| *l.door().listener == *wanted)
    };
    if let Some(unknown) = limit.when.listener.iter().flatten().find(|wanted| !called(wanted)) {
        let message = format!("it can never hold: there is no [[listen]] on {unknown:?}");
        return Some(Complaint::warning("when", message));
    }
    let exempt_for_good = access.exempt_authenticated && !limit.per.is_empty();
    let users_only = limit.per.contains(&Dimension::User) || limit.when.authenticated == Some(true);
    if exempt_for_good && users_only {
        let message = "it can never fire: authenticated clients are exempt, see \
                       access.exempt_authenticated";
        let key = if limit.per.contains(&Dimension::User) { "per" } else { "when" };
        return Some(Complaint::warning(key, message));
    }
    let trusted_only = |standings: &Vec<_>| standings.iter().all(|s| *s == Standing::Trusted);
    let trusted_only = limit.when.standing.as_ref().is_some_and(trusted_only);
    (exempt_for_good && trusted_only)
        .then(|| Complaint::warning("when", "it can never fire: trusted clients are exempt"))
}

/// The sections that have this key.
fn sections_of(key: &str) -> Vec<String> {
    let defaults = toml::Table::try_from(Settings::default()).unwrap_or_default();
    let all = defaults.iter().filter_map(|(name, section)| match section {
        toml::Value::Table(section) => section.contains_key(key).then(|| format!("[{name}]")),
        toml::Value::Array(entries) => {
            let has = |entry: &toml::Value| entry.get(key).is_some();
            entries.iter().any(has).then(|| format!("[[{name}]]"))
        }
        _ => None,
    });
    all.collect()
}

/// The sections, as they stand in a file.
const SECTIONS: [&str; 12] = [
    "server",
    "listen",
    "control",
    "client",
    "access",
    "limit",
    "greylist",
    "behaviour",
    "load",
    "maintenance",
    "state",
    "log",
];

/// Settings that can be used, and what was noticed in them.
#[derive(Debug)]
pub struct Checked {
    /// The settings.
    pub settings: Settings,
    /// Warnings.
    pub report: read::Report,
    /// What it cannot be served without.
    pub named: Named,
    /// Why another user might answer the MTA. It is no mistake in the file, and said where it
    /// matters: by `check`, and as the daemon starts.
    pub can_be_taken: Option<String>,
}

/// What the file names itself. At its default each of these can be done without, where it cannot
/// be had; all but the listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Where to listen; else it listens where this host does by default.
    pub listen: bool,
    /// The socket for `ctl`.
    pub socket: bool,
    /// The address of metrics.
    pub http: bool,
    /// The folder of state.
    pub state: bool,
}

/// Settings that cannot be used, and why.
#[derive(Debug)]
pub struct Unusable(pub read::Report);

#[cfg(test)]
mod tests;
