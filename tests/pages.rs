//! What is shipped as text beside the program: the manual pages say everything that `--help` and the
//! reference settings say, and every reader of such files takes them.

#![allow(clippy::unwrap_used)] // what goes wrong in here has to fail the test

#[path = "../packaging/pages/mod.rs"]
mod pages;
mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use clap::CommandFactory;
use pages::crates::{Crate, choice, may_be_shipped};
use postpone::config::Settings;
use postpone::exit;
use postpone::tool::command::Cli;
use postpone::tool::manual::{Exit, FILES, SERVE_EXITS, TOOL_EXITS};
use support::Folder;

/// The cargo that runs this test.
const CARGO: &str = env!("CARGO");

/// What a program prints. It comes with this package of Debian.
#[track_caller]
fn run(package: &str, program: &str, arguments: &[&str], file: &Path) -> Output {
    let output = Command::new(program).args(arguments).arg(file).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; apt-get install {package}"))
}

#[track_caller]
fn takes(package: &str, program: &str, arguments: &[&str], file: &Path) {
    let output = run(package, program, arguments, file);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", file.display());
}

/// A page as it is read: without bold and underlined, and no line broken.
fn read(name: &str) -> String {
    let manuals = pages::manuals().unwrap();
    let (_, page) = manuals.iter().find(|(file, _)| file.ends_with(name)).unwrap();
    rendered(page)
}

fn rendered(page: &str) -> String {
    let folder = Folder::new("pages");
    let file = folder.write("page", page);
    let output = run("mandoc", "mandoc", &["-Tutf8", "-Owidth=1000"], &file);
    let mut plain = String::new();
    for c in String::from_utf8(output.stdout).unwrap().chars() {
        if c == '\u{8}' {
            plain.pop();
        } else {
            plain.push(c);
        }
    }
    plain
}

#[test]
fn the_manual_pages_are_read_without_complaint() {
    let folder = Folder::new("pages");
    let manuals = pages::manuals().unwrap();
    let names: Vec<_> = manuals.iter().map(|(name, _)| name.as_str()).collect();
    let all = ["man/postpone.1", "man/postpone.8", "man/postpone.toml.5", "man/postpone-night.7"];
    assert_eq!(names, all);
    for (name, page) in &manuals {
        let file = folder.write(name.strip_prefix("man/").unwrap(), page);
        takes("mandoc", "mandoc", &["-Tlint", "-Wwarning"], &file);
        takes("groff-base", "groff", &["-man", "-Tutf8", "-ww", "-z"], &file);
    }
}

#[test]
fn apropos_finds_the_pages_by_what_an_administrator_looks_for() {
    let folder = Folder::new("pages");
    // Run by root, mandb becomes a user of its own.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for (name, page) in pages::manuals().unwrap() {
        let name = name.strip_prefix("man/").unwrap();
        let section = folder.path().join(format!("man{}", name.rsplit('.').next().unwrap()));
        fs::create_dir_all(&section).unwrap();
        fs::write(section.join(name), page).unwrap();
    }
    let says = |program: &str, argument: &OsStr| {
        let asked =
            ["MANPATH", "MANWIDTH"].into_iter().zip([folder.path().as_os_str(), "200".as_ref()]);
        let output = Command::new(program).arg(argument).envs(asked).output();
        let output = output.unwrap_or_else(|e| panic!("{program}: {e}; apt-get install man-db"));
        assert!(output.status.success(), "{program} {argument:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    says("mandb", folder.path().as_os_str());
    let (tool, daemon, settings) = ("postpone(1)", "postpone(8)", "postpone.toml(5)");
    for (word, pages) in [
        ("milter", &[tool, daemon, settings, "postpone-night(7)"][..]),
        ("postfix", &[tool, daemon]),
        ("greylist", &[tool, daemon, settings]),
        ("rate limit", &[tool, daemon, settings]),
    ] {
        let found = says("apropos", word.as_ref());
        let found = found.lines().map(|line| line.split(" - ").next().unwrap().replace(' ', ""));
        let found: Vec<_> = found.collect();
        for page in pages {
            assert!(found.iter().any(|it| it == page), "{word}: no {page} in {found:#?}");
        }
    }
}

#[test]
fn the_page_of_settings_has_a_whole_file_that_can_be_used() {
    let page = read("postpone.toml.5");
    let (_, example) = page.split_once("\nEXAMPLE\n").unwrap();
    let (example, _) = example.split_once("\nSEE ALSO\n").unwrap();
    let lines = example.lines().map(str::trim).skip_while(|line| !line.starts_with('['));
    let folder = Folder::new("pages");
    let file = folder.write("postpone.toml", &lines.collect::<Vec<_>>().join("\n"));
    let checked = Command::new(env!("CARGO_BIN_EXE_postpone"))
        .args(["check", "--config", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert!(example.contains("[[limit]]") && example.contains("[greylist]"), "{example}");
}

/// Lines that roff would take for orders, and signs that it would take for others.
#[test]
fn whatever_is_said_is_read_as_it_was_written() {
    let text = [
        ".so /etc/passwd",
        "'tis quoted",
        "C:\\fBpath\\",
        "a \"b\" 'c' ^d ~e -1 --for",
        "",
        "    .example --for `x`",
        "    'second' line",
        "",
        "name    what is said",
        "        - .one point",
        "        - another",
    ];
    let mut page = pages::roff::Page::new("try", 7, "2026-11-22", "a trial of `--all` signs");
    page.section("A \"SECTION\"");
    page.blocks(&pages::prose::blocks(&text));
    let page = page.finish();
    let folder = Folder::new("pages");
    takes("mandoc", "mandoc", &["-Tlint", "-Wwarning"], &folder.write("try.7", &page));
    let read = rendered(&page);
    for line in [
        "try - a trial of --all signs",
        "A \"SECTION\"",
        ".so /etc/passwd 'tis quoted C:\\fBpath\\ a \"b\" 'c' ^d ~e -1 --for",
        ".example --for `x`",
        "'second' line",
        ".one point",
    ] {
        assert!(read.contains(line), "{line} in {read}");
    }
}

#[test]
fn each_subcommand_has_its_part_of_the_page_with_every_option() {
    let page = read("postpone.1");
    let mut cli = Cli::command();
    cli.build();
    let parts = pages::tools::parts(&cli, "postpone");
    assert!(parts.len() > 15, "{parts:?}");
    for (name, command) in &parts[1..] {
        let headline = format!("\n   {name}\n");
        let (_, part) = page.split_once(&headline).unwrap_or_else(|| panic!("no part: {name}"));
        let part = part.split("\n   postpone ").next().unwrap();
        for argument in pages::tools::own(command) {
            let help = argument.get_help().expect("every option has help").to_string();
            let help = help.replace('`', "");
            // What `state` has is told there, and not once more for all that is within it.
            let part = if argument.is_global_set() { &page } else { part };
            // A sentence that ends where a line of the source does has two blanks behind it.
            let part = part.replace(".  ", ". ");
            let short = argument.get_short().map_or(String::new(), |short| format!("-{short}, "));
            let long = argument.get_long();
            let long = long.map_or(String::new(), |long| format!("       {short}--{long}"));
            assert!(part.contains(&long) && part.contains(&help), "{name} {long}: {help}\n{part}");
        }
    }
    for global in cli.get_arguments().filter_map(clap::Arg::get_long) {
        assert!(page.contains(&format!("--{global}")), "--{global}");
    }
}

/// Who was woken up sees all of it at once.
#[test]
fn the_page_for_the_night_fits_one_screen() {
    let manuals = pages::manuals().unwrap();
    let (_, page) = manuals.iter().find(|(name, _)| name.ends_with(".7")).unwrap();
    let folder = Folder::new("pages");
    let file = folder.write("page", page);
    let output = run("mandoc", "mandoc", &["-Tascii", "-Owidth=80"], &file);
    let lines = String::from_utf8(output.stdout).unwrap().lines().count();
    assert!(lines <= 24, "{lines} lines");
    let shown = read("postpone-night.7");
    for word in ["ctl allow", "ctl bypass on", "ctl shadow", "systemctl stop", "explain"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
}

/// In the order of the file, so each under its own section.
#[test]
fn every_key_of_the_reference_settings_is_in_the_page_with_its_default() {
    let page = read("postpone.toml.5");
    let reference = include_str!("../conf/postpone.toml");
    let settings = reference.lines().map(|line| line.trim_start_matches('#'));
    let settings = settings.filter(|line| !line.is_empty() && !line.starts_with(' '));
    let (mut rest, mut found) = (page.as_str(), 0);
    for setting in settings {
        let at = rest.find(setting).unwrap_or_else(|| panic!("no {setting} in {rest}"));
        rest = &rest[at..];
        found += 1;
    }
    assert!(found > 200, "{found} settings");
}

#[test]
fn what_serve_says_of_itself_is_in_its_help_and_in_the_page() {
    let page = read("postpone.8");
    let help = support::daemon::postpone(&["serve", "--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    for Exit { code, .. } in SERVE_EXITS {
        for (place, text) in [("the page", &page), ("the help", &help)] {
            assert!(text.contains(&format!(" {code}")), "{place}: {code}");
        }
    }
    for word in ["SIGHUP", "SIGTERM", "NOTIFY_SOCKET", "/var/lib/postpone"] {
        assert!(page.contains(word) && help.contains(word), "{word}");
    }
    for (number, field) in
        ["action", "mode", "client", "threshold", "wait_ms", "reply"].iter().enumerate()
    {
        assert!(page.contains(&format!("\n       {field}")), "{number}: {field}");
    }
}

#[test]
fn the_files_and_the_codes_that_are_told_are_the_true_ones() {
    let defaults = Settings::default().print();
    let made =
        FILES.iter().filter(|file| ["/run/", "/var/"].iter().any(|at| file.name.starts_with(at)));
    let made: Vec<_> = made.map(|file| file.name).collect();
    assert_eq!(made.len(), 2, "the state and the socket: {made:?}");
    made.iter().for_each(|path| assert!(defaults.contains(path), "{path} in {defaults}"));
    let says = |exits: &[Exit], code| exits.iter().any(|told| told.code == code);
    for code in [exit::SYSTEM, exit::OUTPUT, exit::STATE, exit::SETTINGS] {
        assert!(says(SERVE_EXITS, code), "{code}");
    }
    for code in [
        exit::USAGE,
        exit::DATA,
        exit::INPUT,
        exit::UNAVAILABLE,
        exit::OUTPUT,
        exit::STATE,
        exit::PROTOCOL,
        exit::PERMISSION,
        exit::SETTINGS,
    ] {
        assert!(says(TOOL_EXITS, code), "{code}");
    }
}

#[test]
fn bash_completes_what_has_been_begun() {
    let folder = Folder::new("pages");
    for (name, completion) in pages::completions::files().unwrap() {
        assert!(completion.contains("maintenance"), "{name}: {completion}");
        if name != "completions/postpone" {
            continue;
        }
        let file = folder.write("postpone", &completion);
        takes("bash", "bash", &["-n"], &file);
        let begun = r#"source "$1"; COMP_WORDS=(postpone ctl ma); COMP_CWORD=2
            _postpone postpone ma ctl; printf '%s\n' "${COMPREPLY[@]}""#;
        let output = run("bash", "bash", &["-c", begun, "bash"], &file);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "maintenance\n");
    }
}

/// The same from everywhere, so nothing of this machine is in it.
#[test]
fn everything_that_is_in_the_program_is_named_with_its_licence() {
    let cargo = OsStr::new(CARGO);
    let linked = pages::crates::linked(cargo).unwrap();
    for name in ["clap", "fjall", "indymilter", "tokio", "Rust's standard library"] {
        assert!(linked.iter().any(|found| found.name == name), "no {name}");
    }
    // Neither what tests alone need, nor what only the compiler runs.
    for name in ["postpone", "proptest", "clap_complete", "clap_derive", "tokio-macros"] {
        assert!(!linked.iter().any(|found| found.name == name), "{name}");
    }
    let all = pages::all(cargo).unwrap();
    let file = |wanted: &str| &all.iter().find(|(name, _)| name == wanted).unwrap().1;
    for Crate { name, version, texts, .. } in &linked {
        assert!(file("notices").contains(&format!("\n{name} {version}\n")), "{name} {version}");
        assert!(texts.iter().all(|(_, text)| file("notices").contains(text)), "{name}");
    }
    assert!(file("copyright").starts_with("Format: https://www.debian.org/doc/"));
    assert_eq!(*file("state-version"), format!("{}\n", postpone::store::folder::VERSION));
    let home = std::env::var("HOME").unwrap_or("/root".into());
    for (name, text) in &all {
        for place in [env!("CARGO_MANIFEST_DIR"), ".cargo/registry", &format!("{home}/")] {
            assert!(!text.contains(place), "{name} tells {place}");
        }
    }
    assert!(all == pages::all(cargo).unwrap(), "made twice, it is not the same");
}

#[test]
fn what_may_not_be_shipped_is_not_packaged() {
    let text = vec![("LICENSE".to_owned(), "Do as you are told.\n".to_owned())];
    let found = |licence: &str, texts: &[(String, String)]| Crate {
        name: "shiny".into(),
        version: "1.0.0".into(),
        licence: licence.into(),
        repository: String::new(),
        texts: texts.to_vec(),
    };
    for licence in ["MIT", "GPL-2.0-only OR MIT", "MIT AND Apache-2.0", "(X OR MIT) AND Zlib"] {
        assert_eq!(may_be_shipped(&found(licence, &text)), Ok(()), "{licence}");
    }
    for licence in ["", "GPL-2.0-only", "MIT AND GPL-2.0-only", "(X OR Y) AND MIT", "OpenSSL"] {
        let refused = may_be_shipped(&found(licence, &text)).unwrap_err();
        assert!(
            refused.contains("shiny 1.0.0") && refused.contains("GPL-3.0-or-later"),
            "{refused}"
        );
    }
    let refused = may_be_shipped(&found("MIT", &[])).unwrap_err();
    assert!(refused.contains("shiny 1.0.0") && refused.contains("no file"), "{refused}");
    assert_eq!(may_be_shipped(&found("0BSD", &[])), Ok(()));
    assert_eq!(choice("GPL-2.0-only OR Apache-2.0"), Some(vec!["Apache-2.0"]));
}
