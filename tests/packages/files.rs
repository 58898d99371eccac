//! The package files: those under test, and the same under an older number and with other settings
//! shipped, and listening as that one did, since no earlier version has been released.

// Nothing outside this test crate could reach it.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::GIVEN;
use super::support::Folder;
use super::support::debian::PLACE_OF_ROOT;

/// The number of the older one.
pub const OLD: &str = "0.0.9";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    Deb,
    Rpm,
}

impl Package {
    fn extension(self) -> &'static str {
        match self {
            Self::Deb => "deb",
            Self::Rpm => "rpm",
        }
    }

    /// The command that installs the `new` or the `old` one.
    pub fn install(self, name: &str) -> String {
        match self {
            Self::Deb => format!("apt-get install --yes {GIVEN}/{name}.deb"),
            // What it needs goes by other names on Debian.
            Self::Rpm => format!("rpm --install --nodeps {GIVEN}/{name}.rpm"),
        }
    }

    /// The command that installs it over another version.
    pub fn upgrade(self, name: &str) -> String {
        match self {
            Self::Deb => format!(
                "apt-get install --yes --allow-downgrades -o Dpkg::Options::=--force-confold \
                 {GIVEN}/{name}.deb"
            ),
            Self::Rpm => format!("rpm --upgrade --oldpackage --nodeps {GIVEN}/{name}.rpm"),
        }
    }

    /// The command that upgrades the `new` one to itself.
    pub fn again(self) -> String {
        match self {
            Self::Deb => format!("apt-get install --yes --reinstall {GIVEN}/new.deb"),
            Self::Rpm => format!("rpm --reinstall --nodeps {GIVEN}/new.rpm"),
        }
    }

    /// The command that removes it.
    pub fn remove(self) -> &'static str {
        match self {
            Self::Deb => "apt-get remove --yes postpone",
            Self::Rpm => "rpm --erase postpone",
        }
    }

    /// The command that starts it now and with the host, where installing has not done that.
    pub fn enable(self) -> &'static str {
        match self {
            Self::Deb => "true",
            Self::Rpm => "systemctl enable --now postpone",
        }
    }

    /// The command that tells the version installed.
    pub fn version(self) -> &'static str {
        match self {
            Self::Deb => "dpkg-query --show --showformat='${Version}' postpone",
            Self::Rpm => "rpm --query --queryformat='%{VERSION}' postpone",
        }
    }

    /// How the file is called beside changed settings that has those of the new package.
    pub fn offered(self) -> &'static str {
        match self {
            Self::Deb => ".dpkg-dist",
            Self::Rpm => ".rpmnew",
        }
    }
}

/// The package that `make packages` has made of this version.
pub fn files(package: Package) -> PathBuf {
    let out = checkout().join("packaging/out");
    let extension = package.extension();
    let mut found = fs::read_dir(&out)
        .unwrap_or_else(|e| panic!("{}: {e}: say `make packages`", out.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|own| own == extension));
    let path = found.next().expect("a package: say `make packages`");
    assert!(path.to_str().unwrap().contains(env!("CARGO_PKG_VERSION")), "{}", path.display());
    path
}

/// A folder with `new.deb`, `new.rpm`, `old.deb` and `old.rpm`.
pub fn made() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let given = Path::new(PLACE_OF_ROOT).join("packages");
        let _ = fs::remove_dir_all(&given);
        fs::create_dir_all(&given).unwrap();
        let older = Folder::new("older");
        pack_older(older.path());
        for package in [Package::Deb, Package::Rpm] {
            let extension = package.extension();
            fs::copy(files(package), given.join(format!("new.{extension}"))).unwrap();
            let made = fs::read_dir(older.path().join("out")).unwrap().map(|e| e.unwrap().path());
            let old = made.filter(|path| path.extension().is_some_and(|own| own == extension));
            fs::copy(old.last().unwrap(), given.join(format!("old.{extension}"))).unwrap();
        }
        given
    })
}

/// Packs the program once more: as version `OLD`, which shipped other settings.
fn pack_older(place: &Path) {
    let sh = |command: &str| {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", command])
            .env("CHECKOUT", checkout())
            .env("PLACE", place)
            .env("OLD", OLD)
            .env("VERSION", env!("CARGO_PKG_VERSION"))
            .env("DEB", files(Package::Deb))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    sh(r#"cd "$CHECKOUT"
        cp -r packaging conf docs README.md CHANGELOG.md LICENSE Cargo.toml "$PLACE"
        dpkg-deb --extract "$DEB" "$PLACE/unpacked"
        cd "$PLACE"
        # It listened on the port, and had no socket unless somebody switched that on.
        cp "$CHECKOUT"/tests/packages/older/postpone.socket packaging/systemd/
        rm packaging/systemd/postpone-port.socket
        sed -i '/^Wants=postpone.socket$/d; /^After=postpone.socket /d' packaging/systemd/postpone.service
        sed -i '/postpone-port.socket$/d' packaging/rpm/postpone.spec
        sed -i 's/ postpone-port.socket//' packaging/install packaging/deb/* packaging/rpm/postpone.spec
        echo : >packaging/keep-port
        echo : >packaging/port-kept
        sed -i "0,/^version = /s/^version = .*/version = \"$OLD\"/" Cargo.toml
        sed -i "s/^## $VERSION - /## $OLD - /" CHANGELOG.md
        printf '\n## 0.0.8 - 2025-01-02\n\n- An older one still.\n' >>CHANGELOG.md
        echo '# An older default.' >>conf/postpone.toml
        packaging/pack unpacked/usr/bin/postpone "$CHECKOUT/packaging/out/pages" out"#);
}

/// The reference that the package under test ships.
pub fn reference() -> String {
    fs::read_to_string(checkout().join("conf/postpone.toml")).unwrap()
}

pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
