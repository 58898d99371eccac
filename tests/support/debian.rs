//! Programs of Debian's packages that are better not installed, since they could not stand beside
//! others or would start a server: fetched and unpacked into a folder of their own.

use rustix::process::geteuid;
use std::path::PathBuf;
use std::process::Command;

/// What root unpacks would be in the way of whose checkout this is.
pub const PLACE_OF_ROOT: &str = "/var/cache/postpone";

/// The folder with these packages, unpacked by the first test that asks, for all later ones.
pub fn unpacked(packages: &[&str]) -> PathBuf {
    let place = match geteuid().is_root() {
        true => PLACE_OF_ROOT,
        false => env!("CARGO_TARGET_TMPDIR"),
    };
    let unpack = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/unpack");
    let output = Command::new(unpack).arg(place).args(packages).output();
    let output = output.unwrap_or_else(|e| panic!("{packages:?} come from Debian: {unpack}: {e}"));
    assert!(
        output.status.success(),
        "the end-to-end tests need the real thing: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}
