//! The stories an operator would tell of what clients are told: a real Postfix with postpone as its
//! milter, and real clients on loopback who are told to come back later, or are not. What is
//! asserted is what the client saw, what the mailbox holds, and what log and counters say.

mod support;

use support::daemon::{Daemon, HOSTNAME, field};
use support::mx::{
    ANNA, BERT, CARL, DECISIONS, SENDER, SHADOWED, greeted, greylist, limit, mx,
    no_session_is_left, told, velocity, visit,
};
use support::postfix::Postfix;
use support::smtp::{Client, swaks};
use support::{stopwatch, wait_until};

#[test]
fn too_many_sessions_at_once_are_told_at_helo() {
    let (daemon, postfix) = mx(&limit("sessions", "sessions", "max = 2\nretry = \"1m\""));
    let first = greeted(&postfix, ANNA);
    let second = greeted(&postfix, ANNA);
    let mut third = Client::connect(postfix.smtp, ANNA);
    third.greeting.clone().expect(220);
    let reply = third.helo();
    told(reply, third, "4.7.0", "Too many concurrent connections from your network");
    daemon.decision(&[("action", "close"), ("limit", "sessions"), ("client", ANNA)]);

    visit(&postfix, BERT, "bert"); // another network is not concerned
    first.quit();
    wait_until("the session given back to be free", || {
        let mut fourth = Client::connect(postfix.smtp, ANNA);
        let admitted = fourth.greeting.code == 220 && fourth.helo().code == 250;
        admitted.then(|| fourth.deliver(SENDER, &["anna"]))
    });
    postfix.delivered(&["anna", "bert"]);
    second.quit();
    no_session_is_left(&daemon);
}

#[test]
fn silent_sessions_cannot_pile_up() {
    let (daemon, postfix) = mx(&limit("sessions", "sessions", "max = 1\nretry = \"1m\""));
    let admitted = greeted(&postfix, ANNA);
    let silent = Client::connect(postfix.smtp, ANNA);
    silent.greeting.clone().expect(220);
    // At CONNECT the MTA drops our text and writes its own.
    let closed = Client::connect(postfix.smtp, ANNA);
    let greeting = closed.greeting.clone().expect(421);
    assert!(greeting.text.contains("Service unavailable"), "{greeting:?}");
    closed.closed();
    daemon.decision(&[("action", "close"), ("limit", "sessions"), ("event", "connect")]);
    drop(silent);
    admitted.quit();
    no_session_is_left(&daemon);
}

#[test]
fn connecting_too_often_is_told_at_helo_until_the_quota_has_refilled() {
    let passed = stopwatch();
    let (daemon, postfix) = mx(&limit("connections", "connections", "quota = \"2/4s\""));
    let attempt = || {
        let mut client = Client::connect(postfix.smtp, ANNA);
        let reply = client.ehlo();
        (client, reply)
    };
    // However slow the machine: faster than one in two seconds, so soon one is too many.
    let (refused, reply) = wait_until("a refusal", || Some(attempt()).filter(|a| a.1.code != 250));
    told(reply, refused, "4.7.0", "");
    daemon.decision(&[("action", "close"), ("reason", "rate"), ("limit", "connections")]);
    let (mut client, _) = wait_until("a pass", || Some(attempt()).filter(|a| a.1.code == 250));
    // The third charge at the least, and all came after we began.
    assert!(passed().as_secs_f64() >= 2.0, "let in {:?} after the first", passed());
    client.deliver(SENDER, &["one"]);
    postfix.delivered(&["one"]);
}

#[test]
fn sending_too_fast_is_told_at_mail() {
    let (daemon, postfix) = mx(&velocity("2/1h", ""));
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["one"]);
    client.deliver(SENDER, &["two"]);
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", "");
    let line = daemon.decision(&[("action", "close"), ("reason", "rate"), ("limit", "velocity")]);
    let seen = ["client", "event", "mode", "threshold"].map(|key| field(&line, key));
    assert_eq!(seen, [Some(ANNA), Some("mail"), Some("enforce"), Some("2/1h")], "{line}");
    visit(&postfix, BERT, "bert");
    postfix.delivered(&["one", "two", "bert"]);
    assert_eq!(daemon.metric(DECISIONS, &[("reason", "rate"), ("action", "close")]), 1.0);
}

#[test]
fn a_message_that_never_came_costs_nothing() {
    let (_daemon, postfix) = mx(&velocity("1/1h", ""));
    let mut client = greeted(&postfix, ANNA);
    for _ in 0..3 {
        client.mail(SENDER).expect(250);
        client.rcpt("nobody").expect(250);
        client.say("RSET").expect(250);
    }
    client.deliver(SENDER, &["one"]);
    client.mail(SENDER).expect(421);
    postfix.delivered(&["one"]);
}

#[test]
fn surplus_recipients_are_told_452_and_reached_by_retrying() {
    let passed = stopwatch();
    let (daemon, postfix) = mx(&limit("recipients", "recipients", "quota = \"3/6s\""));
    let everyone = ["a", "b", "c", "d", "e"];
    let mut waiting = everyone.to_vec();
    let mut client = greeted(&postfix, ANNA);
    client.mail(SENDER).expect(250);
    for to in everyone {
        let reply = client.rcpt(to);
        if reply.code == 250 {
            waiting.retain(|other| *other != to);
        } else {
            assert_eq!((reply.code, reply.enhanced.as_str()), (452, "4.5.3"), "{reply:?}");
        }
    }
    assert!(waiting.contains(&"e"), "nothing was deferred");
    client.data().expect(354);
    client.message().expect(250);
    client.quit();
    daemon.decision(&[("action", "defer"), ("limit", "recipients"), ("event", "rcpt")]);

    // As every sending MTA does: the deferred ones alone, again and again.
    wait_until("the last recipient to pass", || {
        let mut client = greeted(&postfix, ANNA);
        client.mail(SENDER).expect(250);
        let before = waiting.len();
        waiting.retain(|to| client.rcpt(to).code != 250);
        if waiting.len() < before {
            client.data().expect(354);
            client.message().expect(250);
        }
        waiting.is_empty().then_some(())
    });
    assert!(passed().as_secs_f64() >= 4.0, "five of 3/6s after {:?}", passed());
    postfix.delivered(&everyone);
}

#[test]
fn a_recipient_limit_by_421_never_throws_away_who_was_accepted() {
    let reply = r#"reply = "421 4.7.0 {hostname} Too many recipients; retry in {wait} seconds""#;
    let quota = format!("quota = \"2/1h\"\n{reply}");
    let (_daemon, postfix) = mx(&limit("recipients", "recipients", &quota));
    let mut client = greeted(&postfix, ANNA);
    client.mail(SENDER).expect(250);
    client.rcpt("a").expect(250);
    client.rcpt("b").expect(250);
    let surplus = client.rcpt("c");
    assert!((450..=452).contains(&surplus.code), "{surplus:?}");
    client.data().expect(354);
    client.message().expect(250);
    client.mail(SENDER).expect(250);
    let reply = client.rcpt("c"); // nobody is accepted yet, so nothing is lost by hanging up
    told(reply, client, "4.7.0", "Too many recipients");
    postfix.delivered(&["a", "b"]);
}

#[test]
fn a_first_contact_is_greylisted_at_rcpt_and_passes_later() {
    let passed = stopwatch();
    let (daemon, postfix) = mx(&greylist(""));
    let mut client = greeted(&postfix, ANNA);
    client.mail(SENDER).expect(250);
    let reply = client.rcpt("one").expect(451);
    assert_eq!(reply.enhanced, "4.7.1", "{reply:?}");
    assert!(reply.text.starts_with(&format!("{HOSTNAME} First contact; retry in ")), "{reply:?}");
    client.quit(); // it was not hung up
    daemon.decision(&[("action", "defer"), ("reason", "greylist"), ("event", "rcpt")]);

    wait_until("the second attempt to pass", || {
        let mut client = greeted(&postfix, ANNA);
        client.mail(SENDER).expect(250);
        if client.rcpt("one").code != 250 {
            return None;
        }
        client.data().expect(354);
        client.message().expect(250);
        Some(())
    });
    assert!(passed().as_secs_f64() >= 1.0, "passed after {:?}", passed());
    visit(&postfix, ANNA, "one"); // and is known from now on
    postfix.delivered(&["one", "one"]);
}

#[test]
fn greylisting_by_421_speaks_at_data_when_every_recipient_was_seen() {
    let reply = r#"reply = "421 4.7.1 {hostname} First contact; retry in {wait} seconds""#;
    let (daemon, postfix) = mx(&greylist(reply));
    let attempt = || {
        let mut client = greeted(&postfix, ANNA);
        client.mail(SENDER).expect(250);
        client.rcpt("one").expect(250);
        client.rcpt("two").expect(250);
        let reply = client.data();
        (client, reply)
    };
    let (client, reply) = attempt();
    told(reply, client, "4.7.1", "First contact");
    daemon.decision(&[("action", "close"), ("reason", "greylist"), ("event", "data")]);
    // The delay of both ran from the first attempt: one later attempt brings both.
    wait_until("the second attempt to pass", || {
        let (mut client, reply) = attempt();
        (reply.code == 354).then(|| client.message().expect(250))
    });
    postfix.delivered(&["one", "two"]);
}

#[test]
fn who_skips_helo_is_told_at_mail() {
    let (_daemon, postfix) = mx(&limit("connections", "connections", "quota = \"1/1h\""));
    visit(&postfix, ANNA, "one");
    let mut client = Client::connect(postfix.smtp, ANNA);
    client.greeting.clone().expect(220);
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", "");
}

#[test]
fn the_real_client_swaks_shows_the_refusal() {
    let (_daemon, postfix) = mx(&velocity("1/1h", ""));
    let first = swaks(postfix.smtp, ANNA, SENDER, "one");
    assert!(first.contains("<-  250 2.0.0 Ok: queued"), "{first}");
    let second = swaks(postfix.smtp, ANNA, SENDER, "two");
    assert!(second.contains(&format!("<** 421 4.7.0 {HOSTNAME} ")), "{second}");
    postfix.delivered(&["one"]);
}

#[test]
fn the_allowlisted_are_never_asked() {
    let access = "[access]\nallow = [\"127.4.0.0/16\", \".partner.example\"]\n";
    let (daemon, postfix) = mx(&format!("{access}{}", velocity("1/1h", "")));
    let mut listed = greeted(&postfix, BERT);
    for to in ["b1", "b2", "b3"] {
        listed.deliver(SENDER, &[to]);
    }
    let mut named = Client::connect(postfix.smtp, CARL);
    named.ehlo().expect(250);
    named.say("XCLIENT NAME=out.partner.example ADDR=192.0.2.9").expect(220);
    named.helo().expect(250);
    for to in ["c1", "c2", "c3"] {
        named.deliver(SENDER, &[to]);
    }
    let mut other = greeted(&postfix, ANNA);
    other.deliver(SENDER, &["a1"]);
    other.mail(SENDER).expect(421);
    postfix.delivered(&["b1", "b2", "b3", "c1", "c2", "c3", "a1"]);
    assert_eq!(daemon.metric(DECISIONS, &[("action", "close")]), 1.0);
}

#[test]
fn the_authenticated_are_exempt_where_the_listener_speaks_at_mail() {
    let daemon = Daemon::speaking("mail", &limit("connections", "connections", "quota = \"1/1h\""));
    let postfix = Postfix::with_milter(&daemon.endpoint).with_user("alice", "secret").start();
    visit(&postfix, ANNA, "one");
    for to in ["two", "three"] {
        let mut alice = Client::connect(postfix.smtp, ANNA);
        alice.ehlo().expect(250); // over the limit by now, yet nothing is said before MAIL
        alice.auth_plain("alice", "secret").expect(235);
        alice.deliver(SENDER, &[to]);
        alice.quit();
    }
    let mut stranger = greeted(&postfix, ANNA);
    let reply = stranger.mail(SENDER);
    told(reply, stranger, "4.7.0", "");
    postfix.delivered(&["one", "two", "three"]);
}

#[test]
fn shadowed_rules_are_logged_and_counted_apart_but_all_mail_passes() {
    let policy = velocity("1/1h", "mode = \"shadow\"") + "[greylist]\nmode = \"shadow\"";
    let (daemon, postfix) = mx(&policy);
    for to in ["one", "two", "three"] {
        visit(&postfix, ANNA, to);
    }
    postfix.delivered(&["one", "two", "three"]);
    daemon.decision(&[("mode", "shadow"), ("reason", "rate"), ("action", "pass")]);
    daemon.decision(&[("mode", "shadow"), ("reason", "greylist"), ("action", "pass")]);
    assert_eq!(daemon.metric(SHADOWED, &[("reason", "rate")]), 2.0);
    assert_eq!(daemon.metric(SHADOWED, &[("reason", "greylist")]), 3.0);
    assert_eq!(daemon.metric(DECISIONS, &[("action", "close")]), 0.0);
    assert_eq!(daemon.metric(DECISIONS, &[("action", "defer")]), 0.0);
}

#[test]
fn ipv4_is_limited_by_address_and_ipv6_by_its_64_network() {
    let (daemon, postfix) = mx(&velocity("1/1h", ""));
    let attempt = |address: &str, to: &str| {
        let mut client = Client::proxied(postfix.proxied, address);
        client.helo().expect(250);
        let reply = client.mail(SENDER);
        if reply.code == 250 {
            client.rcpt(to).expect(250);
            client.data().expect(354);
            client.message().expect(250);
        }
        reply.code
    };
    assert_eq!(attempt("192.0.2.7", "a"), 250);
    assert_eq!(attempt("192.0.2.7", "-"), 421);
    assert_eq!(attempt("192.0.2.8", "b"), 250);
    assert_eq!(attempt("2001:db8:0:1::a", "c"), 250);
    assert_eq!(attempt("2001:db8:0:1:ffff::b", "-"), 421); // the same /64
    assert_eq!(attempt("2001:db8:0:2::a", "d"), 250);
    daemon.decision(&[("action", "close"), ("client", "192.0.2.7")]);
    daemon.decision(&[("action", "close"), ("client", "2001:db8:0:1:ffff::b")]);
    postfix.delivered(&["a", "b", "c", "d"]);
}

#[test]
fn a_percent_sign_arrives_once() {
    let reply = r#"reply = "421 4.7.0 {hostname} 100% of %s is used; retry in {wait} seconds""#;
    let (_daemon, postfix) = mx(&velocity("1/1h", reply));
    visit(&postfix, ANNA, "one");
    let mut client = greeted(&postfix, ANNA);
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", &format!("{HOSTNAME} 100% of %s is used; retry in "));
}

/// Nobody has set a name: replies say what Postfix calls the host, at both doors.
#[test]
fn replies_name_the_host_as_postfix_does_unless_it_is_set() {
    let unset = "[server]\nhostname = \"none\"\n";
    let called = support::postfix::HOSTNAME;
    let one = "count = \"messages\"\nquota = \"1/1h\"\n";
    let policy = format!("{unset}[[limit]]\nname = \"velocity\"\n{one}");
    let refused = |postfix: &Postfix| {
        visit(postfix, ANNA, "anna");
        let mut client = greeted(postfix, ANNA);
        match client.mail(SENDER) {
            accepted if accepted.code == 250 => client.rcpt("anna"),
            refused => refused,
        }
    };
    let (_daemon, postfix) = mx(&policy);
    let reply = refused(&postfix);
    assert!(reply.text.starts_with(&format!("{called} Too many messages")), "{reply:?}");

    // The policy service is told no name, so postconf is asked once, at the start.
    let idle = Postfix::plain().start();
    let settings = idle.folder().to_str().unwrap().to_owned();
    let daemon = Daemon::policy_service_run_by(&[], &[("MAIL_CONFIG", &settings)], &policy);
    let asking = Postfix::plain().with_policy_service(&daemon.policy_endpoint, &["recipient"]);
    let reply = refused(&asking.start());
    assert!(reply.text.contains(&format!("{called} Too many messages")), "{reply:?}");
}
