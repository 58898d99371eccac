//! What is to be taken out of Postfix again.

use std::collections::BTreeSet;

use super::installed::Installed;
use super::list::{self, Kind, Own, words};
use super::plan::{
    BEFORE_US, Change, Doors, END_OF_DATA, ERRORS, ERRORS_ALWAYS, MILTERS, Plan, RECIPIENT, RELAY,
    SUBMISSION, UNLISTED, protects, ranges,
};

impl Plan {
    /// What it takes for Postfix to ask postpone no more. What is ours is known by the addresses of
    /// our listeners, so it does not matter who has put it in.
    pub(super) fn taken_out(postfix: &Installed, doors: &Doors) -> Self {
        let mut plan = Self::default();
        plan.leave_submission(postfix, doors);
        let lists = [
            (MILTERS, Kind::Milter, doors.milters()),
            (RECIPIENT, Kind::Policy, doors.policy.clone()),
            (END_OF_DATA, Kind::Policy, doors.policy.clone()),
        ];
        for (name, kind, addresses) in &lists {
            let list = postfix.raw(name);
            let found = list::own(list, *kind, &postfix.places(addresses));
            if found.is_empty() {
                continue;
            }
            let mut left = list::without(list, &ranges(&found));
            if *name == RECIPIENT && left != BEFORE_US {
                left = without_unlisted(postfix, list, &found).unwrap_or(left);
            }
            if words(&left).is_empty() {
                self_evident(&mut plan, postfix, name);
            }
            let is_default =
                words(&left).is_empty() || *name == RECIPIENT && as_before(postfix, &left);
            plan.parameters.push(Change::of_main(postfix, name, (!is_default).then_some(left)));
        }
        let milter_leaves = plan.parameters.iter().any(|change| change.name == MILTERS);
        if milter_leaves && postfix.raw(ERRORS) == ERRORS_ALWAYS {
            plan.parameters.push(Change::of_main(postfix, ERRORS, None));
        }
        plan.warn_of_what_is_left(postfix, doors);
        plan
    }

    /// What `ask_at_submission` has made.
    fn leave_submission(&mut self, postfix: &Installed, doors: &Doors) {
        let written = postfix.raw(SUBMISSION);
        let ours = list::own(written, Kind::Milter, &postfix.places(&doors.milters()));
        if ours.is_empty() || ours.len() != words(written).len() {
            return;
        }
        for service in postfix.smtpd() {
            // An option that says the same in other words says it all the same.
            if service.options.get(MILTERS).map(String::as_str)
                == Some(postfix.expanded(SUBMISSION))
            {
                self.services.push(Change {
                    name: format!("{}/{MILTERS}", service.name),
                    is: Some(format!("${SUBMISSION}")),
                    becomes: None,
                });
            }
        }
        self.parameters.push(Change::of_main(postfix, SUBMISSION, None));
    }

    /// Lists that we do not edit, and that name us all the same.
    fn warn_of_what_is_left(&mut self, postfix: &Installed, doors: &Doors) {
        let changed: BTreeSet<_> = self
            .parameters
            .iter()
            .chain(&self.services)
            .map(|change| change.name.clone())
            .collect();
        let names = |list: &str| {
            let milters = list::own(list, Kind::Milter, &postfix.places(&doors.milters()));
            let policies = list::own(list, Kind::Policy, &postfix.places(&doors.policy));
            !milters.is_empty() || !policies.is_empty()
        };
        let main = postfix.named.iter().map(|name| (name.clone(), postfix.raw(name)));
        let master = postfix.services.iter().flat_map(|service| {
            let options = service.options.iter();
            options.map(move |(name, value)| (format!("{}/{name}", service.name), value.as_str()))
        });
        for (name, value) in main.chain(master) {
            if !changed.contains(&name) && names(value) {
                self.warnings.push(format!(
                    "{name} = {value} names postpone, and is not changed: remove it yourself"
                ));
            }
        }
    }
}

/// The list also without the check for unknown recipients that stands right before us: Postfix
/// makes it at the end of the list by itself.
fn without_unlisted(postfix: &Installed, list: &str, found: &[Own]) -> Option<String> {
    let late = postfix.expanded("smtpd_reject_unlisted_recipient") == "yes";
    let [own] = found else { return None };
    let before = words(list).into_iter().rfind(|word| word.end <= own.range.start)?;
    (late && &list[before.clone()] == UNLISTED)
        .then(|| list::without(list, &[before, own.range.clone()]))
}

/// Where a list is empty, it need not be emptied where a content filter gives mail back.
fn self_evident(plan: &mut Plan, postfix: &Installed, name: &str) {
    for service in postfix.smtpd().filter(|service| service.takes_back(postfix)) {
        if service.options.get(name).is_some_and(String::is_empty) {
            plan.services.push(Change {
                name: format!("{}/{name}", service.name),
                is: Some(String::new()),
                becomes: None,
            });
        }
    }
}

/// Whether a list says what Postfix says without it: then `set_up` has found it empty, or it might
/// have.
fn as_before(postfix: &Installed, list: &str) -> bool {
    list == BEFORE_US
        && protects(postfix.expanded(RELAY))
        && postfix.expanded("smtpd_reject_unlisted_recipient") == "yes"
}
