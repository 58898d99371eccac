//! What is decided for the Postfixes that postmasters have.

use super::*;
use crate::tool::setup::installed::Service;

const MILTER: &str =
    "{ inet:127.0.0.1:7421, default_action=accept, connect_timeout=5s, command_timeout=5s }";
const MAIL: &str =
    "{ inet:127.0.0.1:7424, default_action=accept, connect_timeout=5s, command_timeout=5s }";
const POLICY: &str =
    "check_policy_service { inet:127.0.0.1:7422, default_action=DUNNO, timeout=5s }";

/// A Postfix as it comes, with these lines of main.cf, and one smtpd. What stands in the lines is
/// expanded as far as the stories need.
fn postfix(main: &[(&str, &str)]) -> Installed {
    let defaults = [
        (RELAY, "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination"),
        ("smtpd_reject_unlisted_recipient", "yes"),
        ("milter_default_action", "tempfail"),
        ("smtpd_policy_service_default_action", "451 4.3.5 Server configuration problem"),
        ("queue_directory", "/var/spool/postfix"),
    ];
    let mut postfix = Installed::default();
    for (name, value) in defaults.iter().chain(main) {
        postfix.raw.insert((*name).into(), (*value).into());
    }
    postfix.named = main.iter().map(|(name, _)| (*name).to_owned()).collect();
    postfix.expanded = postfix.raw.clone();
    for value in postfix.expanded.values_mut() {
        for (name, stands_for) in &postfix.raw {
            *value = value.replace(&format!("${name}"), stands_for);
        }
    }
    with(postfix, "smtp/inet", &[])
}

fn with(mut postfix: Installed, name: &str, options: &[(&str, &str)]) -> Installed {
    postfix.services.push(Service {
        name: name.into(),
        chrooted: true,
        command: "smtpd".into(),
        options: options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
    });
    postfix
}

fn doors(mx: &[&str], submission: &[&str], policy: &[&str]) -> Doors {
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let [mx, submission, policy] = [mx, submission, policy].map(addresses);
    Doors { mx, submission, policy, ..Doors::default() }
}

fn mx() -> Doors {
    doors(&["inet:127.0.0.1:7421"], &[], &[])
}

fn policy() -> Doors {
    doors(&[], &[], &["inet:127.0.0.1:7422"])
}

/// What the parameters become.
fn becomes(plan: &Plan) -> Vec<(&str, Option<&str>)> {
    let changes = plan.parameters.iter().chain(&plan.services);
    changes.map(|change| (change.name.as_str(), change.becomes.as_deref())).collect()
}

/// Postfix after the changes.
fn after(mut postfix: Installed, plan: &Plan) -> Installed {
    for change in &plan.parameters {
        let value = change.becomes.clone();
        match value.is_some() {
            true => postfix.named.insert(change.name.clone()),
            false => postfix.named.remove(&change.name),
        };
        postfix.raw.insert(change.name.clone(), value.clone().unwrap_or_default());
        postfix.expanded.insert(change.name.clone(), value.unwrap_or_default());
    }
    for change in &plan.services {
        let (service, option) = change.name.rsplit_once('/').unwrap();
        let service = postfix.services.iter_mut().find(|known| known.name == service).unwrap();
        match &change.becomes {
            Some(value) => {
                let value = postfix.expanded.get(&value[1..]).cloned().unwrap_or_default();
                service.options.insert(option.into(), value);
            }
            None => {
                service.options.remove(option);
            }
        }
    }
    postfix
}

#[track_caller]
fn says(said: &[String], words: &str) {
    assert!(said.iter().any(|said| said.contains(words)), "{words} is not in {said:#?}");
}

#[test]
fn the_milter_is_put_last_and_what_is_there_stays() {
    for list in
        ["", "inet:localhost:11332", "{ inet:a:1, protocol=6 },inet:b:2", "$opendkim unix:c"]
    {
        let before = postfix(&[(MILTERS, list)]);
        let plan = Plan::set_up(&before, &mx());
        let expected =
            if list.is_empty() { MILTER.to_owned() } else { format!("{list}, {MILTER}") };
        assert_eq!(becomes(&plan), [(MILTERS, Some(expected.as_str()))]);
        assert_eq!(plan.warnings, [""; 0]);

        let applied = after(before, &plan);
        let again = Plan::set_up(&applied, &mx());
        assert!(again.is_empty() && again.already.len() == 1, "{again:#?}");
        let undone = Plan::taken_out(&applied, &mx());
        let left = if list.is_empty() { None } else { Some(list) };
        assert_eq!(becomes(&undone), [(MILTERS, left)]);
        assert!(Plan::taken_out(&after(applied, &undone), &mx()).is_empty());
    }
}

#[test]
fn beside_a_milter_postfix_bears_refusals_under_stress_too() {
    let before = postfix(&[(ERRORS, "${stress?{1}:{20}}")]);
    let plan = Plan::set_up(&before, &mx());
    assert_eq!(becomes(&plan), [(MILTERS, Some(MILTER)), (ERRORS, Some("20"))]);
    says(&plan.remarks, "hang up at the first refusal");
    let applied = after(before, &plan);
    assert!(Plan::set_up(&applied, &mx()).is_empty());
    let undone = Plan::taken_out(&applied, &mx());
    assert_eq!(becomes(&undone), [(MILTERS, None), (ERRORS, None)]);

    // The policy service is told, and acts on it.
    let plan = Plan::set_up(&postfix(&[(ERRORS, "${stress?{1}:{20}}")]), &policy());
    assert!(plan.parameters.iter().all(|change| change.name != ERRORS), "{plan:#?}");
    let plan = Plan::set_up(&postfix(&[(ERRORS, "10")]), &mx());
    assert_eq!(becomes(&plan), [(MILTERS, Some(MILTER))]);
    says(&plan.warnings, "most_refusals");
}

#[test]
fn an_entry_that_would_put_mail_off_is_corrected_where_it_stands() {
    let list = "inet:localhost:7421, inet:b:2";
    let plan = Plan::set_up(&postfix(&[(MILTERS, list)]), &mx());
    let mended = format!("{}, inet:b:2", MILTER.replace("127.0.0.1", "localhost"));
    assert_eq!(becomes(&plan), [(MILTERS, Some(mended.as_str()))]);
    says(&plan.remarks, "without default_action=accept");
    says(&plan.remarks, "other milters come after postpone");

    // Where all milters may be away, there is nothing to correct.
    let plan =
        Plan::set_up(&postfix(&[(MILTERS, list), ("milter_default_action", "accept")]), &mx());
    assert!(plan.is_empty(), "{plan:#?}");
}

#[test]
fn an_entry_behind_a_reference_counts_and_is_left_alone() {
    for (milter, warnings) in [(MILTER, 0), ("inet:127.0.0.1:7421", 1)] {
        let postfix = postfix(&[(MILTERS, "inet:a:1, $postpone"), ("postpone", milter)]);
        let plan = Plan::set_up(&postfix, &mx());
        assert!(plan.is_empty() && plan.warnings.len() == warnings, "{plan:#?}");
        let plan = Plan::taken_out(&postfix, &mx());
        assert!(plan.is_empty());
        says(&plan.warnings, "names postpone, and is not changed");
    }
}

#[test]
fn a_policy_service_is_asked_last_and_never_behind_what_permits() {
    let relay = "permit_mynetworks, reject_unauth_destination";
    for (list, expected) in [
        (None, format!("{BEFORE_US}, {POLICY}")),
        (Some(relay), format!("{relay}, {UNLISTED}, {POLICY}")),
        (
            Some("reject_unauth_destination permit"),
            format!("reject_unauth_destination {UNLISTED}, {POLICY} permit"),
        ),
        (Some("$mua_restrictions"), format!("$mua_restrictions, {UNLISTED}, {POLICY}")),
    ] {
        let main: Vec<_> = list.map(|list| (RECIPIENT, list)).into_iter().collect();
        let before = postfix(&main);
        let plan = Plan::set_up(&before, &policy());
        assert_eq!(
            becomes(&plan),
            [(RECIPIENT, Some(expected.as_str())), (END_OF_DATA, Some(POLICY))]
        );
        assert_eq!(plan.warnings, [""; 0]);
        let applied = after(before, &plan);
        let again = Plan::set_up(&applied, &policy());
        assert!(again.is_empty() && again.already.len() == 2, "{again:#?}");
        let undone = Plan::taken_out(&applied, &policy());
        assert_eq!(becomes(&undone)[1], (END_OF_DATA, None));
        assert_eq!(becomes(&undone)[0].1, list);
    }
}

#[test]
fn a_list_that_rejects_at_its_end_is_left_to_the_administrator() {
    let plan = Plan::set_up(&postfix(&[(RECIPIENT, "permit_mynetworks, reject")]), &policy());
    assert_eq!(becomes(&plan), [(END_OF_DATA, Some(POLICY))]);
    says(&plan.warnings, "ends with reject");
}

#[test]
fn relay_protection_that_is_missing_is_told_and_what_protects_is_not_taken_out() {
    let open = postfix(&[(RELAY, ""), (RECIPIENT, "permit_mynetworks")]);
    says(&Plan::set_up(&open, &policy()).warnings, "Postfix refuses to run without it");
    // Here the words before us are the protection, whoever has written them.
    let list = format!("{BEFORE_US}, {POLICY}");
    let plan = Plan::taken_out(&postfix(&[(RELAY, ""), (RECIPIENT, &list)]), &policy());
    assert_eq!(becomes(&plan), [(RECIPIENT, Some(BEFORE_US))]);
}

#[test]
fn with_both_the_milter_is_set_up_and_the_policy_service_offered() {
    let plan = Plan::set_up(
        &postfix(&[]),
        &doors(&["inet:127.0.0.1:7421"], &[], &["inet:127.0.0.1:7422"]),
    );
    assert_eq!(becomes(&plan), [(MILTERS, Some(MILTER))]);
    says(&plan.remarks, POLICY);
}

#[test]
fn a_submission_service_without_milters_gets_its_own_listener() {
    let both = doors(&["inet:127.0.0.1:7421"], &["inet:127.0.0.1:7424"], &[]);
    let before = with(with(postfix(&[]), "submission/inet", &[]), "127.0.0.1:465/inet", &[]);
    let plan = Plan::set_up(&before, &both);
    let reference = Some("$submission_milters");
    let expected = [
        (MILTERS, Some(MILTER)),
        (SUBMISSION, Some(MAIL)),
        ("submission/inet/smtpd_milters", reference),
        ("127.0.0.1:465/inet/smtpd_milters", reference),
    ];
    assert_eq!(becomes(&plan), expected);
    let applied = after(before, &plan);
    let again = Plan::set_up(&applied, &both);
    assert!(again.is_empty() && again.already.len() == 3, "{again:#?}");
    let undone = Plan::taken_out(&applied, &both);
    assert!(
        undone.parameters.iter().chain(&undone.services).all(|change| change.becomes.is_none())
    );
    assert_eq!((undone.parameters.len(), undone.services.len()), (2, 2));
    assert_eq!(undone.warnings, [""; 0]);
}

#[test]
fn a_submission_service_with_milters_is_left_to_the_administrator() {
    let both = doors(&["inet:127.0.0.1:7421"], &["inet:127.0.0.1:7424"], &[]);
    let own = with(postfix(&[]), "submission/inet", &[(MILTERS, "inet:dkim:1")]);
    let shared = with(postfix(&[(MILTERS, "inet:dkim:1")]), "submission/inet", &[]);
    for postfix in [own, shared] {
        let plan = Plan::set_up(&postfix, &both);
        assert_eq!(plan.parameters.len(), 1, "{plan:#?}");
        assert!(plan.services.is_empty(), "{plan:#?}");
        let said = [plan.remarks, plan.warnings].concat();
        says(&said, &format!("`submission_milters = inet:dkim:1, {MAIL}`"));
    }
}

#[test]
fn what_a_postmaster_would_stumble_over_is_told() {
    let submission = with(postfix(&[]), "submission/inet", &[]);
    says(&Plan::set_up(&submission, &mx()).warnings, "before they can log in");

    let mut own = postfix(&[]);
    own.services[0].options.insert(MILTERS.into(), String::new());
    let plan = Plan::set_up(&own, &mx());
    says(&plan.warnings, "smtp/inet has its own -o smtpd_milters");
    says(&plan.warnings, "none asks postpone");

    let again =
        with(postfix(&[]), "127.0.0.1:10025/inet", &[("receive_override_options", "no_milters")]);
    let plan = Plan::set_up(&again, &mx());
    says(&plan.remarks, "smtpd_milters of main.cf applies to smtp/inet");
    says(&plan.remarks, "127.0.0.1:10025/inet asks no milter");

    let local = postfix(&[(MILTERS, "inet:a:1"), ("non_smtpd_milters", "$smtpd_milters")]);
    says(&Plan::set_up(&local, &mx()).warnings, "set non_smtpd_milters = inet:a:1");

    let maps = postfix(&[("smtpd_milter_maps", "cidr:/etc/postfix/milters")]);
    says(&Plan::set_up(&maps, &mx()).warnings, "smtpd_milter_maps is set");
}

#[test]
fn a_socket_that_a_chrooted_smtpd_cannot_see_is_told() {
    let plan = Plan::set_up(&postfix(&[]), &doors(&["unix:/run/postpone/milter.sock"], &[], &[]));
    says(&plan.warnings, "smtp/inet is chrooted to /var/spool/postfix");
    let below = doors(&["unix:/var/spool/postfix/postpone/milter.sock"], &[], &[]);
    let plan = Plan::set_up(&postfix(&[]), &below);
    assert_eq!(plan.warnings, [""; 0]);
    assert!(becomes(&plan)[0].1.unwrap().contains("{ unix:postpone/milter.sock, "), "{plan:#?}");
}

/// amavis, as its documentation puts it behind Postfix: its return port says nothing of milters.
fn behind_amavis(main: &[(&str, &str)]) -> Installed {
    let main = [main, &[("content_filter", "smtp-amavis:[127.0.0.1]:10024")]].concat();
    let options = [
        ("content_filter", ""),
        ("smtpd_recipient_restrictions", "permit_mynetworks,reject"),
        ("mynetworks", "127.0.0.0/8"),
    ];
    with(postfix(&main), "127.0.0.1:10025/inet", &options)
}

#[test]
fn where_a_content_filter_gives_mail_back_nobody_is_asked() {
    let before = behind_amavis(&[]);
    let plan = Plan::set_up(&before, &mx());
    let own = "127.0.0.1:10025/inet/smtpd_milters";
    assert_eq!(becomes(&plan), [(MILTERS, Some(MILTER)), (own, Some(""))]);
    says(&plan.remarks, "127.0.0.1:10025/inet takes mail back from a content filter");
    assert_eq!(plan.warnings, [""; 0]);

    let applied = with_options(before, "127.0.0.1:10025/inet", &[(MILTERS, "")]);
    let applied = after(applied, &Plan { services: Vec::new(), ..plan });
    assert!(Plan::set_up(&applied, &mx()).is_empty());
    let undone = Plan::taken_out(&applied, &mx());
    assert_eq!(becomes(&undone), [(MILTERS, None), (own, None)]);
}

#[test]
fn where_a_content_filter_gives_mail_back_no_policy_service_is_asked() {
    let plan = Plan::set_up(&behind_amavis(&[]), &policy());
    let own = "127.0.0.1:10025/inet/smtpd_end_of_data_restrictions";
    assert!(becomes(&plan).contains(&(own, Some(""))), "{plan:#?}");
    assert!(plan.services.len() == 1, "its own recipient restrictions stand: {plan:#?}");
}

#[test]
fn a_filter_on_another_host_is_to_be_allowed() {
    let plan = |destination: &str| {
        let mut plan = Plan::default();
        let allowed: IpAddr = "192.0.2.10".parse().unwrap();
        let postfix = postfix(&[("content_filter", destination)]);
        plan.warn_of_filters(&postfix, &|address| address == allowed);
        plan.warnings
    };
    says(&plan("smtp:[192.0.2.9]:10024"), "put \"192.0.2.9\" into [access] allow");
    says(&plan("smtp:filter.example.org:10024"), "filter.example.org");
    for here in ["smtp:[127.0.0.1]:10024", "smtp:[192.0.2.10]:10024", "spamassassin", ""] {
        assert_eq!(plan(here), [""; 0], "{here}");
    }
}

#[test]
fn users_ports_are_known_by_what_they_say() {
    let closed = "permit_mynetworks,permit_sasl_authenticated,reject";
    let postfix = with(
        with(
            postfix(&[("smtpd_sasl_auth_enable", "yes")]),
            "588/inet",
            &[("smtpd_client_restrictions", closed)],
        ),
        "10465/inet",
        &[("smtpd_tls_wrappermode", "yes")],
    );
    let doors = doors(&["inet:127.0.0.1:7421"], &["inet:127.0.0.1:7424"], &[]);
    let plan = Plan::set_up(&postfix, &doors);
    let names: Vec<_> = plan.services.iter().map(|change| change.name.as_str()).collect();
    assert_eq!(names, ["588/inet/smtpd_milters", "10465/inet/smtpd_milters"]);
}

#[test]
fn recipients_that_do_not_exist_are_refused_before_anybody_is_asked() {
    let list = "permit_mynetworks, reject_unauth_destination";
    let before = postfix(&[(RECIPIENT, list)]);
    let plan = Plan::set_up(&before, &policy());
    let expected = format!("{list}, reject_unlisted_recipient, {POLICY}");
    assert!(becomes(&plan).contains(&(RECIPIENT, Some(expected.as_str()))), "{plan:#?}");
    let undone = Plan::taken_out(&after(before, &plan), &policy());
    assert!(becomes(&undone).contains(&(RECIPIENT, Some(list))), "{undone:#?}");
}

#[test]
fn a_postfix_that_looks_up_no_names_is_told_of() {
    let postfix = postfix(&[("smtpd_peername_lookup", "no")]);
    says(&Plan::set_up(&postfix, &mx()).warnings, "smtpd_peername_lookup = no");
}

fn with_options(mut postfix: Installed, name: &str, options: &[(&str, &str)]) -> Installed {
    let service = postfix.services.iter_mut().find(|service| service.name == name).unwrap();
    let options = options.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    service.options.extend(options);
    postfix
}

#[test]
fn a_name_that_is_not_postfixs_own_is_warned_of() {
    let postfix = postfix(&[("myhostname", "mx1.example.org")]);
    let warned = |hostname: Option<&str>| {
        let doors = Doors { hostname: hostname.map(Into::into), ..mx() };
        let warnings = Plan::set_up(&postfix, &doors).warnings;
        warnings.iter().any(|warning| warning.contains("Postfix's myhostname is mx1.example.org"))
    };
    assert!(!warned(None) && !warned(Some("mx1.example.org")));
    assert!(warned(Some("mx.example.org")));
}

/// While postpone is away, any local user can take a port, and Postfix would ask that user.
#[test]
fn an_entry_for_the_old_port_moves_to_the_packages_socket_and_keeps_its_place() {
    let packaged = Doors {
        outgrown: Some("inet:127.0.0.1:7421".parse().unwrap()),
        ..doors(&["unix:/var/spool/postfix/postpone/milter.sock"], &[], &[])
    };
    let socket = "{ unix:postpone/milter.sock, default_action=accept, command_timeout=9s, \
                  connect_timeout=5s }";
    let old =
        "inet:a:1 { inet:localhost:7421, default_action=accept, command_timeout=9s } inet:b:2";
    let before = postfix(&[(MILTERS, old)]);
    let plan = Plan::set_up(&before, &packaged);
    let moved = format!("inet:a:1 {socket} inet:b:2");
    assert_eq!(becomes(&plan), [(MILTERS, Some(moved.as_str()))]);
    says(&plan.remarks, "any local user can take");
    says(&plan.remarks, "systemctl disable --now postpone-port.socket");

    let again = Plan::set_up(&after(before.clone(), &plan), &packaged);
    assert!(again.is_empty() && again.already.len() == 1, "{again:#?}");
    // Taken out, whether it has moved or not.
    for postfix in [after(before.clone(), &plan), before] {
        let undone = Plan::taken_out(&postfix, &packaged);
        assert_eq!(becomes(&undone), [(MILTERS, Some("inet:a:1 inet:b:2"))]);
    }
}

#[test]
fn a_port_that_the_settings_name_is_not_left() {
    let before = postfix(&[(MILTERS, MILTER)]);
    let plan = Plan::set_up(&before, &mx());
    assert!(plan.is_empty() && plan.already.len() == 1, "{plan:#?}");
}
