//! A small disk of a story's own, which fills up or hangs when the story says so. It is mounted at
//! `/mnt` in the mount namespace of the story, see `apart`.

use super::Folder;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Lets the disk answer when standard input ends: the kernel would keep who waits for it for ever, also
/// when this test process is killed.
const THAW: &str =
    r#"trap "" HUP INT TERM; read -r nothing; fsfreeze --unfreeze "$1" 2>/dev/null; true"#;

/// Everything on it is gone with it.
pub struct Disk {
    pub place: PathBuf,
    guard: Child,
    _image: Folder,
}

impl Disk {
    pub fn mounted() -> Self {
        let image = Folder::new("disk");
        let file = image.path().join("image");
        let file = file.to_str().unwrap();
        run("truncate", &["-s", "96M", file]);
        run("mkfs.ext4", &["-q", "-F", "-m", "0", file]);
        run("mount", &["-o", "loop", file, "/mnt"]);
        let guard = Command::new("sh")
            .args(["-c", THAW, "sh", "/mnt"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh starts");
        Self { place: PathBuf::from("/mnt"), guard, _image: image }
    }

    /// Who writes there waits from now on.
    pub fn hangs(&self) -> Hanging<'_> {
        run("fsfreeze", &["--freeze", self.place.to_str().unwrap()]);
        Hanging(self)
    }

    /// Nothing more can be written there from now on.
    pub fn is_full(&self) -> Full {
        let ballast = self.place.join("ballast");
        let mut file = fs::File::create(&ballast).unwrap();
        for size in [1 << 20, 1 << 12, 1] {
            let piece = vec![0; size];
            while file.write(&piece).is_ok_and(|written| written > 0) {}
        }
        Full(ballast)
    }
}

/// A disk that answers nobody for as long as this lives. Whoever waits for it cannot end, so it is to
/// be dropped before a daemon is.
pub struct Hanging<'a>(&'a Disk);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        let place = self.0.place.to_str().unwrap();
        let answers = Command::new("fsfreeze").args(["--unfreeze", place]).status();
        assert!(answers.unwrap().success() || std::thread::panicking());
    }
}

/// A disk that is full for as long as this lives.
pub struct Full(PathBuf);

impl Drop for Full {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        let _ = Command::new("umount").arg("--lazy").arg(&self.place).output();
    }
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} (e2fsprogs, util-linux): {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}
