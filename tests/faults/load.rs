//! The mail of a run: a Postfix that sends with a queue and retries of its own, from clients of several
//! networks; and clients without a queue, which deliver once, break off, or talk nonsense.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::RngExt;
use proptest::test_runner::TestRng;

use super::pause;
use super::plan::generator;
use super::support::postfix::{Postfix, Settings, address};
use super::support::smtp::Client;

/// The networks that the queue sends from.
const CLIENTS: u8 = 6;
/// How long a client waits for a reply: longer than a Postfix that waits for a hanging milter.
const REPLY: Duration = Duration::from_secs(60);
/// A header, by which each message is known wherever it comes.
pub const MARK: &str = "X-Story: ";

/// A message that was handed over, or was to be.
pub struct Sent {
    pub mark: String,
    pub recipients: Vec<String>,
    pub fate: Fate,
}

/// What its sender knows of it.
pub enum Fate {
    /// It is in the sending Postfix's queue, by this id.
    Queued(String),
    /// The receiving Postfix said 250 to the dot.
    Accepted,
    /// It did not come to that.
    Refused,
    /// The connection was lost between the dot and its reply: it may have arrived.
    Unknown,
}

/// A Postfix that gives all its mail to this one, each client by a transport of its own. Nothing but
/// its retries are sooner than by default.
pub fn sender(mx: &Postfix) -> Settings {
    let mut maps = String::new();
    let mut settings = Postfix::plain()
        .with("virtual_mailbox_domains =")
        .with("mynetworks = 127.0.0.0/8")
        .with("smtpd_relay_restrictions = permit_mynetworks, reject")
        .with("enable_long_queue_ids = yes")
        .with(&format!("relayhost = [127.0.0.1]:{}", mx.smtp.port()))
        .with("minimal_backoff_time = 3s")
        .with("maximal_backoff_time = 6s")
        .with("queue_run_delay = 1s");
    for client in 0..CLIENTS {
        let from = format!("127.{}.0.1", 10 + client);
        settings = settings
            .with_service(&format!("smtp{client} unix - - n - - smtp -o smtp_bind_address={from}"));
        maps += &format!("{{ @client{client}.example = smtp{client}: }}, ");
    }
    let maps = maps.trim_end_matches(", ");
    settings
        .with_service("smtp unix - - n - - smtp")
        .with(&format!("sender_dependent_default_transport_maps = inline:{{ {maps} }}"))
}

/// Hands messages to the sending Postfix until it is over.
pub fn queue(seed: u64, sender: SocketAddr, over: &AtomicBool) -> Vec<Sent> {
    let mut draw = generator(seed, 100);
    let mut sent = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let client = draw.random_range(0..CLIENTS);
        let from = format!("sender{}@client{client}.example", draw.random_range(0..40));
        let count = match draw.random_range(0..100) {
            0..70 => draw.random_range(1..=3),
            70..95 => draw.random_range(4..=20),
            _ => draw.random_range(21..=60),
        };
        let mark = format!("queue-{}", sent.len());
        let recipients = recipients(&mut draw, count);
        let mut submission = Client::connect(sender, "127.0.0.1");
        submission.ehlo().expect(250);
        submission.mail(&from).expect(250);
        for to in &recipients {
            submission.rcpt(to).expect(250);
        }
        submission.data().expect(354);
        let reply = submission.say(&format!("{MARK}{mark}\r\n\r\nOnce upon a time.\r\n."));
        let reply = reply.expect(250);
        let id = reply.text.strip_prefix("Ok: queued as ").expect("Postfix tells its id");
        let fate = Fate::Queued(id.to_owned());
        submission.quit();
        sent.push(Sent { mark, recipients, fate });
        // Sometimes many at once.
        if draw.random_range(0..8) > 0 {
            pause(Duration::from_millis(draw.random_range(100..1_000)));
        }
    }
    sent
}

/// Some of the recipients there are, none twice.
fn recipients(draw: &mut TestRng, count: usize) -> Vec<String> {
    let first = draw.random_range(0..200);
    (first..first + count).map(|number| address(&format!("user{}", number % 200))).collect()
}

/// Visits the receiving Postfix itself, as clients without a queue, until it is over.
pub fn visits(seed: u64, number: u8, mx: SocketAddr, over: &AtomicBool) -> Vec<Sent> {
    let mut draw = generator(seed, 200 + u64::from(number));
    let mut sent = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let source = Ipv4Addr::new(127, 30 + number, draw.random_range(0..20), 1);
        let visit = match draw.random_range(0..6) {
            0 => silent(&mut draw, mx, source),
            1 => broken_off(&mut draw, mx, source),
            2 => nonsense(mx, source),
            _ => {
                let mark = format!("visitor-{number}-{}", sent.len());
                let count = draw.random_range(1..=8);
                let mut message =
                    Sent { mark, recipients: recipients(&mut draw, count), fate: Fate::Refused };
                let outcome = whole(mx, source, &mut message);
                sent.push(message);
                outcome
            }
        };
        // Whatever the server does to such a client, the ledger has it.
        let _ = visit;
        pause(Duration::from_millis(draw.random_range(50..800)));
    }
    sent
}

/// Connects and says nothing.
fn silent(draw: &mut TestRng, mx: SocketAddr, source: Ipv4Addr) -> io::Result<()> {
    let _line = Line::dial(mx, source)?;
    pause(Duration::from_millis(draw.random_range(0..3_000)));
    Ok(())
}

/// Goes without a word in the middle of a message.
fn broken_off(draw: &mut TestRng, mx: SocketAddr, source: Ipv4Addr) -> io::Result<()> {
    let mut line = Line::dial(mx, source)?;
    line.say("EHLO visitor.example.net")?;
    line.say("MAIL FROM:<broken@example.net>")?;
    for to in recipients(draw, 3) {
        line.say(&format!("RCPT TO:<{to}>"))?;
    }
    if draw.random_range(0..2) == 0 && line.say("DATA")? == 354 {
        line.stream.get_mut().write_all(b"Subject: half of it\r\n\r\nOnce")?;
    }
    Ok(())
}

fn nonsense(mx: SocketAddr, source: Ipv4Addr) -> io::Result<()> {
    let mut line = Line::dial(mx, source)?;
    for said in ["\u{7f}\u{1}", "RCPT TO:<a@b>", "HELO x", "MAIL FROM:<>", "HELO y", "DATA", "QUIT"]
    {
        line.say(said)?;
    }
    Ok(())
}

/// Delivers a message as far as the server lets it, and never comes back with it. If it came to the
/// dot, its recipients are those that were accepted.
fn whole(mx: SocketAddr, source: Ipv4Addr, message: &mut Sent) -> io::Result<()> {
    let mut line = Line::dial(mx, source)?;
    line.say("EHLO visitor.example.net")?;
    if !accepted(line.say("MAIL FROM:<visitor@example.net>")?) {
        return Ok(());
    }
    let mut taken = Vec::new();
    for to in &message.recipients {
        if accepted(line.say(&format!("RCPT TO:<{to}>"))?) {
            taken.push(to.clone());
        }
    }
    if taken.is_empty() || !accepted(line.say("DATA")?) {
        return Ok(());
    }
    (message.recipients, message.fate) = (taken, Fate::Unknown);
    let text = format!("{MARK}{}\r\n\r\nOnce upon a time.\r\n.", message.mark);
    let accepted = accepted(line.say(&text)?);
    message.fate = if accepted { Fate::Accepted } else { Fate::Refused };
    line.say("QUIT").map(drop)
}

/// Nothing that a client without fault says is refused for good.
fn accepted(code: u16) -> bool {
    assert!((200..500).contains(&code), "a permanent refusal: {code}");
    code < 400
}

/// A client that bears whatever the server does to it.
struct Line {
    stream: BufReader<TcpStream>,
}

impl Line {
    /// Connects, and is greeted.
    fn dial(server: SocketAddr, source: Ipv4Addr) -> io::Result<Self> {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        bind(&socket, &SocketAddrV4::new(source, 0))?;
        connect(&socket, &server)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(REPLY))?;
        stream.set_write_timeout(Some(REPLY))?;
        let mut line = Line { stream: BufReader::new(stream) };
        line.reply()?;
        Ok(line)
    }

    fn say(&mut self, text: &str) -> io::Result<u16> {
        self.stream.get_mut().write_all(format!("{text}\r\n").as_bytes())?;
        self.reply()
    }

    /// The reply's code.
    fn reply(&mut self) -> io::Result<u16> {
        loop {
            let mut text = String::new();
            self.stream.read_line(&mut text)?;
            let (Some(code), true) = (text.get(..3), text.ends_with("\r\n")) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            if text.as_bytes()[3] != b'-' {
                return code.parse().map_err(|_| io::ErrorKind::InvalidData.into());
            }
        }
    }
}
