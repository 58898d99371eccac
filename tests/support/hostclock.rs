//! The wall clock of one daemon, which a story may step while it runs: libfaketime's, which leaves
//! alone for how long the host has run.

use super::Folder;
use std::fs;
use std::path::PathBuf;

pub struct HostClock(PathBuf);

impl HostClock {
    pub fn of(folder: &Folder) -> Self {
        let clock = Self(folder.path().join("clock"));
        clock.is_off_by("+0");
        clock
    }

    /// Steps it to be off the true time by so much, `+10y` or `-70d`.
    pub fn is_off_by(&self, span: &str) {
        let next = self.0.with_extension("next");
        fs::write(&next, format!("{span}\n")).unwrap();
        fs::rename(next, &self.0).unwrap();
    }

    /// What makes a program go by it, when it is in its environment.
    pub fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("LD_PRELOAD", libfaketime().to_str().unwrap().to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.to_str().unwrap().to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}

/// Where libfaketime puts its library, which its program knows best.
fn libfaketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().chain(fs::read_dir("/usr").unwrap());
    let libraries = folders.filter_map(|entry| {
        let library = entry.ok()?.path().join("faketime/libfaketimeMT.so.1");
        library.exists().then_some(library)
    });
    libraries.last().expect("libfaketime: install the package `faketime`")
}
