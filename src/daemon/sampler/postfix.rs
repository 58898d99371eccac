//! What only Postfix knows of itself: asked by `postconf`, once at the start and at a reload.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::daemon::service::VARIABLES;
use crate::smtp::template::is_host_name;

/// Where it is looked for; the second, for a `PATH` without the programs of the system.
const PROGRAMS: [&str; 2] = ["postconf", "/usr/sbin/postconf"];

/// How long it may take. It reads two small files.
const DEADLINE: Duration = Duration::from_secs(5);

/// The folder of all its queues.
pub(super) async fn queue_folder() -> Result<PathBuf, String> {
    let answer = postconf(&["-h", "queue_directory"]).await?;
    let path = PathBuf::from(answer.trim());
    match path.is_absolute() {
        true => Ok(path),
        false => Err(format!(
            "postconf gives no absolute path for queue_directory, but {:?}",
            answer.trim()
        )),
    }
}

/// How many sessions its smtpd can hold.
pub(super) async fn most_sessions() -> Result<u32, String> {
    let default = postconf(&["-h", "default_process_limit"]).await?;
    let services = postconf(&["-M"]).await?;
    process_limit(&services, default.trim())
}

/// What it calls this host.
pub(in crate::daemon) async fn host_name() -> Result<String, String> {
    let name = postconf(&["-h", "myhostname"]).await?.trim().to_owned();
    if is_host_name(&name) { Ok(name) } else { Err(format!("postconf calls this host {name:?}")) }
}

async fn postconf(arguments: &[&str]) -> Result<String, String> {
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        let output = match timeout(DEADLINE, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => continue,
            Ok(Err(error)) => return Err(format!("{program}: {error}")),
            Err(_) => return Err(format!("{program} does not answer")),
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or_default();
            return Err(format!("{program}: {}: {said}", output.status));
        }
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err("Postfix cannot be asked: there is no postconf".into())
}

/// The number of smtpd processes, from the lines of master.cf (master(5): service, type, private,
/// unpriv, chroot, wakeup, maxproc, command) and `default_process_limit`. Behind postscreen it is
/// that of the service it passes sessions on to.
fn process_limit(services: &str, default: &str) -> Result<u32, String> {
    let lines: Vec<Vec<_>> =
        services.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
    let find = |wanted: &dyn Fn(&str, &str, &str) -> bool| {
        lines.iter().find_map(|fields| match fields[..] {
            [service, kind, _, _, _, _, most, command, ..] => {
                wanted(service, kind, command).then_some((most, command))
            }
            _ => None,
        })
    };
    let port = |service: &str| {
        let (_, port) = service.rsplit_once(':').unwrap_or(("", service));
        matches!(port, "smtp" | "25")
    };
    let behind = || find(&|_, kind, command| kind == "pass" && command == "smtpd");
    // A machine that has no port 25 has some other port, as those of tests do.
    let found = find(&|service, kind, _| kind == "inet" && port(service))
        .or_else(|| find(&|_, kind, command| kind == "inet" && command == "smtpd"));
    let (most, _) = match found {
        Some((_, "postscreen")) => behind(),
        found => found,
    }
    .ok_or("Postfix has no smtpd in master.cf")?;
    let most = if most == "-" { default } else { most };
    match most.parse() {
        Ok(0) => Err("Postfix sets no limit on smtpd processes".into()),
        Ok(most) => Ok(most),
        Err(_) => Err(format!("Postfix's limit on smtpd processes is not a number: {most:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_the_service_holds_or_the_default() {
        for (services, expected) in [
            ("smtp inet n - y - - smtpd", Ok(100)),
            ("smtp       inet  n       -       y       -       40      smtpd -v", Ok(40)),
            ("submission inet n - y - 7 smtpd\n25 inet n - y - 40 smtpd", Ok(40)),
            ("127.0.0.1:smtp inet n - y - 40 smtpd", Ok(40)),
            ("[::1]:25 inet n - y - 40 smtpd", Ok(40)),
            ("127.0.0.1:10025 inet n - n - 9 smtpd", Ok(9)),
            ("smtp inet n - y - 1 postscreen\nsmtpd pass - - y - 40 smtpd", Ok(40)),
            ("smtp inet n - y - 1 postscreen", Err("no smtpd in master.cf")),
            ("smtp inet n - y - 0 smtpd", Err("sets no limit")),
            ("smtp inet n - y - x smtpd", Err("not a number: \"x\"")),
            ("smtp unix - - y - - smtp", Err("no smtpd in master.cf")),
            ("smtp inet n -", Err("no smtpd in master.cf")),
            ("", Err("no smtpd in master.cf")),
        ] {
            let found = process_limit(services, "100");
            match expected {
                Ok(most) => assert_eq!(found, Ok(most), "{services}"),
                Err(why) => assert!(found.as_ref().is_err_and(|e| e.contains(why)), "{found:?}"),
            }
        }
        assert!(process_limit("smtp inet n - y - - smtpd", "many").is_err());
    }
}
