//! How every tool says that something went wrong, and how it ends when nobody hears it.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use crate::exit;

/// Says what is wrong, in the words in which settings are reported.
pub fn error(err: &mut dyn Write, what: &dyn Display) {
    // Where nobody reads standard error, the exit code must do.
    let _ = writeln!(err, "error: {what}");
}

/// Output could not be written: the exit code, the same for all. A reader that has seen enough, such
/// as `head`, is no trouble that anybody need hear of.
pub fn unwritten(err: &mut dyn Write, why: &io::Error) -> u8 {
    if why.kind() != ErrorKind::BrokenPipe {
        error(err, &format_args!("cannot write the output: {why}"));
    }
    exit::STATE
}
