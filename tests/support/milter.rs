//! An MTA as a milter sees it: frames the way Postfix and Sendmail write them, over a real socket.
//! A frame is a length of four bytes, a letter, and its payload.

use super::PATIENCE;
use indymilter::message::Message;
use indymilter::message::reply::Reply;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

/// What today's MTAs offer: version 6, every action, every option.
pub const VERSION: u32 = 6;
pub const ALL_ACTIONS: u32 = 0x1ff;
pub const ALL_OPTIONS: u32 = 0x1f_ffff;

pub struct Mta(Box<dyn Socket>);

trait Socket: Read + Write + Send {}
impl<S: Read + Write + Send> Socket for S {}

impl Mta {
    /// Connects to a milter, named in Postfix's words.
    pub fn dial(endpoint: &str) -> Self {
        match endpoint.split_once(':').expect("inet:ADDRESS or unix:PATH") {
            ("unix", path) => {
                let stream = UnixStream::connect(path).expect("the milter's socket");
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Self(Box::new(stream))
            }
            (_, address) => {
                let stream = TcpStream::connect(address).expect("the milter's port");
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                Self(Box::new(stream))
            }
        }
    }

    /// Dials, negotiates, and reports this client.
    pub fn with_client(endpoint: &str, address: &str) -> Self {
        let mut mta = Self::dial(endpoint);
        mta.ask(&negotiate());
        assert_eq!(mta.ask(&connect(address)), "continue");
        mta
    }

    /// Writes bytes as they are. A milter that has hung up does not read them.
    pub fn write(&mut self, bytes: &[u8]) {
        match self.0.write_all(bytes) {
            Err(error)
                if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            written => written.unwrap(),
        }
    }

    /// Writes a frame and reads the one that answers it.
    #[track_caller]
    pub fn ask(&mut self, frame: &[u8]) -> String {
        self.write(frame);
        said(&self.reply().expect("an answer, not the end of the connection"))
    }

    /// Writes a frame that has no answer: macros, ABORT, QUIT.
    pub fn tell(&mut self, frame: &[u8]) {
        self.write(frame);
    }

    /// The next frame; nothing when the milter has hung up.
    pub fn reply(&mut self) -> Option<Reply> {
        let mut header = [0; 5];
        if let Err(error) = self.0.read_exact(&mut header) {
            let hung_up = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
            assert!(hung_up.contains(&error.kind()), "no answer: {error}");
            return None;
        }
        let [a, b, c, d, letter] = header;
        let mut payload = vec![0; u32::from_be_bytes([a, b, c, d]) as usize - 1];
        self.0.read_exact(&mut payload).unwrap();
        Some(Reply::parse_reply(Message::new(letter, payload)).expect("a frame of a milter"))
    }

    /// Every answer until the milter hangs up.
    pub fn replies(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.reply()).map(|reply| said(&reply)).collect()
    }

    /// Waits until the milter hangs up, without another word.
    #[track_caller]
    pub fn closed(&mut self) {
        assert_eq!(self.replies(), [""; 0]);
    }
}

/// An answer in words: `continue`, or the reply that the client is to see.
pub fn said(reply: &Reply) -> String {
    match reply {
        Reply::Continue => "continue".into(),
        Reply::ReplyCode { reply } => reply.to_str().unwrap().into(),
        other => format!("{other:?}"),
    }
}

pub fn frame(letter: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32 + 1).to_be_bytes();
    [&length, &[letter][..], payload].concat()
}

pub fn negotiate() -> Vec<u8> {
    offer(VERSION, ALL_ACTIONS, ALL_OPTIONS)
}

pub fn offer(version: u32, actions: u32, options: u32) -> Vec<u8> {
    frame(b'O', &[version, actions, options].map(u32::to_be_bytes).concat())
}

/// A client by its address, as Postfix reports it.
pub fn connect(address: &str) -> Vec<u8> {
    let family = if address.contains(':') { b'6' } else { b'4' };
    connect_as("unknown", family, address)
}

pub fn connect_as(name: &str, family: u8, address: &str) -> Vec<u8> {
    let port = 40_000_u16.to_be_bytes();
    frame(b'C', &[name.as_bytes(), &[0, family], &port, address.as_bytes(), &[0]].concat())
}

pub fn helo(name: &str) -> Vec<u8> {
    frame(b'H', &words(&[name]))
}

pub fn mail(sender: &str) -> Vec<u8> {
    mail_with(sender, &[])
}

pub fn mail_with(sender: &str, parameters: &[&str]) -> Vec<u8> {
    let path = format!("<{sender}>");
    frame(b'M', &words(&[&[path.as_str()], parameters].concat()))
}

pub fn rcpt(recipient: &str) -> Vec<u8> {
    frame(b'R', &words(&[&format!("<{recipient}>")]))
}

pub fn data() -> Vec<u8> {
    frame(b'T', b"")
}

pub fn end_of_message() -> Vec<u8> {
    frame(b'E', b"")
}

pub fn abort() -> Vec<u8> {
    frame(b'A', b"")
}

pub fn quit() -> Vec<u8> {
    frame(b'Q', b"")
}

/// Macros for the command that follows, by its letter: name, value, name, value.
pub fn macros(command: u8, names_and_values: &[&str]) -> Vec<u8> {
    frame(b'D', &[&[command], words(names_and_values).as_slice()].concat())
}

fn words(words: &[&str]) -> Vec<u8> {
    words.iter().flat_map(|word| word.bytes().chain([0])).collect()
}
