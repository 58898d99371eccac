//! What a shell offers at the tab key, by the names that Debian and Fedora give such files.

use clap::CommandFactory;
use clap_complete::{Shell, generate};
use postpone::tool::command::Cli;

use super::File;

/// One file for each shell.
pub(crate) fn files() -> Result<Vec<File>, String> {
    let shells =
        [(Shell::Bash, "postpone"), (Shell::Zsh, "_postpone"), (Shell::Fish, "postpone.fish")];
    let file = |(shell, name)| {
        let mut bytes = Vec::new();
        generate(shell, &mut Cli::command(), "postpone", &mut bytes);
        let text = String::from_utf8(bytes).map_err(|error| format!("{name}: {error}"))?;
        Ok((format!("completions/{name}"), text))
    };
    shells.into_iter().map(file).collect()
}
