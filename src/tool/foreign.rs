//! What postgrey and sqlgrey have written down: their databases, dumped as text.
//!
//! There is no library of ours for Berkeley DB, and none for three kinds of SQL servers is worth
//! it for something that is done once. The tools that belong to them write text. So a database
//! itself is only recognised, and the command named that dumps it.
//!
//! - postgrey (1.17 and later): `db_dump -p` of `postgrey.db` (`client/sender/recipient` and
//!   `first,last`) and of `postgrey_clients.db` (`address` and `count,last`), in seconds since 1970;
//!   with `-h folder`, else it lacks what is in postgrey's log and not in its database yet.
//! - sqlgrey (1.8): the INSERT statements of `from_awl`, `domain_awl` and `connect`, as `sqlite3`,
//!   `mysqldump` and `pg_dump --inserts` write them.

use std::io::{self, BufRead, Read};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::clock::Time;
use crate::policy::imported::{Known, host, subnet};
use crate::setting::from_hex;
use crate::smtp::client::Network;

/// A text that is no such dump: what was expected, and in which line if it is one.
#[derive(Debug)]
pub enum Wrong {
    /// In this line something else was expected.
    Line(u64, String),
    /// All of it is something else.
    Whole(String),
    /// It cannot be read.
    Unreadable(io::Error),
}

/// What a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// What `postpone state export` writes.
    Export,
    /// A dump of one of postgrey's databases.
    Postgrey,
    /// A dump of sqlgrey's database.
    Sqlgrey,
}

impl Format {
    /// How many bytes tell it.
    pub const HEAD: usize = 64;

    /// What begins so.
    pub fn of(head: &[u8], file: &str) -> Result<Self, Wrong> {
        let magic =
            head.get(12..16).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        let berkeley =
            [BTREE, HASH].iter().any(|m| magic == Some(*m) || magic == Some(m.swap_bytes()));
        let text = head.trim_ascii_start();
        let begins = |word: &&str| {
            text.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word.as_bytes()))
        };
        Err(Wrong::Whole(if head.starts_with(b"SQLite format 3\0") {
            format!(
                "it is an SQLite database: dump it with `sqlite3 {file} .dump > DUMP`, and import \
                 DUMP"
            )
        } else if berkeley {
            let (folder, name) = match file.rsplit_once('/') {
                Some(("", name)) => ("/", name),
                Some(parts) => parts,
                None => (".", file),
            };
            format!(
                "it is a Berkeley DB: dump it with `db5.3_dump -h {folder} -p {name} > DUMP` \
                 (Debian's package db5.3-util), and import DUMP"
            )
        } else if text.starts_with(b"{") {
            return Ok(Self::Export);
        } else if text.starts_with(b"VERSION=") {
            return Ok(Self::Postgrey);
        } else if SQL.iter().any(begins) {
            return Ok(Self::Sqlgrey);
        } else {
            "expected what `postpone state export` has written, `db_dump -p` of a database of \
             postgrey's, or an SQL dump of sqlgrey's"
                .into()
        }))
    }
}

/// What files of Berkeley DB have at their twelfth byte.
const BTREE: u32 = 0x0005_3162;
const HASH: u32 = 0x0006_1561;

/// How dumps of SQL begin.
const SQL: [&str; 9] = ["--", "/*", "PRAGMA", "BEGIN", "CREATE", "INSERT", "SET", "DROP", "\\"];

/// Lines, counted from one.
pub struct Lines<'a> {
    input: &'a mut dyn BufRead,
    number: u64,
    line: Vec<u8>,
}

/// No line is longer: `mysqldump` writes rows into one up to a gigabyte, and as a rule to 16 MB.
const LONGEST_LINE: u64 = 1 << 30;

impl<'a> Lines<'a> {
    /// The lines of this text.
    pub fn of(input: &'a mut dyn BufRead) -> Self {
        Self { input, number: 0, line: Vec::new() }
    }

    /// The next one, without its end.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, Wrong> {
        self.line.clear();
        self.number += 1;
        let mut bounded = (&mut self.input).take(LONGEST_LINE);
        let read = bounded.read_until(b'\n', &mut self.line).map_err(Wrong::Unreadable)?;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if read as u64 == LONGEST_LINE {
            return Err(self.wrong("a line shorter than a gigabyte"));
        }
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        Ok((read > 0).then_some(&self.line))
    }

    /// In this line something else was expected.
    pub fn wrong(&self, expected: impl std::fmt::Display) -> Wrong {
        Wrong::Line(self.number, format!("expected {expected}"))
    }
}

/// What a dump says of one sender, client or triplet.
#[derive(Debug, PartialEq, Eq)]
pub enum Met<'a> {
    /// It has passed, and was last seen then.
    Known(Known<'a>, Time),
    /// It has not passed yet. It is not imported: after the switch it waits once, and as it has
    /// not come back so far, most likely it never will.
    Pending,
    /// It is nothing we could know again.
    Odd,
}

/// Is told of everything that is met. Stops reading by an error of its own.
pub type Each<'a, E> = dyn FnMut(Met<'_>) -> Result<(), E> + 'a;

/// From when on postgrey knew something.
#[derive(Clone, Copy, Debug)]
pub struct Passing {
    /// How long a triplet had to wait.
    pub delay: Duration,
    /// How often a client must have passed.
    pub passes: u32,
}

/// Reads dumps of postgrey's databases, of which several may follow each other.
pub fn postgrey<E: From<Wrong>>(
    lines: &mut Lines<'_>,
    passing: Passing,
    each: &mut Each<'_, E>,
) -> Result<(), E> {
    while let Some(line) = lines.next_line()? {
        if line.is_empty() {
            continue;
        }
        if !line.starts_with(b"VERSION=") {
            return Err(lines.wrong("the header of another dump (VERSION=3)").into());
        }
        let mut plain = true;
        loop {
            match lines.next_line()? {
                Some(b"HEADER=END") => break,
                Some(b"format=bytevalue") => plain = false,
                Some(line) if line.contains(&b'=') => {}
                _ => return Err(lines.wrong("a header that ends with HEADER=END").into()),
            }
        }
        let value = |line: &[u8]| {
            let value = line.strip_prefix(b" ")?;
            let bytes = if plain { unescaped(value)? } else { from_hex(value)? };
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        loop {
            let key = match lines.next_line()? {
                Some(b"DATA=END") => break,
                Some(line) => value(line),
                None => None,
            };
            let Some(key) = key else {
                return Err(lines.wrong("a key, or DATA=END: the dump is cut off").into());
            };
            let Some(said) = lines.next_line()?.and_then(value) else {
                return Err(lines.wrong("the value of the key before").into());
            };
            if key.len() == 40 && key.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                let expected = "client/sender/recipient or an address: this postgrey ran with \
                                --privacy and stored only hashes, which cannot be imported";
                return Err(lines.wrong(expected).into());
            }
            each(met_by_postgrey(&key, &said, passing))?;
        }
    }
    Ok(())
}

fn met_by_postgrey<'a>(key: &'a str, value: &str, passing: Passing) -> Met<'a> {
    let numbers: Option<Vec<u64>> = value.split(',').take(2).map(|n| n.parse().ok()).collect();
    let Some([first, last]) = numbers.as_deref() else { return Met::Odd };
    let known = match key.split_once('/') {
        Some((client, triplet)) => network(client).map(|net| {
            let waited = last.saturating_sub(*first) >= passing.delay.as_secs();
            (Known::Triplet(net, triplet), waited)
        }),
        None => key.parse().ok().map(|address: IpAddr| {
            (Known::Client(host(address)), *first >= u64::from(passing.passes))
        }),
    };
    match known {
        Some((known, true)) => Met::Known(known, Time::from_secs(*last)),
        Some((_, false)) => Met::Pending,
        None => Met::Odd,
    }
}

/// What `db_dump -p` has escaped: a backslash, or two hexadecimal digits behind one.
fn unescaped(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    while let Some((byte, rest)) = text.split_first() {
        text = rest;
        match byte {
            b'\\' if rest.first() == Some(&b'\\') => {
                bytes.push(b'\\');
                text = &rest[1..];
            }
            b'\\' => {
                bytes.extend(from_hex(rest.get(..2)?)?);
                text = &rest[2..];
            }
            byte => bytes.push(*byte),
        }
    }
    Some(bytes)
}

/// A client as either of them writes it: an address; or a network, as its first address or
/// (sqlgrey, and the first versions of postgrey) as the first three octets or four groups.
fn network(text: &str) -> Option<Network> {
    let groups = text.split(':').count();
    let address = match text.split('.').count() {
        3 => format!("{text}.0").parse(),
        _ if groups == 4 && !text.contains("::") => format!("{text}::").parse(),
        _ => text.parse(),
    };
    let address: IpAddr = address.ok()?;
    let is_first = match address {
        IpAddr::V4(v4) => v4.octets()[3] == 0,
        IpAddr::V6(v6) => v6.segments()[4..] == Ipv6Addr::UNSPECIFIED.segments()[4..],
    };
    Some(if is_first { subnet(address) } else { host(address) })
}

/// Reads a dump of sqlgrey's database.
pub fn sqlgrey<E: From<Wrong>>(lines: &mut Lines<'_>, each: &mut Each<'_, E>) -> Result<(), E> {
    let mut seen = false;
    // The statement that goes on in the next line.
    let mut open: Option<Insert> = None;
    while let Some(line) = lines.next_line()? {
        let line = line.to_owned();
        let mut sql = Sql { rest: &line, backslashes: false };
        let insert = match open.take() {
            Some(insert) => Some(insert),
            None => {
                let names =
                    |name: &&str| line.windows(name.len()).any(|part| part == name.as_bytes());
                seen |= ["from_awl", "domain_awl"].iter().any(names);
                if line.starts_with(b"COPY ") && ["from_awl", "domain_awl"].iter().any(names) {
                    let expected = "INSERT statements: make the dump with `pg_dump --inserts`";
                    return Err(lines.wrong(expected).into());
                }
                sql.insert()
            }
        };
        let Some(insert) = insert else { continue };
        sql.backslashes = insert.backslashes;
        if !rows(&mut sql, &insert, lines, each)? {
            open = Some(insert);
        }
    }
    match (open, seen) {
        (Some(_), _) => Err(lines.wrong("the rest of a statement: the dump is cut off").into()),
        (None, false) => {
            let expected = "expected sqlgrey's tables `from_awl` and `domain_awl`: there are none";
            Err(Wrong::Whole(expected.into()).into())
        }
        (None, true) => Ok(()),
    }
}

/// Reads the rows of a statement in one line; whether it has ended.
fn rows<E: From<Wrong>>(
    sql: &mut Sql<'_>,
    insert: &Insert,
    lines: &Lines<'_>,
    each: &mut Each<'_, E>,
) -> Result<bool, E> {
    loop {
        match sql.token() {
            Some(Token::Sign(b'(')) => {
                let Some(row) = sql.row() else {
                    return Err(lines.wrong("a row of values, whole in its line").into());
                };
                met_by_sqlgrey(insert, &row, each)?;
            }
            Some(Token::Sign(b',')) => {}
            Some(Token::Sign(b';')) => return Ok(true),
            None => return Ok(false),
            Some(_) => return Err(lines.wrong("`(`, `,` or `;`").into()),
        }
    }
}

fn met_by_sqlgrey<E>(insert: &Insert, row: &[String], each: &mut Each<'_, E>) -> Result<(), E> {
    let column = |name: &str| {
        row.get(insert.columns.iter().position(|column| column == name)?).map(String::as_str)
    };
    let seen = |text: &str| match text.parse() {
        Ok(secs) => Some(Time::from_secs(secs)),
        Err(_) => text.parse().ok(),
    };
    let address;
    let known = match insert.table {
        Table::Connect => return each(Met::Pending),
        Table::From => {
            let sender = column("sender_name").zip(column("sender_domain"));
            address = sender.map(|(name, domain)| format!("{name}@{domain}"));
            address
                .as_deref()
                .zip(column("src").and_then(network))
                .map(|(sender, net)| Known::Sender(net, sender))
        }
        Table::Domain => column("sender_domain")
            .zip(column("src").and_then(network))
            .map(|(domain, net)| Known::Domain(net, domain)),
    };
    let met = known.zip(column("last_seen").and_then(seen));
    each(met.map_or(Met::Odd, |(known, last)| Met::Known(known, last)))
}

/// A statement that fills one of sqlgrey's tables.
struct Insert {
    table: Table,
    columns: Vec<String>,
    /// Whether a backslash escapes what follows: MySQL's way.
    backslashes: bool,
}

#[derive(Clone, Copy)]
enum Table {
    From,
    Domain,
    Connect,
}

impl Table {
    fn named(name: &str) -> Option<(Self, &'static [&'static str])> {
        match name {
            "from_awl" => Some((
                Self::From,
                &["sender_name", "sender_domain", "src", "first_seen", "last_seen"],
            )),
            "domain_awl" => {
                Some((Self::Domain, &["sender_domain", "src", "first_seen", "last_seen"]))
            }
            "connect" => Some((Self::Connect, &[])),
            _ => None,
        }
    }
}

/// A line of SQL, as far as it has not been read.
struct Sql<'a> {
    rest: &'a [u8],
    backslashes: bool,
}

enum Token {
    /// A word, a number, or a name in quotes of its own.
    Word(String),
    Text(String),
    Sign(u8),
}

impl Sql<'_> {
    /// Reads `INSERT INTO table (columns) VALUES`, if the line begins so and the table is one of
    /// sqlgrey's.
    fn insert(&mut self) -> Option<Insert> {
        let verb = self.rest.get(..7)?;
        if !verb.eq_ignore_ascii_case(b"INSERT ") && !verb.eq_ignore_ascii_case(b"REPLACE") {
            return None;
        }
        let backslashes = self.rest.contains(&b'`');
        let (mut name, mut columns, mut inside) = (String::new(), Vec::new(), false);
        loop {
            match self.token()? {
                Token::Word(word) if word.eq_ignore_ascii_case("VALUES") && !inside => break,
                Token::Word(word) if inside => columns.push(word),
                Token::Word(word) => name = word,
                Token::Sign(b'(') => inside = true,
                Token::Sign(b')') => inside = false,
                Token::Sign(b',') => {}
                Token::Sign(_) | Token::Text(_) => return None,
            }
        }
        let (table, all) = Table::named(name.rsplit('.').next()?)?;
        if columns.is_empty() {
            columns = all.iter().map(|column| (*column).to_owned()).collect();
        }
        Some(Insert { table, columns, backslashes })
    }

    /// The values up to the closing parenthesis; nothing if the line ends before it.
    fn row(&mut self) -> Option<Vec<String>> {
        let (mut row, mut value) = (Vec::new(), String::new());
        loop {
            match self.token()? {
                // Before a text there may stand what kind of text it is.
                Token::Word(text) | Token::Text(text) => value = text,
                Token::Sign(b',') => row.push(std::mem::take(&mut value)),
                Token::Sign(b')') => {
                    row.push(value);
                    return Some(row);
                }
                Token::Sign(_) => return None,
            }
        }
    }

    /// The next word, text or sign; nothing at the end, or where a text is not closed.
    fn token(&mut self) -> Option<Token> {
        self.rest = self.rest.trim_ascii_start();
        let (first, rest) = self.rest.split_first()?;
        let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'+');
        match first {
            b'\'' | b'"' | b'`' => {
                self.rest = rest;
                let text = self.quoted(*first)?;
                Some(if *first == b'\'' { Token::Text(text) } else { Token::Word(text) })
            }
            byte if is_word(byte) => {
                let end = self.rest.iter().position(|b| !is_word(b)).unwrap_or(self.rest.len());
                let (word, behind) = self.rest.split_at(end);
                self.rest = behind;
                Some(Token::Word(String::from_utf8_lossy(word).into_owned()))
            }
            sign => {
                self.rest = rest;
                Some(Token::Sign(*sign))
            }
        }
    }

    /// What stands before this quote; one that is doubled belongs to the text.
    fn quoted(&mut self, quote: u8) -> Option<String> {
        let mut text = Vec::new();
        loop {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            match *byte {
                b'\\' if self.backslashes && quote == b'\'' => {
                    let (escaped, rest) = rest.split_first()?;
                    text.push(*escaped);
                    self.rest = rest;
                }
                byte if byte != quote => text.push(byte),
                _ if rest.first() == Some(&quote) => {
                    text.push(quote);
                    self.rest = &rest[1..];
                }
                _ => return Some(String::from_utf8_lossy(&text).into_owned()),
            }
        }
    }
}
