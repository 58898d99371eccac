//! What an administrator says by `postpone ctl`, and what a client of a real Postfix then sees.

mod support;

use support::mx::{ANNA, BERT, SENDER, greeted, mx, no_session_is_left, visit};
use support::smtp::{Client, swaks};

#[test]
fn during_maintenance_clients_are_told_when_to_come_back_and_then_their_mail_arrives() {
    let (daemon, postfix) = mx("");
    let mut running = greeted(&postfix, ANNA);
    let said = daemon.told(&["maintenance", "on", "--for", "20m"]);
    assert!(said.contains("maintenance of all listeners until "), "{said}");

    // Who is in finishes.
    running.deliver(SENDER, &["running"]);
    running.quit();

    let mut late = Client::connect(postfix.smtp, ANNA);
    let told = late.ehlo().expect(421);
    assert_eq!(told.enhanced, "4.3.2");
    let wait = told.wait_secs();
    assert!((1_000..=1_500).contains(&wait), "20 minutes and a quarter: {told:?}");
    let words = format!("Closed for maintenance; retry in {wait} seconds");
    assert!(told.text.ends_with(&words), "{told:?}");
    late.closed();

    // A real client understands it.
    let transcript = swaks(postfix.smtp, BERT, SENDER, "late");
    assert!(transcript.contains("421 4.3.2") && transcript.contains("retry in "), "{transcript}");
    daemon.decision(&[("reason", "maintenance"), ("event", "helo"), ("client", BERT)]);

    let said = daemon.told(&["maintenance", "off"]);
    assert!(said.contains("maintenance of all listeners has ended"), "{said}");
    let transcript = swaks(postfix.smtp, BERT, SENDER, "late");
    assert!(transcript.contains("250 2.0.0 Ok: queued"), "{transcript}");
    visit(&postfix, ANNA, "later");
    postfix.delivered(&["running", "late", "later"]);
    no_session_is_left(&daemon);
}
