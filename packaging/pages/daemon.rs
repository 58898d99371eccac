//! postpone(8): the daemon. What a log line says is told by the README, and taken from there.

use clap::CommandFactory;
use postpone::tool::command::Cli;
use postpone::tool::manual::{Entry, FILES, SERVE_EXITS, SIGNALS, VARIABLES};

use super::prose::Block;
use super::roff::{Page, bold, italic, name_of};
use super::tools::about_text;

const README: &str = include_str!("../../README.md");

/// The headline above the table of the fields.
const FIELDS: &str = "## Reading a line of the log";

/// What to do when it must stop at once, as somebody needs it who is called at night.
const TROUBLE: [(&str, &str); 6] = [
    (
        "Is it postpone?",
        "The reply that the sender shows begins with this host's name and ends with `retry in N \
         seconds`, and the log has a line with that client and `mode=enforce`.",
    ),
    (
        "One sender must get through",
        "`postpone ctl allow` ADDRESS `--for 7d`; it holds at once. For good: `allow` in [access].",
    ),
    ("One rule is wrong", "Set `mode = \"shadow\"` in it, and `postpone ctl reload`."),
    (
        "Everybody is told of maintenance",
        "`postpone ctl maintenance off`; `postpone ctl status` says until when it would have been.",
    ),
    (
        "All of it must go",
        "`systemctl stop postpone`: with the MTA's settings above, mail passes unasked.",
    ),
    (
        "Nothing is refused any more",
        "Does it run? Is the rule in shadow mode, or the client in `allow`? Does `postpone ctl \
         status` tell of own trouble?",
    ),
];

const SECURITY: [&str; 4] = [
    "The protocols of milters and policy services know no password. Who can connect to a listener can \
     invent clients, and so use up the quotas of others. It cannot read mail, and cannot make the MTA \
     accept what it would not. So listeners belong on loopback, or on \
     a unix socket that the MTA alone may use.",
    "The control socket answers root, the daemon's own user, the owner of the socket and the members \
     of its group only. The metrics answer whoever can connect; they name no clients.",
    "Nothing that a client sends makes the memory grow without bound, and none of it is written into \
     the log unquoted: it can fill a field of a line, and can make no field and no line.",
    "The folder of the state has a secret in its file `identity`, which every key is made with. A \
     copy of the folder, or an export, is as confidential as a mail log.",
];

/// The page.
pub(crate) fn page(date: &str) -> Result<String, String> {
    let mut page = Page::new("postpone", 8, date, "tell the wrong mail client to come back later");
    page.section("SYNOPSIS");
    let config = format!("[{} {}]", bold("--config"), italic("FILE"));
    page.synopsis(&[("postpone serve".into(), vec![config])]);
    page.section("DESCRIPTION");
    let mut cli = Cli::command();
    let serve = cli.find_subcommand_mut("serve").ok_or("there is no `serve`")?;
    page.blocks(&about_text(serve));
    page.paragraph("What the settings can say is in postpone.toml(5).");
    page.section("SIGNALS");
    page.all_of(SIGNALS, bold);
    page.section("EXIT STATUS");
    for exit in SERVE_EXITS {
        page.entry(&[bold(&exit.code.to_string())], &[Block::Paragraph(exit.text.into())]);
    }
    page.section("FILES");
    page.all_of(FILES, italic);
    page.section("ENVIRONMENT");
    page.all_of(VARIABLES, bold);
    page.section("LOG");
    let (before, fields, after) = log()?;
    page.blocks(&before);
    for (name, text) in fields {
        page.entry(&[name_of(&name)], &[Block::Paragraph(text)]);
    }
    page.blocks(&after);
    page.section("WHEN SOMETHING IS WRONG");
    for (what, text) in TROUBLE {
        page.entry(&[bold(what)], &[Block::Paragraph(text.into())]);
    }
    page.section("SECURITY");
    SECURITY.iter().for_each(|text| page.paragraph(text));
    page.section("SEE ALSO");
    page.paragraph("`postpone`(1), `postpone.toml`(5), `postconf`(5), `journalctl`(1)");
    page.paragraph(
        "The README in /usr/share/doc/postpone tells how to begin, what senders make of each reply, \
         and what every metric means.",
    );
    Ok(page.finish())
}

impl Page {
    fn all_of(&mut self, entries: &[Entry], written: fn(&str) -> String) {
        for entry in entries {
            self.entry(&[written(entry.name)], &[Block::Paragraph(entry.text.into())]);
        }
    }
}

/// Text around a table, and the rows of the table: what is named, and what is said of it.
type AroundTable = (Vec<Block>, Vec<(String, String)>, Vec<Block>);

/// How to read a line of the log, as the README tells it.
fn log() -> Result<AroundTable, String> {
    let (_, section) = README.split_once(FIELDS).ok_or(format!("README.md has no `{FIELDS}`"))?;
    let (section, _) = section.split_once("\n## ").unwrap_or((section, ""));
    let rows: Vec<_> = section.lines().filter_map(row).collect();
    if rows.is_empty() {
        return Err(format!("README.md, `{FIELDS}`: no rows such as | `field` | what it says |"));
    }
    let (before, rest) = section.split_once("\n|").unwrap_or((section, ""));
    let after: Vec<_> = rest.lines().skip_while(|line| !line.is_empty()).collect();
    Ok((markdown(before), rows, markdown(&after.join("\n"))))
}

/// A row that begins with something between backticks; the head and the rule below it do not.
fn row(line: &str) -> Option<(String, String)> {
    let (name, text) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
    name.starts_with('`').then(|| (name.into(), capital(text)))
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string());
    // What is code has a case of its own.
    let text = first.map_or(String::new(), |first| first + rest.as_str());
    if text.ends_with('.') { text } else { text + "." }
}

/// Paragraphs, and what is indented by four as examples.
fn markdown(text: &str) -> Vec<Block> {
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.trim_matches('\n'));
    let block = |text: &str| match text.strip_prefix("    ") {
        Some(_) => Block::Example(
            text.lines().map(|line| line.strip_prefix("    ").unwrap_or(line).into()).collect(),
        ),
        None => Block::Paragraph(text.replace("**", "").replace('\n', " ")),
    };
    paragraphs.filter(|text| !text.is_empty()).map(block).collect()
}
