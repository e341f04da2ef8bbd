//! Claims about where a host's socket and files lie: nothing of anybody else's is touched, one place is one however
//! it is spelled, and nobody else can put anything there.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tests::process::{self, Signal};
use tests::program::program;
use tests::{Place, TestHost, run_to_end, text, vms, wait_until};

/// What everybody may be, and nobody is.
const NOBODY: u32 = 65534;
const SMALL: [&str; 4] = ["--memory", "64M", "--workload", "idle"];

/// A command of the program for a socket, in a working folder.
fn command_at(place: &Place, folder: &Path, socket: &str, words: &[&str]) -> Command {
    let mut command = place.command(&[&["--socket", socket], words].concat());
    command.current_dir(folder);
    command
}

fn ok(command: &mut Command) -> String {
    run_to_end(command).expect_success()
}

/// A host at a socket, and what ends it.
struct At<'a> {
    place: &'a Place,
    folder: PathBuf,
    socket: String,
    host: Child,
}

impl<'a> At<'a> {
    fn start(place: &'a Place, folder: &Path, socket: &str) -> Self {
        let host = command_at(place, folder, socket, &["host", "--memory", "256M"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program can be run");
        let at = Self {
            place,
            folder: folder.into(),
            socket: socket.into(),
            host,
        };
        wait_until("the host serves", || at.run(&["ps"]).status == Some(0));
        at
    }

    fn run(&self, words: &[&str]) -> tests::Done {
        run_to_end(&mut command_at(
            self.place,
            &self.folder,
            &self.socket,
            words,
        ))
    }

    fn ok(&self, words: &[&str]) -> String {
        self.run(words).expect_success()
    }

    fn end_by(mut self, signal: Signal) {
        process::signal(self.host.id(), signal);
        self.host.wait().expect("a child can be waited for");
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn make_folder(path: &Path) {
    fs::create_dir(path).expect("a folder can be made");
}

fn remove_folder(path: &Path) {
    fs::remove_dir_all(path).expect("it was made above");
}

#[test]
fn what_lies_at_the_sockets_path_is_not_replaced_unless_it_is_a_dead_socket() {
    let place = Place::new();
    let folder = place.temporary_folder();
    let image = folder.join("disk.img");
    fs::write(&image, "an image").expect("a file can be made");
    symlink("disk.img", folder.join("link")).expect("a link can be made");
    for socket in ["disk.img", "link"] {
        for words in [
            &["run", "--memory", "64M"][..],
            &["host", "--memory", "256M"],
            &["ps"],
        ] {
            let done = run_to_end(&mut command_at(&place, &folder, socket, words));
            done.expect_failure(1, &[socket, "is no socket", "another --socket"]);
        }
    }
    assert_eq!(fs::read(&image).expect("it is there"), b"an image");
    assert_eq!(names_in(&folder), ["disk.img", "link"]);

    let listener = std::os::unix::net::UnixListener::bind(folder.join("served"));
    let words = ["host", "--memory", "256M"];
    let done = run_to_end(&mut command_at(&place, &folder, "served", &words));
    done.expect_failure(1, &["another program serves served", "another --socket"]);
    drop(listener);
    At::start(&place, &folder, "served").end_by(Signal::TERM);
    for name in names_in(&folder) {
        fs::remove_file(folder.join(name)).expect("only files were made");
    }
}

#[test]
fn what_a_host_keeps_lies_in_a_folder_of_its_own() {
    let place = Place::new();
    let folder = place.temporary_folder();
    let users = [
        "disk.decisions",
        "disk.decisions.old",
        "disk.lock",
        "disk.log",
        "disk.token",
    ];
    for name in users {
        fs::write(folder.join(name), name).expect("a file can be made");
    }
    let run = [&["run", "--name", "a"], &SMALL[..]].concat();
    // One in the foreground, and one in the background with its log.
    let host = At::start(&place, &folder, "disk.img");
    host.ok(&run);
    host.end_by(Signal::TERM);
    ok(&mut command_at(&place, &folder, "disk.img", &run));
    let stop = ["stop", "a"];
    ok(&mut command_at(&place, &folder, "disk.img", &stop));
    wait_until("the host ends", || names_in(&folder) == users);
    for name in users {
        assert_eq!(
            fs::read(folder.join(name)).expect("it is there"),
            name.as_bytes()
        );
        fs::remove_file(folder.join(name)).expect("it was made above");
    }

    // A folder of that name that a user has made is not taken.
    make_folder(&folder.join("x.d"));
    fs::set_permissions(folder.join("x.d"), Permissions::from_mode(0o700)).expect("it is ours");
    fs::write(folder.join("x.d/log"), "mine").expect("a file can be made");
    let done = run_to_end(&mut command_at(&place, &folder, "x", &["host"]));
    done.expect_failure(1, &["x.d", "not a host's"]);
    assert_eq!(
        fs::read(folder.join("x.d/log")).expect("it is there"),
        b"mine"
    );
    remove_folder(&folder.join("x.d"));
}

#[test]
fn two_sockets_in_one_folder_are_two_hosts() {
    let place = Place::new();
    let folder = place.temporary_folder();
    let hosts = ["node.1", "node.2"].map(|socket| At::start(&place, &folder, socket));
    for (host, name) in hosts.iter().zip(["a", "b"]) {
        host.ok(&[&["run", "--name", name], &SMALL[..]].concat());
        let printed = host.ok(&["ps", "--json"]);
        let overview: tests::Value = serde_json::from_str(&printed).expect("it is JSON");
        let names: Vec<&str> = vms(&overview).iter().map(|vm| text(vm, "/name")).collect();
        assert_eq!(names, [name]);
    }
    for host in hosts {
        host.end_by(Signal::TERM);
    }
    assert!(names_in(&folder).is_empty());
}

#[test]
fn one_place_is_one_however_it_is_spelled() {
    let place = Place::new();
    let folder = place.temporary_folder();
    let (real, link) = (folder.join("real"), folder.join("link"));
    make_folder(&real);
    symlink(&real, &link).expect("a link can be made");
    let full = real.join("h.sock").display().to_string();
    let spellings = [
        (real.as_path(), "h.sock"),
        (real.as_path(), "./../real/h.sock"),
        (real.as_path(), &full),
        (folder.as_path(), "link/h.sock"),
    ];
    let host = At::start(&place, &real, "h.sock");
    for (folder, socket) in spellings {
        let done = run_to_end(&mut command_at(&place, folder, socket, &["host"]));
        done.expect_failure(
            1,
            &["already serves", &format!("process {}", host.host.id())],
        );
    }
    host.ok(&[&["run", "--name", "a"], &SMALL[..]].concat());
    let printed = host.ok(&["stats", "a", "--json"]);
    let vm: tests::Value = serde_json::from_str(&printed).expect("it is JSON");
    let pid = u32::try_from(tests::number(&vm, "/pid")).expect("a small number");
    host.end_by(Signal::KILL);
    let (mut host, mut pids) = (None::<At>, Vec::new());
    for (folder, socket) in spellings {
        if let Some(host) = host.take() {
            host.end_by(Signal::KILL);
        }
        let next = At::start(&place, folder, socket);
        let printed = next.ok(&["stats", "a", "--json"]);
        let vm: tests::Value = serde_json::from_str(&printed).expect("it is JSON");
        pids.push(tests::number(&vm, "/pid"));
        host = Some(next);
    }
    assert_eq!(pids, [u64::from(pid); 4]);
    host.expect("there are spellings").end_by(Signal::TERM);
    assert!(names_in(&real).is_empty());
    fs::remove_file(link).expect("it was made above");
    remove_folder(&real);
}

#[test]
fn one_spelling_in_two_folders_is_two_places() {
    let place = Place::new();
    let folders = ["one", "two"].map(|name| place.temporary_folder().join(name));
    folders.iter().for_each(|folder| make_folder(folder));
    let first = At::start(&place, &folders[0], "h.sock");
    first.ok(&[&["run", "--name", "a"], &SMALL[..]].concat());
    // The other's VM is no orphan of this one's.
    let second = At::start(&place, &folders[1], "h.sock");
    second.ok(&[&["run", "--name", "a"], &SMALL[..]].concat());
    for host in [first, second] {
        host.end_by(Signal::TERM);
    }
    for folder in folders {
        assert!(names_in(&folder).is_empty());
        remove_folder(&folder);
    }
}

/// A command of a user without rights, who has no socket but the default one.
fn command_of_nobody(place: &Place, runtime_dir: Option<&str>, words: &[&str]) -> Command {
    let user = NOBODY.to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .arg(program())
        .args(words)
        .current_dir(place.temporary_folder());
    place.adapt(&mut command);
    command.env_remove("BALLONET_SOCKET");
    match runtime_dir {
        Some(folder) => command.env("XDG_RUNTIME_DIR", folder),
        None => command.env_remove("XDG_RUNTIME_DIR"),
    };
    command
}

fn let_everybody_in(place: &Place) {
    for folder in [place.path(), &place.temporary_folder()] {
        fs::set_permissions(folder, Permissions::from_mode(0o777)).expect("it is ours");
    }
}

#[test]
fn a_runtime_folder_that_is_no_absolute_path_is_as_if_unset() {
    let place = Place::new();
    let_everybody_in(&place);
    let fallback = place.temporary_folder().join(format!("ballonet-{NOBODY}"));
    let fallback = fallback.join("ballonet/host.sock").display().to_string();
    let elsewhere = place.path().join("run");
    let given = elsewhere.to_str().expect("a name in letters");
    let in_given = format!("{given}/ballonet/host.sock");
    for (runtime_dir, socket) in [
        (None, &fallback),
        (Some(""), &fallback),
        (Some("relative"), &fallback),
        (Some(given), &in_given),
    ] {
        let done = run_to_end(&mut command_of_nobody(&place, runtime_dir, &["ps"]));
        done.expect_failure(1, &["no host answers at", socket]);
    }
    let done = run_to_end(command_of_nobody(&place, Some(""), &["ps"]).env("TMPDIR", ""));
    done.expect_failure(1, &[&format!("/tmp/ballonet-{NOBODY}/ballonet/host.sock")]);
}

#[test]
fn a_folder_among_those_of_all_users_is_used_only_if_it_is_ours_alone() {
    let place = Place::new();
    let_everybody_in(&place);
    let folder = place.temporary_folder().join(format!("ballonet-{NOBODY}"));
    let refused = |why: &str| {
        for words in [
            &["ps"][..],
            &["run", "--memory", "64M"],
            &["host", "--memory", "64M"],
        ] {
            let done = run_to_end(&mut command_of_nobody(&place, None, words));
            let named = folder.display().to_string();
            done.expect_failure(1, &[&named, "not safe", why, "mode 700", "--socket"]);
        }
    };
    make_folder(&folder);
    refused("user 0's");
    chown(&folder, Some(NOBODY), Some(NOBODY)).expect("it is ours");
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).expect("it is ours");
    refused("open to others with mode 777");
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).expect("it is ours");
    let done = run_to_end(&mut command_of_nobody(&place, None, &["ps"]));
    done.expect_failure(1, &["no host answers"]);
    let real = place.temporary_folder().join("real");
    fs::rename(&folder, &real).expect("it is ours");
    symlink(&real, &folder).expect("a link can be made");
    refused("a symbolic link");
    assert!(names_in(&real).is_empty());
    fs::remove_file(&folder).expect("it was made above");
    remove_folder(&real);
}

/// The folder that all of a user's programs have may be open to others too.
#[test]
fn a_folder_in_the_runtime_folder_is_used_only_if_it_is_ours_alone() {
    let place = Place::new();
    let_everybody_in(&place);
    let runtime_dir = place.path().join("run");
    make_folder(&runtime_dir);
    fs::set_permissions(&runtime_dir, Permissions::from_mode(0o777)).expect("it is ours");
    make_folder(&runtime_dir.join("ballonet"));
    let given = runtime_dir.to_str().expect("a name in letters");
    for words in [&["ps"][..], &["run", "--memory", "64M"]] {
        let done = run_to_end(&mut command_of_nobody(&place, Some(given), words));
        done.expect_failure(1, &["run/ballonet", "not safe", "user 0's", "--socket"]);
    }
    fs::remove_dir_all(&runtime_dir).expect("it is ours");
}

/// A user without rights cannot mount, so what the machine's setting costs is said, with the command that changes it.
#[test]
fn a_host_says_what_keeps_it_from_large_pages() {
    let setting = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let is_heeded = fs::read_to_string(setting).is_ok_and(|text| text.contains("[advise]"));
    let place = Place::new();
    let_everybody_in(&place);
    let words = ["host", "--memory", "64M"];
    let mut command = command_of_nobody(&place, None, &words);
    let mut host = command
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be run");
    let log = BufReader::new(host.stderr.take().expect("it is piped"));
    let mut told = Vec::new();
    for line in log.lines() {
        let line = line.expect("it is text");
        let is_last = line.contains(setting) || line.contains("ended");
        // It says so after this, or not at all.
        if line.contains("serving") && is_heeded {
            process::signal(host.id(), Signal::TERM);
        }
        told.push(line);
        if is_last {
            break;
        }
    }
    let told = told.join("\n");
    assert_eq!(told.contains(setting), !is_heeded, "{told}");
    if !is_heeded {
        process::signal(host.id(), Signal::TERM);
    }
    assert!(host.wait().expect("it is a child").success());
    drop(fs::remove_dir_all(
        place.temporary_folder().join(format!("ballonet-{NOBODY}")),
    ));
}

#[test]
fn a_socket_that_is_no_hosts_is_told_from_one_that_nobody_serves() {
    let place = Place::new();
    let socket = place.path().join("x");
    let _datagrams = std::os::unix::net::UnixDatagram::bind(&socket).expect("a short path");
    let done = run_to_end(place.command(&["ps"]).arg("--socket").arg(&socket));
    done.expect_failure(1, &["cannot reach a host at", "is it a host's socket"]);
    let_everybody_in(&place);
    fs::set_permissions(&socket, Permissions::from_mode(0o600)).expect("it is ours");
    let mut command = command_of_nobody(&place, None, &["ps"]);
    let done = run_to_end(command.arg("--socket").arg(&socket));
    done.expect_failure(1, &["may not use the socket", "--socket"]);
    fs::remove_file(&socket).expect("it is ours");
}

#[test]
fn a_path_that_is_too_long_for_a_socket_is_refused_by_every_command() {
    let place = Place::new();
    let folder = place.temporary_folder();
    let name = "x".repeat(80);
    let socket = folder.join(&name).join("host.sock").display().to_string();
    assert!(socket.len() > 107);
    let commands: [&[&str]; 6] = [
        &["host", "--memory", "64M"],
        &["run", "--memory", "64M"],
        &["ps"],
        &["stats", "a"],
        &["stop", "a"],
        &["console", "a"],
    ];
    let length = format!("{} bytes", socket.len());
    for words in commands {
        let done = run_to_end(&mut command_at(&place, &folder, &socket, words));
        done.expect_failure(1, &[&socket, &length, "takes 107", "shorter --socket"]);
    }
    assert!(names_in(&folder).is_empty());
    // Only what the kernel is given counts.
    let deep = folder.join(&name);
    make_folder(&deep);
    At::start(&place, &deep, "host.sock").end_by(Signal::TERM);
    remove_folder(&deep);
}

#[test]
fn files_have_their_modes_whatever_the_umask() {
    for umask in ["000", "777"] {
        let place = Place::new();
        let folder = place.temporary_folder();
        let mut run = Command::new("sh");
        run.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"])
            .arg(program())
            .args(["--socket", "deep/er/h.sock", "run", "--name", "a"])
            .args(SMALL)
            .current_dir(&folder);
        place.adapt(&mut run);
        ok(&mut run);
        let kept = folder.join("deep/er/h.sock.d");
        wait_until("something was decided", || kept.join("decisions").exists());
        for (path, mode) in [
            ("deep", 0o700),
            ("deep/er", 0o700),
            ("deep/er/h.sock", 0o600),
            ("deep/er/h.sock.d", 0o700),
            ("deep/er/h.sock.d/lock", 0o600),
            ("deep/er/h.sock.d/log", 0o600),
            ("deep/er/h.sock.d/decisions", 0o600),
        ] {
            let metadata = fs::symlink_metadata(folder.join(path)).expect("it is there");
            assert_eq!(metadata.mode() & 0o777, mode, "{path} with umask {umask}");
        }
        let stop = ["stop", "a"];
        ok(&mut command_at(&place, &folder, "deep/er/h.sock", &stop));
        wait_until("the host ends", || {
            names_in(&folder.join("deep/er")).is_empty()
        });
        remove_folder(&folder.join("deep"));
    }
}

#[test]
fn a_killed_host_leaves_its_decisions_and_another_takes_its_place() {
    let mut host = TestHost::start("256M");
    host.start_vm("a", &SMALL);
    let (pid, kept) = (host.pid("a"), host.host_folder());
    wait_until("something was decided", || kept.join("decisions").exists());
    let decided = fs::metadata(kept.join("decisions"))
        .expect("it is there")
        .ino();
    host.end_by(Signal::KILL);
    process::signal(pid, Signal::KILL);
    wait_until("it has ended", || !process::is_alive(pid));
    let host = TestHost::start_in(host.into_place(), "256M");
    host.start_vm("a", &SMALL);
    wait_until("the earlier decisions are kept beside the new ones", || {
        let older = fs::metadata(kept.join("decisions.old"));
        older.is_ok_and(|older| older.ino() == decided)
    });
}
