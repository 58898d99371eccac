//! The stories of a Postfix that sends, with a queue and retries of its own, to many recipients at
//! once: to a Postfix at its own limits, which hangs up at the 20th refusal and at the first one
//! under stress.
//!
//! From the tenth refusal of a session on Postfix takes a second for each answer
//! (`smtpd_error_sleep_time`): a transaction of fifty then takes longer than a story waits. Where
//! one has many of them, [`NO_PAUSE`] saves that time; all others are told at the default.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::daemon::{Daemon, field};
use support::mx::{SENDER, greylist, limit};
use support::postfix::{Postfix, Settings, address};
use support::smtp::Client;
use support::wait_until;

/// A Postfix that gives all its mail to this one. Nothing but its retries are sooner than by default.
fn sender(mx: &Postfix) -> Settings {
    Postfix::plain()
        .with("virtual_mailbox_domains =")
        .with("mynetworks = 127.0.0.0/8")
        .with("smtpd_relay_restrictions = permit_mynetworks, reject")
        .with(&format!("relayhost = [127.0.0.1]:{}", mx.smtp.port()))
        .with("smtp_bind_address = 127.1.2.3")
        // Not within a second of the last attempt, or it may find that one still at work, and let
        // the message lie for minutes.
        .with("minimal_backoff_time = 3s")
        .with("maximal_backoff_time = 3s")
        .with("queue_run_delay = 1s")
        .with_service("smtp unix - - n - - smtp")
}

/// All that is saved by it is time: the refusals are as many, and Postfix hangs up as soon.
const NO_PAUSE: &str = "smtpd_error_sleep_time = 0";

fn crowd(size: usize) -> Vec<String> {
    (0..size).map(|number| format!("user{number}")).collect()
}

/// Gives the sender one message to all of them.
fn submit(sender: &Postfix, recipients: &[String]) {
    let mut client = Client::connect(sender.smtp, "127.0.0.1");
    client.ehlo().expect(250);
    let recipients: Vec<_> = recipients.iter().map(String::as_str).collect();
    client.deliver(SENDER, &recipients);
    client.quit();
}

/// How many copies each recipient has.
fn copies(mx: &Postfix) -> BTreeMap<String, usize> {
    let mut copies = BTreeMap::new();
    for message in mx.mailbox() {
        let to = message.lines().find_map(|line| line.strip_prefix("Delivered-To: "));
        *copies.entry(to.expect("virtual(8) writes it").to_owned()).or_default() += 1;
    }
    copies
}

/// So many get their mail, as long as something comes.
fn arrives_at(mx: &Postfix, count: usize) {
    let mut before = 0;
    while before < count {
        before = wait_until(&format!("more mail than {before} of {count}"), || {
            let now = copies(mx).len();
            (now > before).then_some(now)
        });
    }
}

/// Everybody gets it, once, and Postfix has never hung up by itself.
fn everybody_gets_it_once(mx: &Postfix, sender: &Postfix, recipients: &[String]) {
    arrives_at(mx, recipients.len());
    wait_until("the sender's queue to be empty", || {
        sender.log().lines().any(|line| line.ends_with(": removed")).then_some(())
    });
    let expected = recipients.iter().map(|to| (address(to), 1)).collect();
    assert_eq!(copies(mx), expected);
    assert!(!mx.log().contains("too many errors"), "Postfix has hung up by itself");
}

fn of_recipients(quota: &str) -> String {
    limit("reach", "recipients", &format!("quota = \"{quota}\"")) + "[greylist]\nmode = \"off\"\n"
}

#[test]
fn sixty_recipients_under_twenty_an_hour_arrive_as_far_as_they_may_and_none_twice() {
    let daemon = Daemon::start(&of_recipients("20/1h"));
    let mx = Postfix::with_milter(&daemon.endpoint).start();
    let sender = sender(&mx).start();
    submit(&sender, &crowd(60));
    // Two transactions, of fifty and of ten: in one of them the quota is used and refused fifteen
    // times, and the rest is a debt. From the tenth refusal on Postfix takes a second for each answer.
    for told in 1..=40 {
        wait_until(&format!("recipient {told} of 40 beyond the quota"), || {
            let lines = daemon.lines();
            let told_of = lines.iter().filter_map(|line| field(line, "recipient"));
            (told_of.collect::<BTreeSet<_>>().len() >= told).then_some(())
        });
    }
    arrives_at(&mx, 20);
    wait_until("everybody to be told something", || {
        let log = sender.log();
        let told = log.lines().filter(|line| line.contains(" status=")).count();
        (told >= 60).then_some(())
    });
    assert!(copies(&mx).values().all(|copies| *copies == 1), "{:?}", copies(&mx));
    assert!(!mx.log().contains("too many errors"), "Postfix has hung up by itself");
    assert!(daemon.metric("postpone_spared_total", &[("limit", "reach")]) > 0.0);
}

#[test]
fn sixty_and_two_hundred_recipients_get_through_a_quota_of_twenty() {
    for size in [60, 200] {
        let daemon = Daemon::start(&of_recipients("20/2s"));
        let mx = Postfix::with_milter(&daemon.endpoint).with(NO_PAUSE).start();
        let sender = sender(&mx).start();
        let recipients = crowd(size);
        submit(&sender, &recipients);
        everybody_gets_it_once(&mx, &sender, &recipients);
    }
}

#[test]
fn sixty_and_two_hundred_recipients_get_through_greylisting() {
    for size in [60, 200] {
        let daemon = Daemon::start(&greylist(""));
        let mx = Postfix::with_milter(&daemon.endpoint).start();
        let sender = sender(&mx).start();
        let recipients = crowd(size);
        submit(&sender, &recipients);
        everybody_gets_it_once(&mx, &sender, &recipients);
    }
}

#[test]
fn sixty_and_two_hundred_recipients_get_through_greylisting_by_the_policy_service() {
    for size in [60, 200] {
        let daemon = Daemon::policy_service(&greylist(""));
        let mx = Postfix::plain()
            .with_policy_service(&daemon.policy_endpoint, &["recipient", "end_of_data"])
            .start();
        let sender = sender(&mx).start();
        let recipients = crowd(size);
        submit(&sender, &recipients);
        everybody_gets_it_once(&mx, &sender, &recipients);
    }
}

#[test]
fn a_user_of_the_submission_port_reaches_more_recipients_than_the_quota_at_once() {
    let shipped = include_str!("../conf/submission.toml");
    let quota = "quota = \"5000/1d burst 2000\"";
    assert!(shipped.contains(quota));
    for size in [60, 200] {
        let policy = shipped.replace(quota, "quota = \"20/2s\"");
        let listener = "[[listen]]\nmilter = \"inet:127.0.0.1:7424\"\nspeak  = \"mail\"";
        assert!(policy.contains(listener));
        let daemon = Daemon::speaking("mail", &policy.replace(listener, ""));
        let mx = Postfix::with_milter(&daemon.endpoint)
            .with_user("alice", "secret")
            .with(NO_PAUSE)
            .start();
        let sender = sender(&mx)
            .with("smtp_sasl_auth_enable = yes")
            .with("smtp_sasl_security_options = noanonymous")
            .with("smtp_sasl_password_maps = static:alice:secret")
            .start();
        let recipients = crowd(size);
        submit(&sender, &recipients);
        everybody_gets_it_once(&mx, &sender, &recipients);
        assert!(daemon.metric("postpone_decisions_total", &[("limit", "user-recipients")]) > 0.0);
    }
}

/// `-o stress=yes` is how the master tells its smtpds.
#[test]
fn under_stress_the_policy_service_lets_the_surplus_pass() {
    let daemon = Daemon::policy_service(&of_recipients("20/2s"));
    let mx = Postfix::plain()
        .with_policy_service(&daemon.policy_endpoint, &["recipient", "end_of_data"])
        .with("stress = yes")
        .start();
    let sender = sender(&mx).start();
    let recipients = crowd(60);
    submit(&sender, &recipients);
    everybody_gets_it_once(&mx, &sender, &recipients);
}

/// What a milter says under stress makes Postfix hang up; with the limit that `setup postfix`
/// proposes it does not, and when the stress has ended nothing is left of it.
#[test]
fn a_message_gets_through_a_milter_once_a_stress_has_ended() {
    let daemon = Daemon::start(&of_recipients("20/2s"));
    let mut mx = Postfix::with_milter(&daemon.endpoint).with("stress = yes").start();
    let sender = sender(&mx).with("smtp_connection_cache_on_demand = no").start();
    let recipients = crowd(60);
    submit(&sender, &recipients);
    wait_until("Postfix to hang up", || mx.log().contains("too many errors").then_some(()));
    // What it has taken is to reach the mailboxes before it goes.
    let taken = || sender.log().matches("status=sent").count();
    wait_until("what was taken", || (copies(&mx).len() == taken()).then_some(()));
    let at = mx.smtp;
    mx.stop();
    let calm = Postfix::with_milter(&daemon.endpoint)
        .with(NO_PAUSE)
        .with_service(&format!("127.0.0.1:{} inet n - n - - smtpd", at.port()))
        .start();
    let before = copies(&mx);
    arrives_at(&calm, recipients.len() - before.len());
    assert!(copies(&calm).keys().all(|to| !before.contains_key(to)), "none twice");
    assert!(copies(&calm).values().all(|copies| *copies == 1));
    assert!(!calm.log().contains("too many errors"));
}

#[test]
fn with_a_limit_of_twenty_under_stress_a_milter_does_not_make_it_hang_up() {
    let daemon = Daemon::start(&of_recipients("20/2s"));
    let mx = Postfix::with_milter(&daemon.endpoint)
        .with("stress = yes")
        .with("smtpd_hard_error_limit = 20")
        .with(NO_PAUSE)
        .start();
    let sender = sender(&mx).start();
    let recipients = crowd(60);
    submit(&sender, &recipients);
    everybody_gets_it_once(&mx, &sender, &recipients);
}

/// A requirement is never let pass, however many recipients there are, and mail to others comes
/// when it is not in the same transaction.
#[test]
fn what_a_domain_requires_refuses_the_transaction_beyond_the_patience_of_postfix() {
    let daemon = Daemon::start(
        "limit = []\n[[access.require]]\nrecipient_domain = \"bank.example\"\ntls = true\n",
    );
    let mx = Postfix::with_milter(&daemon.endpoint).with_domain("bank.example").start();
    let mut client = Client::connect(mx.smtp, "127.1.2.3");
    client.ehlo().expect(250);
    client.mail(SENDER).expect(250);
    client.rcpt("one").expect(250);
    for number in 0..15 {
        client.rcpt(&format!("user{number}@bank.example")).expect(451);
    }
    for number in 15..40 {
        client.rcpt(&format!("user{number}@bank.example")).expect(250);
    }
    let reply = client.data().expect(450);
    assert!(reply.text.contains("TLS required for bank.example"), "{reply:?}");
    client.say("RSET").expect(250);
    client.deliver(SENDER, &["one"]);
    client.quit();
    mx.delivered(&["one"]);
}
