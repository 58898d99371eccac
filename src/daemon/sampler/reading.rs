//! What the kernel says of the host: pressure, load, memory, room on disks.
//!
//! What it cannot say, or says in words we do not know, is a reason and no number.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::statvfs;

/// No file of the kernel that is read here is longer.
const LONGEST: u64 = 1 << 20;

fn text(file: &Path) -> Result<String, String> {
    let read = || {
        let mut text = String::new();
        File::open(file)?.take(LONGEST).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|error: std::io::Error| format!("{}: {error}", file.display()))
}

fn found(file: &Path, number: impl Fn(&str) -> Option<f64>, what: &str) -> Result<f64, String> {
    let number = number(&text(file)?).filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("{}: it has no {what}", file.display()))
}

/// Percent of the last ten seconds in which some task, or all, stalled.
pub(super) fn pressure(file: &Path, full: bool) -> Result<f64, String> {
    let line = if full { "full" } else { "some" };
    found(file, |text| stalled(text, line), &format!("`avg10` in a line `{line}`"))
}

/// Documentation/accounting/psi.rst: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn stalled(text: &str, line: &str) -> Option<f64> {
    let fields = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '))?;
    fields.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

/// The load average of one minute, of all cores together.
pub(super) fn load(file: &Path) -> Result<f64, String> {
    found(file, |text| text.split(' ').next()?.parse().ok(), "load average")
}

/// Cores of the host, from `stat` beside this file. What this process may use, where there is none:
/// in a container that is less, while the load average is the whole host's.
pub(super) fn cores(beside: &Path) -> usize {
    let counted = text(&beside.with_file_name("stat")).map_or(0, |stat| cores_in(&stat));
    match counted {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        cores => cores,
    }
}

/// proc_stat(5): `cpu ` is their sum, `cpu0 ` the first of them.
fn cores_in(stat: &str) -> usize {
    let number = |line: &str| {
        let name = line.strip_prefix("cpu")?.split(' ').next()?;
        name.parse::<u32>().ok()
    };
    stat.lines().filter_map(number).count()
}

/// Bytes that programs can still have without swapping.
pub(super) fn memory_available(file: &Path) -> Result<f64, String> {
    found(file, available, "`MemAvailable`")
}

/// proc_meminfo(5): `MemAvailable:    1234 kB`.
fn available(text: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = rest.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes as f64 * 1024.0)
}

/// Bytes that an ordinary user can have on the disk of this path. May block.
pub(super) fn free_bytes(path: &Path) -> Result<f64, String> {
    let disk = statvfs(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(disk.f_bavail as f64 * disk.f_frsize as f64)
}

/// Inodes there. May block.
pub(super) fn free_inodes(path: &Path) -> Result<f64, String> {
    let disk = statvfs(path).map_err(|error| format!("{}: {error}", path.display()))?;
    match disk.f_files {
        0 => Err(format!("{}: this file system has no fixed number of inodes", path.display())),
        _ => Ok(disk.f_favail as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PRESSURE: &str = "some avg10=47.93 avg60=22.45 avg300=44.34 total=5665555584\n\
                            full avg10=1.50 avg60=0.00 avg300=0.00 total=0\n";

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(stalled(PRESSURE, "some"), Some(47.93));
        assert_eq!(stalled(PRESSURE, "full"), Some(1.5));
        let meminfo = "MemTotal:  8048480 kB\nMemFree: 1 kB\nMemAvailable:    6003200 kB\n";
        assert_eq!(available(meminfo), Some(6_003_200.0 * 1024.0));
        assert_eq!(cores_in("cpu  1 2 3\ncpu0 1 2 3\ncpu11 1 2 3\nintr 5 1\nctxt 1\n"), 2);
    }

    #[test]
    fn what_it_does_not_write_is_no_number() {
        for text in
            ["", "some", "some avg60=1.00", "some avg10=", "some avg10=x", "somewhat avg10=1"]
        {
            assert_eq!(stalled(text, "some"), None, "{text}");
        }
        assert_eq!(stalled("some avg10=1.00 avg60=1.00", "full"), None);
        for text in ["", "MemAvailable:", "MemAvailable: 5 MB", "MemAvailable: -5 kB"] {
            assert_eq!(available(text), None, "{text}");
        }
    }

    #[test]
    fn a_reason_names_the_file() {
        let folder = std::env::temp_dir().join(format!("postpone-reading-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("cpu");
        let missing = pressure(&file, false).unwrap_err();
        assert!(missing.contains("cpu: No such file"), "{missing}");
        for wrong in ["some avg10=nan", "some avg10=-1", "some avg10=inf", "\u{0}"] {
            std::fs::write(&file, wrong).unwrap();
            let why = pressure(&file, false).unwrap_err();
            assert!(why.ends_with("cpu: it has no `avg10` in a line `some`"), "{why}");
        }
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(load(&file).is_err());
        assert!(free_bytes(&folder).unwrap() > 0.0);
        assert!(free_bytes(&folder.join("none")).is_err());
        assert_eq!(free_inodes("/proc".as_ref()).map_err(|why| why.contains("inodes")), Err(true));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in "(some|full|cpu|MemAvailable:|avg10=|[0-9]|.|\n)*") {
            let _ = (stalled(&text, "some"), available(&text), cores_in(&text));
        }
    }
}
