//! The milter front over a real socket: what an MTA is answered, whatever it sends and however it
//! arrives, and what is left when it goes away.

mod support;

use std::collections::HashMap;

use indymilter::message::reply::Reply;
use indymilter::{Actions, MacroStage};
use support::Folder;
use support::front::Front;
use support::milter::*;

/// What is asked of an MTA that can do everything: no headers, body or unknown commands, but
/// recipients that it has refused.
const WANTED: u32 = 0x970;
const NO_DATA: u32 = 0x200;
const NO_REPLY_TO_HELO: u32 = 0x2000;

/// First contacts wait; the text says nothing that differs from one session to the next.
const GREYLIST: &str = r#"
limit = []
[server]
hostname = "throttle.example.org"
[greylist]
mode = "enforce"
reply = "451 4.7.1 {hostname} First contact of {sender} with {recipient}"
"#;
const NOT_YET: &str =
    "451 4.7.1 throttle.example.org First contact of a@example.net with b@example.org";

/// One message and the beginning of another.
fn session() -> [Vec<u8>; 17] {
    [
        negotiate(),
        macros(b'C', &["j", "mx.example.org", "{client_addr}", "192.0.2.7"]),
        connect("192.0.2.7"),
        helo("mx.example.net"),
        macros(b'M', &["{mail_addr}", "a@example.net"]),
        mail_with("a@example.net", &["SIZE=1000", "BODY=8BITMIME"]),
        macros(b'R', &["{rcpt_mailer}", "local"]),
        rcpt("b@example.org"),
        rcpt("postmaster@example.org"),
        data(),
        macros(b'E', &["i", "4ABC", "{msg_size}", "1234"]),
        end_of_message(),
        abort(),
        mail("a@example.net"),
        rcpt("b@example.org"),
        abort(),
        quit(),
    ]
}

/// What is answered from the connect frame on.
const ANSWERS: [&str; 9] = [
    "continue", "continue", "continue", NOT_YET, "continue", "continue", "continue", "continue",
    NOT_YET,
];

/// What has been written before has been read: one thread serves both connections, and it has
/// answered this one later.
fn read_by_now(witness: &mut Mta) {
    assert_eq!(witness.ask(&helo("witness.example.net")), "continue");
}

#[test]
fn a_session_torn_at_any_byte_is_answered_the_same() {
    let front = Front::start(GREYLIST);
    let mut witness = Mta::with_client(&front.endpoint, "203.0.113.9");
    let bytes = session().concat();
    // Torn at zero it comes in one piece.
    for at in 0..bytes.len() {
        let mut mta = Mta::dial(&front.endpoint);
        mta.write(&bytes[..at]);
        read_by_now(&mut witness);
        mta.write(&bytes[at..]);
        assert_eq!(mta.replies()[1..], ANSWERS, "torn at {at}");
    }
    drop(witness);
    front.nothing_is_held();
    assert_eq!(front.failures("frame"), 0.0);
    front.ended();
}

#[test]
fn a_session_that_drips_byte_by_byte_is_answered_the_same_on_a_unix_socket() {
    let folder = Folder::new("front");
    let front = Front::on_unix_socket(&folder, GREYLIST);
    let mut witness = Mta::with_client(&front.endpoint, "203.0.113.9");
    let mut mta = Mta::dial(&front.endpoint);
    for byte in session().concat() {
        mta.write(&[byte]);
        read_by_now(&mut witness);
    }
    assert_eq!(mta.replies()[1..], ANSWERS);
    drop(witness);
    front.nothing_is_held();
    front.ended();
}

/// What is agreed on with an MTA that offers this.
fn agreed(front: &Front, version: u32, actions: u32, options: u32) -> (u32, u32, Macros) {
    let mut mta = Mta::dial(&front.endpoint);
    mta.write(&offer(version, actions, options));
    match mta.reply() {
        Some(Reply::OptNeg { version, actions, opts, macros }) => {
            assert_eq!(actions, Actions::empty(), "no message is ever changed");
            (version, opts.bits(), macros.into_iter().collect())
        }
        other => panic!("no negotiation: {other:?}"),
    }
}

type Macros = HashMap<MacroStage, std::ffi::CString>;

#[test]
fn the_body_is_negotiated_away_and_the_macros_needed_are_asked_for() {
    let front = Front::start(GREYLIST);
    let (version, options, macros) = agreed(&front, VERSION, ALL_ACTIONS, ALL_OPTIONS);
    assert_eq!((version, options), (6, WANTED | NO_DATA));
    let asked = |stage| macros.get(&stage).map_or("", |names| names.to_str().unwrap());
    let connect = "j {client_addr} {client_ptr} {client_resolve} {client_connections} \
                   {daemon_name} {daemon_port}";
    assert_eq!(asked(MacroStage::Connect), connect);
    let mail = "{auth_authen} {auth_type} {mail_addr} {tls_version}";
    assert_eq!(asked(MacroStage::Mail), mail);
    assert_eq!(asked(MacroStage::Rcpt), "{rcpt_mailer} {rcpt_host} {rcpt_addr}");
    // Without the former Sendmail would not send the latter.
    assert_eq!(asked(MacroStage::Eoh), "i");
    assert_eq!(asked(MacroStage::Eom), "i {msg_size}");
    assert_eq!(macros.len(), 5);
    // A newer MTA than we know.
    assert_eq!(agreed(&front, 7, ALL_ACTIONS, ALL_OPTIONS).0, 6);
    front.ended();
}

/// Where DATA may be refused it is shown; where HELO never is, nobody waits for an answer.
#[test]
fn a_step_at_which_nothing_can_be_said_costs_no_round_trip() {
    let at_data = GREYLIST.replace("reply = \"451", "reply = \"421");
    let denied = format!("{GREYLIST}[access]\ndeny = [\"198.51.100.0/24\"]\n");
    let required =
        format!("{GREYLIST}[[access.require]]\nrecipient_domain = \"example.org\"\ntls = true\n");
    let off = "[greylist]\nmode = \"off\"\n".to_owned();
    for (policy, data) in [
        (&at_data, 0),
        (&denied, 0),
        (&required, 0),
        (&GREYLIST.to_owned(), NO_DATA),
        (&off, NO_DATA),
    ] {
        for (speak, helo) in [("helo", 0), ("connect", 0), ("mail", NO_REPLY_TO_HELO)] {
            let front = Front::speaking(speak, policy);
            let (_, options, _) = agreed(&front, VERSION, ALL_ACTIONS, ALL_OPTIONS);
            assert_eq!(options, WANTED | data | helo, "speak = {speak}, {policy}");
            front.ended();
        }
    }
}

/// Else a client would be let in that was to be refused.
#[test]
fn where_data_is_left_out_it_is_never_refused_though_it_comes() {
    let limit = |count: &str, more: &str| {
        let per = "per = [\"network\"]";
        format!("[[limit]]\nname = \"{count}\"\ncount = \"{count}\"\n{per}\n{more}\n")
    };
    let quotas = ["connections", "messages", "recipients", "unknown_recipients"];
    let distinct = ["distinct_senders", "distinct_recipients", "distinct_helos"];
    let mut policies: Vec<_> =
        quotas.map(|count| limit(count, "quota = \"1/1h\"")).into_iter().collect();
    policies.extend(distinct.map(|count| limit(count, "max = 1\nwindow = \"1h\"")));
    policies.push(limit("bytes", "quota = \"1KiB/1h\""));
    policies.push(limit("sessions", "max = 1"));
    policies.push(GREYLIST.to_owned());
    policies.push(GREYLIST.replace("reply = \"451", "reply = \"421"));
    policies.push("[access]\ndeny = [\"192.0.2.0/24\"]\n".to_owned());
    policies
        .push("[[access.require]]\nrecipient_domain = \"example.org\"\ntls = true\n".to_owned());
    policies.push("[behaviour]\nmode = \"enforce\"\n".to_owned());
    let mut refused_at_data = 0;
    for policy in &policies {
        for speak in ["helo", "mail"] {
            let front = Front::speaking(speak, policy);
            let (_, options, _) = agreed(&front, VERSION, ALL_ACTIONS, ALL_OPTIONS);
            for number in 0..3 {
                let answer = reach_data(&front, speak, number);
                if options & NO_DATA != 0 {
                    assert!(answer.is_none_or(|said| said == "continue"), "{policy}");
                } else {
                    refused_at_data += u32::from(answer.is_some_and(|said| said != "continue"));
                }
            }
            front.ended();
        }
    }
    assert!(refused_at_data > 0, "where it is not left out it may be");
}

/// What is said at DATA, where a client gets so far.
fn reach_data(front: &Front, speak: &str, number: usize) -> Option<String> {
    let mut mta = Mta::with_client(&front.endpoint, "192.0.2.7");
    match speak {
        "mail" => mta.tell(&helo(&format!("mx{number}.example.net"))),
        _ if mta.ask(&helo(&format!("mx{number}.example.net"))) != "continue" => return None,
        _ => {}
    }
    if mta.ask(&mail_with(&format!("a{number}@example.net"), &["SIZE=1000"])) != "continue" {
        return None;
    }
    mta.tell(&macros(b'R', &["{rcpt_mailer}", "error", "{rcpt_host}", "5.1.1"]));
    mta.ask(&rcpt("nobody@example.org"));
    mta.tell(&macros(b'R', &["{rcpt_mailer}", "local"]));
    let to = [format!("b{number}@example.org"), "c@example.org".into()];
    let accepted = to.map(|to| mta.ask(&rcpt(&to)) == "continue");
    accepted.contains(&true).then(|| mta.ask(&data()))
}

#[test]
fn only_what_the_mta_offers_is_negotiated() {
    let front = Front::start(GREYLIST);
    for bit in 0..21 {
        for options in [1 << bit, ALL_OPTIONS & !(1 << bit)] {
            let (_, agreed, _) = agreed(&front, VERSION, ALL_ACTIONS, options);
            assert_eq!(agreed, (WANTED | NO_DATA) & options, "of {options:#x}");
        }
    }
    const REQUEST_MACROS: u32 = 0x100;
    let (.., macros) = agreed(&front, VERSION, ALL_ACTIONS & !REQUEST_MACROS, ALL_OPTIONS);
    assert_eq!(macros, HashMap::new());
    front.ended();
}

/// The oldest protocol there is: no DATA command, and what is not wanted comes all the same.
#[test]
fn an_mta_of_protocol_two_is_served() {
    let front = Front::start(GREYLIST);
    const NO_CONNECT: u32 = 1;
    let mut mta = Mta::dial(&front.endpoint);
    mta.write(&offer(2, 0x3f, NO_CONNECT));
    let Some(Reply::OptNeg { version, opts, .. }) = mta.reply() else { panic!("no negotiation") };
    assert_eq!((version, opts.bits()), (2, 0));
    assert_eq!(mta.ask(&connect("192.0.2.7")), "continue");
    assert_eq!(mta.ask(&helo("mx.example.net")), "continue");
    for _ in 0..2 {
        assert_eq!(mta.ask(&mail("a@example.net")), "continue");
        assert_eq!(mta.ask(&rcpt("b@example.org")), NOT_YET);
        assert_eq!(mta.ask(&rcpt("postmaster@example.org")), "continue");
        assert_eq!(mta.ask(&frame(b'L', b"Subject\0Hello\0")), "continue");
        assert_eq!(mta.ask(&frame(b'L', b"X-Empty\0\0")), "continue");
        assert_eq!(mta.ask(&frame(b'N', b"")), "continue");
        // As much as libmilter ever sends at once, which is as much as may be sent.
        for length in [1, 65_535] {
            assert_eq!(mta.ask(&frame(b'B', &vec![b'x'; length])), "continue");
        }
        assert_eq!(mta.ask(&end_of_message()), "continue");
    }
    mta.tell(&quit());
    mta.closed();
    front.nothing_is_held();
    front.ended();
}

/// One message an hour; the text says nothing that differs.
const HOURLY: &str = r#"
[[limit]]
name = "hourly"
count = "messages"
quota = "1/1h"
reply = "421 4.7.0 Too many messages from {network}"
[greylist]
mode = "off"
"#;

#[test]
fn an_ipv6_client_counts_under_its_network_however_the_mta_writes_it() {
    let front = Front::start(HOURLY);
    let sends = |connect: Vec<u8>| {
        let mut mta = Mta::dial(&front.endpoint);
        mta.ask(&negotiate());
        assert_eq!(mta.ask(&connect), "continue");
        assert_eq!(mta.ask(&helo("mx.example.net")), "continue");
        let answer = mta.ask(&mail("a@example.net"));
        if answer == "continue" {
            mta.ask(&rcpt("b@example.org"));
            mta.ask(&data());
            mta.ask(&end_of_message());
        }
        mta.tell(&quit());
        answer
    };
    let postfix = connect("2001:db8:0:1::7");
    let sendmail = connect_as("[IPv6:2001:db8::8]", b'6', "IPv6:2001:0DB8:0:1:0:0:0:8");
    assert_eq!(sends(postfix), "continue");
    let refused = "421 4.7.0 Too many messages from 2001:db8:0:1::/64";
    assert_eq!(sends(sendmail), refused);
    assert_eq!(sends(connect_as("x", b'6', "IPv6:2001:0DB8:0:2:0:0:0:8")), "continue");
    // IPv4 in the clothes of IPv6 is IPv4.
    assert_eq!(sends(connect("192.0.2.7")), "continue");
    let refused = "421 4.7.0 Too many messages from 192.0.2.7/32";
    assert_eq!(sends(connect_as("x", b'6', "IPv6:::ffff:192.0.2.7")), refused);
    front.nothing_is_held();
    front.ended();
}

#[test]
fn a_client_without_a_readable_address_passes_and_is_counted() {
    let front = Front::start(HOURLY);
    let unreadable = [
        frame(b'C', b"localhost\0U"),
        frame(b'C', b"localhost\0L\0\0/run/mta.sock\0"),
        connect_as("mx.example.net", b'4', "192.0.2.300"),
        connect_as("mx.example.net", b'6', "IPv6:nonsense"),
        connect_as("mx.example.net", b'4', "\u{ff}"),
        connect_as("mx.example.net", b'9', "192.0.2.7"),
        frame(b'C', b"mx.example.net\0"),
        frame(b'C', b"mx.example.net\x004"),
        frame(b'C', b"mx.example.net\x004\0\x19192.0.2.7"),
    ];
    for (number, connect) in (1..).zip(&unreadable) {
        let mut mta = Mta::dial(&front.endpoint);
        mta.ask(&negotiate());
        assert_eq!(mta.ask(connect), "continue");
        for frame in [helo("x"), mail("a@example.net"), rcpt("b@example.org"), data()] {
            assert_eq!(mta.ask(&frame), "continue");
        }
        assert_eq!(mta.ask(&end_of_message()), "continue");
        assert_eq!(mta.ask(&mail("a@example.net")), "continue");
        mta.tell(&quit());
        mta.closed();
        assert_eq!(front.failures("address"), f64::from(number));
    }
    // A macro may tell what the frame does not.
    let mut mta = Mta::dial(&front.endpoint);
    mta.ask(&negotiate());
    mta.tell(&macros(b'C', &["{client_addr}", "IPv6:2001:db8::7"]));
    assert_eq!(mta.ask(&frame(b'C', b"localhost\0U")), "continue");
    assert_eq!(front.metric("postpone_sessions_open", &[]), 1.0);
    drop(mta);
    assert_eq!(front.failures("frame"), 0.0);
    front.nothing_is_held();
    front.ended();
}
