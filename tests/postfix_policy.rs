//! The stories an operator would tell of postpone as a policy service: a real Postfix that asks it
//! from its restriction lists, alone or beside the milter, and real clients on loopback.
//!
//! Postfix puts words of its own before ours: `<one@example.org>: Recipient address rejected: `.

mod support;

use rustix::process::Signal;
use support::daemon::{Daemon, HOSTNAME, field};
use support::mx::{ANNA, BERT, DECISIONS, SENDER, greeted, greylist, limit, velocity, visit};
use support::postfix::{Postfix, Settings};
use support::smtp::{Client, Reply, is_open, swaks};
use support::{stopwatch, wait_until};

/// A policy service with this policy, and a Postfix that asks it from these lists.
fn mx(policy: &str, lists: &[&str]) -> (Daemon, Postfix) {
    let daemon = Daemon::policy_service(policy);
    let postfix = asking(&daemon, lists).start();
    (daemon, postfix)
}

fn asking(daemon: &Daemon, lists: &[&str]) -> Settings {
    Postfix::plain().with_policy_service(&daemon.policy_endpoint, lists)
}

/// The documented set-up with both.
fn asking_both(daemon: &Daemon, lists: &[&str]) -> Settings {
    Postfix::with_milter(&daemon.endpoint).with_policy_service(&daemon.policy_endpoint, lists)
}

/// The reply is ours, whole, behind Postfix's words.
#[track_caller]
fn ours(reply: &Reply, code: u16, enhanced: &str, phrase: &str) {
    assert_eq!((reply.code, reply.enhanced.as_str()), (code, enhanced), "{reply:?}");
    assert!(reply.text.contains(&format!("rejected: {HOSTNAME} {phrase}")), "{reply:?}");
    assert!(reply.text.ends_with(" seconds") && reply.wait_secs() > 0, "{reply:?}");
}

/// The same, and the server hung up.
#[track_caller]
fn told(reply: Reply, client: Client, enhanced: &str, phrase: &str) {
    ours(&reply, 421, enhanced, phrase);
    client.closed();
}

/// RCPT after a MAIL that passes.
fn rcpt(client: &mut Client, to: &str) -> Reply {
    client.mail(SENDER).expect(250);
    client.rcpt(to)
}

/// Sends what the client wants to at most so often until it passes.
fn retried(postfix: &Postfix, to: &str) {
    wait_until("an attempt to pass", || {
        let mut client = greeted(postfix, ANNA);
        if rcpt(&mut client, to).code != 250 {
            return None;
        }
        client.data().expect(354);
        client.message().expect(250);
        Some(())
    });
}

#[test]
fn messages_beyond_the_quota_are_told_at_rcpt_and_hung_up_on() {
    let (daemon, postfix) = mx(&velocity("2/1h", ""), &["recipient"]);
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["one", "two"]);
    client.deliver(SENDER, &["three"]);
    let reply = rcpt(&mut client, "four");
    told(reply, client, "4.7.0", "Too many messages from your network");
    let line = daemon.decision(&[("action", "close"), ("reason", "rate"), ("limit", "velocity")]);
    let seen = ["client", "event", "sender"].map(|key| field(&line, key));
    assert_eq!(seen, [Some(ANNA), Some("mail"), Some(SENDER)], "{line}");
    visit(&postfix, BERT, "bert");
    postfix.delivered(&["one", "two", "three", "bert"]);
    assert_eq!(daemon.metric(DECISIONS, &[("reason", "rate"), ("action", "close")]), 1.0);
}

#[test]
fn a_unix_socket_serves_as_well() {
    let daemon = Daemon::policy_service_on_unix_socket(&velocity("1/1h", ""));
    let postfix = asking(&daemon, &["recipient", "end_of_data"]).start();
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["one"]);
    let reply = rcpt(&mut client, "two");
    told(reply, client, "4.7.0", "Too many messages from your network");
    postfix.delivered(&["one"]);
}

#[test]
fn connecting_too_often_is_told_at_the_first_rcpt() {
    let (_daemon, postfix) =
        mx(&limit("connections", "connections", "quota = \"2/1h\""), &["recipient"]);
    // Two sessions, told apart by the client's port, each with several messages.
    for to in ["one", "two"] {
        let mut client = greeted(&postfix, ANNA);
        client.deliver(SENDER, &[to]);
        client.deliver(SENDER, &[to]);
        client.quit();
    }
    let mut third = greeted(&postfix, ANNA);
    let reply = rcpt(&mut third, "three");
    told(reply, third, "4.7.0", "Too many connections from your network");
    postfix.delivered(&["one", "one", "two", "two"]);
}

#[test]
fn a_first_contact_is_greylisted_by_451_and_passes_later() {
    let passed = stopwatch();
    let (daemon, postfix) = mx(&greylist(""), &["recipient"]);
    let mut client = greeted(&postfix, ANNA);
    let reply = rcpt(&mut client, "one");
    ours(&reply, 451, "4.7.1", "First contact; retry in ");
    client.quit(); // it was not hung up on
    daemon.decision(&[("action", "defer"), ("reason", "greylist"), ("event", "rcpt")]);
    retried(&postfix, "one");
    assert!(passed().as_secs_f64() >= 1.0, "passed after {:?}", passed());
    visit(&postfix, ANNA, "one");
    postfix.delivered(&["one", "one"]);
}

#[test]
fn who_asks_again_in_the_same_transaction_is_heard_when_the_wait_is_over() {
    let (_daemon, postfix) = mx(&greylist(""), &["sender", "recipient"]);
    let mut client = greeted(&postfix, ANNA);
    client.mail(SENDER).expect(250);
    client.rcpt("one").expect(451);
    wait_until("the same recipient to pass", || (client.rcpt("one").code == 250).then_some(()));
    client.data().expect(354);
    client.message().expect(250);
    postfix.delivered(&["one"]);
}

#[test]
fn surplus_recipients_are_told_452_and_reached_by_retrying() {
    let (daemon, postfix) =
        mx(&limit("recipients", "recipients", "quota = \"3/6s\""), &["recipient"]);
    let everyone = ["a", "b", "c", "d", "e"];
    let mut waiting = everyone.to_vec();
    let round = |waiting: &mut Vec<&str>| {
        let mut client = greeted(&postfix, ANNA);
        client.mail(SENDER).expect(250);
        let before = waiting.len();
        waiting.retain(|to| {
            let reply = client.rcpt(to);
            if reply.code != 250 {
                ours(&reply, 452, "4.5.3", "Too many recipients from your network");
            }
            reply.code != 250
        });
        if waiting.len() < before {
            client.data().expect(354);
            client.message().expect(250);
        }
        client.quit();
    };
    round(&mut waiting);
    assert!(waiting.contains(&"e"), "nothing was deferred");
    daemon.decision(&[("action", "defer"), ("limit", "recipients"), ("event", "rcpt")]);
    wait_until("the last recipient to pass", || {
        round(&mut waiting);
        waiting.is_empty().then_some(())
    });
    postfix.delivered(&everyone);
}

#[test]
fn the_true_size_is_counted_where_the_end_of_a_message_is_asked_about() {
    let policy = limit("volume", "bytes", "quota = \"1MiB/1h\"");
    let (_daemon, postfix) = mx(&policy, &["recipient", "end_of_data"]);
    let mut client = greeted(&postfix, ANNA);
    let large = "x".repeat(70) + "\r\n";
    let large = format!("Subject: large\r\n\r\n{}.", large.repeat(16_000));
    client.mail(SENDER).expect(250); // without a word on its size
    client.rcpt("one").expect(250);
    client.data().expect(354);
    client.say(&large).expect(250);
    let reply = rcpt(&mut client, "two");
    told(reply, client, "4.7.0", "");
    visit(&postfix, BERT, "bert");
    postfix.delivered(&["one", "bert"]);
}

#[test]
fn asked_about_at_the_end_alone_messages_and_recipients_count_and_are_refused_there() {
    let policy = velocity("2/1h", "") + &limit("recipients", "recipients", "quota = \"5/1h\"");
    let (_daemon, postfix) = mx(&policy, &["end_of_data"]);
    let message = |source: &str, recipients: &[&str]| {
        let mut client = greeted(&postfix, source);
        client.mail(SENDER).expect(250);
        recipients.iter().for_each(|to| drop(client.rcpt(to).expect(250)));
        client.data().expect(354);
        let reply = client.message();
        (client, reply)
    };
    message(ANNA, &["a"]).1.expect(250);
    message(ANNA, &["b"]).1.expect(250);
    let (client, reply) = message(ANNA, &["c"]);
    told(reply, client, "4.7.0", "Too many messages from your network");
    message(BERT, &["d", "e", "f"]).1.expect(250);
    let (client, reply) = message(BERT, &["g", "h", "i"]);
    ours(&reply, 452, "4.5.3", "Too many recipients from your network");
    client.quit();
    postfix.delivered(&["a", "b", "d", "e", "f"]);
}

#[test]
fn asked_from_several_lists_everything_counts_once() {
    let policy = velocity("2/1h", "")
        + &limit("connections", "connections", "quota = \"1/1h\"")
        + &limit("recipients", "recipients", "quota = \"3/1h\"");
    let lists = ["client", "helo", "sender", "recipient", "data", "end_of_data"];
    let (_daemon, postfix) = mx(&policy, &lists);
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["one", "two"]);
    client.deliver(SENDER, &["three"]);
    let reply = rcpt(&mut client, "four");
    told(reply, client, "4.7.0", "Too many messages from your network");
    postfix.delivered(&["one", "two", "three"]);
}

#[test]
fn at_any_stage_the_text_arrives_whole() {
    // With smtpd_delay_reject = no each list is asked when its command comes.
    let lists = ["client", "helo", "sender", "recipient", "data", "end_of_data"];
    let start = |policy: &str| {
        let daemon = Daemon::policy_service(policy);
        let postfix = asking(&daemon, &lists).with("smtpd_delay_reject = no").start();
        (daemon, postfix)
    };
    let (_daemon, postfix) = start(&limit("connections", "connections", "quota = \"1/1h\""));
    visit(&postfix, ANNA, "one");
    let refused = Client::connect(postfix.smtp, ANNA);
    told(refused.greeting.clone(), refused, "4.7.0", "Too many connections");

    let helos = "max = 1\nwindow = \"1h\"";
    let (_daemon, postfix) = start(&limit("helos", "distinct_helos", helos));
    visit(&postfix, ANNA, "one");
    let mut other = Client::connect(postfix.smtp, ANNA);
    let reply = other.say("HELO other.example.net");
    told(reply, other, "4.7.0", "Too many different HELO names");

    let (_daemon, postfix) = start(&velocity("2/1h", ""));
    let mut client = greeted(&postfix, ANNA);
    for to in ["one", "two"] {
        client.deliver(SENDER, &[to]); // and counts once, at MAIL or RCPT
    }
    let reply = client.mail("other@example.net");
    told(reply, client, "4.7.0", "Too many messages from your network");

    let slow = "reply = \"421 4.7.1 {hostname} First contact; retry in {wait} seconds\"";
    let (_daemon, postfix) = start(&greylist(slow));
    let mut client = greeted(&postfix, ANNA);
    rcpt(&mut client, "one").expect(250);
    let reply = client.data();
    told(reply, client, "4.7.1", "First contact");
}

#[test]
fn with_450_a_later_refusal_for_good_goes_first() {
    let more = "reply = \"450 4.7.0 {hostname} Too many; retry in {wait} seconds\"";
    let (_daemon, postfix) = mx(&velocity("1/1h", more), &["sender"]);
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["one"]);
    let reply = rcpt(&mut client, "two");
    ours(&reply, 450, "4.7.0", "Too many");
    client.rcpt("nobody@elsewhere.example").expect(554);
    client.quit();
    postfix.delivered(&["one"]);
}

#[test]
fn what_is_special_elsewhere_is_plain_text_here() {
    let more = r#"reply = "421 4.7.0 {hostname} 100% of %s, $x; retry in {wait} seconds""#;
    let (_daemon, postfix) = mx(&velocity("1/1h", more), &["recipient"]);
    visit(&postfix, ANNA, "one");
    let mut client = greeted(&postfix, ANNA);
    let reply = rcpt(&mut client, "two");
    told(reply, client, "4.7.0", "100% of %s, $x; retry in ");
}

#[test]
fn the_real_client_swaks_shows_the_refusal() {
    let (_daemon, postfix) = mx(&velocity("1/1h", ""), &["recipient"]);
    let first = swaks(postfix.smtp, ANNA, SENDER, "one");
    assert!(first.contains("<-  250 2.0.0 Ok: queued"), "{first}");
    let second = swaks(postfix.smtp, ANNA, SENDER, "two");
    assert!(second.contains("<** 421 4.7.0 <two@example.org>: Recipient address rejected: "));
    assert!(second.contains(&format!(" {HOSTNAME} Too many messages")), "{second}");
    postfix.delivered(&["one"]);
}

#[test]
fn addresses_that_are_no_text_count_like_others() {
    let daemon = Daemon::policy_service(&velocity("1/1h", ""));
    let postfix = asking(&daemon, &["recipient"]).with("smtputf8_enable = no").start();
    let mut client = greeted(&postfix, ANNA);
    let mail = b"MAIL FROM:<caf\xe9@example.net>";
    client.say_bytes(mail).expect(250);
    client.rcpt("one").expect(250);
    client.say("RSET").expect(250);
    client.say_bytes(mail).expect(250);
    let reply = client.rcpt("two");
    told(reply, client, "4.7.0", "Too many messages");
}

#[test]
fn a_client_without_an_address_passes_and_is_counted() {
    let (daemon, postfix) = mx(&velocity("1/1h", ""), &["recipient", "end_of_data"]);
    let mut client = Client::connect(postfix.smtp, ANNA);
    client.ehlo().expect(250);
    client.say("XCLIENT ADDR=[UNAVAILABLE]").expect(220);
    client.helo().expect(250);
    // More often than a connection bears garbage.
    let everyone: Vec<String> = (0..20).map(|n| format!("r{n}")).collect();
    let everyone: Vec<&str> = everyone.iter().map(String::as_str).collect();
    client.deliver(SENDER, &everyone);
    postfix.delivered(&everyone);
    assert_eq!(daemon.metric("postpone_failures_total", &[("kind", "address")]), 21.0);
    visit(&postfix, BERT, "bert");
    let mut bert = greeted(&postfix, BERT);
    rcpt(&mut bert, "bert").expect(421);
}

#[test]
fn the_authenticated_are_exempt() {
    let policy = velocity("1/1h", "") + &limit("connections", "connections", "quota = \"1/1h\"");
    let daemon = Daemon::policy_service(&policy);
    let postfix = asking(&daemon, &["recipient"]).with_user("alice", "secret").start();
    visit(&postfix, ANNA, "one");
    for to in ["two", "three"] {
        let mut alice = Client::connect(postfix.smtp, ANNA);
        alice.ehlo().expect(250);
        alice.auth_plain("alice", "secret").expect(235);
        alice.deliver(SENDER, &[to]);
        alice.quit();
    }
    let mut stranger = greeted(&postfix, ANNA);
    let reply = rcpt(&mut stranger, "four");
    told(reply, stranger, "4.7.0", "");
    postfix.delivered(&["one", "two", "three"]);
}

#[test]
fn a_policy_context_tells_rules_who_asks() {
    let policy = velocity("1/1h", "when = { listener = [\"mx\"] }");
    let daemon = Daemon::policy_service(&policy);
    let start = |context: &str| {
        let service = &daemon.policy_endpoint;
        let check = format!("check_policy_service {{ {service}, policy_context={context} }}");
        Postfix::plain().with(&format!("smtpd_recipient_restrictions = {check}")).start()
    };
    let (mx, submission) = (start("mx"), start("submission"));
    visit(&submission, ANNA, "one");
    visit(&submission, ANNA, "two");
    visit(&mx, ANNA, "three");
    let mut client = greeted(&mx, ANNA);
    let reply = rcpt(&mut client, "four");
    told(reply, client, "4.7.0", "");
}

#[test]
fn milter_and_policy_service_together_count_everything_once() {
    for (policy, lists) in [
        (velocity("2/1h", ""), &["recipient", "end_of_data"][..]),
        (limit("recipients", "recipients", "quota = \"2/1h\""), &["recipient", "end_of_data"]),
        (limit("connections", "connections", "quota = \"1/1h\""), &["recipient"]),
        (limit("volume", "bytes", "quota = \"1000B/1h\""), &["recipient", "end_of_data"]),
    ] {
        let daemon = Daemon::milter_and_policy_service(&policy);
        let postfix = asking_both(&daemon, lists).start();
        let mail = format!("MAIL FROM:<{SENDER}> SIZE=500");
        let mut client = greeted(&postfix, ANNA);
        for to in ["one", "two"] {
            client.say(&mail).expect(250);
            client.rcpt(to).expect(250);
            client.data().expect(354);
            client.message().expect(250);
        }
        if policy.contains("connections") {
            client = Client::connect(postfix.smtp, ANNA);
            client.helo().expect(421);
        } else if client.say(&mail).code == 250 {
            client.rcpt("three").expect(452);
        }
        postfix.delivered(&["one", "two"]);
    }
}

#[test]
fn a_message_to_one_domain_is_one_message_to_both() {
    let quota = "quota = \"1/1h\"\nper = [\"network\", \"recipient_domain\"]";
    let policy = limit("domain", "messages", quota).replacen("per = [\"network\"]\n", "", 1);
    let daemon = Daemon::milter_and_policy_service(&policy);
    let postfix = asking_both(&daemon, &["recipient", "end_of_data"]).start();
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["one", "two"]);
    rcpt(&mut client, "three").expect(451);
    postfix.delivered(&["one", "two"]);
}

#[test]
fn with_smtpd_delay_reject_off_both_count_once() {
    let policy = velocity("2/1h", "") + &limit("connections", "connections", "quota = \"2/1h\"");
    let daemon = Daemon::milter_and_policy_service(&policy);
    let lists = ["client", "helo", "sender", "recipient", "data", "end_of_data"];
    let postfix = asking_both(&daemon, &lists).with("smtpd_delay_reject = no").start();
    visit(&postfix, ANNA, "one");
    let mut second = greeted(&postfix, ANNA);
    second.deliver(SENDER, &["two"]);
    second.mail(SENDER).expect(421);
    let third = Client::connect(postfix.smtp, ANNA);
    assert_eq!(third.greeting.code, 421);
    postfix.delivered(&["one", "two"]);
}

#[test]
fn a_first_contact_greylisted_by_both_passes_at_its_second_attempt() {
    let said = |policy: &str| {
        let daemon = Daemon::milter_and_policy_service(policy);
        let postfix = asking_both(&daemon, &["sender", "recipient", "data"]).start();
        (daemon, postfix)
    };
    let (_daemon, postfix) = said(&greylist(""));
    let mut client = greeted(&postfix, ANNA);
    let reply = rcpt(&mut client, "one").expect(451);
    wait_until("the wait to be over", {
        let (passed, wait) = (stopwatch(), reply.wait_secs());
        move || (passed().as_secs() >= wait).then_some(())
    });
    client.rcpt("one").expect(250); // the very next one
    client.quit();
    visit(&postfix, ANNA, "one");
    postfix.delivered(&["one"]);

    let at_data = "reply = \"421 4.7.1 {hostname} First contact; retry in {wait} seconds\"";
    let (_daemon, postfix) = said(&greylist(at_data));
    let mut client = greeted(&postfix, ANNA);
    rcpt(&mut client, "one").expect(250);
    client.data().expect(421);
    wait_until("a later attempt to pass", || {
        let mut client = greeted(&postfix, ANNA);
        rcpt(&mut client, "one").expect(250);
        (client.data().code == 354).then(|| client.message().expect(250))
    });
    postfix.delivered(&["one"]);
}

#[test]
fn who_is_put_off_by_the_policy_service_is_no_unknown_recipient_to_the_milter() {
    let policy = greylist("").replacen("limit = []", "", 1)
        + &limit("errors", "unknown_recipients", "quota = \"1/1h\"");
    let daemon = Daemon::milter_and_policy_service(&policy);
    let postfix = asking_both(&daemon, &["recipient"]).start();
    let mut client = greeted(&postfix, ANNA);
    client.mail(SENDER).expect(250);
    for to in ["a", "b", "c", "d"] {
        client.rcpt(to).expect(451);
    }
    client.say("RSET").expect(250);
    client.mail(SENDER).expect(250);
    assert_eq!(daemon.metric(DECISIONS, &[("limit", "errors")]), 0.0);
}

#[test]
fn a_client_that_the_milter_has_counted_is_known_to_the_policy_service() {
    let daemon = Daemon::milter_and_policy_service(&velocity("2/1h", ""));
    let with_milter = Postfix::with_milter(&daemon.endpoint).start();
    let with_policy = asking(&daemon, &["recipient"]).start();
    visit(&with_milter, ANNA, "one");
    visit(&with_policy, ANNA, "two");
    let mut client = greeted(&with_policy, ANNA);
    let reply = rcpt(&mut client, "three");
    told(reply, client, "4.7.0", "Too many messages from your network");
    greeted(&with_milter, ANNA).mail(SENDER).expect(421);
    with_milter.delivered(&["one"]);
    with_policy.delivered(&["two"]);
}

#[test]
fn when_the_policy_service_is_killed_mail_still_flows() {
    let (mut daemon, postfix) = mx(&velocity("1/1h", ""), &["recipient"]);
    visit(&postfix, ANNA, "one");
    let mut running = greeted(&postfix, BERT);
    rcpt(&mut running, "two").expect(250);
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.exit_code(), None);
    running.rcpt("three").expect(250);
    running.data().expect(354);
    running.message().expect(250);
    visit(&postfix, ANNA, "four"); // over its limit, but nobody is there to say so
    postfix.delivered(&["one", "two", "three", "four"]);
}

#[test]
fn after_sigterm_it_hangs_up_ends_and_mail_flows() {
    let (mut daemon, postfix) = mx(&velocity("1/1h", ""), &["recipient"]);
    visit(&postfix, ANNA, "one");
    let mut running = greeted(&postfix, BERT);
    rcpt(&mut running, "two").expect(250);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code(), Some(0)); // Postfix's idle connections do not hold it up
    let service = daemon.policy_endpoint.trim_start_matches("inet:").parse().unwrap();
    assert!(!is_open(service));
    running.rcpt("three").expect(250);
    running.data().expect(354);
    running.message().expect(250);
    postfix.delivered(&["one", "two", "three"]);
}
