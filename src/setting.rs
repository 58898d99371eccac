//! Values as an administrator writes them, and complaints about them.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

/// A text that is none of the values expected here. Says what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected(pub String);

impl Expected {
    /// An error that says `what` was expected.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl Display for Expected {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

impl std::error::Error for Expected {}

/// What is wrong with a setting whose value could be read, but makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The key within its section.
    pub key: &'static str,
    /// The way on from there: to an entry of a list, to a key of a table.
    pub within: Vec<Step>,
    /// What is wrong, and what was expected.
    pub message: String,
    /// What follows from it.
    pub severity: Severity,
}

/// One step from a value into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To this entry of a list; the first is 0.
    Entry(usize),
    /// To this key of a table.
    Key(&'static str),
}

/// What follows from a complaint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The settings can be used.
    Warning,
    /// They cannot.
    Error,
}

impl Complaint {
    /// A complaint that makes the settings unusable.
    pub fn error(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, within: Vec::new(), message: message.into(), severity: Severity::Error }
    }

    /// A complaint that leaves them usable.
    pub fn warning(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, within: Vec::new(), message: message.into(), severity: Severity::Warning }
    }

    /// The same, of a place within the value.
    #[must_use]
    pub fn at(mut self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.within.splice(..0, steps);
        self
    }
}

/// Reads and writes a type in settings as the text it parses from and prints to.
macro_rules! as_text {
    ($type:ty) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    };
}
pub(crate) use as_text;

/// Bytes as hexadecimal digits, two for each.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| HEX[usize::from(digit)])
        .collect()
}

const HEX: [char; 16] =
    ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];

/// The bytes that hexadecimal digits stand for.
pub fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    let (pairs, rest) = digits.as_chunks();
    let byte = |[high, low]: &[u8; 2]| u8::try_from(value(*high)? << 4 | value(*low)?).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect()).flatten()
}

/// Whether a rule acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It refuses.
    #[default]
    Enforce,
    /// It is assessed, counted and logged as what would have happened, and never refuses.
    Shadow,
    /// It does not exist.
    Off,
}

impl Mode {
    /// Its one name in settings and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

/// A value, or `"none"`: absence is spelled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OrNone<T> {
    /// `"none"`
    #[default]
    None,
    /// The value.
    Some(T),
}

impl<T> From<OrNone<T>> for Option<T> {
    fn from(value: OrNone<T>) -> Self {
        match value {
            OrNone::None => None,
            OrNone::Some(value) => Some(value),
        }
    }
}

impl<T> OrNone<T> {
    /// The value, if there is one.
    pub fn as_option(&self) -> Option<&T> {
        match self {
            Self::None => None,
            Self::Some(value) => Some(value),
        }
    }
}

impl<'de, T: std::str::FromStr<Err: Display>> Deserialize<'de> for OrNone<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        match &*text {
            "none" => Ok(Self::None),
            text => text
                .parse()
                .map(Self::Some)
                .map_err(|error| serde::de::Error::custom(format_args!(r#"{error} (or "none")"#))),
        }
    }
}

impl<T: Display> Serialize for OrNone<T> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => to.serialize_str("none"),
            Self::Some(value) => to.collect_str(value),
        }
    }
}
