//! Exit codes of sysexits.h, as far as they are used. What each means for a subcommand is told by
//! `tool/manual.rs`.

/// EX_USAGE: the command line.
pub const USAGE: u8 = 64;
/// EX_DATAERR: what was read is damaged, or not what was expected.
pub const DATA: u8 = 65;
/// EX_NOINPUT: there is nothing to read.
pub const INPUT: u8 = 66;
/// EX_UNAVAILABLE: who is to be asked is not there.
pub const UNAVAILABLE: u8 = 69;
/// EX_OSERR: the system would not give what is needed, or nobody reads what we say.
pub const SYSTEM: u8 = 71;
/// EX_CANTCREAT: a socket or a file could not be made.
pub const OUTPUT: u8 = 73;
/// EX_IOERR: something could not be read or written, the state first of all.
pub const STATE: u8 = 74;
/// EX_TEMPFAIL: told to stop, it did not come to its end in time.
pub const UNFINISHED: u8 = 75;
/// EX_PROTOCOL: what is there answers something else.
pub const PROTOCOL: u8 = 76;
/// EX_NOPERM: this user may not.
pub const PERMISSION: u8 = 77;
/// EX_CONFIG: the settings cannot be used.
pub const SETTINGS: u8 = 78;
