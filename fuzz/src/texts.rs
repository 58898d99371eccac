//! What administrators write.

use std::net::IpAddr;
use std::path::Path;

use postpone::config::{Settings, Unusable};
use postpone::policy::access::{Entry, Lists};
use postpone::smtp::client::Client;
use postpone::smtp::reply::Reply;
use postpone::smtp::template::Template;

/// A settings file: what is read is printed and read back the same, without a new complaint; of
/// what cannot be used the first error is told in one line.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // No file of this host is a part of the property.
    if text.contains("file") {
        return;
    }
    match Settings::parse("postpone.toml", text) {
        Ok(checked) => {
            let _ = checked.report.to_string();
            let printed = checked.settings.print();
            match Settings::parse("printed.toml", &printed) {
                Ok(again) => assert!(again.settings == checked.settings, "{printed}"),
                Err(Unusable(report)) => panic!("{report}\n{printed}"),
            }
        }
        Err(Unusable(report)) => {
            assert!(report.has_errors() && !report.to_string().is_empty());
            let first = report.first_error().expect("an error");
            assert!(!first.contains('\n'), "{first:?}");
        }
    }
}

/// A list of clients: an entry is printed and read back the same, and names who it says; a line
/// that is wrong is named by its number.
pub fn lists(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let file = Entry::File(Path::new("/list").into());
    let lists = Lists::of("allow", &[file], &[], |_| Ok(text.into()));
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let mut wrong = 0;
    for line in lines.filter(|line| !line.is_empty()) {
        let Ok(entry) = line.parse::<Entry>() else {
            wrong += 1;
            continue;
        };
        assert_eq!(entry.to_string().parse::<Entry>().as_ref(), Ok(&entry));
        let client = match &entry {
            Entry::Network(network) => Client::new(network.addr()),
            Entry::Suffix(name) => Client::new(IpAddr::from([192, 0, 2, 7])).named(name),
            Entry::File(_) => {
                wrong += 1;
                continue;
            }
        };
        if let Ok(lists) = &lists {
            assert!(lists.names(&client), "{line}");
        }
    }
    match lists {
        Ok(_) => assert_eq!(wrong, 0),
        Err(complaints) => assert_eq!(complaints.len(), wrong),
    }
}

/// A reply text: what is read is printed and read back the same, and is a reply line whatever it is
/// filled with.
pub fn templates(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(template) = text.parse::<Template>() else { return };
    assert_eq!(template.to_string().parse::<Template>().as_ref(), Ok(&template));
    let _ = template.misgiving();
    for long in ["", "x", "\r\n550 5.7.1 %s\0", "ä\u{202e}"] {
        let long = long.repeat(600);
        let filled = template.text(|_| long.as_str().into());
        let reply = Reply::new(template.code(), template.enhanced(), &filled);
        assert_eq!(reply.text(), filled, "it is not cut twice");
        let line = reply.to_string();
        assert!(line.len() + 2 <= 512, "{line}");
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
    }
}
