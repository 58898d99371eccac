//! postpone(1): the command line, subcommand by subcommand, flattened from clap.

use clap::{Arg, ArgAction, Command, CommandFactory};
use postpone::tool::command::Cli;
use postpone::tool::manual::{EXAMPLES, FILES, TOOL_EXITS};

use super::prose::{self, Block};
use super::roff::{Page, bold, italic, literal, name_of};

/// The page.
pub(crate) fn page(date: &str) -> String {
    let mut cli = Cli::command();
    cli.build();
    let about = "administer the milter that rate limits and greylists mail for Postfix or Sendmail";
    let mut page = Page::new("postpone", 1, date, about);
    let parts = parts(&cli, "postpone");
    page.section("SYNOPSIS");
    let typed = parts.iter().filter(|(_, command)| !command.has_subcommands());
    let typed: Vec<_> = typed.map(|(name, command)| (name.clone(), synopsis(command))).collect();
    page.synopsis(&typed);
    page.section("DESCRIPTION");
    page.blocks(&about_text(&cli));
    page.paragraph(
        "This page is about the tools. The daemon, which `postpone serve` runs, is in postpone(8), \
         and its settings are in postpone.toml(5).",
    );
    page.section("OPTIONS");
    page.paragraph("Before or after the subcommand:");
    cli.get_arguments().for_each(|argument| option(&mut page, argument));
    page.section("COMMANDS");
    for (name, command) in &parts[1..] {
        page.part(name);
        match command.get_name() {
            "serve" => page.paragraph("Serve MTAs. This is the daemon, see postpone(8)."),
            _ => page.blocks(&about_text(command)),
        }
        // What several have in common is told once, where they are held together.
        let is_held = |argument: &Arg| argument.is_global_set() && !command.has_subcommands();
        own(command).filter(|a| !is_held(a)).for_each(|argument| option(&mut page, argument));
    }
    page.section("EXIT STATUS");
    for exit in TOOL_EXITS {
        page.entry(&[bold(&exit.code.to_string())], &[Block::Paragraph(exit.text.into())]);
    }
    page.section("FILES");
    for file in FILES {
        page.entry(&[italic(file.name)], &[Block::Paragraph(file.text.into())]);
    }
    page.section("EXAMPLES");
    for example in EXAMPLES {
        page.entry(&[name_of(example.name)], &[Block::Paragraph(example.text.into())]);
    }
    page.section("SEE ALSO");
    page.paragraph(
        "`postpone`(8), `postpone-night`(7), `postpone.toml`(5), `postconf`(5), `journalctl`(1)",
    );
    page.finish()
}

/// Every command with all its words, what only holds others before those.
pub(crate) fn parts(command: &Command, name: &str) -> Vec<(String, Command)> {
    let below = command.get_subcommands().filter(|inner| inner.get_name() != "help");
    let below = below.flat_map(|inner| parts(inner, &format!("{name} {}", inner.get_name())));
    [(name.into(), command.clone())].into_iter().chain(below).collect()
}

/// Its own options: not `--help`, and none that all have.
pub(crate) fn own(command: &Command) -> impl Iterator<Item = &Arg> {
    let common = ["help", "version", "config", "socket"];
    command.get_arguments().filter(move |argument| !common.contains(&argument.get_id().as_str()))
}

fn synopsis(command: &Command) -> Vec<String> {
    own(command)
        .map(|argument| {
            let written = written(argument);
            if argument.is_required_set() { written } else { format!("[{written}]") }
        })
        .collect()
}

/// An option or a positional argument as it is typed.
fn written(argument: &Arg) -> String {
    let value = value(argument);
    match (argument.get_short(), argument.get_long()) {
        (_, Some(long)) => {
            bold(&format!("--{long}")) + &value.map_or(String::new(), |v| format!(" {v}"))
        }
        (Some(short), None) => bold(&format!("-{short}")),
        (None, None) => value.unwrap_or_default(),
    }
}

fn value(argument: &Arg) -> Option<String> {
    let takes = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let names = argument.get_value_names().filter(|_| takes)?;
    let words = |name: &str| name.split('|').map(italic).collect::<Vec<_>>().join("|");
    Some(names.iter().map(|name| words(name)).collect::<Vec<_>>().join(" "))
}

fn option(page: &mut Page, argument: &Arg) {
    let short = argument.get_short().filter(|_| argument.get_long().is_some());
    let short = short.map_or(String::new(), |short| bold(&format!("-{short}")) + ", ");
    let default = argument.get_default_values().first().and_then(|value| value.to_str());
    let default =
        default.filter(|_| !argument.is_hide_default_value_set() && value(argument).is_some());
    let default =
        default.map_or(String::new(), |default| literal(&format!(" [default: {default}]")));
    let text = argument.get_long_help().or(argument.get_help());
    page.entry(
        &[short + &written(argument) + &default],
        &text_blocks(&text.map(ToString::to_string)),
    );
}

/// What a command is for.
pub(crate) fn about_text(command: &Command) -> Vec<Block> {
    let text = command.get_long_about().or(command.get_about());
    text_blocks(&text.map(ToString::to_string))
}

/// Help as text. Where it is one sentence, clap has taken its full stop away.
fn text_blocks(text: &Option<String>) -> Vec<Block> {
    let lines: Vec<_> = text.iter().flat_map(|text| text.lines()).collect();
    let mut blocks = prose::blocks(&lines);
    if let [Block::Paragraph(text)] = &mut blocks[..]
        && !text.ends_with(['.', ']'])
    {
        text.push('.');
    }
    blocks
}
