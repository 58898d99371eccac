//! postpone(8): the daemon. Its chapters about the log, systemd and security are pages of `docs/`.

use clap::CommandFactory;
use postpone::tool::command::Cli;
use postpone::tool::manual::{Entry, FILES, SERVE_EXITS, SIGNALS, VARIABLES};

use super::book;
use super::prose::Block;
use super::roff::{Page, bold, italic};
use super::tools::about_text;

/// The page.
pub(crate) fn page(date: &str) -> Result<String, String> {
    let about = "milter and Postfix policy service: rate limit, greylist and defer incoming mail";
    let mut page = Page::new("postpone", 8, date, about);
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
    for chapter in book::OF_THE_DAEMON {
        page.section(chapter.title);
        book::add(&mut page, chapter.text);
    }
    page.section("SEE ALSO");
    page.paragraph(
        "`postpone`(1), `postpone-night`(7), `postpone.toml`(5), `postconf`(5), `journalctl`(1)",
    );
    page.paragraph(
        "The pages in /usr/share/doc/postpone/docs tell how to begin, what senders make of each \
         reply, and what every metric means.",
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
