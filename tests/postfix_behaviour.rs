//! Three bots and two senders of wanted mail before the same real Postfix, each from an address of
//! its own by the PROXY protocol. The bots are told what gives them away, and the mail arrives.

mod support;

use support::daemon::{Daemon, HOSTNAME, field};
use support::mx::DECISIONS;
use support::postfix::Postfix;
use support::smtp::{Client, Reply};

/// Nothing but behaviour, which acts at once.
const POLICY: &str = "limit = []\n[behaviour]\nlearn_for = \"0s\"\n";

/// Recipients that exist, beside Anna and Bert.
const USERS: usize = 120;

/// As many messages as a bot has.
const PATIENCE: usize = 150;

fn served() -> (Daemon, Postfix) {
    let daemon = Daemon::start(POLICY);
    let names = (0..USERS).map(user).chain(["anna".into(), "bert".into()]);
    let postfix = names
        .fold(Postfix::with_milter(&daemon.endpoint), |postfix, name| postfix.with_mailbox(&name));
    // XCLIENT tells the names of those who have one.
    let postfix = postfix.with("smtpd_authorized_xclient_hosts = 192.0.2.0/24");
    (daemon, postfix.start())
}

fn user(number: usize) -> String {
    format!("user{}", number % USERS)
}

/// A client that has connected and greeted.
fn greeted(postfix: &Postfix, address: &str, helo: &str) -> Result<Client, Reply> {
    let mut client = Client::proxied(postfix.proxied, address);
    client.greeting.clone().expect(220);
    let reply = client.say(&format!("EHLO {helo}"));
    if reply.code == 250 { Ok(client) } else { Err(reply) }
}

/// The same with a name that is forward-confirmed.
fn named(postfix: &Postfix, address: &str, name: &str) -> Client {
    let mut client = greeted(postfix, address, name).expect("who is named is let in");
    client.say(&format!("XCLIENT NAME={name}")).expect(220);
    client.say(&format!("EHLO {name}")).expect(250);
    client
}

/// What a bot is told when it is sent away, whatever it does after a 451; and how many of its
/// messages had a recipient by then.
fn sent_away(mut message: impl FnMut(usize) -> Reply) -> (Reply, usize) {
    let mut passed = 0;
    for number in 0..PATIENCE {
        let reply = message(number);
        match reply.code {
            421 => return (reply, passed),
            250 => passed += 1,
            code => assert_eq!(code, 451, "{reply:?}"),
        }
    }
    panic!("never sent away, and {passed} passed");
}

/// One message of a bot: to these recipients, and not to its end. What it was told if it was put off
/// or sent away, be it at MAIL or at a recipient that exists; else what MAIL was answered.
fn attempt(mut client: Client, sender: &str, recipients: &[String]) -> Reply {
    let mut reply = client.mail(sender);
    for to in recipients {
        if reply.code == 250 {
            let told = client.rcpt(to);
            if told.code == 421 || told.code == 451 {
                reply = told;
            }
        }
    }
    if reply.code != 421 {
        client.quit();
    }
    reply
}

#[track_caller]
fn is_told(daemon: &Daemon, client: &str, reply: &Reply, evidence: &str) {
    assert_eq!((reply.code, reply.enhanced.as_str()), (421, "4.7.0"), "{reply:?}");
    let begins = format!("{HOSTNAME} Unusual sending pattern (");
    assert!(reply.text.starts_with(&begins) && reply.text.contains(evidence), "{reply:?}");
    assert!(reply.wait_secs() > 0, "{reply:?}");
    let line = daemon.decision(&[("reason", "behaviour"), ("action", "close"), ("client", client)]);
    // The number that the sender's postmaster may ask about.
    let id = field(&line, "id").expect("each decision has a number");
    assert!(reply.text.ends_with(&format!(" id={id}")), "{reply:?} {line}");
    assert_eq!(field(&line, "mode"), Some("enforce"), "{line}");
}

#[test]
fn bots_are_told_why_and_wanted_mail_arrives() {
    let (daemon, postfix) = served();

    // Guesses addresses, and nobody has most of them.
    let harvester = "198.51.100.1";
    let (reply, passed) = sent_away(|number| {
        let client = greeted(&postfix, harvester, "mx.harvest.example");
        let guesses = (0..9).map(|guess| format!("guess{number}-{guess}"));
        let recipients: Vec<_> = guesses.chain([user(number)]).collect();
        client
            .map_or_else(|reply| reply, |client| attempt(client, "a@harvest.example", &recipients))
    });
    is_told(&daemon, harvester, &reply, "many unknown recipients");
    assert!(passed <= 25, "{passed} messages");

    // Has another sender domain each time.
    let churner = "198.51.101.2";
    let (reply, passed) = sent_away(|number| {
        let client = greeted(&postfix, churner, "mx.churn.example");
        let sender = format!("offer@new{number}.example");
        client.map_or_else(|reply| reply, |client| attempt(client, &sender, &[user(number)]))
    });
    is_told(&daemon, churner, &reply, "new sender domain each time");
    assert!(passed <= 25, "{passed} messages");

    // Says HELO with a bare address, and another one each time.
    let liar = "198.51.102.3";
    let (reply, passed) = sent_away(|number| {
        let client = greeted(&postfix, liar, &format!("[10.0.0.{}]", number + 1));
        let recipients: Vec<_> = (0..10).map(|to| user(10 * number + to)).collect();
        let sender = format!("b{number}@bot.example");
        client.map_or_else(|reply| reply, |client| attempt(client, &sender, &recipients))
    });
    is_told(&daemon, liar, &reply, "many HELO names");
    assert!(passed <= 25, "{passed} messages");

    // A company with a mail server as it should be, and a person with one at home that has no name.
    for _ in 0..3 {
        let mut shop = named(&postfix, "192.0.2.10", "mx.shop.example");
        shop.mail("orders@shop.example").expect(250);
        shop.rcpt("former-colleague").expect(550);
        shop.rcpt("anna").expect(250);
        shop.data().expect(354);
        shop.message().expect(250);
        shop.quit();
    }
    for to in ["anna", "bert"] {
        let home = greeted(&postfix, "203.0.113.20", "mail.home.example");
        let mut home = home.expect("a stranger is let in");
        home.deliver("carl@home.example", &[to]);
        home.quit();
    }
    postfix.delivered(&["anna", "anna", "anna", "anna", "bert"]);
    for client in ["192.0.2.10", "203.0.113.20"] {
        let line = daemon.lines().into_iter().find(|line| field(line, "client") == Some(client));
        assert_eq!(line, None, "nothing was said to {client}");
    }
    assert!(daemon.metric(DECISIONS, &[("reason", "behaviour"), ("action", "close")]) >= 3.0);
    assert_eq!(daemon.metric("postpone_failures_total", &[]), 0.0);
}
