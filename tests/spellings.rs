//! The stories of recipients that are spelled in another way: what an MTA brings to a user of
//! `example.org`, that domain's requirement was asked of, by the milter and by the policy service.
//!
//! What the MTAs make of each spelling by themselves is the table, and the first thing tested.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use support::daemon::Daemon;
use support::mx::{ANNA, SENDER, greylist};
use support::postfix::{Postfix, Settings};
use support::sendmail::Sendmail;
use support::smtp::{Client, Reply};
use support::wait_until;

/// Whether an MTA accepts a recipient, and brings it to a user of `example.org`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mta {
    Delivers,
    Refuses,
}

/// What the policy service can see, which is told what the client has written: whether this domain
/// is meant, or only that there may be another one within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Plain,
    Hidden,
}

use Mta::{Delivers, Refuses};
use Seen::{Hidden, Plain};

/// What stands behind `RCPT TO:`, what Postfix makes of it, and what Sendmail.
#[rustfmt::skip]
const SPELLINGS: &[(&str, Mta, Mta, Seen)] = &[
    ("<one@example.org>", Delivers, Delivers, Plain),
    ("<one@EXAMPLE.Org>", Delivers, Delivers, Plain),
    ("<ONE@example.org>", Delivers, Delivers, Plain),
    ("<one@example.org.>", Delivers, Delivers, Plain),
    ("<one@example.org..>", Refuses, Delivers, Plain),
    ("one@example.org", Delivers, Delivers, Plain),
    ("one@example.org.", Delivers, Delivers, Plain),
    (" <one@example.org>", Delivers, Delivers, Plain),
    ("<one @example.org>", Delivers, Delivers, Plain),
    ("<one@ example.org>", Delivers, Delivers, Plain),
    ("< one@example.org >", Delivers, Delivers, Plain),
    ("<one@example.org>>", Delivers, Refuses, Plain),
    ("<<one@example.org>>", Delivers, Delivers, Plain),
    ("<\"one\"@example.org>", Delivers, Delivers, Plain),
    ("<\"o\"ne@example.org>", Refuses, Delivers, Plain),
    ("<o\\ne@example.org>", Delivers, Delivers, Plain),
    ("<\"o\\ne\"@example.org>", Delivers, Delivers, Plain),
    ("<one(it is)@example.org>", Delivers, Delivers, Plain),
    ("<one@example.org(it is)>", Delivers, Delivers, Plain),
    ("<(it is)one@example.org>", Delivers, Delivers, Plain),
    ("<one@(it is)example.org>", Delivers, Delivers, Plain),
    ("<one@example(it is).org>", Delivers, Delivers, Plain),
    ("One <one@example.org>", Refuses, Refuses, Plain),
    ("<One <one@example.org>>", Delivers, Delivers, Plain),
    ("<@relay.example:one@example.org>", Delivers, Delivers, Plain),
    ("<@relay.example,@other.example:one@example.org>", Delivers, Delivers, Plain),
    ("<@[192.0.2.1]:one@example.org>", Delivers, Delivers, Plain),
    ("<one>", Delivers, Delivers, Plain),
    ("<\"one\">", Delivers, Delivers, Plain),
    ("one", Delivers, Delivers, Plain),
    ("<one@>", Refuses, Refuses, Plain),
    ("<one@.>", Refuses, Refuses, Plain),
    ("<one@[127.0.0.1]>", Delivers, Refuses, Plain),
    ("<one@[IPv6:::1]>", Delivers, Refuses, Plain),
    ("<one@127.0.0.1>", Refuses, Refuses, Plain),
    ("<one@[]>", Refuses, Refuses, Plain),
    ("<one@localhost>", Delivers, Delivers, Plain),
    ("<one@mx.example.org>", Delivers, Delivers, Plain),
    ("<one@mx>", Refuses, Refuses, Plain),
    ("<one@example>", Refuses, Refuses, Plain),
    ("<one@\"example.org\">", Delivers, Refuses, Plain),
    ("<example.org!one>", Delivers, Delivers, Hidden),
    ("<example.org!one@example.org>", Delivers, Delivers, Hidden),
    ("<mx.example.org!example.org!one>", Delivers, Delivers, Hidden),
    ("<one%example.org>", Delivers, Delivers, Hidden),
    ("<one%example.org@example.org>", Delivers, Delivers, Hidden),
    ("<one%example.org@mx.example.org>", Delivers, Delivers, Hidden),
    ("<one%example.org%mx.example.org@mx.example.org>", Delivers, Delivers, Hidden),
    ("<one%example.org@[127.0.0.1]>", Delivers, Refuses, Hidden),
    ("<one@example.org@mx.example.org>", Delivers, Refuses, Hidden),
    ("<\"one@example.org\"@mx.example.org>", Delivers, Delivers, Hidden),
    ("<\"one%example.org\"@mx.example.org>", Delivers, Delivers, Hidden),
    ("<\"one@example.org\">", Delivers, Delivers, Plain),
    ("<one+tag@example.org>", Delivers, Delivers, Plain),
    ("<one;@example.org>", Refuses, Refuses, Plain),
    ("<one,two@example.org>", Refuses, Refuses, Plain),
    ("<group:one@example.org;>", Delivers, Refuses, Plain),
    ("<one@example。org>", Refuses, Refuses, Plain),
    ("<one@ｅxample.org>", Refuses, Refuses, Plain),
];

/// The names by which both deliver to the same users.
const OWN_NAMES: &str =
    "limit = []\n[server]\nown_names = [\"example.org\", \"mx.example.org\", \"localhost\"]\n";

/// What asks for TLS, which no client here has.
fn tls_for(domain: &str) -> String {
    format!("{OWN_NAMES}[[access.require]]\nrecipient_domain = \"{domain}\"\ntls = true\n")
}

/// A Postfix whose users are those of `example.org`.
fn own_users(settings: Settings) -> Settings {
    settings
        .with("virtual_mailbox_domains =")
        .with("mydestination = example.org, mx.example.org, localhost")
        .with("myorigin = example.org")
        .with("local_transport = virtual")
        .with("local_recipient_maps =")
}

/// MAIL and RCPT in a session of its own.
fn rcpt(smtp: SocketAddr, spelling: &str) -> (Client, Reply) {
    let mut client = Client::connect(smtp, ANNA);
    client.greeting.clone().expect(220);
    client.ehlo().expect(250);
    let utf8 = if spelling.is_ascii() { "" } else { " SMTPUTF8" };
    client.say(&format!("MAIL FROM:<{SENDER}>{utf8}"));
    let reply = client.say(&format!("RCPT TO:{spelling}"));
    (client, reply)
}

/// The MTA alone does what the table says: each message that it accepts arrives.
#[track_caller]
fn does_so(smtp: SocketAddr, makes_of: impl Fn(usize) -> Mta, mailbox: impl Fn() -> Vec<String>) {
    let mut sent = BTreeSet::new();
    for (number, (spelling, ..)) in SPELLINGS.iter().enumerate() {
        let (mut client, reply) = rcpt(smtp, spelling);
        assert_eq!(reply.code == 250, makes_of(number) == Delivers, "{spelling}: {reply:?}");
        if reply.code == 250 {
            client.data().expect(354);
            client.say(&format!("Subject: spelling {number}\r\n\r\n.")).expect(250);
            sent.insert(number);
        }
    }
    let subject = |message: &String| {
        let mut lines = message.lines();
        let number = lines.find_map(|line| line.strip_prefix("Subject: spelling "))?;
        Some(number.parse::<usize>().expect("our number"))
    };
    wait_until("all that was accepted", || {
        let arrived: BTreeSet<_> = mailbox().iter().filter_map(subject).collect();
        (arrived == sent).then_some(())
    });
}

/// Of whatever the MTA would deliver to the domain, TLS was asked for.
#[track_caller]
fn asks_of_all(smtp: SocketAddr, makes_of: impl Fn(usize) -> Mta) {
    for (number, (spelling, ..)) in SPELLINGS.iter().enumerate() {
        let (_client, reply) = rcpt(smtp, spelling);
        match makes_of(number) {
            Delivers => {
                let ours = reply.text.contains("TLS required for example.org");
                assert!(reply.code == 421 && ours, "{spelling}: {reply:?}");
            }
            Refuses => assert!(reply.code != 250, "{spelling}: {reply:?}"),
        }
    }
}

/// What another domain asks is asked of none of whom it is known that they are not there.
#[track_caller]
fn asks_of_no_other(
    smtp: SocketAddr,
    makes_of: impl Fn(usize) -> Mta,
    known: impl Fn(Seen) -> bool,
) {
    for (number, (spelling, .., seen)) in SPELLINGS.iter().enumerate() {
        if makes_of(number) == Delivers {
            let (_client, reply) = rcpt(smtp, spelling);
            let expected = if known(*seen) { 250 } else { 421 };
            assert_eq!(reply.code, expected, "{spelling}: {reply:?}");
        }
    }
}

fn postfix_makes(number: usize) -> Mta {
    SPELLINGS[number].1
}

fn sendmail_makes(number: usize) -> Mta {
    SPELLINGS[number].2
}

#[test]
fn postfix_alone_takes_them_so() {
    let postfix = own_users(Postfix::plain()).start();
    does_so(postfix.smtp, postfix_makes, || postfix.mailbox());
}

#[test]
fn sendmail_alone_takes_them_so() {
    let sendmail = Sendmail::plain();
    does_so(sendmail.smtp, sendmail_makes, || sendmail.mailbox());
}

#[test]
fn postfix_delivers_none_of_which_the_milter_has_not_asked_tls() {
    let daemon = Daemon::start(&tls_for("example.org"));
    let postfix = own_users(Postfix::with_milter(&daemon.endpoint)).start();
    asks_of_all(postfix.smtp, postfix_makes);
}

#[test]
fn postfix_delivers_none_of_which_the_policy_service_has_not_asked_tls() {
    let daemon = Daemon::policy_service(&tls_for("example.org"));
    let asking = Postfix::plain().with_policy_service(&daemon.policy_endpoint, &["recipient"]);
    asks_of_all(own_users(asking).start().smtp, postfix_makes);
}

#[test]
fn sendmail_delivers_none_of_which_the_milter_has_not_asked_tls() {
    let daemon = Daemon::start(&tls_for("example.org"));
    let sendmail = Sendmail::with_milter(&daemon.endpoint);
    asks_of_all(sendmail.smtp, sendmail_makes);
}

#[test]
fn no_spelling_is_taken_for_another_domain_where_the_mta_tells() {
    let daemon = Daemon::start(&tls_for("other.example"));
    let postfix = own_users(Postfix::with_milter(&daemon.endpoint)).start();
    asks_of_no_other(postfix.smtp, postfix_makes, |_| true);
    let sendmail = Sendmail::with_milter(&daemon.endpoint);
    asks_of_no_other(sendmail.smtp, sendmail_makes, |_| true);
}

#[test]
fn a_policy_service_asks_where_it_cannot_see() {
    let daemon = Daemon::policy_service(&tls_for("other.example"));
    let asking = Postfix::plain().with_policy_service(&daemon.policy_endpoint, &["recipient"]);
    let postfix = own_users(asking).start();
    asks_of_no_other(postfix.smtp, postfix_makes, |seen| seen == Plain);
}

#[test]
fn what_has_passed_at_one_door_is_known_at_the_other_however_it_is_spelled() {
    let daemon = Daemon::milter_and_policy_service(&greylist(""));
    let milter = own_users(Postfix::with_milter(&daemon.endpoint)).start();
    let asking = Postfix::plain().with_policy_service(&daemon.policy_endpoint, &["recipient"]);
    let policy = own_users(asking).start();
    let asks = |smtp: SocketAddr, sender: &str, recipient: &str| {
        let mut client = Client::connect(smtp, ANNA);
        client.ehlo().expect(250);
        client.say(&format!("MAIL FROM:{sender}")).expect(250);
        client.say(&format!("RCPT TO:{recipient}")).code
    };
    let first = |smtp| asks(smtp, "<\"john doe\"@example.net>", "<one@example.org>");
    assert_eq!(first(milter.smtp), 451);
    wait_until("the retry to pass at the milter", || (first(milter.smtp) == 250).then_some(()));
    assert_eq!(asks(policy.smtp, "<\"John Doe\"@Example.net.>", "<ONE+tag@EXAMPLE.org.>"), 250);
    assert_eq!(asks(policy.smtp, "<\"jane doe\"@example.net>", "<one@example.org>"), 451);
}
