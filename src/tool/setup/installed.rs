//! What Postfix says of itself, as values: its parameters and its services, made from what postconf
//! prints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::list::{Kind, Own, Places, words};
use crate::front::address::Address;

/// What Postfix says of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Installed {
    /// Every parameter, as it is written.
    pub(super) raw: BTreeMap<String, String>,
    /// The same, with what `$name` stands for.
    pub(super) expanded: BTreeMap<String, String>,
    /// Those that main.cf names.
    pub(super) named: BTreeSet<String>,
    /// The services of master.cf.
    pub(super) services: Vec<Service>,
}

/// A line of master.cf.
#[derive(Clone, Debug, Default)]
pub(super) struct Service {
    /// As `postconf -P` names it: `smtp/inet`.
    pub(super) name: String,
    /// It sees nothing but the queue's folder.
    pub(super) chrooted: bool,
    /// Its program.
    pub(super) command: String,
    /// What its `-o` say, with what `$name` stands for.
    pub(super) options: BTreeMap<String, String>,
}

impl Installed {
    /// The folder of its queues.
    pub(super) fn queue(&self) -> PathBuf {
        self.expanded("queue_directory").into()
    }

    /// The parameter as it is written; empty if there is none.
    pub(super) fn raw(&self, name: &str) -> &str {
        self.raw.get(name).map_or("", String::as_str)
    }

    /// The parameter with what `$name` stands for.
    pub(super) fn expanded(&self, name: &str) -> &str {
        self.expanded.get(name).map_or("", String::as_str)
    }

    /// These listeners, as Postfix may spell them.
    pub(super) fn places(&self, addresses: &[Address]) -> Places {
        Places { addresses: addresses.to_vec(), queue: self.queue() }
    }

    /// Whether mail waits where nobody answers this entry.
    pub(super) fn fails(&self, own: &Own, kind: Kind) -> bool {
        let action = own.default_action().unwrap_or_else(|| self.expanded(kind.general()));
        !action.eq_ignore_ascii_case(kind.harmless())
    }

    /// What serves clients.
    pub(super) fn smtpd(&self) -> impl Iterator<Item = &Service> {
        self.services
            .iter()
            .filter(|service| service.command == "smtpd" && !service.name.ends_with("/unix"))
    }
}

impl Service {
    /// It is told to ask none, as behind a content filter.
    pub(super) fn asks_no_milter(&self, main: &Installed) -> bool {
        let options = self.options.get("receive_override_options");
        let options = options.map_or(main.expanded("receive_override_options"), String::as_str);
        words(options).into_iter().any(|word| &options[word] == "no_milters")
    }
}

/// The lines `name = value` that postconf prints.
pub(super) fn parameters(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(" ="));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// The lines of master.cf (master(5): service, type, private, unpriv, chroot, wakeup, maxproc,
/// command) and their options (service/type/name = value).
pub(super) fn services(lines: &str, options: &str, chrooted_by_default: bool) -> Vec<Service> {
    let mut services: Vec<Service> = lines
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (service, kind) = (fields.next()?, fields.next()?);
            let chroot = fields.nth(2)?;
            Some(Service {
                name: format!("{service}/{kind}"),
                chrooted: chroot == "y" || chroot == "-" && chrooted_by_default,
                command: fields.nth(2)?.to_owned(),
                options: BTreeMap::new(),
            })
        })
        .collect();
    for (name, value) in parameters(options) {
        let Some((service, option)) = name.rsplit_once('/') else { continue };
        if let Some(service) = services.iter_mut().find(|known| known.name == service) {
            service.options.insert(option.to_owned(), value);
        }
    }
    services
}

/// Before compatibility level 1, services were chrooted unless they said otherwise.
pub(super) fn is_ancient(level: &str) -> bool {
    level.split('.').next().and_then(|level| level.trim().parse::<u32>().ok()) == Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_their_options_and_their_chroot() {
        let lines = "smtp       inet  n       -       n       -       -       smtpd
127.0.0.1:10025 inet n   -       -       -       -       smtpd -o receive_override_options=no_milters
pickup     unix  n       -       y       60      1       pickup";
        let options = "127.0.0.1:10025/inet/receive_override_options = no_milters
smtp/inet/smtpd_milters =
";
        let services = services(lines, options, true);
        let seen: Vec<_> =
            services.iter().map(|s| (s.name.as_str(), s.command.as_str(), s.chrooted)).collect();
        let expected = [
            ("smtp/inet", "smtpd", false),
            ("127.0.0.1:10025/inet", "smtpd", true),
            ("pickup/unix", "pickup", true),
        ];
        assert_eq!(seen, expected);
        assert_eq!(services[0].options["smtpd_milters"], "");
        assert_eq!(services[1].options["receive_override_options"], "no_milters");
    }

    #[test]
    fn what_postfix_says_of_its_parameters_is_read() {
        let said = parameters("a = b, c = d\nempty =\n");
        assert_eq!((said["a"].as_str(), said["empty"].as_str()), ("b, c = d", ""));
        assert!(is_ancient("0") && !is_ancient("3.6") && !is_ancient("2") && !is_ancient(""));
    }
}
