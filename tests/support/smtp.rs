//! A plain SMTP client that does what it is told, line by line, from any loopback address or, over
//! the PROXY protocol, as any client at all. A reply is a value; what a story needs of it, it asks.

use super::PATIENCE;
use super::postfix::address;
use rustix::net::{AddressFamily, SocketType};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;

pub struct Client {
    stream: BufReader<TcpStream>,
    /// The reply to the connection itself.
    pub greeting: Reply,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    /// `4.7.0`, or empty where the reply has none.
    pub enhanced: String,
    /// The last line's text, after both codes.
    pub text: String,
    pub lines: Vec<String>,
}

impl Client {
    /// Connects from `source`, which is any address in 127.0.0.0/8.
    pub fn connect(server: SocketAddr, source: &str) -> Self {
        Self::greeted(dial(server, source.parse().expect("an IPv4 loopback address")))
    }

    /// Connects as `client`, IPv4 or IPv6, through the PROXY protocol.
    pub fn proxied(server: SocketAddr, client: &str) -> Self {
        let mut stream = dial(server, Ipv4Addr::LOCALHOST);
        let (family, own) = match client.parse().expect("an address") {
            IpAddr::V4(_) => ("TCP4", "192.0.2.1"),
            IpAddr::V6(_) => ("TCP6", "2001:db8::1"),
        };
        // In one piece: Postfix reads this line but once.
        let line = format!("PROXY {family} {client} {own} 40000 25\r\n");
        stream.write_all(line.as_bytes()).unwrap();
        Self::greeted(stream)
    }

    fn greeted(stream: TcpStream) -> Self {
        let greeting =
            Reply { code: 0, enhanced: String::new(), text: String::new(), lines: vec![] };
        let mut client = Client { stream: BufReader::new(stream), greeting };
        client.greeting = client.reply();
        client
    }

    pub fn say(&mut self, line: &str) -> Reply {
        self.say_bytes(line.as_bytes())
    }

    /// For a line that is no text.
    pub fn say_bytes(&mut self, line: &[u8]) -> Reply {
        // Whether the server still reads is for the reply to tell.
        let _ = self.stream.get_mut().write_all(&[line, b"\r\n"].concat());
        self.reply()
    }

    pub fn helo(&mut self) -> Reply {
        self.say("HELO client.example.net")
    }

    pub fn ehlo(&mut self) -> Reply {
        self.say("EHLO client.example.net")
    }

    /// `sender` is a whole address, or empty for the null sender.
    pub fn mail(&mut self, sender: &str) -> Reply {
        self.say(&format!("MAIL FROM:<{sender}>"))
    }

    /// `to` is a whole address, or a local part in the domain our MTA serves.
    pub fn rcpt(&mut self, to: &str) -> Reply {
        self.say(&format!("RCPT TO:<{}>", address(to)))
    }

    pub fn data(&mut self) -> Reply {
        self.say("DATA")
    }

    /// The message and the dot, after DATA was answered 354.
    pub fn message(&mut self) -> Reply {
        self.say("Subject: a story\r\n\r\nOnce upon a time.\r\n.")
    }

    /// One whole message, each step of which must be accepted.
    pub fn deliver(&mut self, sender: &str, recipients: &[&str]) {
        self.mail(sender).expect(250);
        for to in recipients {
            self.rcpt(to).expect(250);
        }
        self.data().expect(354);
        self.message().expect(250);
    }

    pub fn quit(mut self) {
        self.say("QUIT").expect(221);
        self.closed();
    }

    pub fn auth_plain(&mut self, user: &str, password: &str) -> Reply {
        self.say(&format!("AUTH PLAIN {}", base64(format!("\0{user}\0{password}").as_bytes())))
    }

    /// The server has closed the connection and said nothing more.
    pub fn closed(mut self) {
        let mut rest = String::new();
        // A reset is a closing too: what we sent may have been unread.
        let read = self.stream.read_line(&mut rest);
        let reset = |e: &std::io::Error| e.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(
            matches!(&read, Ok(0)) || read.as_ref().is_err_and(reset),
            "the server should have closed, but: {read:?} {rest:?}"
        );
    }

    fn reply(&mut self) -> Reply {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("a reply in time");
            assert!(line.ends_with("\r\n"), "closed within a reply: {lines:?} {line:?}");
            line.truncate(line.len() - 2);
            let more = line.as_bytes().get(3) == Some(&b'-');
            lines.push(line);
            if !more {
                return Reply::parsed(lines);
            }
        }
    }
}

impl Reply {
    fn parsed(lines: Vec<String>) -> Self {
        let last = lines.last().unwrap();
        let code = last.get(..3).and_then(|code| code.parse().ok()).expect("a reply code");
        let rest = last.get(4..).unwrap_or_default();
        let first = rest.split(' ').next().unwrap();
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let enhanced = first.split('.').count() == 3 && first.split('.').all(digits);
        let (enhanced, text) = match (enhanced, rest.split_once(' ')) {
            (true, Some((enhanced, text))) => (enhanced, text),
            _ => ("", rest),
        };
        Reply { code, enhanced: enhanced.to_owned(), text: text.to_owned(), lines }
    }

    #[track_caller]
    pub fn expect(self, code: u16) -> Self {
        assert_eq!(self.code, code, "{:?}", self.lines);
        self
    }

    /// The wait the text tells: the number before `seconds`.
    #[track_caller]
    pub fn wait_secs(&self) -> u64 {
        let words: Vec<&str> = self.text.split(' ').collect();
        let at = words.iter().position(|word| word.starts_with("second"));
        at.and_then(|at| words[at - 1].parse().ok()).unwrap_or_else(|| panic!("{self:?}"))
    }
}

/// Runs the real client swaks, a message from `source`, and gives its transcript. That it was
/// refused is no failure: the transcript says so.
pub fn swaks(server: SocketAddr, source: &str, sender: &str, to: &str) -> String {
    swaks_with(&[], server, source, sender, to)
}

/// The same with more of its options, such as `-tls`.
pub fn swaks_with(
    options: &[&str],
    server: SocketAddr,
    source: &str,
    sender: &str,
    to: &str,
) -> String {
    let output = Command::new("swaks")
        .args(["--server", &server.ip().to_string(), "--port", &server.port().to_string()])
        .args(["--local-interface", source, "--helo", "client.example.net"])
        .args(["--from", sender, "--to", &address(to), "--timeout", "30"])
        .args(options)
        .output()
        .unwrap_or_else(|e| panic!("apt-get install swaks ({e})"));
    let transcript = String::from_utf8_lossy(&output.stdout).into_owned();
    // For TLS and for IPv6 it needs more packages, and where one is missing it says so there only.
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        transcript.contains("=== Connected"),
        "{transcript}{complaint}
(apt-get install libnet-ssleay-perl libio-socket-inet6-perl)"
    );
    transcript
}

/// Whether something listens there.
pub fn is_open(server: SocketAddr) -> bool {
    TcpStream::connect(server).is_ok()
}

/// `std` connects only from the address the kernel picks.
fn dial(server: SocketAddr, source: Ipv4Addr) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new(source, 0)).expect("an address of ours");
    rustix::net::connect(&socket, &server).expect("a connection");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte));
        let bits = bits << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= three.len() { letter as char } else { '=' });
        }
    }
    text
}
