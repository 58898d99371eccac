//! The frames of the milter protocol, watched as they pass by.
//!
//! A frame is a length of four bytes, a letter, and its payload. Two things are done here because
//! indymilter 0.3 does not do them: Sendmail writes an IPv6 client into the connect frame as
//! `IPv6:2001:db8:...`, at which indymilter gives up, so that one frame is rewritten; and a frame
//! that makes no sense is told apart from a connection that merely ends.

use std::fmt::{self, Display, Formatter};
use std::net::Ipv6Addr;

/// Watches the bytes of one connection, however they are torn.
#[derive(Debug, Default)]
pub struct Frames {
    state: State,
    quit: bool,
}

#[derive(Debug)]
enum State {
    /// In the five bytes before a payload, of which so many are here.
    Header { bytes: [u8; HEADER], have: usize },
    /// In a payload that is passed on as it comes; so much is missing.
    Passing { missing: usize },
    /// In the payload of a connect frame, which is kept until it is whole.
    Connect { payload: Vec<u8>, missing: usize },
}

const HEADER: usize = 5;

/// The longest frame taken, as indymilter has it. Sixteen times what an MTA sends at once.
const LONGEST: usize = 1 << 20;

/// The longest payload of a connect frame: a host name and an address.
const LONGEST_CONNECT: usize = 4096;

/// The commands of the protocol, those that indymilter knows.
const COMMANDS: &[u8] = b"ABCDEHKLMNOQRTU";

/// A frame that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonsense {
    /// Its length is zero, or more than any MTA sends.
    Length(usize),
    /// Its command does not exist.
    Command(u8),
}

impl Display for Nonsense {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "a milter frame of {length} bytes"),
            Self::Command(letter) => write!(f, "a milter frame with command 0x{letter:02x}"),
        }
    }
}

impl std::error::Error for Nonsense {}

impl Default for State {
    fn default() -> Self {
        Self::Header { bytes: [0; HEADER], have: 0 }
    }
}

impl Frames {
    /// Takes what came if it may go on as it is: whole frames that make sense, and no connect
    /// frame that must be rewritten. Otherwise nothing has happened, and [`Frames::pass`] is to take it.
    pub fn pass_whole(&mut self, mut came: &[u8]) -> bool {
        if !matches!(self.state, State::Header { have: 0, .. }) {
            return false;
        }
        let mut quit = self.quit;
        while let Some((header, rest)) = came.split_first_chunk::<HEADER>() {
            let whole =
                payload_length(*header).ok().and_then(|length| rest.split_at_checked(length));
            let Some((payload, next)) = whole else { return false };
            if header[4] == b'C' && !is_readable(payload) {
                return false;
            }
            quit |= header[4] == b'Q';
            came = next;
        }
        if came.is_empty() {
            self.quit = quit;
        }
        came.is_empty()
    }

    /// Takes what came, appends what goes on to `out`. A header goes on once it is whole.
    pub fn pass(&mut self, mut came: &[u8], out: &mut Vec<u8>) -> Result<(), Nonsense> {
        while !came.is_empty() {
            match &mut self.state {
                State::Header { bytes, have } => {
                    let part = came.split_off(..came.len().min(HEADER - *have));
                    let part = part.unwrap_or_default();
                    bytes[*have..*have + part.len()].copy_from_slice(part);
                    *have += part.len();
                    if *have == HEADER {
                        let header = *bytes;
                        self.quit |= header[4] == b'Q';
                        self.state = State::after(header)?;
                        if !matches!(self.state, State::Connect { .. }) {
                            out.extend_from_slice(&header);
                        }
                    }
                }
                State::Passing { missing } => {
                    let part = came.split_off(..came.len().min(*missing)).unwrap_or_default();
                    out.extend_from_slice(part);
                    *missing -= part.len();
                    if *missing == 0 {
                        self.state = State::default();
                    }
                }
                State::Connect { payload, missing } => {
                    let part = came.split_off(..came.len().min(*missing)).unwrap_or_default();
                    payload.extend_from_slice(part);
                    *missing -= part.len();
                    if *missing == 0 {
                        let payload = readable(std::mem::take(payload));
                        let length = payload.len() as u32 + 1;
                        out.extend_from_slice(&length.to_be_bytes());
                        out.push(b'C');
                        out.extend_from_slice(&payload);
                        self.state = State::default();
                    }
                }
            }
        }
        Ok(())
    }
}

impl Frames {
    /// Whether the MTA has said that the session is over.
    pub fn quit(&self) -> bool {
        self.quit
    }
}

/// The bytes behind a header, if it makes sense.
fn payload_length([a, b, c, d, command]: [u8; HEADER]) -> Result<usize, Nonsense> {
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let longest = if command == b'C' { LONGEST_CONNECT + 1 } else { LONGEST };
    match (1..=longest).contains(&length) {
        false => Err(Nonsense::Length(length)),
        true if !COMMANDS.contains(&command) => Err(Nonsense::Command(command)),
        true => Ok(length - 1),
    }
}

impl State {
    fn after(header: [u8; HEADER]) -> Result<Self, Nonsense> {
        Ok(match (header[4], payload_length(header)?) {
            (_, 0) => Self::default(),
            (b'C', missing) => Self::Connect { payload: Vec::with_capacity(missing), missing },
            (_, missing) => Self::Passing { missing },
        })
    }
}

/// Whether indymilter can read a connect payload as it is.
fn is_readable(payload: &[u8]) -> bool {
    let rest = payload.iter().position(|byte| *byte == 0).map(|end| &payload[end + 1..]);
    match rest {
        Some([b'4', _, _, address @ .., 0]) => is::<std::net::Ipv4Addr>(address),
        Some([b'6', _, _, address @ .., 0]) => is::<Ipv6Addr>(address),
        _ => false,
    }
}

fn is<A: std::str::FromStr>(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<A>().is_ok())
}

/// The same connect payload with an address that indymilter can read: host name, NUL, family,
/// port, address, NUL. Where there is none, the family becomes `U`, unknown, and the client passes.
fn readable(payload: Vec<u8>) -> Vec<u8> {
    let Some(end_of_name) = payload.iter().position(|byte| *byte == 0) else {
        return payload;
    };
    let (name, rest) = payload.split_at(end_of_name + 1);
    let unknown = || [name, b"U"].concat();
    let Some((family, rest)) = rest.split_first() else {
        return unknown();
    };
    match (family, rest.split_at_checked(2)) {
        (b'4', Some((port, address))) => {
            match text(address).map(str::parse::<std::net::Ipv4Addr>) {
                Some(Ok(address)) => inet(name, b'4', port, &address.to_string()),
                _ => unknown(),
            }
        }
        (b'6', Some((port, address))) => {
            let address = text(address).map(|address| {
                let prefix = address.get(..5).filter(|p| p.eq_ignore_ascii_case("IPv6:"));
                address[prefix.map_or(0, str::len)..].parse::<Ipv6Addr>()
            });
            match address {
                Some(Ok(address)) => inet(name, b'6', port, &address.to_string()),
                _ => unknown(),
            }
        }
        _ => unknown(),
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()
}

fn inet(name: &[u8], family: u8, port: &[u8], address: &str) -> Vec<u8> {
    [name, &[family], port, address.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use indymilter::message::Message;
    use indymilter::message::command::Command;
    use proptest::prelude::*;

    fn frame(command: u8, payload: &[u8]) -> Vec<u8> {
        [&(payload.len() as u32 + 1).to_be_bytes(), &[command][..], payload].concat()
    }

    fn passed(pieces: &[&[u8]]) -> Result<Vec<u8>, Nonsense> {
        let (mut frames, mut out) = (Frames::default(), Vec::new());
        pieces.iter().try_for_each(|piece| frames.pass(piece, &mut out)).map(|()| out)
    }

    fn connect(family_and_rest: &[u8]) -> Vec<u8> {
        frame(b'C', &[b"mx.example.org\0", family_and_rest].concat())
    }

    #[test]
    fn an_ipv6_client_of_sendmail_is_rewritten_however_the_frame_is_torn() {
        let came = connect(b"6\0\x19IPv6:2001:DB8:0:0:0:0:0:7\0");
        let expected = connect(b"6\0\x192001:db8::7\0");
        for at in 0..came.len() {
            let (a, b) = came.split_at(at);
            assert_eq!(passed(&[a, b]).unwrap(), expected);
        }
    }

    #[test]
    fn other_frames_pass_as_they_are() {
        let session = [
            frame(b'O', &[0, 0, 0, 6, 0, 0, 1, 0xff, 0, 0x1f, 0xff, 0xff]),
            connect(b"4\0\x19192.0.2.7\0"),
            frame(b'H', b"mx.example.org\0"),
            frame(b'A', b""),
            frame(b'Q', b""),
        ]
        .concat();
        assert_eq!(passed(&[&session]).unwrap(), session);
    }

    #[test]
    fn a_client_without_a_readable_address_is_unknown_and_no_error() {
        for rest in
            [&b"6\0\x19nonsense\0"[..], b"4\0\x19192.0.2.300\0", b"L\0\0/tmp/x\0", b"U", b"4"]
        {
            assert_eq!(passed(&[&connect(rest)]).unwrap(), connect(b"U"));
        }
    }

    #[test]
    fn a_frame_that_makes_no_sense_is_named() {
        assert_eq!(passed(&[&[0, 0, 0, 0, b'H']]), Err(Nonsense::Length(0)));
        assert_eq!(passed(&[b"GET / HTTP/1.1"]), Err(Nonsense::Length(0x4745_5420)));
        assert_eq!(passed(&[&frame(b'z', b"")]), Err(Nonsense::Command(b'z')));
        assert_eq!(passed(&[&frame(b'C', &[1; 5000])]), Err(Nonsense::Length(5001)));
    }

    #[test]
    fn a_connect_frame_goes_on_as_it_is_only_where_indymilter_can_read_it() {
        let whole = |rest: &[u8]| Frames::default().pass_whole(&connect(rest));
        assert!(whole(b"4\0\x19192.0.2.7\0"));
        assert!(whole(b"6\0\x192001:db8::7\0"));
        assert!(!whole(b"6\0\x19IPv6:2001:db8::7\0"));
        assert!(!whole(b"4\0\x19192.0.2.7"));
        assert!(!whole(b"4\0\x19192.0.2.7\0\0"));
        assert!(!whole(b"L\0\0/tmp/x\0"));
    }

    proptest! {
        /// The short way and the long one agree, and the short one changes nothing.
        #[test]
        fn what_may_go_on_as_it_is_is_what_would_not_be_changed(
            commands in prop::collection::vec((any::<u8>(), 0..9_usize), 0..6), cut in 0..9_usize
        ) {
            let frames = commands.iter().map(|(c, len)| frame(COMMANDS[*c as usize % 15], &vec![0; *len]));
            let mut whole: Vec<u8> = frames.flatten().collect();
            whole.truncate(whole.len().saturating_sub(cut));
            let mut short = Frames::default();
            if short.pass_whole(&whole) {
                let mut long = Frames::default();
                let mut out = Vec::new();
                prop_assert_eq!(long.pass(&whole, &mut out), Ok(()));
                prop_assert_eq!((out, long.quit()), (whole, short.quit()));
            } else {
                prop_assert!(!short.quit());
            }
        }

        #[test]
        fn no_bytes_make_it_panic_and_none_are_lost(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)
        ) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let whole = pieces.concat();
            prop_assert_eq!(passed(&pieces), passed(&[&whole]));
        }

        /// Whatever the connect frame says, indymilter can read what we make of it.
        #[test]
        fn every_connect_frame_becomes_readable(rest in prop::collection::vec(any::<u8>(), 0..60)) {
            let out = passed(&[&connect(&rest)]).unwrap();
            let message = Message::new(b'C', out[HEADER..].to_vec());
            prop_assert!(Command::parse_command(message).is_ok());
        }
    }
}
