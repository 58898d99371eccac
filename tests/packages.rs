//! What a postmaster does with the packages that `make packages` has left in `packaging/out`:
//! installs, upgrades, removes; and what Debian's and Red Hat's own tools say of them. In a Debian
//! that boots its own systemd, with Debian's Postfix; `make test-packages` runs it.

// What goes wrong has to fail the test at once.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "packages/container.rs"]
mod container;
#[path = "packages/files.rs"]
mod files;

use std::net::TcpStream;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

use container::{CLIENT, Container, GIVEN, STRANGER};
use files::{Package, checkout, files, made};
use rustix::process::{Pid, Signal, kill_process};
use support::milter::{Mta, helo, quit};
use support::{Folder, free_port, wait_until};

const SETTINGS: &str = r#"limit = []
[server]
hostname = "throttle.example.org"
[greylist]
mode = "enforce"
delay = "1s"
"#;
const FILE: &str = "/etc/postpone/postpone.toml";

/// A host with this package installed, these settings, and a Postfix that asks it.
fn host(package: Package, name: &str) -> Container {
    let container = Container::boot(made());
    container.does(&package.install(name));
    container.write(FILE, SETTINGS);
    container.does(&format!("{}; systemctl restart postpone", package.enable()));
    container.does("postpone setup postfix --apply");
    container
}

/// A stranger is told to come back.
fn waits(container: &Container, client: &str) {
    let told = container.send(client);
    assert!(told.starts_with("451 4.7.1 throttle.example.org First contact; retry in "), "{told}");
}

/// Who is known, or asks while postpone is away, is let in.
fn passes(container: &Container, client: &str) {
    let told = container.send(client);
    assert!(told.starts_with("250"), "{told}");
}

/// A first message waits, and passes when it comes back as it was told.
fn known(container: &Container) {
    waits(container, CLIENT);
    wait_until("the retry to pass", || container.send(CLIENT).starts_with("250").then_some(()));
}

fn version(container: &Container, package: Package) -> String {
    container.does(package.version()).trim().to_owned()
}

fn show(container: &Container, property: &str) -> String {
    let shown = format!("systemctl show --value --property {property} postpone");
    container.does(&shown).trim().to_owned()
}

fn the_first_hour(package: Package) {
    let container = Container::boot(made());
    let configuration = "cat /etc/postfix/main.cf /etc/postfix/master.cf | sha256sum";
    let before = container.does(configuration);

    let said = container.does(&package.install("new"));
    assert!(said.contains("postpone setup postfix --apply"), "{said}");
    assert_eq!(container.does(configuration), before);
    container.does(package.enable());

    assert_eq!(container.does("systemctl is-active postpone").trim(), "active");
    let pid = show(&container, "MainPID");
    assert_eq!(container.does(&format!("stat --format=%U /proc/{pid}")).trim(), "postpone");
    let held = format!("grep -hE '^(NoNewPrivs|Cap(Eff|Prm|Inh|Amb)):' /proc/{pid}/task/*/status");
    let held = container.does(&format!("{held} 2>/dev/null || true"));
    assert!(held.lines().count() > 10, "{held}");
    for line in held.lines() {
        assert!(line == "NoNewPrivs:\t1" || line.ends_with(":\t0000000000000000"), "{held}");
    }
    assert!(
        show(&container, "StatusText").contains("serving"),
        "{}",
        show(&container, "StatusText")
    );

    for policy in ["postpone", "small-site", "large-mx", "submission"] {
        let file = format!("/usr/share/doc/postpone/examples/{policy}.toml");
        container.does(&format!("postpone check --config {file}"));
    }
    container.write(FILE, SETTINGS);
    container.does("systemctl reload postpone");
    // As an ordinary user types it: Postfix's programs are elsewhere.
    let shown = container.does("PATH=/usr/bin:/bin postpone setup postfix");
    assert!(shown.contains("smtpd_milters"), "{shown}");
    assert_eq!(container.does(configuration), before);
    container.does("postpone setup postfix --apply");
    known(&container);
    container.until("test -s /var/mail/bob");

    let journal = container.does("journalctl --unit=postpone --output=cat");
    assert!(
        journal.contains(&format!(
            "client={CLIENT} action=defer reason=greylist mode=enforce event=rcpt"
        )),
        "{journal}"
    );
    let explained = container.does(&format!("postpone explain {CLIENT}"));
    assert!(explained.contains(CLIENT), "{explained}");
    the_journal_is_read(&container);

    container.does("postpone setup postfix --undo");
    let milters = container.does("postconf -h smtpd_milters");
    assert_eq!(milters.trim(), "");
}

/// `postpone log`, where a journal was rotated and has lines of others about the same unit.
fn the_journal_is_read(container: &Container) {
    let before = container.does("postpone log --since 1h");
    assert!(before.contains(&format!("defer   {CLIENT} greylist ")), "{before}");
    assert!(before.lines().all(|line| line.contains(" greylist ")), "{before}");
    container.does("postpone log --follow >/tmp/followed 2>&1 & echo $! >/tmp/follows");
    container.does("journalctl --rotate");
    waits(container, STRANGER);
    let stranger = format!("defer   {STRANGER} greylist ");
    container.until(&format!("grep '{stranger}' /tmp/followed"));
    container.does("kill $(cat /tmp/follows)");
    let after = container.does("postpone log");
    assert!(after.starts_with(&before) && after.contains(&stranger), "{before}{after}");
    let other = container.refuses("setpriv --reuid bob --regid bob --clear-groups postpone log");
    assert!(other.contains("permissions") && other.contains("error: journalctl: "), "{other}");
}

#[test]
fn the_first_hour_with_the_deb() {
    the_first_hour(Package::Deb);
}

#[test]
fn the_first_hour_with_the_rpm() {
    the_first_hour(Package::Rpm);
}

fn an_upgrade_keeps_settings_and_state(package: Package) {
    let container = host(package, "old");
    known(&container);
    let pid = show(&container, "MainPID");
    assert_eq!(version(&container, package), files::OLD);

    container.does(&package.upgrade("new"));
    assert_eq!(version(&container, package), env!("CARGO_PKG_VERSION"));
    assert_eq!(container.read(FILE), SETTINGS);
    // The older version's reference is another, and what it installs is not: nobody is asked.
    container.does(&format!("! test -e {FILE}{}", package.offered()));
    let reference = container.read("/usr/share/doc/postpone/examples/postpone.toml");
    assert_eq!(reference, files::reference());
    container.until("systemctl is-active postpone");
    assert_ne!(show(&container, "MainPID"), pid);
    // Who was known before still is.
    waits(&container, STRANGER);
    passes(&container, CLIENT);
}

#[test]
fn an_upgrade_keeps_settings_and_state_with_the_deb() {
    an_upgrade_keeps_settings_and_state(Package::Deb);
}

#[test]
fn an_upgrade_keeps_settings_and_state_with_the_rpm() {
    an_upgrade_keeps_settings_and_state(Package::Rpm);
}

fn a_version_that_could_not_read_the_state_is_not_installed(package: Package) {
    let container = host(package, "new");
    known(&container);
    container.does("systemctl stop postpone");
    container.does("sed --in-place '1s/.*/postpone state 1000/' /var/lib/postpone/identity");

    let said = container.refuses(&package.upgrade("old"));
    assert!(said.contains("/var/lib/postpone has state of version 1000"), "{said}");
    assert_eq!(version(&container, package), env!("CARGO_PKG_VERSION"));
    assert_eq!(container.read(FILE), SETTINGS);
    // Mail passes while it is away.
    passes(&container, STRANGER);
}

#[test]
fn a_version_that_could_not_read_the_state_is_not_installed_by_dpkg() {
    a_version_that_could_not_read_the_state_is_not_installed(Package::Deb);
}

#[test]
fn a_version_that_could_not_read_the_state_is_not_installed_by_rpm() {
    a_version_that_could_not_read_the_state_is_not_installed(Package::Rpm);
}

#[test]
fn the_state_is_looked_at_where_the_settings_have_put_it() {
    let container = host(Package::Deb, "new");
    // TOML has more than one way to say it.
    container.write(FILE, &format!("state = {{ path = '/srv/postpone' }}\n{SETTINGS}"));
    container.write(
        "/etc/systemd/system/postpone.service.d/state.conf",
        "[Service]\nReadWritePaths=/srv/postpone\n",
    );
    container.does("install --directory --owner=postpone --mode=0700 /srv/postpone");
    container.does("systemctl daemon-reload; systemctl restart postpone; systemctl stop postpone");
    container.does("sed --in-place '1s/.*/postpone state 1000/' /srv/postpone/identity");
    let said = container.refuses(&Package::Deb.upgrade("old"));
    assert!(said.contains("/srv/postpone has state of version 1000"), "{said}");
}

#[test]
fn removed_the_deb_leaves_settings_and_state_and_purged_nothing() {
    let fresh = Container::boot(made()).files();
    let container = host(Package::Deb, "new");
    known(&container);

    let said = container.does(Package::Deb.remove());
    assert!(said.contains("Postfix still asks it"), "{said}");
    container.refuses("systemctl is-active postpone");
    container.does(&format!(
        "test -e {FILE} && test -e /var/lib/postpone/identity && ! test -e /usr/bin/postpone"
    ));
    passes(&container, STRANGER);

    // Installed again, it knows whom it knew.
    container.does(&Package::Deb.install("new"));
    waits(&container, STRANGER);
    passes(&container, CLIENT);

    container.does("apt-get purge --yes postpone");
    assert_eq!(container.files(), fresh);
    let left = "find / -name '*postpone*' -not -path '/proc/*' -not -path '/sys/*' \
                -not -path '/given/*' -not -path '/var/cache/*' -not -path '/var/log/*'";
    assert_eq!(container.does(left), "");
    container.refuses("getent passwd postpone || getent group postpone");
}

#[test]
fn erased_the_rpm_leaves_settings_and_state() {
    let container = host(Package::Rpm, "new");
    container.does(Package::Rpm.remove());
    container.refuses("systemctl is-active postpone");
    container.does(&format!(
        "test -e {FILE}.rpmsave && test -e /var/lib/postpone/identity && ! \
                             test -e /usr/bin/postpone"
    ));
    passes(&container, STRANGER);
}

#[test]
fn a_reload_with_a_mistake_in_the_file_fails_and_changes_nothing() {
    let container = host(Package::Deb, "new");
    container.write(FILE, "[greylist]\nmode = \"on\"\n");
    container.refuses("systemctl reload postpone");
    let journal = container.does("journalctl --unit=postpone --output=cat");
    assert!(journal.contains(&format!("{FILE}:2:")), "{journal}");
    known(&container);
}

#[test]
fn killed_or_hung_it_is_started_again_and_mail_passes_meanwhile() {
    let container = host(Package::Deb, "new");
    container.write(
        "/etc/systemd/system/postpone.service.d/test.conf",
        "[Service]\nWatchdogSec=2s\nRestartSec=5s\nTimeoutAbortSec=2s\n",
    );
    container.does("systemctl daemon-reload; systemctl restart postpone");
    known(&container);
    for signal in ["KILL", "STOP"] {
        let pid = show(&container, "MainPID");
        container.does(&format!("systemctl kill --kill-whom=main --signal={signal} postpone"));
        passes(&container, STRANGER);
        wait_until("another process", || {
            let now = show(&container, "MainPID");
            (now != pid && now != "0").then_some(())
        });
        container.until("systemctl is-active postpone");
    }
    let journal = container.does("journalctl --unit=postpone --output=cat");
    assert!(journal.contains("Watchdog timeout"), "{journal}");
}

/// As docs/systemd.md says it for other sockets.
fn hold_sockets(container: &Container) {
    container.does("systemctl stop postpone.socket postpone.service");
    container.does("systemctl start postpone.service");
}

#[test]
fn a_restart_refuses_no_session() {
    let container = host(Package::Deb, "new");
    known(&container);
    // Whoever is not served is told, instead of passing.
    let strict = "s/default_action=accept/default_action=tempfail/";
    container.does(&format!("sed --in-place {strict} /etc/postfix/main.cf && postfix reload"));

    // Stopped, the first session starts it.
    container.does("systemctl stop postpone.service");
    passes(&container, CLIENT);
    container.does("systemctl is-active postpone.service");

    container.does("systemctl --no-block restart postpone.service");
    for _ in 0..5 {
        passes(&container, CLIENT);
    }
    let journal = container.does("journalctl --unit=postpone --output=cat");
    assert!(journal.matches("stopped").count() >= 2, "{journal}");
    let mail_log = container.does("journalctl --unit='postfix*' --output=cat");
    assert!(!mail_log.contains("milter unix:postpone/milter.sock: "), "{mail_log}");
}

#[test]
fn a_unix_socket_that_systemd_holds_outlives_a_restart() {
    let socket = "/run/postpone/milter.sock";
    let container = host(Package::Deb, "new");
    container.write(FILE, &format!("{SETTINGS}[[listen]]\nmilter = \"unix:{socket}\"\n"));
    container.write(
        "/etc/systemd/system/postpone.socket.d/unix.conf",
        &format!("[Socket]\nListenStream=\nListenStream={socket}\n"),
    );
    container.does("systemctl daemon-reload");
    hold_sockets(&container);
    for restarts in 0..2 {
        let mut mta =
            Mta::with_client(&format!("unix:{}", container.outside(socket).display()), CLIENT);
        assert_eq!(mta.ask(&helo("mx.example.net")), "continue", "after {restarts} restarts");
        mta.tell(&quit());
        mta.closed();
        container.does("systemctl restart postpone.service");
    }
}

#[test]
fn a_socket_is_given_to_a_group_that_the_unit_names() {
    let socket = "/run/postpone/milter.sock";
    let container = host(Package::Deb, "new");
    let listen = format!("[[listen]]\nmilter = \"unix:{socket}\"\nsocket_group = \"postfix\"\n");
    container.write(FILE, &format!("{SETTINGS}{listen}"));
    container.refuses("systemctl restart postpone");
    let journal = container.does("journalctl --unit=postpone --output=cat");
    assert!(journal.contains("SupplementaryGroups=postfix"), "{journal}");

    container.write(
        "/etc/systemd/system/postpone.service.d/group.conf",
        "[Service]\nSupplementaryGroups=postfix\n",
    );
    container.does("systemctl daemon-reload; systemctl restart postpone");
    let owner = container.does(&format!("stat --format='%U %G %a' {socket}"));
    assert_eq!(owner.trim(), "postpone postfix 660");
}

#[test]
fn a_postfix_in_its_chroot_asks_by_a_unix_socket_with_the_drop_in() {
    let container = host(Package::Deb, "new");
    container.does("postpone setup postfix --undo");
    container.does("postconf -F smtp/inet/chroot=y");
    let listen = "[[listen]]\nmilter = \"unix:/var/spool/postfix/postpone/own.sock\"\n\
                  socket_group = \"postfix\"\nsocket_mode = \"0660\"\n";
    container.write(FILE, &format!("{SETTINGS}{listen}"));
    container.does("install -d -o postpone -g postfix -m 0750 /var/spool/postfix/postpone");
    let place = "/etc/systemd/system/postpone.service.d";
    let example = "/usr/share/doc/postpone/examples/systemd/chroot-socket.conf";
    container.does(&format!("mkdir -p {place} && cp {example} {place}/"));
    container.does("systemctl daemon-reload; systemctl restart postpone");
    let said = container.does("postpone setup postfix --apply");
    assert!(said.contains("unix:postpone/own.sock"), "{said}");
    // This host's Postfix is not called as the settings say, and looks up no names.
    let others = ["[server] hostname is", "smtpd_peername_lookup = no"];
    let warnings = said.lines().filter(|line| line.starts_with("warning: "));
    let warnings: Vec<_> =
        warnings.filter(|line| !others.iter().any(|it| line.contains(it))).collect();
    assert!(warnings.is_empty(), "{said}");
    known(&container);
}

const SOCKETS: [&str; 2] = [POSTFIX_ASKS, "/run/postpone-sendmail/milter.sock"];
const POSTFIX_ASKS: &str = "/var/spool/postfix/postpone/milter.sock";

/// Bob, who may do nothing but log in, wants to be asked instead of postpone: he tries for as long as
/// there is a file `/tmp/try`, by every way he has, and answers whom he gets with a refusal.
const STRANGE: &str = r#"use strict; use Socket; use Errno;
my @sockets = @ARGV;
open my $log, '>>', '/tmp/strange' or die; select $log; $| = 1;
print "begun\n";
my $try;
do {
    $try = -e '/tmp/try';
    for my $path (@sockets) {
        my $folder = $path =~ s{/[^/]*$}{}r;
        socket(my $socket, AF_UNIX, SOCK_STREAM, 0) or die;
        print "bound $path\n" if bind($socket, pack_sockaddr_un($path));
        print "removed $path\n" if unlink $path;
        print "moved $path\n" if rename $path, "$path.bob";
        print "moved $folder\n" if rename $folder, "$folder.bob";
        print "made $folder\n" if mkdir $folder;
        socket(my $client, AF_UNIX, SOCK_STREAM, 0) or die;
        print "reached $path\n" if connect($client, pack_sockaddr_un($path));
    }
    select undef, undef, undef, 0.002;
} while $try;
print "ended\n";
"#;

/// Bob begins to try, also at the next boot.
fn bob_tries(container: &Container) {
    container.write("/home/bob/strange.pl", STRANGE);
    let sockets = SOCKETS.join(" ");
    let command = format!("perl /home/bob/strange.pl {sockets}");
    container.does("touch /tmp/try && chmod 0666 /tmp/try");
    container.does(&format!("setsid runuser --user bob -- {command} >/dev/null 2>/tmp/failed &"));
    container.until("grep begun /tmp/strange");
}

/// What he got until now: nothing.
fn bob_got_nothing(container: &Container) {
    container.does("rm /tmp/try");
    container.until("grep ended /tmp/strange");
    assert_eq!(container.read("/tmp/strange"), "begun\nended\n");
    container.does("rm /tmp/strange");
}

fn nobody_else_gets_the_sockets(package: Package) {
    let container = host(package, "new");
    container.does("postconf -F smtp/inet/chroot=y && postfix reload");
    known(&container);
    let owner = container.does(&format!("stat --format='%U %G %a' {}", SOCKETS.join(" ")));
    assert_eq!(owner, "root postfix 660\nroot root 660\n");

    bob_tries(&container);
    // Crashed: a session meanwhile waits, and is judged by postpone alone.
    container.does("systemctl kill --kill-whom=main --signal=KILL postpone");
    let told = newcomer(&container);
    assert!(
        told.starts_with("250") || told.starts_with("451 4.7.1 throttle.example.org"),
        "{told}"
    );
    is_asked(&container);
    // Upgraded.
    container.does(&package.again());
    container.until("systemctl is-active postpone");
    known_already(&container);
    // Stopped, Postfix finds nobody and lets mail pass.
    container.does("systemctl stop postpone.socket postpone.service");
    for socket in SOCKETS {
        container.does(&format!("! test -e {socket}"));
    }
    is_away(&container);
    container.does("systemctl start postpone.service");
    known_already(&container);
    container.does(package.remove());
    is_away(&container);
    bob_got_nothing(&container);
}

/// What a sender is told whom nobody has seen yet.
fn newcomer(container: &Container) -> String {
    static NUMBER: AtomicU8 = AtomicU8::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // In letters: two addresses that differ by a number are one mailing list's.
    let [first, second] = [number / 26, number % 26].map(|letter| char::from(b'a' + letter));
    container.send_from(STRANGER, &format!("{first}new{second}comer@example.net"))
}

/// Newcomers are told to come back, by postpone: from when it has read its state again.
fn is_asked(container: &Container) {
    let told = "451 4.7.1 throttle.example.org First contact; retry in ";
    wait_until("a newcomer to be told to wait", || {
        newcomer(container).starts_with(told).then_some(())
    });
}

/// A newcomer is let in, as nobody is asked.
fn is_away(container: &Container) {
    let told = newcomer(container);
    assert!(told.starts_with("250"), "{told}");
}

/// Who has been let in once is, and a newcomer waits: postpone is asked.
fn known_already(container: &Container) {
    passes(container, CLIENT);
    is_asked(container);
}

#[test]
fn nobody_else_gets_the_sockets_of_the_deb() {
    nobody_else_gets_the_sockets(Package::Deb);
}

#[test]
fn nobody_else_gets_the_sockets_of_the_rpm() {
    nobody_else_gets_the_sockets(Package::Rpm);
}

/// cron and lingering users begin with multi-user.target at the earliest.
#[test]
fn at_boot_the_sockets_are_held_before_any_user_runs() {
    let container = host(Package::Deb, "new");
    let order = |unit: &str, property: &str| {
        container.does(&format!("systemctl show --value --property {property} {unit}"))
    };
    assert!(order("postpone.socket", "Before").contains("sockets.target"));
    assert!(order("sockets.target", "Before").contains("basic.target"));
    assert!(
        order("user@1000.service", "After").contains("basic.target")
            || order("systemd-user-sessions.service", "After").contains("basic.target")
    );
    // As a boot finds it: a file that a crash has left, no folder of /run, and bob there already.
    container.does("systemctl stop postpone.socket postpone.service");
    container.does(
        "rm --recursive --force /run/postpone-sendmail &&
         perl -MSocket -e 'socket(my $s, AF_UNIX, SOCK_STREAM, 0); bind($s, pack_sockaddr_un($ARGV[0])) or die' \
             /var/spool/postfix/postpone/milter.sock",
    );
    bob_tries(&container);
    is_away(&container);
    container.does("systemctl start multi-user.target");
    container.until("systemctl is-active postpone.service");
    known(&container);
    bob_got_nothing(&container);
}

/// Postfix asks the port, as it was told by an earlier version.
fn an_old_set_up_goes_on_and_is_told_how_to_move(package: Package) {
    let container = host(package, "old");
    known(&container);
    let main = container.does("postconf -h smtpd_milters");
    assert!(main.contains("inet:127.0.0.1:7421"), "{main}");

    let said = container.does(&package.upgrade("new"));
    assert!(said.contains("systemctl disable --now postpone-port.socket"), "{said}");
    assert_eq!(container.does("postconf -h smtpd_milters"), main);
    container.until("systemctl is-active postpone.service");
    known_already(&container);
    let journal = container.does("journalctl --unit=postpone --output=cat");
    assert!(journal.contains("any local user can take it"), "{journal}");
    let checked = container.does("postpone check");
    assert!(checked.contains("postpone-port.socket"), "{checked}");
    // From now on systemd holds the port too: bob does not get it from one that has crashed.
    container.does("systemctl kill --kill-whom=main --signal=KILL postpone");
    container.refuses(
        "runuser --user bob -- perl -MSocket -e 'socket(my $s, AF_INET, SOCK_STREAM, 0);
         bind($s, pack_sockaddr_in(7421, inet_aton(q(127.0.0.1)))) or die'",
    );
    known_already(&container);

    let moved = container.does("postpone setup postfix --apply");
    assert!(moved.contains("unix:postpone/milter.sock"), "{moved}");
    container.does("systemctl disable --now postpone-port.socket; systemctl restart postpone");
    container.refuses("ss --listening --numeric --tcp | grep 7421");
    known_already(&container);
    let checked = container.does("postpone check");
    assert!(!checked.contains("7421"), "{checked}");
}

#[test]
fn an_old_set_up_goes_on_and_is_told_how_to_move_with_the_deb() {
    an_old_set_up_goes_on_and_is_told_how_to_move(Package::Deb);
}

#[test]
fn an_old_set_up_goes_on_and_is_told_how_to_move_with_the_rpm() {
    an_old_set_up_goes_on_and_is_told_how_to_move(Package::Rpm);
}

/// Each session would start it again, and wait meanwhile.
#[test]
fn with_settings_that_it_cannot_use_at_its_start_mail_passes() {
    let container = host(Package::Deb, "new");
    container.write(FILE, "[greylist]\nmode = \"on\"\n");
    container.does("systemctl stop postpone.service");
    passes(&container, STRANGER);
    container.until("test \"$(systemctl is-active postpone.socket)\" = failed");
    passes(&container, STRANGER);
    container.write(FILE, SETTINGS);
    container.does("systemctl restart postpone.service");
    known(&container);
}

fn a_host_whose_socket_systemd_holds_is_upgraded_and_freed(package: Package) {
    let container = host(package, "old");
    container.does("systemctl stop postpone.service && systemctl enable --now postpone.socket");
    container.does("systemctl start postpone.service");
    container.does(&package.upgrade("new"));
    container.does("systemctl is-active postpone.socket postpone-port.socket postpone.service");
    known(&container);
    container.does(package.remove());
    container.refuses("systemctl is-active postpone.socket");
    container.refuses("systemctl is-active postpone-port.socket");
    container.refuses("ss --listening --numeric --tcp | grep 7421");
    passes(&container, STRANGER);
    container.refuses("systemctl is-active postpone.service");
}

#[test]
fn a_host_whose_socket_systemd_holds_is_upgraded_and_freed_with_the_deb() {
    a_host_whose_socket_systemd_holds_is_upgraded_and_freed(Package::Deb);
}

#[test]
fn a_host_whose_socket_systemd_holds_is_upgraded_and_freed_with_the_rpm() {
    a_host_whose_socket_systemd_holds_is_upgraded_and_freed(Package::Rpm);
}

fn with_settings_that_it_cannot_use_the_older_one_goes_on(package: Package) {
    let container = host(package, "old");
    let pid = show(&container, "MainPID");
    container.write(FILE, "[greylist]\nmode = \"on\"\n");
    let said = container.does(&package.upgrade("new"));
    assert!(said.contains(&format!("{FILE}:2:")), "{said}");
    assert_eq!(show(&container, "MainPID"), pid);
    known(&container);
}

#[test]
fn with_settings_that_it_cannot_use_the_older_one_goes_on_with_the_deb() {
    with_settings_that_it_cannot_use_the_older_one_goes_on(Package::Deb);
}

#[test]
fn with_settings_that_it_cannot_use_the_older_one_goes_on_with_the_rpm() {
    with_settings_that_it_cannot_use_the_older_one_goes_on(Package::Rpm);
}

fn who_has_switched_it_off_finds_it_so_after_an_upgrade(package: Package) {
    let container = host(package, "old");
    container.does("systemctl disable --now postpone.service");
    container.does(&package.upgrade("new"));
    container.refuses("systemctl is-active postpone.service");
    container.refuses("systemctl is-enabled postpone.service");
}

#[test]
fn who_has_switched_it_off_finds_it_so_after_an_upgrade_of_the_deb() {
    who_has_switched_it_off_finds_it_so_after_an_upgrade(Package::Deb);
}

#[test]
fn who_has_switched_it_off_finds_it_so_after_an_upgrade_of_the_rpm() {
    who_has_switched_it_off_finds_it_so_after_an_upgrade(Package::Rpm);
}

#[test]
fn the_queue_can_be_counted_with_the_drop_in_and_not_without() {
    let container = host(Package::Deb, "new");
    let queue = "[load.queue]\npath = \"/var/spool/postfix\"\nactive = { high = 1_000 }\n";
    container.write(FILE, &format!("{SETTINGS}{queue}"));
    container.does("systemctl restart postpone");
    // In one line, whatever is wrapped.
    let status = "postpone ctl status --all | tr -s '\\n ' ' '";
    container.until(&format!("{status} | grep 'queue.active is off: .* closed to this user'"));

    let place = "/etc/systemd/system/postpone.service.d";
    container.does(&format!(
        "mkdir -p {place} && cp /usr/share/doc/postpone/examples/systemd/queue.conf {place}/"
    ));
    container.does("systemctl daemon-reload; systemctl restart postpone");
    container.until(&format!("{status} | grep ' 0 messages in the queue (active)'"));
    let pid = show(&container, "MainPID");
    let status = container.read(&format!("/proc/{pid}/status"));
    // CAP_DAC_READ_SEARCH is capability 2.
    assert!(status.contains("CapEff:\t0000000000000004"), "{status}");
}

#[test]
fn systemd_finds_the_units_sound_and_well_confined() {
    let container = host(Package::Deb, "new");
    let verified = container.does(
        "systemd-analyze verify --man=no postpone.service postpone.socket postpone-port.socket",
    );
    assert_eq!(verified, "");
    let analysed = container.does("systemd-analyze security --no-pager postpone.service");
    let overall = analysed.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let exposure: f64 = overall.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(exposure <= 1.5, "{analysed}");
}

#[test]
fn the_program_asks_for_no_newer_glibc_than_el_9_has() {
    let symbols = sh("objdump -T deb/usr/bin/postpone; objdump -T rpm/usr/bin/postpone");
    let version = |word: &str| -> Option<Vec<u32>> {
        let numbers = word.trim_matches(['(', ')']).strip_prefix("GLIBC_")?;
        numbers.split('.').map(|number| number.parse().ok()).collect()
    };
    let newest = symbols.split_whitespace().filter_map(version).max().unwrap();
    assert!(newest <= vec![2, 34], "GLIBC {newest:?}");
}

#[test]
fn the_tools_of_debian_and_red_hat_find_nothing_to_say() {
    let (deb, rpm) = (files(Package::Deb), files(Package::Rpm));
    let lintian =
        sh(&format!("lintian --allow-root --fail-on error,warning '{}' 2>&1", deb.display()));
    assert_eq!(lintian, "");
    let config = checkout().join("packaging/rpm/rpmlint.toml");
    let rpmlint = sh(&format!("rpmlint --config '{}' '{}'", config.display(), rpm.display()));
    assert!(rpmlint.contains(" 0 errors, 0 warnings"), "{rpmlint}");
}

#[test]
fn each_release_has_its_day_in_the_changelogs() {
    let deb = sh(
        "dpkg-deb --fsys-tarfile old.deb | tar -xO ./usr/share/doc/postpone/changelog.gz | zcat",
    );
    assert!(deb.contains("postpone (0.0.8) stable"), "{deb}");
    assert!(deb.contains("  Thu, 02 Jan 2025 00:00:00 +0000"), "{deb}");
    let rpm = sh("rpm -qp --changelog old.rpm");
    assert!(rpm.contains("* Thu Jan 02 2025") && rpm.contains("- 0.0.8-1"), "{rpm}");
}

/// Pages that were compressed could not be followed from one to the next.
#[test]
fn the_deb_has_the_book_as_it_is() {
    let files = sh("dpkg-deb --contents new.deb");
    for file in ["README.md", "docs/index.md", "docs/night.md", "docs/behaviour.md"] {
        let file = format!(" ./usr/share/doc/postpone/{file}");
        assert!(files.lines().any(|line| line.ends_with(&file)), "{file}: {files}");
    }
    assert!(files.contains("/man7/postpone-night.7.gz"), "{files}");
}

#[test]
fn the_rpm_has_what_it_is_to_have_and_asks_for_what_el_9_has() {
    let files = sh("rpm -qp --list new.rpm");
    for file in [
        FILE,
        "/usr/bin/postpone",
        "/usr/lib/systemd/system/postpone.service",
        "/usr/lib/systemd/system/postpone.socket",
        "/usr/lib/systemd/system/postpone-port.socket",
        "/usr/lib/sysusers.d/postpone.conf",
        "/usr/share/doc/postpone/README.md",
        "/usr/share/doc/postpone/docs/index.md",
        "/usr/share/doc/postpone/docs/night.md",
        "/usr/share/doc/postpone/examples/sendmail.mc",
        "/usr/share/licenses/postpone/LICENSE",
        "/usr/share/licenses/postpone/notices",
        "/usr/share/man/man1/postpone.1.gz",
        "/usr/share/man/man5/postpone.toml.5.gz",
        "/usr/share/man/man7/postpone-night.7.gz",
        "/usr/share/man/man8/postpone.8.gz",
    ] {
        assert!(files.lines().any(|line| line == file), "{file}: {files}");
    }
    assert_eq!(sh("rpm -qp --configfiles new.rpm").trim(), FILE);
    let needs = sh("rpm -qp --requires new.rpm");
    for line in needs.lines() {
        let known = ["/bin/sh", "config(postpone)", "libc.so.6", "libm.so.6", "libgcc_s.so.1"];
        let known = known.iter().chain(&["ld-linux", "rpmlib(", "rtld(GNU_HASH)"]);
        assert!(line == "systemd" || known.into_iter().any(|it| line.starts_with(it)), "{needs}");
    }
    let scripts = sh("rpm -qp --scripts new.rpm");
    for script in ["preinstall", "postinstall", "preuninstall", "postuninstall"] {
        assert!(scripts.contains(&format!("{script} scriptlet (using /bin/sh)")), "{scripts}");
    }
}

#[test]
fn the_rpm_runs_in_an_empty_root_with_nothing_but_the_libraries_it_asks_for() {
    let root = Folder::new("root");
    let place = root.path().display();
    sh(&format!(
        "rpm --root '{place}' --install --nodeps --noscripts new.rpm
         ldd rpm/usr/bin/postpone | grep -o '/[^ ]*' | while read -r library; do
             install -D \"$library\" '{place}'\"$library\"
         done"
    ));
    let said = sh(&format!("chroot '{place}' postpone --version"));
    assert_eq!(said.trim(), concat!("postpone ", env!("CARGO_PKG_VERSION")));
    let alone =
        Command::new("chroot").arg(root.path()).args(["postpone", "setup", "postfix"]).output();
    assert_eq!(alone.unwrap().status.code(), Some(69), "there is no Postfix");
    let (milter, http) = (free_port(), free_port());
    root.write(
        "etc/postpone/postpone.toml",
        &format!(
            "[[listen]]\nmilter = \"inet:127.0.0.1:{milter}\"\n[control]\nhttp = \
             \"127.0.0.1:{http}\"\n"
        ),
    );
    let mut daemon =
        Command::new("chroot").arg(root.path()).args(["postpone", "serve"]).spawn().unwrap();
    wait_until("the milter's port", || TcpStream::connect(("127.0.0.1", milter)).ok());
    let mut mta = Mta::with_client(&format!("inet:127.0.0.1:{milter}"), CLIENT);
    assert_eq!(mta.ask(&helo("mx.example.net")), "continue");
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    mta.tell(&quit());
    assert!(daemon.wait().unwrap().success());
    assert!(root.path().join("var/lib/postpone/identity").exists());
}

/// Says what a command says that is run in a folder with the packages, and with what is in
/// them in `deb` and `rpm`.
#[track_caller]
fn sh(command: &str) -> String {
    static UNPACKED: LazyLock<()> = LazyLock::new(|| {
        let done = Command::new("bash")
            .args(["-euo", "pipefail", "-c"])
            .arg(
                "dpkg-deb --extract new.deb deb; mkdir rpm; cd rpm; rpm2cpio ../new.rpm | cpio \
                  -id --quiet",
            )
            .current_dir(made())
            .status();
        assert!(done.unwrap().success());
    });
    LazyLock::force(&UNPACKED);
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", command])
        .current_dir(made())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}
