//! What `postpone setup postfix` says of Postfixes as they are found in the field, by the real
//! postconf over folders of their shape: users' ports that are known by what they say, content
//! filters on this host and on another, and return ports with nothing but lists.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::process::Command;

use support::Folder;
use support::postfix::with_programs;

const MX_AND_USERS: &str = "[[listen]]\nmilter = \"inet:127.0.0.1:7421\"\n\
                            [[listen]]\nmilter = \"inet:127.0.0.1:7424\"\nspeak = \"mail\"\n";
const POLICY: &str = "[[listen]]\npolicy = \"inet:127.0.0.1:7422\"\n";

/// What is said, of these settings and these two files.
fn said(settings: &str, main: &str, master: &str) -> String {
    let folder = Folder::new("field");
    let settings = folder.write("postpone.toml", settings);
    folder.write("main.cf", &format!("compatibility_level = 3.6\n{main}"));
    folder.write("master.cf", master);
    let mut command = Command::new(env!("CARGO_BIN_EXE_postpone"));
    command.args(["setup", "postfix", "--config"]).arg(settings);
    command.arg("--postfix").arg(folder.path());
    let output = with_programs(&mut command, "/usr/bin:/bin").output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let all = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{all}");
    all
}

#[track_caller]
fn says(said: &str, words: &[&str]) {
    words.iter().for_each(|words| assert!(said.contains(words), "no {words:?} in {said}"));
}

/// mailcow's, as far as it matters here.
const MAILCOW: &str = "smtp inet n - n - 1 postscreen
smtpd pass - - n - - smtpd
  -o smtpd_sender_restrictions=permit_mynetworks,reject_unlisted_sender
10465 inet n - n - - smtpd
  -o smtpd_upstream_proxy_protocol=haproxy
  -o smtpd_tls_wrappermode=yes
  -o smtpd_client_restrictions=permit_mynetworks,permit_sasl_authenticated,reject
588 inet n - n - - smtpd
  -o smtpd_client_restrictions=permit_mynetworks,permit_sasl_authenticated,reject
  -o smtpd_tls_auth_only=no
590 inet n - n - - smtpd
  -o smtpd_client_restrictions=permit_mynetworks,reject
  -o smtpd_milters=
  -o non_smtpd_milters=
";

#[test]
fn the_ports_of_mailcow_s_users_are_known_by_what_they_say() {
    let main = "smtpd_sasl_auth_enable = yes\nmynetworks = 127.0.0.0/8 192.0.2.0/24\n\
                smtpd_hard_error_limit = ${stress?1}${stress:5}\n";
    let told = said(MX_AND_USERS, main, MAILCOW);
    for port in ["10465", "588"] {
        let option = format!("{port}/inet/smtpd_milters in master.cf\n  is       (not set)\n");
        says(&told, &[&format!("{option}  becomes  $submission_milters\n")]);
    }
    says(&told, &["becomes  { inet:127.0.0.1:7424, default_action=accept, "]);
    says(&told, &["smtpd_milters of main.cf applies to smtpd/pass\n"]);
    says(&told, &["smtpd_hard_error_limit in main.cf\n  is       ${stress?1}${stress:5}\n"]);
    says(&told, &["590/inet has its own -o smtpd_milters"]);

    let with_rspamd = format!("{main}smtpd_milters = inet:rspamd:9900\n");
    let told = said(MX_AND_USERS, &with_rspamd, MAILCOW);
    says(&told, &["becomes  inet:rspamd:9900, { inet:127.0.0.1:7421, "]);
    for port in ["10465", "588"] {
        says(&told, &[&format!("{port}/inet has other milters, and is not changed")]);
    }
}

#[test]
fn a_filter_on_another_host_is_told_with_the_address_to_allow() {
    let master = "smtp inet n - n - - smtpd\n0.0.0.0:10025 inet n - n - - smtpd\n  \
                  -o content_filter=\n  -o smtpd_recipient_restrictions=permit_mynetworks,reject\n";
    let filter = |host: &str| format!("content_filter = smtp-amavis:[{host}]:10024\n");
    let warning = "returns mail that Postfix has accepted";
    for settings in [MX_AND_USERS, POLICY] {
        let told = said(settings, &filter("192.0.2.9"), master);
        says(&told, &["a content filter on 192.0.2.9 ", "put \"192.0.2.9\" into [access] allow"]);
        for name in ["filter.example.org", "amavis"] {
            says(&said(settings, &filter(name), master), &[&format!("on {name} {warning}")]);
        }
        let allowed =
            format!("{settings}[access]\nallow = [\"127.0.0.0/8\", \"::1\", \"192.0.2.9\"]\n");
        assert!(!said(&allowed, &filter("192.0.2.9"), master).contains(warning));
    }
}

#[test]
fn a_return_port_that_has_only_lists_is_kept_out_of_all_of_them() {
    let main = "content_filter = amavis:[127.0.0.1]:10024\n\
                smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination\n";
    let master = "smtp inet n - n - - smtpd\n127.0.0.1:10025 inet n - n - - smtpd\n  \
                  -o content_filter=\n  -o smtpd_recipient_restrictions=permit_mynetworks,reject\n\
                  127.0.0.1:10027 inet n - n - - smtpd\n  -o content_filter=\n";
    let told = said(POLICY, main, master);
    let becomes = |option: &str, value: &str| {
        let now = "is       (not set)";
        says(&told, &[&format!("{option} in master.cf\n  {now}\n  becomes  {value}\n")]);
    };
    becomes("127.0.0.1:10025/inet/smtpd_end_of_data_restrictions", "");
    becomes("127.0.0.1:10027/inet/smtpd_end_of_data_restrictions", "");
    becomes("127.0.0.1:10027/inet/smtpd_recipient_restrictions", "permit_mynetworks,reject");
    says(&told, &["reject_unlisted_recipient, check_policy_service { inet:127.0.0.1:7422, "]);
    assert!(!told.contains("10025/inet/smtpd_recipient_restrictions"), "{told}");
}

#[test]
fn a_policy_service_that_cannot_know_where_a_bare_user_goes_is_told_of() {
    let master = "smtp inet n - n - - smtpd\n";
    let folder = Folder::new("origin");
    let mailname = folder.write("mailname", "bank.example\n");
    let own = |names: &str| format!("[server]\nown_names = [{names}]\n{POLICY}");
    let warning = "put \"bank.example\" into [server] own_names";
    for main in ["myorigin = bank.example\n", &format!("myorigin = {}\n", mailname.display())] {
        says(&said(&own("\"mx.example.org\""), main, master), &[warning]);
        let both = own("\"mx.example.org\", \"Bank.Example\"");
        for known in [&both, &own(""), &both.replace("policy", "milter")] {
            assert!(!said(known, main, master).contains("own_names"), "{known}");
        }
    }
}
