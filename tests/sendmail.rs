//! The stories an operator of Sendmail would tell: a real Sendmail with postpone as its milter, and
//! real clients on loopback. What both MTAs do alike is told at length in `postfix_*.rs`; here is
//! each moment at which a client is told something, and what Sendmail has of its own.

mod support;

use rustix::process::Signal;
use support::daemon::{Daemon, HOSTNAME, field};
use support::mx::{
    ANNA, BERT, DECISIONS, SENDER, SESSIONS_OPEN, greylist, limit, no_session_is_left, told,
    velocity,
};
use support::sendmail::{self, PARTNER, Sendmail};
use support::smtp::{Client, Reply, is_open, swaks};
use support::{stopwatch, wait_until};

/// Postpone with this policy, and a Sendmail that asks it.
fn mx(policy: &str) -> (Daemon, Sendmail) {
    let daemon = Daemon::start(policy);
    let sendmail = Sendmail::with_milter(&daemon.endpoint);
    (daemon, sendmail)
}

fn greeted(sendmail: &Sendmail, source: &str) -> Client {
    let mut client = Client::connect(sendmail.smtp, source);
    client.greeting.clone().expect(220);
    client.helo().expect(250);
    client
}

/// A whole visit: one message, all of it accepted.
fn visit(sendmail: &Sendmail, source: &str, to: &str) {
    let mut client = greeted(sendmail, source);
    client.deliver(SENDER, &[to]);
    client.quit();
}

/// Sendmail's own word on a recipient it does not know.
#[track_caller]
fn unknown(reply: Reply) {
    assert_eq!((reply.code, reply.enhanced.as_str()), (550, "5.1.1"), "{reply:?}");
    assert!(reply.text.ends_with("User unknown"), "{reply:?}");
}

#[test]
fn a_private_sendmail_delivers() {
    let sendmail = Sendmail::plain();
    let mut client = greeted(&sendmail, ANNA);
    client.mail(SENDER).expect(250);
    unknown(client.rcpt("stranger"));
    client.say("RCPT TO:<someone@elsewhere.example>").expect(550); // no open relay
    client.rcpt("one").expect(250);
    client.rcpt("two").expect(250);
    client.data().expect(354);
    client.message().expect(250);
    client.quit();
    sendmail.delivered(&["one", "two"]);
}

#[test]
fn too_many_sessions_at_once_are_told_at_helo() {
    let (daemon, sendmail) = mx(&limit("sessions", "sessions", "max = 2\nretry = \"1m\""));
    let first = greeted(&sendmail, ANNA);
    let second = greeted(&sendmail, ANNA);
    let mut third = Client::connect(sendmail.smtp, ANNA);
    third.greeting.clone().expect(220);
    let reply = third.ehlo();
    told(reply, third, "4.7.0", "Too many concurrent connections from your network");
    daemon.decision(&[("action", "close"), ("limit", "sessions"), ("client", ANNA)]);

    visit(&sendmail, BERT, "bert"); // another network is not concerned
    first.quit();
    wait_until("the session given back to be free", || {
        let mut fourth = Client::connect(sendmail.smtp, ANNA);
        let admitted = fourth.greeting.code == 220 && fourth.helo().code == 250;
        admitted.then(|| fourth.deliver(SENDER, &["anna"]))
    });
    sendmail.delivered(&["anna", "bert"]);
    second.quit();
    no_session_is_left(&daemon);
}

#[test]
fn silent_sessions_cannot_pile_up() {
    let (daemon, sendmail) = mx(&limit("sessions", "sessions", "max = 1\nretry = \"1m\""));
    let admitted = greeted(&sendmail, ANNA);
    let silent = Client::connect(sendmail.smtp, ANNA);
    silent.greeting.clone().expect(220);
    // At CONNECT the MTA drops our text and writes its own.
    let closed = Client::connect(sendmail.smtp, ANNA);
    let greeting = closed.greeting.clone().expect(421);
    let own = format!("{} closing connection", sendmail::HOSTNAME);
    assert_eq!((greeting.enhanced, greeting.text), ("4.7.0".to_owned(), own));
    closed.closed();
    daemon.decision(&[("action", "close"), ("limit", "sessions"), ("event", "connect")]);
    drop(silent);
    admitted.quit();
    no_session_is_left(&daemon);
}

#[test]
fn who_skips_helo_is_told_at_mail() {
    let (_daemon, sendmail) = mx(&limit("connections", "connections", "quota = \"1/1h\""));
    visit(&sendmail, ANNA, "one");
    let mut client = Client::connect(sendmail.smtp, ANNA);
    client.greeting.clone().expect(220);
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", "");
    sendmail.delivered(&["one"]);
}

#[test]
fn sending_too_fast_is_told_at_mail() {
    let (daemon, sendmail) = mx(&velocity("2/1h", ""));
    let mut client = greeted(&sendmail, ANNA);
    client.deliver(SENDER, &["one"]);
    client.deliver(SENDER, &["two"]);
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", "");
    let line = daemon.decision(&[("action", "close"), ("reason", "rate"), ("limit", "velocity")]);
    let seen = ["client", "event", "mode", "threshold"].map(|key| field(&line, key));
    assert_eq!(seen, [Some(ANNA), Some("mail"), Some("enforce"), Some("2/1h")], "{line}");
    visit(&sendmail, BERT, "bert");
    sendmail.delivered(&["one", "two", "bert"]);
    assert_eq!(daemon.metric(DECISIONS, &[("reason", "rate"), ("action", "close")]), 1.0);
}

#[test]
fn a_message_that_never_came_costs_nothing() {
    let (_daemon, sendmail) = mx(&velocity("1/1h", ""));
    let mut client = greeted(&sendmail, ANNA);
    for _ in 0..3 {
        client.mail(SENDER).expect(250);
        client.rcpt("one").expect(250);
        client.say("RSET").expect(250);
    }
    client.deliver(SENDER, &["one"]);
    client.mail(SENDER).expect(421);
    sendmail.delivered(&["one"]);
}

#[test]
fn a_message_that_declares_no_size_counts_with_its_true_one() {
    let (daemon, sendmail) = mx(&limit("bytes", "bytes", "quota = \"1KiB/1h\""));
    let mut client = greeted(&sendmail, ANNA);
    client.mail(SENDER).expect(250);
    client.rcpt("one").expect(250);
    client.data().expect(354);
    let body = "Once upon a time.\r\n".repeat(100);
    client.say(&format!("Subject: a long story\r\n\r\n{body}.")).expect(250);
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", "");
    daemon.decision(&[("action", "close"), ("limit", "bytes"), ("event", "mail")]);
    sendmail.delivered(&["one"]);
}

#[test]
fn surplus_recipients_are_told_452_and_the_others_are_served() {
    let (daemon, sendmail) = mx(&limit("recipients", "recipients", "quota = \"2/1h\""));
    let mut client = greeted(&sendmail, ANNA);
    client.mail(SENDER).expect(250);
    client.rcpt("one").expect(250);
    client.rcpt("two").expect(250);
    let reply = client.rcpt("three").expect(452);
    assert_eq!(reply.enhanced, "4.5.3", "{reply:?}");
    assert!(reply.text.starts_with(HOSTNAME) && reply.wait_secs() > 0, "{reply:?}");
    client.data().expect(354);
    client.message().expect(250);
    client.quit(); // it was not hung up
    daemon.decision(&[("action", "defer"), ("limit", "recipients"), ("event", "rcpt")]);
    sendmail.delivered(&["one", "two"]);
}

#[test]
fn a_recipient_limit_by_421_never_throws_away_who_was_accepted() {
    let reply = r#"reply = "421 4.7.0 {hostname} Too many recipients; retry in {wait} seconds""#;
    let quota = format!("quota = \"2/1h\"\n{reply}");
    let (_daemon, sendmail) = mx(&limit("recipients", "recipients", &quota));
    let mut client = greeted(&sendmail, ANNA);
    client.mail(SENDER).expect(250);
    client.rcpt("one").expect(250);
    client.rcpt("two").expect(250);
    let surplus = client.rcpt("three");
    assert!((450..=452).contains(&surplus.code), "{surplus:?}");
    client.data().expect(354);
    client.message().expect(250);
    client.mail(SENDER).expect(250);
    let reply = client.rcpt("three"); // nobody is accepted yet: nothing is lost by hanging up
    told(reply, client, "4.7.0", "Too many recipients");
    sendmail.delivered(&["one", "two"]);
}

#[test]
fn a_recipient_sendmail_refuses_hears_it_from_sendmail_and_costs_nothing() {
    let (daemon, sendmail) = mx(&limit("recipients", "recipients", "quota = \"1/1h\""));
    let mut client = greeted(&sendmail, ANNA);
    client.mail(SENDER).expect(250);
    for stranger in ["stranger", "stranger2", "stranger3"] {
        unknown(client.rcpt(stranger));
    }
    client.rcpt("one").expect(250);
    client.rcpt("two").expect(452); // the limit is there, and was not used up before
    unknown(client.rcpt("stranger")); // nor does it hide whom Sendmail does not know
    client.data().expect(354);
    client.message().expect(250);
    client.quit();
    sendmail.delivered(&["one"]);
    assert_eq!(daemon.metric(DECISIONS, &[("action", "defer")]), 1.0);
}

#[test]
fn who_guesses_recipients_is_told_at_the_next_one_that_exists() {
    let (daemon, sendmail) = mx(&limit("guessing", "unknown_recipients", "quota = \"2/1h\""));
    let mut client = greeted(&sendmail, ANNA);
    client.mail(SENDER).expect(250);
    for stranger in ["stranger", "stranger2", "stranger3"] {
        unknown(client.rcpt(stranger)); // the word is Sendmail's, over the limit too
    }
    let reply = client.rcpt("one");
    told(reply, client, "4.7.0", "");
    daemon.decision(&[("action", "close"), ("limit", "guessing"), ("client", ANNA)]);
    visit(&sendmail, BERT, "bert");
    sendmail.delivered(&["bert"]);
}

#[test]
fn a_first_contact_is_greylisted_at_rcpt_and_passes_later() {
    let passed = stopwatch();
    let (daemon, sendmail) = mx(&greylist(""));
    let mut client = greeted(&sendmail, ANNA);
    client.mail(SENDER).expect(250);
    let reply = client.rcpt("one").expect(451);
    assert_eq!(reply.enhanced, "4.7.1", "{reply:?}");
    assert!(reply.text.starts_with(&format!("{HOSTNAME} First contact; retry in ")), "{reply:?}");
    client.quit(); // it was not hung up
    daemon.decision(&[("action", "defer"), ("reason", "greylist"), ("event", "rcpt")]);

    wait_until("the second attempt to pass", || {
        let mut client = greeted(&sendmail, ANNA);
        client.mail(SENDER).expect(250);
        if client.rcpt("one").code != 250 {
            return None;
        }
        client.data().expect(354);
        client.message().expect(250);
        Some(())
    });
    assert!(passed().as_secs_f64() >= 1.0, "passed after {:?}", passed());
    visit(&sendmail, ANNA, "one"); // and is known from now on
    sendmail.delivered(&["one", "one"]);
}

#[test]
fn greylisting_by_421_speaks_at_data_when_every_recipient_was_seen() {
    let reply = r#"reply = "421 4.7.1 {hostname} First contact; retry in {wait} seconds""#;
    let (daemon, sendmail) = mx(&greylist(reply));
    let attempt = || {
        let mut client = greeted(&sendmail, ANNA);
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
    sendmail.delivered(&["one", "two"]);
}

/// There nobody waits for our answer to HELO, and what HELO brought up is said at MAIL.
#[test]
fn a_listener_for_users_speaks_at_mail_and_hears_helo_all_the_same() {
    let per_helo = "[[limit]]\nname = \"names\"\ncount = \"distinct_helos\"\nper = [\"network\"]\n\
                    max = 1\nwindow = \"1h\"\n";
    let daemon = Daemon::speaking("mail", per_helo);
    let sendmail = Sendmail::with_milter(&daemon.endpoint);
    let mut first = greeted(&sendmail, ANNA);
    first.deliver(SENDER, &["one"]);
    first.deliver(SENDER, &["two"]);
    first.quit();
    let mut second = Client::connect(sendmail.smtp, ANNA);
    second.greeting.clone().expect(220);
    second.say("HELO another.example.net").expect(250);
    let reply = second.mail(SENDER);
    told(reply, second, "4.7.0", "");
    daemon.decision(&[("action", "close"), ("limit", "names"), ("event", "mail")]);
    visit(&sendmail, BERT, "three");
    sendmail.delivered(&["one", "two", "three"]);
    assert_eq!(daemon.metric("postpone_failures_total", &[]), 0.0);
}

#[test]
fn an_ipv6_client_is_limited_as_well() {
    let (daemon, sendmail) = mx(&velocity("1/1h", ""));
    let first = swaks(sendmail.smtp6, "::1", SENDER, "one");
    assert!(first.contains("Message accepted for delivery"), "{first}");
    let second = swaks(sendmail.smtp6, "::1", SENDER, "two");
    assert!(second.contains(&format!("<** 421 4.7.0 {HOSTNAME} ")), "{second}");
    daemon.decision(&[("action", "close"), ("limit", "velocity"), ("client", "::1")]);
    visit(&sendmail, ANNA, "anna");
    sendmail.delivered(&["one", "anna"]);
}

#[test]
fn a_client_is_known_by_its_name() {
    let access = "[access]\nallow = [\".partner.example\"]\n";
    let (daemon, sendmail) = mx(&format!("{access}{}", velocity("1/1h", "")));
    let mut partner = greeted(&sendmail, PARTNER);
    for to in ["one", "two", "three"] {
        partner.deliver(SENDER, &[to]);
    }
    let mut nameless = greeted(&sendmail, ANNA);
    nameless.deliver(SENDER, &["anna"]);
    nameless.mail(SENDER).expect(421);
    sendmail.delivered(&["one", "two", "three", "anna"]);
    assert_eq!(daemon.metric(DECISIONS, &[("action", "close")]), 1.0);
}

#[test]
fn a_percent_sign_arrives_once_and_the_refusal_stays_temporary() {
    let reply = r#"reply = "421 4.7.0 {hostname} 100% of %s is used; retry in {wait} seconds""#;
    let (_daemon, sendmail) = mx(&velocity("1/1h", reply));
    visit(&sendmail, ANNA, "one");
    let mut client = greeted(&sendmail, ANNA);
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", &format!("{HOSTNAME} 100% of %s is used; retry in "));
    sendmail.delivered(&["one"]);
}

#[test]
fn after_sigterm_running_sessions_finish_and_new_ones_pass_unasked() {
    let (mut daemon, sendmail) = mx(&velocity("1/1h", ""));
    visit(&sendmail, ANNA, "one");
    let mut running = greeted(&sendmail, BERT);
    running.mail(SENDER).expect(250);
    daemon.signal(Signal::TERM);
    let milter = daemon.endpoint.trim_start_matches("inet:").parse().unwrap();
    wait_until("the milter's port to close", || (!is_open(milter)).then_some(()));
    visit(&sendmail, ANNA, "two"); // over its limit, but nobody is there to say so
    running.rcpt("bert").expect(250);
    running.data().expect(354);
    running.message().expect(250);
    running.mail(SENDER).expect(421); // and is still judged
    assert_eq!(daemon.exit_code(), Some(0));
    sendmail.delivered(&["one", "two", "bert"]);
}

#[test]
fn when_the_milter_is_killed_mail_still_flows() {
    let (mut daemon, sendmail) = mx(&velocity("1/1h", ""));
    let mut running = greeted(&sendmail, ANNA);
    running.mail(SENDER).expect(250);
    assert_eq!(daemon.metric(SESSIONS_OPEN, &[]), 1.0); // or it would prove nothing
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.exit_code(), None);
    running.rcpt("one").expect(250);
    running.data().expect(354);
    running.message().expect(250);
    running.deliver(SENDER, &["two"]);
    visit(&sendmail, BERT, "bert");
    sendmail.delivered(&["one", "two", "bert"]);
}

#[test]
fn a_unix_socket_serves_as_well() {
    let daemon = Daemon::on_unix_socket(&velocity("1/1h", ""));
    let sendmail = Sendmail::with_milter(&daemon.endpoint);
    let mut client = greeted(&sendmail, ANNA);
    client.deliver(SENDER, &["one"]);
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", "");
    sendmail.delivered(&["one"]);
}
