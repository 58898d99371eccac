//! Sessions through the milter front: what is said at which command, what is given back however a
//! session ends, and that nonsense costs nobody but the connection it came on.

mod support;

use std::net::TcpStream;
use std::time::Duration;

use support::front::Front;
use support::milter::*;
use support::wait_until;

/// One session of a network at once, one message an hour.
const TIGHT: &str = r#"
[access]
deny = ["198.51.100.0/24"]
[server]
hostname = "throttle.example.org"
[[limit]]
name = "at-once"
count = "sessions"
max = 1
reply = "421 4.7.0 One at a time"
[[limit]]
name = "hourly"
count = "messages"
quota = "1/1h"
reply = "421 4.7.0 One an hour"
[greylist]
mode = "off"
"#;
const ONE_AT_A_TIME: &str = "421 4.7.0 One at a time";
const ONE_AN_HOUR: &str = "421 4.7.0 One an hour";

/// Nothing holds but this one limit.
fn only(limit: &str) -> String {
    format!("[[limit]]\nname = \"only\"\n{limit}\n[greylist]\nmode = \"off\"\n")
}

#[test]
fn a_refused_session_hears_it_at_helo_and_at_whatever_follows() {
    let front = Front::start(TIGHT);
    let admitted = Mta::with_client(&front.endpoint, "192.0.2.7");
    let mut refused = Mta::with_client(&front.endpoint, "192.0.2.7");
    // An MTA that goes on all the same.
    for frame in [helo("mx.example.net"), mail("a@example.net"), helo("x"), mail("b@example.net")] {
        assert_eq!(refused.ask(&frame), ONE_AT_A_TIME);
    }
    // Silent sessions cannot pile up: with two open, the next is closed before it speaks.
    let mut silent = Mta::dial(&front.endpoint);
    silent.ask(&negotiate());
    assert_eq!(silent.ask(&connect("192.0.2.7")), ONE_AT_A_TIME);
    // Who skips HELO hears it at MAIL.
    let mut denied = Mta::with_client(&front.endpoint, "198.51.100.7");
    let told = denied.ask(&mail("a@example.net"));
    assert!(told.starts_with("421 4.7.0 throttle.example.org Mail from your network"), "{told}");
    drop((admitted, refused, silent, denied));
    front.nothing_is_held();
    front.ended();
}

#[test]
fn a_listener_speaks_when_its_settings_say() {
    let front = Front::speaking("connect", TIGHT);
    let mut mta = Mta::dial(&front.endpoint);
    mta.ask(&negotiate());
    assert!(mta.ask(&connect("198.51.100.7")).starts_with("421 4.7.0 "));
    drop(mta);
    front.ended();

    let front = Front::speaking("mail", TIGHT);
    let mut mta = Mta::with_client(&front.endpoint, "198.51.100.7");
    // Nobody waits for an answer to HELO there.
    mta.tell(&helo("laptop.example.net"));
    // Postfix names the macro and gives it no value where nobody has authenticated.
    mta.tell(&macros(b'M', &["{auth_authen}", ""]));
    assert!(mta.ask(&mail("alice@example.org")).starts_with("421 4.7.0 "));
    mta.tell(&macros(b'M', &["{auth_authen}", "alice", "{auth_type}", "PLAIN"]));
    assert_eq!(mta.ask(&mail("alice@example.org")), "continue");
    drop(mta);
    front.nothing_is_held();
    front.ended();
}

/// A single one is an escape to the MTAs: to one a permanent 550, to the other nothing at all.
#[test]
fn a_percent_sign_is_doubled_whoever_wrote_it() {
    let reply = "reply = \"450 4.7.0 100% of {sender}\"";
    let front = Front::start(&only(&format!("count = \"messages\"\nquota = \"1/1h\"\n{reply}")));
    let mut mta = Mta::with_client(&front.endpoint, "192.0.2.7");
    assert_eq!(mta.ask(&mail("a@example.net")), "continue");
    assert_eq!(mta.ask(&rcpt("b@example.org")), "continue");
    assert_eq!(mta.ask(&end_of_message()), "continue");
    assert_eq!(mta.ask(&mail("50%d@example.net")), "450 4.7.0 100%% of 50%%d@example.net");
    // Doubled, so many do not fit the protocol; none is better than a single one.
    let told = mta.ask(&mail(&"%".repeat(500)));
    assert!(told.starts_with("450 4.7.0 100? of ?????") && !told.contains('%'), "{told}");
    drop(mta);
    front.ended();
}

#[test]
fn recipients_that_the_mta_has_refused_are_neither_counted_nor_refused_again() {
    let front = Front::start(&only("count = \"recipients\"\nquota = \"1/1h\""));
    let mut mta = Mta::with_client(&front.endpoint, "192.0.2.7");
    mta.ask(&mail("a@example.net"));
    for _ in 0..3 {
        mta.tell(&macros(b'R', &["{rcpt_mailer}", "error", "{rcpt_host}", "5.1.1"]));
        assert_eq!(mta.ask(&rcpt("nobody@example.org")), "continue");
    }
    mta.tell(&macros(b'R', &["{rcpt_mailer}", "local"]));
    assert_eq!(mta.ask(&rcpt("b@example.org")), "continue");
    assert!(mta.ask(&rcpt("c@example.org")).starts_with("452 4.5.3 "));
    mta.tell(&macros(b'R', &["{rcpt_mailer}", "error"]));
    assert_eq!(mta.ask(&rcpt("nobody@example.org")), "continue");
    drop(mta);
    front.ended();
}

#[test]
fn the_true_size_of_a_message_counts_where_the_mta_tells_it() {
    let front = Front::start(&only("count = \"bytes\"\nquota = \"1MiB/1h\""));
    let mut mta = Mta::with_client(&front.endpoint, "192.0.2.7");
    let mut send = |declared: &str, true_size: &str| {
        let answer = mta.ask(&mail_with("a@example.net", &["BODY=8BITMIME", declared]));
        if answer == "continue" {
            mta.ask(&rcpt("b@example.org"));
            mta.ask(&data());
            mta.tell(&macros(b'E', &["{msg_size}", true_size]));
            assert_eq!(mta.ask(&end_of_message()), "continue");
        }
        answer
    };
    assert_eq!(send("SIZE=1000000", "1000"), "continue");
    assert_eq!(send("size=1000000", "1048576"), "continue");
    assert!(send("SIZE=1000000", "").starts_with("421 4.7.0 "));
    // What cannot be read is not told.
    front.clock.advance(Duration::from_secs(7200));
    assert_eq!(send("SIZE=1048576", "much"), "continue");
    assert!(send("SIZE=1048576", "").starts_with("421 4.7.0 "));
    front.clock.advance(Duration::from_secs(7200));
    assert_eq!(send("SIZE=-1", "99999999999999999999"), "continue");
    assert_eq!(send("SIZE=1048576", ""), "continue");
    drop(mta);
    front.ended();
}

/// A message, and whether it is complete once so much of it has been said.
fn message() -> [(Vec<u8>, bool); 8] {
    [
        (negotiate(), false),
        (connect("192.0.2.7"), false),
        (helo("mx.example.net"), false),
        (mail("a@example.net"), false),
        (rcpt("b@example.org"), false),
        (data(), false),
        (end_of_message(), true),
        (mail("c@example.net"), true),
    ]
}

#[test]
fn wherever_a_session_breaks_off_it_gives_back_what_it_held() {
    let front = Front::start(TIGHT);
    for said in 0..=message().len() {
        // Between two frames, within a frame, with a word of parting, and without.
        for ending in [vec![], vec![0, 0], vec![0, 0, 0, 9, b'M', b'<'], abort(), quit()] {
            let mut mta = Mta::dial(&front.endpoint);
            let message = message();
            for (frame, _) in &message[..said] {
                mta.ask(frame);
            }
            mta.write(&ending);
            drop(mta);
            front.nothing_is_held();
            // The message counts if it was complete, and only then.
            let complete = message[..said].last().is_some_and(|(_, complete)| *complete);
            let expected = if complete { ONE_AN_HOUR } else { "continue" };
            let mut next = Mta::with_client(&front.endpoint, "192.0.2.7");
            assert_eq!(next.ask(&helo("mx.example.net")), "continue");
            assert_eq!(next.ask(&mail("a@example.net")), expected, "after {said} {ending:?}");
            drop(next);
            front.nothing_is_held();
            front.clock.advance(Duration::from_secs(3600));
        }
    }
    assert_eq!(front.failures("frame"), 0.0);
    front.ended();
}

#[test]
fn transactions_may_end_twice_or_too_late_or_without_a_word() {
    let front = Front::start(TIGHT);
    let mut mta = Mta::with_client(&front.endpoint, "192.0.2.7");
    mta.ask(&helo("mx.example.net"));
    for again in [vec![], vec![abort()], vec![abort(), abort()], vec![helo("after-starttls")]] {
        assert_eq!(mta.ask(&mail("a@example.net")), "continue", "{again:?}");
        assert_eq!(mta.ask(&rcpt("b@example.org")), "continue");
        again.iter().for_each(|frame| match frame[4] {
            b'A' => mta.tell(frame),
            _ => assert_eq!(mta.ask(frame), "continue"),
        });
    }
    assert_eq!(mta.ask(&mail("a@example.net")), "continue");
    for frame in [rcpt("b@example.org"), data(), end_of_message()] {
        assert_eq!(mta.ask(&frame), "continue");
    }
    mta.tell(&abort());
    mta.tell(&abort());
    assert_eq!(mta.ask(&mail("a@example.net")), ONE_AN_HOUR);
    drop(mta);
    front.nothing_is_held();
    front.ended();
}

#[test]
fn nonsense_closes_its_connection_is_counted_and_concerns_nobody_else() {
    let front = Front::start(TIGHT);
    let mut bystander = Mta::with_client(&front.endpoint, "203.0.113.9");
    let greeted = || vec![negotiate(), connect("192.0.2.7")];
    let mut counted = 0.0;
    for (what, before, bytes) in [
        ("no length", greeted(), vec![0, 0, 0, 0, b'H']),
        ("a huge length", greeted(), vec![0x7f, 0xff, 0xff, 0xff, b'B']),
        ("one byte too long", greeted(), vec![0, 1, 0, 1, b'B']),
        ("a letter nobody knows", greeted(), frame(b'z', b"")),
        ("a browser", vec![], b"GET / HTTP/1.1\r\nHost: mx.example.org\r\n\r\n".to_vec()),
        ("an SMTP client", vec![], b"EHLO mx.example.net\r\n".to_vec()),
        ("TLS", vec![], vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
        ("HELO without its end", greeted(), frame(b'H', b"mx.example.net")),
        ("HELO without anything", greeted(), frame(b'H', b"")),
        ("MAIL without anything", greeted(), frame(b'M', b"")),
        ("MAIL without its end", greeted(), frame(b'M', b"<a@example.net>")),
        ("macros without anything", greeted(), frame(b'D', b"")),
        ("a client without anything", vec![negotiate()], frame(b'C', b"")),
        ("a client without its end", vec![negotiate()], frame(b'C', b"mx.example.net")),
        ("a client of 5000 bytes", vec![negotiate()], frame(b'C', &[b'x'; 5000])),
        ("half a negotiation", vec![], frame(b'O', &[0, 0, 0, 6])),
        ("a version too old", vec![], offer(1, ALL_ACTIONS, ALL_OPTIONS)),
    ] {
        let mut mta = Mta::dial(&front.endpoint);
        before.iter().for_each(|frame| drop(mta.ask(frame)));
        mta.write(&bytes);
        mta.closed();
        counted += 1.0;
        wait_until(what, || (front.failures("frame") == counted).then_some(()));
        assert_eq!(bystander.ask(&helo("mx.example.com")), "continue", "{what}");
    }
    assert_eq!(bystander.ask(&mail("a@example.com")), "continue");
    drop(bystander);
    front.nothing_is_held();
    assert_eq!(front.failures("frame"), counted);
    front.ended();
}

#[test]
fn told_to_stop_a_front_takes_nobody_new_and_lets_running_sessions_finish() {
    let front = Front::start(TIGHT);
    let mut mta = Mta::with_client(&front.endpoint, "192.0.2.7");
    mta.ask(&helo("mx.example.net"));
    front.stop();
    let port = front.endpoint.strip_prefix("inet:").unwrap().to_owned();
    wait_until("the port to close", || TcpStream::connect(&port).is_err().then_some(()));
    for frame in [mail("a@example.net"), rcpt("b@example.org"), data(), end_of_message()] {
        assert_eq!(mta.ask(&frame), "continue");
    }
    assert_eq!(mta.ask(&mail("a@example.net")), ONE_AN_HOUR);
    mta.tell(&quit());
    mta.closed();
    front.nothing_is_held();
    assert_eq!(front.failures("frame"), 0.0);
    front.ended();
}
