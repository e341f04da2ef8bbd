//! Claims about who may connect to a host's socket: its owner, and with `--socket-group` that group, and nobody else.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use tests::program::program;
use tests::{Done, Place, TestHost, run_to_end};

/// A user and a group that no machine has, and another group.
const USER: &str = "65533";
const GROUP: &str = "54321";
const OTHERS: &str = "65532";

/// A host that serves for a group, at a place through which everybody may pass.
fn host_for(more: &[&str]) -> TestHost {
    let place = Place::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o711)).expect("it is ours");
    let words = ["host", "--memory", "128M", "--interval-ms", "200"];
    let words = [&words[..], &["--http", "127.0.0.1:0"], more].concat();
    let command = place.command(&words);
    TestHost::start_by(place, command)
}

/// A program that a user of these groups starts.
fn by_member(place: &Place, groups: &[&str], program: &Path, words: &[&str]) -> Done {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER]).args(groups);
    command.arg(program).args(words).current_dir("/");
    place.adapt(&mut command);
    run_to_end(&mut command)
}

const MEMBERS: [&[&str]; 2] = [
    &["--regid", GROUP, "--clear-groups"],
    &["--regid", OTHERS, "--groups", GROUP],
];
const STRANGER: [&str; 3] = ["--regid", OTHERS, "--clear-groups"];

fn mode(path: &Path) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).expect("it is there");
    (metadata.mode() & 0o777, metadata.gid())
}

#[test]
fn a_group_may_use_the_socket_and_nothing_else_of_the_hosts() {
    let host = host_for(&["--socket-group", GROUP]);
    assert_eq!(mode(&host.socket()), (0o660, 54_321));
    for groups in MEMBERS {
        let _vms = by_member(&host, groups, program().as_ref(), &["ps"]).expect_success();
        let set = ["set", "host", "idle-tax=50"];
        let _view = by_member(&host, groups, program().as_ref(), &set).expect_success();
    }
    let run = ["run", "--name", "a", "--memory", "64M"];
    let _view = by_member(&host, MEMBERS[0], program().as_ref(), &run).expect_success();
    by_member(&host, &STRANGER, program().as_ref(), &["ps"])
        .expect_failure(1, &["may not use the socket"]);
    // What VMs listen at, and the host's token, lie in its folder.
    let folder = host.host_folder();
    assert_eq!(mode(&folder).0, 0o700);
    assert_eq!(mode(&folder.join("token")).0, 0o600);
    for path in [folder.join("token"), folder.join("vms")] {
        let path = path.to_str().expect("it is text");
        let looked = by_member(&host, MEMBERS[0], Path::new("ls"), &[path]);
        assert_ne!(looked.status, Some(0), "{path}");
    }
    host.ok(&["stop", "a"]);
}

#[test]
fn without_a_group_the_socket_is_its_owners_alone() {
    let host = host_for(&[]);
    assert_eq!(mode(&host.socket()).0, 0o600);
    for groups in [MEMBERS[0], &STRANGER] {
        by_member(&host, groups, program().as_ref(), &["ps"])
            .expect_failure(1, &["may not use the socket"]);
    }
}

#[test]
fn a_group_that_is_not_there_is_named_with_what_would_help() {
    let place = Place::new();
    let words = [
        "host",
        "--memory",
        "128M",
        "--socket-group",
        "no-such-group",
    ];
    place.fails(&words, 2, &["'no-such-group'", "groupadd"]);
}
