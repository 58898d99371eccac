//! What settings amount to, in a line: for `check`, a reload and `ctl status`.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::Settings;
use crate::clock::Time;
use crate::front::control::status::in_force;
use crate::meter::key::Secret;
use crate::policy::access::{Entry, Params};
use crate::policy::{Bounds, Memory, limit};
use crate::setting::Mode;

impl Settings {
    /// Which rules are enforced and which are in shadow, and which built-in limits no longer hold.
    pub fn in_force(&self, rules: &[(Arc<str>, Mode)]) -> String {
        in_force(rules, &self.replaced())
    }

    /// The same of settings that no daemon has put in force, at this moment.
    pub fn would_be_in_force(&self, now: Time) -> String {
        let bounds = Bounds { max_clients: 1, max_triplets: 1 };
        let policy = self.policy(&Memory::new(&Secret::new([0; 16]), bounds));
        // Its lists have been read a moment ago.
        self.in_force(&policy.map_or_else(|_| Vec::new(), |policy| policy.rules(now)))
    }

    /// The lists that they name.
    pub fn files(&self) -> Vec<PathBuf> {
        let Params { allow, deny, require, .. } = &self.access;
        let required = require.iter().flat_map(|require| &require.clients);
        let all = allow.iter().chain(deny).chain(required).chain(&self.maintenance.allow);
        let file = |entry: &Entry| match entry {
            Entry::File(path) => Some(path.clone()),
            Entry::Network(_) | Entry::Suffix(_) => None,
        };
        all.filter_map(file).collect()
    }

    /// The built-in limits that these settings have replaced. One of the same name takes its place;
    /// `limit = []` says itself that there are none.
    pub fn replaced_limits(&self) -> Vec<limit::Params> {
        if self.limit.is_empty() {
            return Vec::new();
        }
        let mut built_in = limit::Params::built_in();
        built_in.retain(|limit| self.limit.iter().all(|own| own.name != limit.name));
        built_in
    }

    /// Their names.
    pub fn replaced(&self) -> Vec<String> {
        self.replaced_limits().into_iter().map(|limit| limit.name.to_string()).collect()
    }

    /// The lines that keep the built-in limits beside those of a file, as comments; nothing where
    /// they all hold.
    pub(super) fn lines_that_keep_them(&self) -> String {
        #[derive(Serialize)]
        struct Lines {
            limit: Vec<limit::Params>,
        }
        let limit = self.replaced_limits();
        if limit.is_empty() {
            return String::new();
        }
        let lines = toml::to_string_pretty(&Lines { limit }).unwrap_or_default();
        let lines = lines.lines().map(|line| format!("# {line}").trim_end().to_owned() + "\n");
        let begin = "\n# Built-in limits that no longer hold, since [[limit]] replaces them. To \
                     keep them, add these lines:\n#\n";
        std::iter::once(begin.to_owned()).chain(lines).collect()
    }
}
