//! What a refusal says: a reply with places for the facts, checked when it is read.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use super::reply::{Code, Enhanced, Reply, printable};
use crate::setting::{Expected, as_text};

/// A reply text with placeholders: `"421 4.7.0 {hostname} Too many messages; retry in {wait}
/// seconds"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    code: Code,
    enhanced: Enhanced,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Place(Placeholder),
}

/// What a template may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// `{hostname}`: the host's name, as set in `[server]`.
    Hostname,
    /// `{client}`: the client's address.
    Client,
    /// `{network}`: the network the client counts under.
    Network,
    /// `{reason}`: the stable one-word name of the reason.
    Reason,
    /// `{wait}`: whole seconds after which to come back.
    Wait,
    /// `{id}`: the decision's id, the same as in the log.
    Id,
    /// `{sender}`: the envelope sender.
    Sender,
    /// `{sender_domain}`: its domain.
    SenderDomain,
    /// `{recipient}`: the envelope recipient.
    Recipient,
    /// `{recipient_domain}`: its domain.
    RecipientDomain,
    /// `{url}`: `help_url` of `[server]`.
    Url,
    /// `{evidence}`: what is unusual about the client's sending, in words.
    Evidence,
}

impl Placeholder {
    /// All of them, by name.
    pub const ALL: [(&'static str, Self); 12] = [
        ("hostname", Self::Hostname),
        ("client", Self::Client),
        ("network", Self::Network),
        ("reason", Self::Reason),
        ("wait", Self::Wait),
        ("id", Self::Id),
        ("sender", Self::Sender),
        ("sender_domain", Self::SenderDomain),
        ("recipient", Self::Recipient),
        ("recipient_domain", Self::RecipientDomain),
        ("url", Self::Url),
        ("evidence", Self::Evidence),
    ];

    /// The room it is sure of, in bytes. What we make is never longer; what a client chose is cut
    /// to this, or to its share of what the line has left.
    const fn room(self) -> usize {
        match self {
            Self::Hostname => LONGEST_HOSTNAME,
            Self::Client => 39,
            Self::Network => 43,
            Self::Reason | Self::Id => 16,
            Self::Wait => 10,
            Self::Url => LONGEST_URL,
            Self::Evidence => 80,
            Self::Sender | Self::SenderDomain | Self::Recipient | Self::RecipientDomain => 32,
        }
    }

    const fn cuttable(self) -> bool {
        matches!(self, Self::Sender | Self::SenderDomain | Self::Recipient | Self::RecipientDomain)
    }
}

/// Whether this can stand for the host in a reply.
pub fn is_host_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| !label.is_empty() && label.bytes().all(letter);
    name.len() <= LONGEST_HOSTNAME && name.split('.').all(label)
}

/// The longest `hostname` that may be set, in bytes.
pub const LONGEST_HOSTNAME: usize = 80;
/// The longest `help_url` that may be set, in bytes.
pub const LONGEST_URL: usize = 120;

impl Template {
    /// The code it replies with.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Its enhanced code.
    pub fn enhanced(&self) -> Enhanced {
        self.enhanced
    }

    /// The text with every placeholder filled by `fact`. Never longer than a reply's text may be:
    /// values that a client chose are cut, evenly.
    pub fn text<'a>(&self, fact: impl Fn(Placeholder) -> Cow<'a, str>) -> String {
        let room = self.room_for_cuttable();
        let mut text = String::with_capacity(Reply::LONGEST_TEXT);
        for piece in &self.pieces {
            match piece {
                Piece::Text(literal) => text.push_str(literal),
                Piece::Place(place) => {
                    let room = if place.cuttable() { room } else { place.room() };
                    text.extend(fact(*place).chars().map(printable).take(room));
                }
            }
        }
        text
    }

    /// A phrase in it that makes well-known senders slow down far beyond what was asked, or a
    /// number with a unit that is not the wait; in words, for a warning.
    pub fn misgiving(&self) -> Option<String> {
        let literals: String = self.pieces.iter().map(Piece::literal).collect();
        let lower = literals.to_lowercase();
        let phrase = SLOWING_PHRASES.iter().find(|phrase| lower.contains(&phrase.to_lowercase()));
        if let Some(phrase) = phrase {
            return Some(format!(
                "some senders slow down to one message a minute for 90 minutes on `{phrase}`"
            ));
        }
        let words: Vec<_> = lower.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let number_with_unit = words.windows(2).any(|pair| {
            !pair[0].is_empty()
                && pair[0].bytes().all(|b| b.is_ascii_digit())
                && ["second", "minute", "hour", "day"].iter().any(|unit| pair[1].starts_with(unit))
        });
        number_with_unit.then(|| {
            "senders read the first number with a unit as the wait: {wait} must be the only one"
                .into()
        })
    }

    /// The share of one value that may be cut, when all others are as long as they can be.
    fn room_for_cuttable(&self) -> usize {
        let cuttable = self.places().filter(|place| place.cuttable()).count();
        let spare = Reply::LONGEST_TEXT.saturating_sub(self.surest_length());
        Placeholder::Sender.room() + spare.checked_div(cuttable).unwrap_or(0)
    }

    /// The length with every placeholder at the room it is sure of.
    fn surest_length(&self) -> usize {
        let literals: usize = self.pieces.iter().map(|piece| piece.literal().len()).sum();
        literals + self.places().map(Placeholder::room).sum::<usize>()
    }

    /// Whether it asks for this.
    pub fn asks_for(&self, wanted: Placeholder) -> bool {
        self.places().any(|place| place == wanted)
    }

    fn places(&self) -> impl Iterator<Item = Placeholder> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Place(place) => Some(*place),
            Piece::Text(_) => None,
        })
    }
}

/// What large senders' software is known to react to; see the conditions that KumoMTA and others
/// publish for their outbound shaping.
const SLOWING_PHRASES: [&str; 3] =
    ["unusual rate", "temporarily rate limited due to IP reputation", "[TSS04]"];

impl Piece {
    fn literal(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Place(_) => "",
        }
    }
}

impl FromStr for Template {
    type Err = Expected;

    fn from_str(source: &str) -> Result<Self, Expected> {
        let mut parts = source.splitn(3, ' ');
        let mut part = || parts.next().unwrap_or_default();
        let code = Code::from_digits(part())
            .ok_or_else(|| Expected::new("a reply that begins with 421, 450, 451 or 452"))?;
        let enhanced = Enhanced::parse(part()).ok_or_else(|| {
            Expected::new(format!("an enhanced code such as 4.7.0 after {}", code.digits()))
        })?;
        let text = part();
        if text.trim().is_empty() {
            return Err(Expected::new("a text after the codes"));
        }
        if let Some(odd) = text.chars().find(|c| printable(*c) != *c) {
            return Err(Expected::new(format!("printable ASCII only, not {odd:?}")));
        }
        let template = Self { code, enhanced, pieces: pieces(text)? };
        if template.surest_length() > Reply::LONGEST_TEXT {
            return Err(Expected::new(format!(
                "a text that fits {} bytes with its longest values; this one may take {}",
                Reply::LONGEST_TEXT,
                template.surest_length()
            )));
        }
        Ok(template)
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, Expected> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find(['{', '}']) {
        let (literal, from_brace) = rest.split_at(open);
        let name = from_brace.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let Some((name, behind)) = name else {
            return Err(Expected::new("every `{` to have its `}`"));
        };
        let Some((_, place)) = Placeholder::ALL.iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = Placeholder::ALL.iter().map(|(n, _)| format!("{{{n}}}")).collect();
            return Err(Expected::new(format!("one of {} for `{{{name}}}`", known.join(" "))));
        };
        pieces.push(Piece::Text(literal.into()));
        pieces.push(Piece::Place(*place));
        rest = behind;
    }
    pieces.push(Piece::Text(rest.into()));
    Ok(pieces)
}

impl Display for Template {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.code.digits(), self.enhanced)?;
        for piece in &self.pieces {
            match piece {
                Piece::Text(literal) => f.write_str(literal)?,
                Piece::Place(place) => {
                    let known = Placeholder::ALL.iter().find(|(_, known)| known == place);
                    write!(f, "{{{}}}", known.map_or("", |(name, _)| name))?;
                }
            }
        }
        Ok(())
    }
}

as_text!(Template);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: &str = "421 4.7.0 {hostname} {client} {network} {reason} {wait} {id} {sender} \
                       {sender_domain} {recipient} {recipient_domain} {url}";

    #[test]
    fn a_template_is_filled_and_prints_back() {
        let source = "451 4.7.1 {hostname} First contact; retry in {wait} seconds";
        let template: Template = source.parse().unwrap();
        assert_eq!(template.to_string(), source);
        let text = template.text(|place| match place {
            Placeholder::Hostname => "mx1.example.org".into(),
            _ => "300".into(),
        });
        assert_eq!(text, "mx1.example.org First contact; retry in 300 seconds");
    }

    #[test]
    fn a_wrong_template_says_what_was_expected() {
        for (source, expected) in [
            ("550 5.7.1 no", "begins with 421, 450, 451 or 452"),
            ("421 come later", "an enhanced code such as 4.7.0 after 421"),
            ("421 5.7.0 no", "an enhanced code"),
            ("421 4.7.0", "a text"),
            ("421 4.7.0 {retry}", "one of {hostname} {client}"),
            ("421 4.7.0 {wait", "its `}`"),
            ("421 4.7.0 caf\u{e9}", "printable ASCII"),
            ("421 4.7.0 two\r\nlines", "printable ASCII"),
        ] {
            let error = source.parse::<Template>().unwrap_err().to_string();
            assert!(error.contains(expected), "{source}: {error}");
        }
        let long = format!("421 4.7.0 {}", "x".repeat(Reply::LONGEST_TEXT + 1));
        assert!(long.parse::<Template>().unwrap_err().to_string().contains("fits 496 bytes"));
    }

    #[test]
    fn phrases_that_hurt_good_senders_are_noticed() {
        let misgiving = |text: &str| text.parse::<Template>().unwrap().misgiving();
        assert!(misgiving("421 4.7.0 Unusual rate of mail").unwrap().contains("90 minutes"));
        assert!(misgiving("421 4.7.0 60 in 5 minutes").unwrap().contains("{wait}"));
        assert_eq!(misgiving("421 4.7.0 more than 60; retry in {wait} seconds"), None);
    }

    proptest! {
        #[test]
        fn whatever_a_client_calls_itself_the_codes_and_the_wait_stay(
            value in "(?s).{0,700}", wait in 0..u32::MAX
        ) {
            let template: Template = ALL.parse().unwrap();
            let text = template.text(|place| match place {
                Placeholder::Wait => format!("<{wait}>").into(),
                place if place.cuttable() => value.clone().into(),
                _ => "x".into(),
            });
            prop_assert!(text.len() <= Reply::LONGEST_TEXT);
            let wait = format!("<{wait}>");
            prop_assert!(text.contains(&wait[..wait.len().min(10)]));
        }
    }
}
