//! The frames of the milter protocol: a length of four bytes, a letter, and a payload, which for
//! most commands is a row of C strings (Sendmail's libmilter, mfdef.h).

use std::ffi::CStr;
use std::fmt::{self, Display, Formatter};

use indymilter::message::command::CommandKind;
use indymilter::message::reply::ReplyKind;

use crate::smtp::reply::Reply;

/// The longest frame taken, as its length says it: letter and payload. What libmilter sends at
/// once of a body just fits; of all that we ask for nothing is a tenth as long.
pub(super) const LONGEST: usize = 64 << 10;

/// What stands before the letter.
const LENGTH: usize = 4;

/// A whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// Its command.
    pub(super) command: CommandKind,
    /// What comes with it.
    pub(super) payload: &'a [u8],
}

/// What no MTA sends. The connection it came on is closed, since nobody knows where the next frame
/// begins, or what the MTA waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nonsense {
    /// A length of zero, or of more than [`LONGEST`].
    Length(usize),
    /// A command that does not exist.
    Letter(u8),
    /// A payload that lacks what its command needs.
    Payload(CommandKind),
    /// A version of the protocol that is too old.
    Version(u32),
}

impl Display for Nonsense {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "a milter frame of {length} bytes"),
            Self::Letter(letter) => write!(f, "a milter frame with command 0x{letter:02x}"),
            Self::Payload(command) => write!(f, "a milter frame that cannot be read: {command:?}"),
            Self::Version(version) => write!(f, "an MTA that speaks milter protocol {version}"),
        }
    }
}

/// The first frame and what follows it; nothing if it is not whole yet. Of one that makes no sense
/// the first five bytes are enough to say so.
pub(super) fn first(bytes: &[u8]) -> Result<Option<(Frame<'_>, &[u8])>, Nonsense> {
    let Some(([a, b, c, d, letter], _)) = bytes.split_first_chunk() else { return Ok(None) };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    if !(1..=LONGEST).contains(&length) {
        return Err(Nonsense::Length(length));
    }
    let command = CommandKind::try_from(*letter).map_err(|_| Nonsense::Letter(*letter))?;
    Ok(bytes.split_at_checked(LENGTH + length).map(|(frame, rest)| {
        let payload = &frame[LENGTH + 1..];
        (Frame { command, payload }, rest)
    }))
}

/// The C strings of a payload; what follows the last NUL is none.
pub(super) fn strings(mut payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let string = CStr::from_bytes_until_nul(payload).ok()?.to_bytes();
        payload = &payload[string.len() + 1..];
        Some(string)
    })
}

/// Adds a frame: what `payload` appends stands behind this letter.
pub(super) fn put(out: &mut Vec<u8>, letter: ReplyKind, payload: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, letter.into()]);
    payload(out);
    let length = (out.len() - begin - LENGTH) as u32;
    out[begin..begin + LENGTH].copy_from_slice(&length.to_be_bytes());
}

/// Adds what the client is to hear.
pub(super) fn put_reply(out: &mut Vec<u8>, reply: &Reply) {
    put(out, ReplyKind::ReplyCode, |out| {
        let (code, enhanced) = (reply.code().digits(), reply.enhanced());
        // A vector takes everything.
        let _ = std::io::Write::write_fmt(
            out,
            format_args!("{code} {enhanced} {}\0", escaped(reply.text())),
        );
    });
}

/// libmilter's bound on a line, after escaping.
const LONGEST_ESCAPED: usize = 980;

/// A single `%` is an escape to both MTAs: Sendmail answers with a permanent 550, Postfix drops
/// it. This is the one place where it is doubled.
fn escaped(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let escaped = text.replace('%', "%%");
    if escaped.len() <= LONGEST_ESCAPED { escaped } else { text.replace('%', "?") }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_percent_sign_is_doubled_and_never_left_single() {
        assert_eq!(escaped("50% off"), "50%% off");
        assert_eq!(escaped(&"%".repeat(496)), "?".repeat(496));
    }

    #[test]
    fn a_frame_that_makes_no_sense_is_named_by_its_first_five_bytes() {
        assert_eq!(first(&[0, 0, 0, 0, b'H']), Err(Nonsense::Length(0)));
        assert_eq!(first(b"GET / HTTP/1.1"), Err(Nonsense::Length(0x4745_5420)));
        assert_eq!(first(&[0, 0, 0, 9, b'z']), Err(Nonsense::Letter(b'z')));
        assert_eq!(first(&[0, 1, 0, 0, b'B']), Ok(None));
        assert_eq!(first(&[0, 1, 0, 1, b'B']), Err(Nonsense::Length(65_537)));
        assert_eq!(first(&[0, 1, 0, 1]), Ok(None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_none_are_lost(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(Some((frame, rest))) = first(&bytes) {
                prop_assert_eq!(LENGTH + 1 + frame.payload.len() + rest.len(), bytes.len());
                let strings: usize = strings(frame.payload).map(|string| string.len() + 1).sum();
                prop_assert!(strings <= frame.payload.len());
            }
        }
    }
}
