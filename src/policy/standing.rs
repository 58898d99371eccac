//! What a client has earned.

use serde::{Deserialize, Serialize};

/// What a client has earned, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Its sending is abnormal.
    Suspect,
    /// Nothing is known of it.
    Unknown,
    /// Its history speaks for it.
    Proven,
    /// It is on the allowlist, or has authenticated.
    Trusted,
}

impl Standing {
    /// Its one name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Suspect => "suspect",
            Self::Unknown => "unknown",
            Self::Proven => "proven",
            Self::Trusted => "trusted",
        }
    }
}
