//! Stories that mount something, in a mount namespace of their own.

use std::env;
use std::process::Command;

const APART: &str = "POSTPONE_TEST_APART";

/// Runs a story in a mount namespace of its own: in this process, if it has one, or in another.
pub fn apart(test: &str, story: impl FnOnce()) {
    if env::var_os(APART).is_some() {
        return story();
    }
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(APART, "1")
        .output()
        .expect("setpriv and unshare (util-linux)");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let needs =
        "it needs root with CAP_SYS_ADMIN, to mount a small disk (a container: --privileged)";
    assert!(output.status.success(), "{}\n{needs}", said.join("\n"));
    assert!(said[0].contains("1 passed"), "no test of this name: {said:?}");
}
