//! What a postmaster sees of `postpone setup postfix`: real Postfixes on loopback that do not know
//! postpone yet, the real programs postconf and postfix, and mail before and after.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::daemon::{Daemon, postpone};
use support::mx::{ANNA, BERT, SENDER, greeted, told, velocity, visit};
use support::postfix::{self, Postfix, with_programs};
use support::smtp::Client;
use support::wait_until;
use support::{Folder, free_port};

/// Where a user's shell finds programs.
const PATH: &str = "/usr/bin:/bin";

/// What is said of each of these Postfixes, which have no DNS and a name that is not that of the
/// settings.
const WARNINGS: &str = "warning: [server] hostname is throttle.example.org, but Postfix's \
                        myhostname is mx.example.org: senders see both. Without hostname, replies \
                        use Postfix's name\n\
                        warning: smtpd_peername_lookup = no: Postfix looks up no client names. A pool is then a network, and names in lists match no client\n";

/// What `postpone setup postfix` is told in each of these stories.
fn setup(config: &Path, postfix: &Postfix, how: &[&str]) -> Output {
    let text = |path: &Path| path.to_str().expect("a path of ours").to_owned();
    let (config, folder) = (text(config), text(postfix.folder()));
    let whole = ["setup", "postfix", "--config", &config, "--postfix", &folder];
    let mut command = Command::new(env!("CARGO_BIN_EXE_postpone"));
    with_programs(command.args(whole).args(how), PATH).output().expect("postpone")
}

/// Done, and what was said to standard output and to standard error.
#[track_caller]
fn done(output: &Output) -> (String, String) {
    ended(output, 0)
}

#[track_caller]
fn ended(output: &Output, code: i32) -> (String, String) {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    (out, err)
}

/// What a file of this Postfix holds.
fn file(postfix: &Postfix, name: &str) -> String {
    fs::read_to_string(postfix.folder().join(name)).expect("a file of Postfix")
}

/// What postconf says of this Postfix.
fn postconf(postfix: &Postfix, arguments: &[&str]) -> String {
    let mut command = Command::new("postconf");
    command.arg("-c").arg(postfix.folder()).args(arguments).env_remove("MAIL_CONFIG");
    let output = with_programs(&mut command, PATH).output().expect("postconf");
    String::from_utf8(output.stdout).expect("what we have written")
}

fn milter(endpoint: &str) -> String {
    format!("{{ {endpoint}, default_action=accept, connect_timeout=5s, command_timeout=5s }}")
}

/// Settings alone, of a postpone that does not run.
fn absent(folder: &Folder, endpoint: &str) -> PathBuf {
    folder.write("postpone.toml", &format!("[[listen]]\nmilter = \"{endpoint}\"\n"))
}

/// Waits until postpone is asked: an smtpd that waited for its next client when Postfix was
/// reloaded serves that one by the old settings.
fn asked(postfix: &Postfix, daemon: &Daemon) {
    wait_until("Postfix to ask postpone", || {
        visit(postfix, BERT, "bert");
        (daemon.metric("postpone_events_total", &[]) > 0.0).then_some(())
    });
}

#[test]
fn without_a_flag_it_shows_and_changes_nothing() {
    let daemon = Daemon::start("");
    let postfix = Postfix::plain().with("smtpd_milters = $others").with("others = ").start();
    let before = (file(&postfix, "main.cf"), file(&postfix, "master.cf"));
    let (out, err) = done(&setup(&daemon.config, &postfix, &[]));
    let becomes = format!("$others, {}", milter(&daemon.endpoint));
    for said in [
        "  is       $others\n".to_owned(),
        format!("  becomes  {becomes}\n"),
        format!(
            "postconf -c {} -e 'smtpd_milters={becomes}' smtpd_hard_error_limit=20\n",
            postfix.folder().display()
        ),
        "nothing has been changed".to_owned(),
    ] {
        assert!(out.contains(&said), "{said} is not in {out}");
    }
    assert_eq!(err, WARNINGS);
    assert_eq!((file(&postfix, "main.cf"), file(&postfix, "master.cf")), before);

    // What it says to run does the same as it would itself.
    let command = out.lines().find(|line| line.contains(" -e ")).unwrap();
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success());
    let (out, _) = done(&setup(&daemon.config, &postfix, &["--apply"]));
    assert!(out.contains("nothing to do: Postfix asks postpone already"), "{out}");
}

#[test]
fn applied_it_throttles_and_undone_it_throttles_no_more() {
    let daemon = Daemon::start(&velocity("1/1h", ""));
    let postfix = Postfix::plain().start();
    let before = (file(&postfix, "main.cf"), postconf(&postfix, &["-n"]));
    visit(&postfix, ANNA, "one");
    visit(&postfix, ANNA, "two");

    let (out, err) = done(&setup(&daemon.config, &postfix, &["--apply"]));
    assert!(
        out.contains("done and checked: Postfix asks postpone, from the next session on"),
        "{out}"
    );
    assert_eq!(err, WARNINGS);
    let list = postconf(&postfix, &["-h", "smtpd_milters"]);
    assert_eq!(list.trim_end(), milter(&daemon.endpoint));
    asked(&postfix, &daemon);
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["three"]);
    let reply = client.mail(SENDER);
    told(reply, client, "4.7.0", "Too many messages from your network");

    let (out, err) = done(&setup(&daemon.config, &postfix, &["--undo"]));
    assert!(out.contains("done and checked: Postfix no longer asks postpone"), "{out}");
    assert_eq!(err, "");
    assert_eq!((file(&postfix, "main.cf"), postconf(&postfix, &["-n"])), before);
    wait_until("Postfix to ask no more", || {
        let mut client = greeted(&postfix, ANNA);
        (client.mail(SENDER).code == 250).then_some(())
    });
    let (out, _) = done(&setup(&daemon.config, &postfix, &["--undo"]));
    assert!(out.contains("nothing to undo"), "{out}");
}

#[test]
fn other_milters_stay_first_and_applied_twice_is_once() {
    let (other, daemon) = (Daemon::start(""), Daemon::start(&velocity("1/1h", "")));
    let postfix = Postfix::plain()
        .with(&format!("smtpd_milters =\n    {}", other.endpoint))
        .with("# a comment behind it")
        .start();
    let before = postconf(&postfix, &["-n"]);
    done(&setup(&daemon.config, &postfix, &["--apply"]));
    let once = file(&postfix, "main.cf");
    let list = format!("smtpd_milters = {}, {}\n", other.endpoint, milter(&daemon.endpoint));
    assert!(once.contains(&list) && once.contains("# a comment behind it\n"), "{once}");

    let (out, _) = done(&setup(&daemon.config, &postfix, &["--apply"]));
    assert!(out.contains("nothing to do: Postfix asks postpone already"), "{out}");
    assert_eq!(file(&postfix, "main.cf"), once);
    asked(&postfix, &daemon);
    assert!(other.metric("postpone_events_total", &[]) > 0.0);

    done(&setup(&daemon.config, &postfix, &["--undo"]));
    assert_eq!(postconf(&postfix, &["-n"]), before);
}

#[test]
fn an_entry_that_stands_there_without_its_action_is_corrected() {
    let daemon = Daemon::start("");
    let bare = daemon.endpoint.replace("127.0.0.1", "localhost");
    let postfix = Postfix::plain().with(&format!("smtpd_milters = {bare}")).start();
    let (out, _) = done(&setup(&daemon.config, &postfix, &["--apply"]));
    assert!(out.contains("without default_action=accept"), "{out}");
    assert_eq!(postconf(&postfix, &["-h", "smtpd_milters"]).trim_end(), milter(&bare));
}

#[test]
fn a_policy_service_is_asked_last_and_undone_as_well() {
    let daemon = Daemon::policy_service(&velocity("1/1h", ""));
    let postfix = Postfix::plain().start();
    let before = (file(&postfix, "main.cf"), postconf(&postfix, &["-n"]));
    let (_, err) = done(&setup(&daemon.config, &postfix, &["--apply"]));
    assert_eq!(err, WARNINGS);
    let entry = format!(
        "check_policy_service {{ {}, default_action=DUNNO, timeout=5s }}\n",
        daemon.policy_endpoint
    );
    assert_eq!(postconf(&postfix, &["-h", "smtpd_end_of_data_restrictions"]), entry);
    let recipient = postconf(&postfix, &["-h", "smtpd_recipient_restrictions"]);
    assert!(recipient.ends_with(&format!("reject_unlisted_recipient, {entry}")), "{recipient}");

    asked(&postfix, &daemon);
    let mut client = greeted(&postfix, ANNA);
    client.mail(SENDER).expect(250);
    client.rcpt("someone@example.com").expect(554); // it relays for nobody
    client.rcpt("one").expect(250);
    client.data().expect(354);
    client.message().expect(250);
    client.mail(SENDER).expect(250);
    let reply = client.rcpt("two").expect(421);
    assert!(reply.text.contains("Too many messages from your network"), "{reply:?}");

    let (out, _) = done(&setup(&daemon.config, &postfix, &["--apply"]));
    assert!(out.contains("nothing to do"), "{out}");
    done(&setup(&daemon.config, &postfix, &["--undo"]));
    assert_eq!((file(&postfix, "main.cf"), postconf(&postfix, &["-n"])), before);
}

#[test]
fn who_logs_in_gets_the_listener_that_speaks_at_mail() {
    let submission = format!("inet:127.0.0.1:{}", free_port());
    let listener = format!("[[listen]]\nmilter = \"{submission}\"\nspeak = \"mail\"\n");
    let there = format!("when = {{ listener = [\"{submission}\"] }}");
    let daemon = Daemon::start(&(velocity("1/1h", &there) + &listener));
    let port = "127.77.1.1:587";
    let postfix = Postfix::plain().with_service(&format!("{port} inet n - n - - smtpd")).start();
    let before = [&["-n"], &["-M"]].map(|what| postconf(&postfix, what));

    let (_, err) = done(&setup(&daemon.config, &postfix, &["--apply"]));
    assert_eq!(err, WARNINGS);
    assert_eq!(postconf(&postfix, &["-h", "smtpd_milters"]).trim_end(), milter(&daemon.endpoint));
    let option = postconf(&postfix, &["-Px", &format!("{port}/inet/smtpd_milters")]);
    assert!(option.trim_end().ends_with(&milter(&submission)), "{option}");
    let (out, _) = done(&setup(&daemon.config, &postfix, &["--apply"]));
    assert!(out.contains("nothing to do"), "{out}");
    wait_until("the submission port to ask postpone", || {
        let mut client = Client::connect(port.parse().unwrap(), ANNA);
        client.ehlo().expect(250);
        if client.mail(SENDER).code == 421 {
            return Some(());
        }
        client.rcpt("anna").expect(250);
        client.data().expect(354);
        client.message().expect(250);
        None
    });

    done(&setup(&daemon.config, &postfix, &["--undo"]));
    assert_eq!([&["-n"], &["-M"]].map(|what| postconf(&postfix, what)), before);
}

#[test]
fn where_nothing_answers_it_is_said_and_applied_all_the_same() {
    let folder = Folder::new("setup");
    let endpoint = format!("inet:127.0.0.1:{}", free_port());
    let postfix = Postfix::plain().start();
    let (out, err) = done(&setup(&absent(&folder, &endpoint), &postfix, &["--apply"]));
    assert!(err.contains(&format!("postpone does not answer at {endpoint}: ")), "{err}");
    assert!(out.contains("done and checked"), "{out}");
    visit(&postfix, ANNA, "one");
    postfix.delivered(&["one"]);

    // Something is there, but it is Postfix.
    let config = absent(&folder, &format!("inet:{}", postfix.smtp));
    let (_, err) = done(&setup(&config, &postfix, &[]));
    assert!(err.contains("the server there is no milter"), "{err}");
}

#[test]
fn a_socket_that_postfix_may_not_use_is_told() {
    let daemon = Daemon::on_unix_socket(&velocity("1/1h", ""));
    let postfix = Postfix::plain().start();
    let (_, err) = done(&setup(&daemon.config, &postfix, &[]));
    assert_eq!(err, WARNINGS);
    // root's group alone
    let socket = daemon.endpoint.strip_prefix("unix:").unwrap();
    chown(socket, None, Some(0)).unwrap();
    let (_, err) = done(&setup(&daemon.config, &postfix, &[]));
    assert!(err.contains("Postfix's user mail may not use"), "{err}");
    chown(socket, None, Some(postfix::group())).unwrap();

    done(&setup(&daemon.config, &postfix, &["--apply"]));
    asked(&postfix, &daemon);
    let mut client = greeted(&postfix, ANNA);
    client.deliver(SENDER, &["one"]);
    client.mail(SENDER).expect(421);
}

#[test]
fn what_postfix_check_refuses_is_put_back() {
    let submission = format!("inet:127.0.0.1:{}", free_port());
    let listener = format!("[[listen]]\nmilter = \"{submission}\"\nspeak = \"mail\"\n");
    let daemon = Daemon::start(&listener);
    let postfix = Postfix::plain().with_service("127.77.1.2:587 inet n - n - - smtpd").start();
    let services = file(&postfix, "master.cf");
    // A number, as long as there are no milters.
    let path = postfix.folder().join("main.cf");
    let strange =
        file(&postfix, "main.cf") + "line_length_limit = ${smtpd_milters?{many}:{2048}}\n";
    fs::write(&path, &strange).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    chown(&path, None, Some(postfix::group())).unwrap();

    let (out, err) = ended(&setup(&daemon.config, &postfix, &["--apply"]), 78);
    assert!(err.contains("`postfix check` refuses the change, so the files are restored"), "{err}");
    assert!(err.contains("bad numerical configuration: line_length_limit = many"), "{err}");
    assert!(!out.contains("done") && out.contains("in master.cf"), "{out}");
    assert_eq!(file(&postfix, "main.cf"), strange);
    assert_eq!(file(&postfix, "master.cf"), services);
    let metadata = path.metadata().unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o640, postfix::group()));
    visit(&postfix, ANNA, "one");

    // What is refused before is not our doing.
    let broken = strange.replace("{2048}", "{few}");
    fs::write(&path, &broken).unwrap();
    let (_, err) = ended(&setup(&daemon.config, &postfix, &["--apply"]), 78);
    assert!(err.contains("refuses the present configuration"), "{err}");
    assert_eq!(file(&postfix, "main.cf"), broken);
}

#[test]
fn a_file_keeps_its_owner_and_its_permissions() {
    let daemon = Daemon::start("");
    let mut postfix = Postfix::plain().start();
    postfix.stop();
    let path = postfix.folder().join("main.cf");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    chown(&path, None, Some(postfix::group())).unwrap();
    for how in ["--apply", "--undo"] {
        let (out, _) = done(&setup(&daemon.config, &postfix, &[how]));
        assert!(out.contains("Postfix is not running; the change holds when it starts"), "{out}");
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o640, postfix::group()));
    }
}

#[test]
fn a_file_that_cannot_be_written_stays_as_it_is() {
    let daemon = Daemon::start("");
    let postfix = Postfix::plain().start();
    let before = file(&postfix, "main.cf");
    // Where postconf writes the new one, something stands in the way.
    let way = postfix.folder().join("main.cf.tmp");
    fs::create_dir(&way).unwrap();
    let (_, err) = ended(&setup(&daemon.config, &postfix, &["--apply"]), 73);
    assert!(err.contains("main.cf.tmp: Is a directory"), "{err}");
    assert_eq!(file(&postfix, "main.cf"), before);
    fs::remove_dir(&way).unwrap();

    // Who keeps it elsewhere would lose sight of it.
    let path = postfix.folder().join("main.cf");
    fs::rename(&path, path.with_extension("elsewhere")).unwrap();
    symlink(path.with_extension("elsewhere"), &path).unwrap();
    let (_, err) = ended(&setup(&daemon.config, &postfix, &["--apply"]), 73);
    assert!(err.contains("is a symbolic link"), "{err}");
    assert!(path.is_symlink());
    assert_eq!(file(&postfix, "main.cf"), before);
}

#[test]
fn the_postfix_is_the_one_that_its_own_programs_would_take() {
    let daemon = Daemon::start("");
    let postfix = Postfix::plain().start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_postpone"));
    command
        .args(["setup", "postfix", "--apply", "--config"])
        .arg(&daemon.config)
        .env("MAIL_CONFIG", postfix.folder());
    let (out, _) = done(&with_programs(&mut command, PATH).output().unwrap());
    assert!(out.contains(&postfix.folder().display().to_string()), "{out}");
    let milters = postconf(&postfix, &["-h", "smtpd_milters"]);
    assert_eq!(milters.trim(), milter(&daemon.endpoint));
}

#[test]
fn who_may_not_or_says_it_wrong_is_told_so() {
    let daemon = Daemon::start("");
    let postfix = Postfix::plain().start();
    let before = file(&postfix, "main.cf");
    ended(&setup(&daemon.config, &postfix, &["--apply", "--undo"]), 64);
    ended(&setup(&daemon.config, &postfix, &["--socket", "/nowhere"]), 64);

    // Another user may look, and no more.
    let folder = Folder::new("setup");
    let program = folder.path().join("postpone");
    fs::copy(env!("CARGO_BIN_EXE_postpone"), &program).unwrap();
    let nobody = |how: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=nobody", "--clear-groups"])
            .arg(&program)
            .args(["setup", "postfix", "--config"])
            .arg(&daemon.config)
            .arg("--postfix")
            .arg(postfix.folder())
            .args(how)
            // Nor is this environment's Postfix meant.
            .env("MAIL_CONFIG", "/nowhere");
        with_programs(&mut command, PATH).output().expect("setpriv (util-linux)")
    };
    let (out, _) = done(&nobody(&[]));
    assert!(out.contains("nothing has been changed"), "{out}");
    let (_, err) = ended(&nobody(&["--apply"]), 77);
    assert!(err.contains("only root may change Postfix"), "{err}");
    assert_eq!(file(&postfix, "main.cf"), before);

    // No Postfix is there; and none of these listeners could be asked.
    let (config, nowhere) = (daemon.config.to_str().unwrap(), folder.path().to_str().unwrap());
    ended(&postpone(&["setup", "postfix", "--config", config, "--postfix", nowhere]), 78);
    let config = absent(&folder, "inet:127.0.0.1:0");
    let (_, err) = ended(&setup(&config, &postfix, &[]), 78);
    assert!(err.contains("the settings have no [[listen]]"), "{err}");
}

#[test]
fn mail_that_a_content_filter_gives_back_is_not_judged_again() {
    // Nobody is allowed, and one message an hour: what the filter gives back comes from loopback,
    // all of it.
    let daemon = Daemon::start(&velocity("1/1h", ""));
    let back = free_port();
    // A filter that takes mail and hands it on is a Postfix of its own.
    let sends = "smtp unix - - n - - smtp";
    let filter = Postfix::plain()
        .with("myhostname = filter.example.org")
        .with(&format!("content_filter = smtp:[127.0.0.1]:{back}"))
        .with_service(sends)
        .start();
    let service = format!(
        "127.0.0.1:{back} inet n - n - - smtpd\n  -o content_filter=\n  \
         -o mynetworks=127.0.0.0/8\n  -o smtpd_recipient_restrictions=permit_mynetworks,reject"
    );
    let postfix = Postfix::plain()
        .with(&format!("content_filter = smtp:[{}]:{}", filter.smtp.ip(), filter.smtp.port()))
        .with_service(sends)
        .with_service(&service)
        .start();
    let before = [&["-n"], &["-M"]].map(|what| postconf(&postfix, what));
    let (out, err) = done(&setup(&daemon.config, &postfix, &["--apply"]));
    assert!(
        out.contains(&format!("127.0.0.1:{back}/inet takes mail back from a content filter")),
        "{out}"
    );
    assert_eq!(err, WARNINGS);
    let (out, _) = done(&setup(&daemon.config, &postfix, &["--apply"]));
    assert!(out.contains("nothing to do"), "{out}");
    asked(&postfix, &daemon);

    for (client, recipient) in
        [("127.77.8.1", "one"), ("127.77.8.2", "two"), ("127.77.8.3", "three")]
    {
        greeted(&postfix, client).deliver(SENDER, &[recipient]);
    }
    for recipient in ["one", "two", "three"] {
        wait_until(&format!("mail to {recipient}"), || {
            let to = format!("{recipient}@example.org");
            postfix.mailbox().iter().any(|mail| mail.contains(&to)).then_some(())
        });
    }

    done(&setup(&daemon.config, &postfix, &["--undo"]));
    assert_eq!([&["-n"], &["-M"]].map(|what| postconf(&postfix, what)), before);
}
