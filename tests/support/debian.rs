//! Programs of Debian's packages that are better not installed, since they could not stand beside
//! others or would start a server: fetched and unpacked beside what cargo builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with these packages, unpacked by the first test that asks, for all later ones. Other
/// test processes wait for it, or find it whole or not at all.
pub fn unpacked(packages: &[&str]) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(place).unwrap();
    let name = packages.join("+");
    let ready = place.join(&name);
    let turn = fs::File::create(place.join(format!("{name}.lock"))).unwrap();
    turn.lock().unwrap();
    if !ready.is_dir() {
        let begun = place.join(format!("{name}.begun"));
        let _ = fs::remove_dir_all(&begun); // of one who was killed
        unpack(packages, &begun);
        fs::rename(&begun, &ready).unwrap();
    }
    ready
}

fn unpack(packages: &[&str], to: &Path) {
    let debs = to.join("debs");
    fs::create_dir_all(&debs).unwrap();
    let fetched =
        Command::new("apt-get").arg("download").args(packages).current_dir(&debs).output();
    let fetched = fetched.unwrap_or_else(|e| panic!("{packages:?} come from Debian: apt-get: {e}"));
    assert!(
        fetched.status.success(),
        "the end-to-end tests need the real thing, and `apt-get download {}` failed (would \
         `apt-get update` help?):\n{}",
        packages.join(" "),
        String::from_utf8_lossy(&fetched.stderr)
    );
    for deb in fs::read_dir(&debs).unwrap() {
        let deb = deb.unwrap().path();
        let done = Command::new("dpkg").arg("-x").arg(&deb).arg(to).status();
        assert!(done.expect("dpkg").success(), "dpkg -x {}", deb.display());
    }
    fs::remove_dir_all(&debs).unwrap();
}
