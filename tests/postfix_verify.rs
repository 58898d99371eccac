//! The stories of a Postfix that verifies recipients at the host behind it
//! (`reject_unverified_recipient`): by default it says 450 4.1.1 of a user who is not there, and of
//! one of whom it does not know because that host is away or slow. Only the first is unknown.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

mod support;

use std::net::TcpListener;

use support::daemon::Daemon;
use support::free_port;
use support::mx::{ANNA, SENDER, limit, told};
use support::postfix::{Postfix, Settings};
use support::smtp::{Client, Reply};

/// A Postfix that verifies each recipient at this port.
fn verifying(daemon: &Daemon, port: u16) -> Settings {
    Postfix::with_milter(&daemon.endpoint)
        .with("virtual_mailbox_domains =")
        .with("relay_domains = example.org")
        .with(&format!("relay_transport = smtp:[127.0.0.1]:{port}"))
        .with("smtpd_recipient_restrictions = reject_unverified_recipient")
        .with_service("smtp unix - - n - - smtp")
        .with_service("verify unix - - n - 1 verify")
}

fn guessing() -> String {
    limit("guessing", "unknown_recipients", "quota = \"1/1h\"") + "[greylist]\nmode = \"off\"\n"
}

/// A message that is given up after its recipient.
fn attempt(mx: &Postfix, to: &str) -> Reply {
    let mut client = Client::connect(mx.smtp, ANNA);
    client.ehlo().expect(250);
    client.mail(SENDER).expect(250);
    let reply = client.rcpt(to);
    client.quit();
    reply
}

#[test]
fn while_the_host_behind_is_away_or_slow_its_users_are_not_unknown() {
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let away = free_port();
    for (port, why) in [(slow.local_addr().unwrap().port(), "in progress"), (away, "refused")] {
        let daemon = Daemon::start(&guessing());
        let mx = verifying(&daemon, port).start();
        for to in ["anna", "bert"] {
            let reply = attempt(&mx, to).expect(450);
            let verified = reply.text.contains("unverified address: ") && reply.text.contains(why);
            assert!(reply.enhanced == "4.1.1" && verified, "{reply:?}");
        }
        let mut client = Client::connect(mx.smtp, ANNA);
        client.ehlo().expect(250);
        client.mail(SENDER).expect(250);
    }
}

#[test]
fn users_who_are_not_at_the_host_behind_are_unknown() {
    let daemon = Daemon::start(&guessing());
    let host = Postfix::plain().with_mailbox("one").start();
    let mx = verifying(&daemon, host.smtp.port()).start();
    assert_eq!(attempt(&mx, "one").code, 250);
    let reply = attempt(&mx, "info").expect(450);
    assert!(reply.text.contains("unverified address: ") && reply.text.contains("said: 550"));
    let mut client = Client::connect(mx.smtp, ANNA);
    let reply = client.ehlo();
    told(reply, client, "4.7.0", "Too many errors (unknown recipients) from your network");
}
