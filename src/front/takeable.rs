//! Addresses that another user can take while postpone is away, and so answer the MTA: a port that
//! needs no privilege, and a unix socket in a folder that everybody may write.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::address::Address;

/// The first port that needs no privilege, as the kernel begins.
const UNPRIVILEGED: u16 = 1024;

/// What an administrator should know of these addresses, which nobody holds while we are away.
pub fn warning<'a>(addresses: impl Iterator<Item = &'a Address>) -> Option<String> {
    let first_port = first_unprivileged();
    let takeable = addresses.filter(|address| can_be_taken(address, first_port));
    let shown: Vec<_> = takeable.map(Address::to_string).collect();
    let (what, which) = match shown.as_slice() {
        [] => return None,
        [one] => (one.clone(), "this address"),
        [before @ .., last] => (format!("{} and {last}", before.join(", ")), "these addresses"),
    };
    Some(format!(
        "{what}: while postpone is away, any local user can take {which} and answer the MTA. Let a \
         socket unit of systemd hold a unix socket, or listen on one in a folder where no other user \
         may write"
    ))
}

/// Port 0 is one that the kernel chooses: no MTA asks it.
fn can_be_taken(address: &Address, first_port: u16) -> bool {
    match address {
        Address::Inet(address) => address.port() != 0 && address.port() >= first_port,
        Address::Unix(path) => can_be_made(path),
    }
}

/// Whether everybody can make this file where it is missing: in its folder, or by putting another in
/// the place of one above it, which a sticky bit forbids as long as that one is there.
fn can_be_made(path: &Path) -> bool {
    let mode = |folder: &Path| Some(fs::metadata(folder).ok()?.permissions().mode());
    let mut modes = path.ancestors().skip(1).filter_map(mode);
    modes.next().is_some_and(|nearest| nearest & 0o0002 != 0)
        || modes.any(|above| above & 0o1002 == 0o0002)
}

fn first_unprivileged() -> u16 {
    let set = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    set.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(UNPRIVILEGED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_safe_below_the_first_that_needs_no_privilege() {
        for (address, takeable) in [
            ("inet:127.0.0.1:7421", true),
            ("inet6:[::1]:7424", true),
            ("inet:127.0.0.1:1024", true),
            ("inet:127.0.0.1:1023", false),
            ("inet:127.0.0.1:0", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(can_be_taken(&address, UNPRIVILEGED), takeable, "{address}");
        }
        let privileged = "inet:127.0.0.1:25".parse().unwrap();
        assert!(can_be_taken(&privileged, 0), "the host has opened it to all");
    }

    #[test]
    fn a_unix_socket_is_safe_where_not_everybody_may_make_it() {
        let folder = std::env::temp_dir().join(format!("postpone-takeable-{}", std::process::id()));
        let inner = folder.join("inner");
        fs::create_dir_all(&inner).unwrap();
        let takeable = |outer, of_inner, path: &str| {
            for (folder, mode) in [(&folder, outer), (&inner, of_inner)] {
                fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
            }
            can_be_made(&folder.join(path))
        };
        assert!(!takeable(0o755, 0o755, "inner/milter.sock"));
        assert!(takeable(0o755, 0o1777, "inner/milter.sock"));
        assert!(!takeable(0o1777, 0o755, "inner/milter.sock"), "nobody can move the inner one");
        assert!(takeable(0o777, 0o755, "inner/milter.sock"), "anybody can");
        assert!(takeable(0o1777, 0o755, "not/there/milter.sock"));
        let safe = Address::Unix("/run/postpone/milter.sock".into());
        assert_eq!(warning([&safe].into_iter()), None);
        fs::remove_dir_all(&folder).unwrap();
    }
}
