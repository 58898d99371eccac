//! What must hold of whatever a peer, an administrator or a disk hands in, one function for each
//! place where bytes come in.
//!
//! Each target of cargo-fuzz calls one of them with what libFuzzer makes up (`make fuzz`), and
//! `tests/corpus.rs` calls them with the files in `corpus/`, without a fuzzer and a C++ compiler.
//! A property that does not hold panics.

mod fronts;
mod records;
mod texts;

pub use fronts::{control, frames, policy};
pub use records::{Three, memory, records, sketches};
pub use texts::{lists, settings, templates};

/// A property of some bytes.
pub type Target = fn(&[u8]);

/// All of them, by the names of the fuzz targets and of the folders in `corpus/`.
pub const TARGETS: [(&str, Target); 8] = [
    ("control", control),
    ("frames", frames),
    ("lists", lists),
    ("policy", policy),
    ("records", records),
    ("settings", settings),
    ("sketches", sketches),
    ("templates", templates),
];
