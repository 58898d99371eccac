//! Every file in `fuzz/corpus`, through the property it was kept for: what real mail servers, tools
//! and state folders have sent and written, and what a fuzzer has found. The properties are those of
//! `fuzz/`; its fuzzer, which makes up more, is `make fuzz`.

#![allow(clippy::unwrap_used, reason = "what goes wrong in here has to fail the test")]

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is a crate of its own in fuzz/")]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use targets::{TARGETS, Three};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

#[test]
fn every_input_that_was_kept_has_its_property() {
    let corpus = corpus();
    let mut folders: Vec<_> =
        fs::read_dir(&corpus).unwrap().map(|f| f.unwrap().file_name()).collect();
    folders.sort();
    assert_eq!(folders, TARGETS.map(|(name, _)| name));
    for (name, target) in TARGETS {
        let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(Result::unwrap).collect();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            // What panics says which file it was.
            let path = file.path();
            let bytes = fs::read(&path).unwrap();
            if std::panic::catch_unwind(|| target(&bytes)).is_err() {
                panic!("{}", path.display());
            }
        }
    }
}

/// `make fuzz` builds what is locked, so what it tries is what is shipped.
#[test]
fn the_fuzz_targets_are_built_from_what_the_daemon_is_built_from() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| -> toml::Table {
        fs::read_to_string(root.join(file)).unwrap().parse().unwrap()
    };
    let locked = |file: &str| -> Vec<(String, String)> {
        let lock = read(file);
        let packages = lock["package"].as_array().unwrap().iter();
        let text = |package: &toml::Value, key: &str| package[key].as_str().unwrap().to_owned();
        packages.map(|package| (text(package, "name"), text(package, "version"))).collect()
    };
    let (ours, theirs) = (locked("Cargo.lock"), locked("fuzz/Cargo.lock"));
    let command = "cp Cargo.lock fuzz/ && cargo fetch --manifest-path fuzz/Cargo.toml";
    for package in &theirs {
        let is_shared = ours.iter().any(|(name, _)| *name == package.0);
        assert!(!is_shared || ours.contains(package), "{package:?} is another here: {command}");
    }
    for (name, _) in read("Cargo.toml")["dependencies"].as_table().unwrap() {
        assert!(theirs.iter().any(|(known, _)| known == name), "{name} is missing: {command}");
    }
    for (name, _) in TARGETS {
        assert!(root.join("fuzz/fuzz_targets").join(name).with_extension("rs").exists(), "{name}");
    }
}

proptest! {
    /// Of every table that is kept on disk, those that come to be included: records as a host has
    /// written them and records with some bytes changed, alike or not, at whatever moment.
    #[test]
    fn every_kind_of_record_folds_and_fades_as_all_do(
        alike: bool,
        changes in prop::collection::vec((0..3_usize, any::<prop::sample::Index>(), any::<u8>()), 0..6),
        moment in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
    ) {
        for (table, _) in targets::memory().kept() {
            let sample = corpus().join("records").join(format!("{table}-0"));
            let bytes = fs::read(&sample);
            let bytes = bytes.unwrap_or_else(|e| panic!("no records of {table}: {}: {e}", sample.display()));
            let mut three = Three::parse(&bytes).unwrap();
            prop_assert_eq!(&three.table, table);
            if alike {
                three.records = [0; 3].map(|first| three.records[first].clone());
            }
            for (record, index, byte) in &changes {
                let record = &mut three.records[*record];
                let at = index.index(record.len());
                record[at] = *byte;
            }
            three.now = moment.unwrap_or(three.now);
            three.obey();
        }
    }
}
