//! Claims about what people see: consoles and `top` on a terminal.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tests::console::{Printed, parse_report};
use tests::process::Signal;
use tests::program::{program, run_with_input};
use tests::raw_client::RawClient;
use tests::screen::Screen;
use tests::terminal::Terminal;
use tests::{GuestConsole, TestHost, number, process, wait_until};

const CTRL_C: &[u8] = b"\x03";
const CTRL_RIGHT_BRACKET: &[u8] = b"\x1d";

#[test]
fn a_console_takes_the_terminal_raw_and_gives_it_back_as_it_was() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let mut terminal = Terminal::run(&host.command(&["console", "a"]), 80, 24);
    terminal.shown.wait_for("Ctrl-] leaves it", 0);
    wait_until("the terminal is raw", || terminal.is_raw());

    // Ctrl-C is a key like others: for the guest, which passes it over.
    terminal.type_keys(b"rep");
    terminal.type_keys(CTRL_C);
    terminal.type_keys(b"ort\r");
    terminal.shown.wait_for("report {\"guest\":", 0);
    terminal.type_keys(CTRL_RIGHT_BRACKET);
    terminal.shown.wait_for("the VM runs on", 0);
    assert!(terminal.wait_for_end().success());
    assert!(!terminal.is_raw(), "{}", terminal.modes());
    wait_until("the VM runs on", || host.vm("a")["responding"] == true);
}

#[test]
fn a_console_ends_with_its_vm_and_gives_the_terminal_back() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let mut terminal = Terminal::run(&host.command(&["console", "a"]), 80, 24);
    wait_until("the terminal is raw", || terminal.is_raw());
    process::signal(host.pid("a"), Signal::KILL);
    terminal.shown.wait_for("the VM has ended", 0);
    terminal.wait_for_end();
    assert!(!terminal.is_raw(), "{}", terminal.modes());
}

#[test]
fn a_console_ends_with_its_host_and_gives_the_terminal_back() {
    let mut host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let mut terminal = Terminal::run(&host.command(&["console", "a"]), 80, 24);
    wait_until("the terminal is raw", || terminal.is_raw());
    let status = host.end_by(Signal::TERM);
    assert!(status.success(), "{status}");
    terminal.wait_for_end();
    assert!(!terminal.is_raw(), "{}", terminal.modes());
}

/// A terminal that stays raw is a shell that shows nothing of what is typed.
#[test]
fn a_console_that_is_told_to_end_gives_the_terminal_back() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    for signal in [
        Signal::TERM,
        Signal::HUP,
        Signal::INT,
        Signal::USR1,
        Signal::ALARM,
    ] {
        let mut terminal = Terminal::run(&host.command(&["console", "a"]), 80, 24);
        wait_until("the terminal is raw", || terminal.is_raw());
        process::signal(terminal.pid(), signal);
        terminal.wait_for_end();
        assert!(!terminal.is_raw(), "{signal:?}: {}", terminal.modes());
    }
}

/// All that the sockets between hold, and more.
const MORE_THAN_ANYBODY_TAKES: usize = 3_000_000;

#[test]
fn a_console_whose_guest_takes_nothing_ends_when_it_is_told_to() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let vm = host.pid("a");
    process::signal(vm, Signal::STOP);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut command = host.command(&["console", "a"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut client = command.spawn().expect("the program can be run");
        let mut input = client.stdin.take().expect("it is piped");
        let typing = std::thread::spawn(move || {
            // It ends when the client does.
            drop(input.write_all(&vec![b'x'; MORE_THAN_ANYBODY_TAKES]));
        });
        wait_until("the client waits for the guest", || {
            process::state(client.id()) == Some('S')
        });
        process::signal(client.id(), signal);
        wait_until("the client ends", || {
            client.try_wait().expect("it is a child").is_some()
        });
        typing.join().expect("it does not panic");
    }
    process::signal(vm, Signal::CONT);
}

#[test]
fn a_terminal_on_a_guest_that_takes_nothing_is_left_by_key_and_by_signal() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let vm = host.pid("a");
    process::signal(vm, Signal::STOP);
    let typed_ahead = || {
        let mut terminal = Terminal::run(&host.command(&["console", "a"]), 80, 24);
        wait_until("the terminal is raw", || terminal.is_raw());
        // The terminal's own buffer is emptied at once, whatever the guest takes.
        for _ in 0..MORE_THAN_ANYBODY_TAKES / 3000 {
            terminal.type_keys(&[b'x'; 3000]);
        }
        terminal
    };
    let mut terminal = typed_ahead();
    terminal.type_keys(CTRL_RIGHT_BRACKET);
    terminal.shown.wait_for("the VM runs on", 0);
    assert!(terminal.wait_for_end().success());
    assert!(!terminal.is_raw(), "{}", terminal.modes());
    let mut terminal = typed_ahead();
    process::signal(terminal.pid(), Signal::TERM);
    assert_eq!(terminal.wait_for_end().code(), Some(143));
    assert!(!terminal.is_raw(), "{}", terminal.modes());
    process::signal(vm, Signal::CONT);
}

/// As a service's log, or a terminal that was closed.
#[test]
fn a_console_whose_words_cannot_be_written_gives_the_terminal_back() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    for (full, status) in [("2>/dev/full", 0), (">/dev/full", 1)] {
        let mut shell = Command::new("bash");
        let script = format!("\"$1\" console a {full}");
        shell.args(["-c", &script, "bash"]).arg(program());
        host.adapt(&mut shell);
        let mut terminal = Terminal::run(&shell, 80, 24);
        if status == 0 {
            wait_until("the terminal is raw", || terminal.is_raw());
            terminal.type_keys(CTRL_RIGHT_BRACKET);
        }
        assert_eq!(terminal.wait_for_end().code(), Some(status), "{full}");
        assert!(!terminal.is_raw(), "{full}: {}", terminal.modes());
    }
}

/// What was ignored at the start, as by nohup, stays so.
#[test]
fn a_console_whose_hangup_is_ignored_goes_on() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let mut shell = Command::new("bash");
    shell
        .args(["-c", "trap '' HUP; exec \"$1\" console a", "bash"])
        .arg(program());
    host.adapt(&mut shell);
    let mut terminal = Terminal::run(&shell, 80, 24);
    wait_until("the terminal is raw", || terminal.is_raw());
    process::signal(terminal.pid(), Signal::HUP);
    terminal.type_keys(b"report\r");
    terminal.shown.wait_for("report {\"guest\":", 0);
    terminal.type_keys(CTRL_RIGHT_BRACKET);
    assert!(terminal.wait_for_end().success());
}

/// Whoever types nothing wants to see what comes: the log of a boot, up to the VM's end.
#[test]
fn a_console_without_input_is_followed_until_the_vm_ends() {
    let host = TestHost::start("256M");
    let silent = |words: &[&str]| {
        let mut command = host.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut client = command.spawn().expect("the program can be run");
        let printed = Printed::by(client.stdout.take().expect("it is piped"));
        (client, printed)
    };
    let (mut at_start, boot) = silent(&["run", "--name", "a", "--memory", "64M", "--console"]);
    boot.wait_for("ballonet guest", 0);
    let (mut later, seen_later) = silent(&["console", "a", "--replay", "64K"]);
    seen_later.wait_for("ballonet guest", 0);
    // Longer than one who has asked something waits for more of the answer.
    sleep(Duration::from_millis(1500));
    host.console("a").report();
    for (client, printed) in [(&mut at_start, &boot), (&mut later, &seen_later)] {
        printed.wait_for("report {\"guest\":", 0);
        assert_eq!(client.try_wait().expect("it is a child"), None);
    }
    host.ok(&["stop", "a"]);
    for client in [&mut at_start, &mut later] {
        assert!(client.wait().expect("it is a child").success());
    }
}

/// A log that begins with the first word and stays when the VM has gone.
#[test]
fn what_a_vm_prints_is_kept_in_a_file_if_so_wished() {
    let host = TestHost::start("512M");
    let file = |name: &str| host.temporary_folder().join(name);
    let path = file("a.log").display().to_string();
    let run = |name: &'static str, path: &str| {
        host.run(&[
            "run",
            "--name",
            name,
            "--memory",
            "64M",
            "--console-log",
            path,
        ])
    };
    let kept = |name: &str| fs::read_to_string(file(name)).unwrap_or_default();
    let _first = run("a", &path).expect_success();
    wait_until("its first words are kept", || {
        kept("a.log").contains("\nballonet guest")
    });
    assert_eq!(host.vm("a")["console_log"], path.as_str());
    assert!(host.ok(&["stats", "a"]).contains(&path));
    let other_spelling = file("nothing/../a.log").display().to_string();
    fs::create_dir(file("nothing")).expect("a folder can be made");
    for path in [&path, &other_spelling] {
        run("b", path).expect_failure(1, &["'a'", path, "'b'", "--console-log"]);
    }
    fs::remove_dir(file("nothing")).expect("it is empty");
    host.console("a").report();
    host.ok(&["stop", "a"]);
    assert!(kept("a.log").contains("report {"), "{}", kept("a.log"));
    let _second = run("a", &path).expect_success();
    wait_until("the next one's words are kept", || {
        kept("a.log.old").contains("report {") && kept("a.log").contains("\nballonet guest")
    });
    assert!(!kept("a.log").contains("report {"), "{}", kept("a.log"));
    host.ok(&["stop", "a"]);
    // What is no log is somebody's, this VM's own disk for one.
    let disk = file("b.log.old").display().to_string();
    let beside = file("b.log").display().to_string();
    fs::write(&disk, [0; 4096]).expect("a file can be made");
    for (path, why) in [
        ("/dev/null", "no regular file"),
        ("/nowhere/a.log", "No such file"),
        (&disk, "printed before"),
        (&beside, "b.log.old is there already"),
    ] {
        run("a", path).expect_failure(1, &["'a'", path, why, "--console-log"]);
    }
    assert_eq!(fs::read(&disk).expect("it is there"), [0; 4096]);
    // A VM that does not start leaves nothing behind.
    let missing = file("c.log").display().to_string();
    let kernel = ["run", "--kernel", "/nowhere", "--console-log", &missing];
    host.fails(&kernel, 1, &["/nowhere"]);
    assert!(!file("c.log").exists());
    for name in ["a.log", "a.log.old", "b.log.old"] {
        fs::remove_file(file(name)).expect("it was kept");
    }
}

#[test]
fn a_host_keeps_what_each_vm_prints_in_a_folder_if_so_wished() {
    let place = tests::Place::new();
    let folder = place.temporary_folder().join("deep/consoles");
    let mut command = place.command(&["host", "--memory", "256M", "--console-log"]);
    command.arg(&folder);
    let host = TestHost::start_by(place, command);
    for name in ["a", "b"] {
        host.boot_vm(name, &["--memory", "64M"]);
        let path = folder.join(format!("{name}.log"));
        wait_until("its words are kept", || {
            fs::read_to_string(&path).is_ok_and(|kept| kept.contains("ballonet guest"))
        });
    }
    let mode = fs::metadata(&folder).expect("it was made").mode();
    assert_eq!(mode & 0o77, 0, "{mode:o}");
    host.ok(&["stop", "--all"]);
    fs::remove_dir_all(host.temporary_folder().join("deep")).expect("it was made");
}

#[test]
fn a_console_with_input_is_followed_to_the_end_if_so_wished() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let mut answered = host.command(&["console", "a", "--replay", "0"]);
    let done = run_with_input(&mut answered, b"report\n").expect_success();
    assert!(parse_report(&done).is_some(), "{done}");
    assert_eq!(host.vm("a")["phase"], "running");
    let mut followed = host.command(&["console", "a", "--follow"]);
    let done = run_with_input(&mut followed, b"off\n").expect_success();
    assert!(done.contains("off"), "{done}");
    wait_until("it has ended", || tests::vms(&host.overview()).is_empty());
}

#[test]
fn run_with_console_is_at_the_guest_at_once() {
    let host = TestHost::start("256M");
    let command = host.command(&["run", "--name", "a", "--memory", "64M", "--console"]);
    let mut terminal = Terminal::run(&command, 80, 24);
    terminal.shown.wait_for("ballonet guest", 0);
    terminal.type_keys(b"help\r");
    terminal.shown.wait_for("workload SPEC", 0);
    terminal.type_keys(CTRL_RIGHT_BRACKET);
    assert!(terminal.wait_for_end().success());
    assert_eq!(host.vm("a")["phase"], "running");
}

#[test]
fn several_clients_share_a_console() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let mut clients: Vec<GuestConsole> = (0..4)
        .map(|_| GuestConsole::attach_replaying(&host, "a", "64K"))
        .collect();
    for client in &clients {
        client.expect("ballonet guest");
    }
    clients[0].type_line("report");
    for client in &clients {
        client.expect("report {\"guest\":");
    }
    clients[3].type_line("stop please");
    for client in &clients {
        client.expect("error: no command `stop please`");
    }
}

#[test]
fn a_client_that_does_not_read_holds_up_neither_guest_nor_others() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let mut stopped = host.console("a");
    stopped.report();
    process::signal(stopped.pid(), Signal::STOP);
    let mut other = host.console("a");
    let mut printed = 0;
    // More than the host keeps for a slow reader, whose socket is soon full of small pieces.
    while printed < 96 << 10 {
        other.type_line(&"help\n".repeat(32));
        let before = other.text().len();
        wait_until("the guest prints on", || {
            other.text().len() > before + 10_000
        });
        printed += other.text().len() - before;
    }
    let resident = process::resident_bytes(host.host_pid());
    assert!(resident < 64 << 20, "the host has {resident} bytes");
}

/// The guest's words come through a socket that takes a few hundred small pieces only, and the
/// host may have no processor for longer than a guest needs to print these.
#[test]
fn a_host_that_sleeps_misses_nothing_of_what_a_guest_prints() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let console = host.console("a");
    all_reports_come_through_a_sleep_of(host.host_pid(), console);
    let lost = number(&host.vm("a"), "/counters/console_lost_bytes");
    assert_eq!(lost, 0);
}

/// The host reads pieces of a few bytes: a client may be behind by many of them.
#[test]
fn a_client_that_sleeps_misses_nothing_of_what_a_guest_prints() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let console = host.console("a");
    all_reports_come_through_a_sleep_of(console.pid(), console);
}

/// Stops a process while a guest prints less than the host keeps.
fn all_reports_come_through_a_sleep_of(process: u32, mut console: GuestConsole) {
    const REPORTS: usize = 100;
    // So few bytes reach the guest's console at once: they are there when the first is answered.
    console.type_line(&vec!["report"; REPORTS].join("\n"));
    console.expect("report {\"guest\":");
    process::signal(process, Signal::STOP);
    // Were the guest not done by then, less would be tested, and nothing fail.
    sleep(Duration::from_millis(500));
    process::signal(process, Signal::CONT);
    wait_until("each report comes whole", || {
        console.text().lines().filter_map(parse_report).count() == REPORTS
    });
}

/// With few descriptors left for the host, consoles must not take those of other clients and VMs.
#[test]
fn hundreds_of_consoles_leave_room_for_commands_and_vms() {
    let place = tests::Place::new();
    let mut command = std::process::Command::new("prlimit");
    command
        .arg("--nofile=256")
        .arg(tests::program::program())
        .args(["host", "--memory", "256M"]);
    place.adapt(&mut command);
    let host = TestHost::start_by(place, command);
    host.boot_vm("a", &["--memory", "64M"]);
    let consoles: Vec<RawClient> = (0..300)
        .map(|_| {
            let mut client = RawClient::connect(&host.socket());
            client.send(
                b"GET /v1/vms/a/console HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n\
                  Upgrade: ballonet-console\r\n\r\n",
            );
            client
        })
        .collect();
    host.boot_vm("b", &["--memory", "64M"]);
    drop(consoles);
}

/// A terminal, and what it shows when it was resized.
#[test]
fn top_fits_into_every_terminal_and_shows_more_where_there_is_room() {
    let host = TestHost::start("512M");
    for name in ["anna", "bert", "cora", "dirk"] {
        host.boot_vm(name, &["--memory", "128M", "--min", "32M"]);
    }
    let screen = Screen::run(&host, &["top", "--interval", "0.1"], 80, 24);
    let header = screen.wait_for(&["NAME", "MEMSZ", "MCTLSZ"]);
    assert!(!header.contains("BRK/s"), "{header}");
    for name in ["anna", "bert", "cora", "dirk"] {
        screen.wait_for(&[name, "128"]);
    }
    screen.wait_for(&["PMEM", "512 total"]);
    screen.resize(290, 50);
    screen.wait_for(&["NAME", "MEMSZ", "BRK/s"]);
    screen.resize(20, 4);
    screen.wait_for(&["up 0:"]);
    screen.press(&["C-c"]);
    screen.wait_for_end();
}

#[test]
fn top_sorts_pauses_and_shows_one_vm_by_keys() {
    let host = TestHost::start("512M");
    host.boot_vm("small", &["--memory", "64M"]);
    host.boot_vm("large", &["--memory", "128M"]);
    let screen = Screen::run(&host, &["top", "--interval", "0.1"], 80, 24);
    let order = || -> String {
        let rows = screen.rows();
        let mut first_words = rows.iter().filter_map(|row| row.split(' ').next());
        let names = first_words
            .by_ref()
            .filter(|word| ["small", "large"].contains(word));
        names.collect::<Vec<_>>().join(" ")
    };
    wait_until("as they came", || order() == "small large");
    screen.press(&["Right", "Right"]);
    wait_until("the largest first", || order() == "large small");
    screen.press(&["Space"]);
    screen.wait_for(&["PAUSED"]);
    host.ok(&["stop", "small"]);
    assert_eq!(order(), "large small");
    screen.press(&["Space"]);
    wait_until("it has gone", || order() == "large");
    screen.press(&["Enter"]);
    screen.wait_for(&["VM large: run", "128 MiB"]);
    screen.wait_for(&["empty", "█"]);
    screen.wait_for(&["'large' should hold"]);
    screen.wait_for(&["started as process"]);
    screen.press(&["u"]);
    screen.wait_for(&["VM large: run", "0.13 GiB"]);
    screen.press(&["h"]);
    screen.wait_for(&["Keys"]);
    screen.press(&["q", "q"]);
    screen.wait_for_end();
}

#[test]
fn top_leaves_the_terminal_as_it_was() {
    let host = TestHost::start("256M");
    let command = host.command(&["top", "--interval", "0.1"]);
    let mut terminal = Terminal::run(&command, 80, 24);
    terminal.shown.wait_for("PMEM", 0);
    assert!(terminal.is_raw());
    terminal.type_keys(CTRL_C);
    assert!(terminal.wait_for_end().success());
    assert!(!terminal.is_raw());
    terminal.shown.wait_for("\x1b[?1049l", 0);
}

/// A host that does not answer holds up neither keys nor signals, and what is typed ahead is one look.
#[test]
fn top_whose_host_does_not_answer_is_left_by_key_and_by_signal() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let command = host.command(&["top", "--interval", "0.1"]);
    let stuck = || {
        let mut terminal = Terminal::run(&command, 80, 24);
        terminal.shown.wait_for("PMEM", 0);
        // The VM's page asks for more than the table.
        terminal.type_keys(b"b\r");
        terminal.shown.wait_for("VM a", 0);
        process::signal(host.host_pid(), Signal::STOP);
        sleep(Duration::from_millis(300));
        terminal
    };
    let mut terminal = stuck();
    for _ in 0..50 {
        terminal.type_keys(b"ububub");
    }
    terminal.type_keys(b"qq");
    assert!(terminal.wait_for_end().success());
    process::signal(host.host_pid(), Signal::CONT);
    assert!(!terminal.is_raw(), "{}", terminal.modes());
    terminal.shown.wait_for("\x1b[?1049l", 0);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut terminal = stuck();
        process::signal(terminal.pid(), signal);
        let status = terminal.wait_for_end();
        process::signal(host.host_pid(), Signal::CONT);
        assert_eq!(status.code(), Some(128 + signal.as_raw()));
        assert!(!terminal.is_raw(), "{}", terminal.modes());
        terminal.shown.wait_for("\x1b[?1049l", 0);
    }
}

#[test]
fn top_whose_terminal_is_closed_ends_without_a_fault() {
    let host = TestHost::start("256M");
    let command = host.command(&["top", "--interval", "0.1"]);
    let mut terminal = Terminal::run(&command, 80, 24);
    terminal.shown.wait_for("PMEM", 0);
    terminal.close();
    let status = terminal.wait_for_end();
    // That of who ended at a hang-up.
    assert_eq!(status.code(), Some(129), "{status}");
}

/// Whatever it waits for: here for a reader of its output that does not read.
#[test]
fn a_command_whose_output_nobody_takes_ends_when_it_is_told_to() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut command = host.command(&["top", "--batch", "--interval", "0.1"]);
        let (reader, writer) = std::io::pipe().expect("descriptors are free");
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).expect("a page is enough");
        let mut client = command.stdout(writer).spawn().expect("it can be run");
        drop(command);
        sleep(Duration::from_millis(500));
        process::signal(client.id(), signal);
        wait_until("the command ends", || {
            client.try_wait().expect("it is a child").is_some()
        });
        drop(reader);
    }
}

/// What is erased and written anew flickers.
#[test]
fn top_erases_nothing_and_writes_only_what_has_changed() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let command = host.command(&["top", "--interval", "0.1"]);
    let mut terminal = Terminal::run(&command, 80, 24);
    terminal.shown.wait_for("bars", 0);
    let samples = || number(&host.overview(), "/host/samples");
    let (start, first) = (terminal.shown.count(), samples());
    wait_until("it was refreshed some dozen times", || {
        samples() > first + 25
    });
    let written = terminal.shown.text_from(start);
    let rounds = usize::try_from(samples() - first).expect("a few");
    assert!(
        !written.contains("\x1b[2J") && !written.contains("\x1b[J"),
        "{written}"
    );
    // A whole screen would be 80 columns of 24 rows each time.
    assert!(
        (1..800 * rounds).contains(&written.len()),
        "{} bytes in {rounds} rounds",
        written.len()
    );
    terminal.type_keys(CTRL_C);
    assert!(terminal.wait_for_end().success());
}

#[test]
fn top_in_batch_mode_prints_a_table_with_a_row_for_each_look() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let table = host.ok(&["top", "--batch", "--count", "3", "--interval", "0.2"]);
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split("\",\"").collect())
        .collect();
    assert_eq!(rows.len(), 4, "{table}");
    assert_eq!(rows[0][0], "\"(PDH-CSV 4.0) (UTC)(0)");
    let size = rows[0]
        .iter()
        .position(|name| {
            name.starts_with(r"\\") && name.ends_with(r"\Group Memory(1:a)\Memory Size MBytes")
        })
        .expect("a column");
    assert!(
        rows[1..]
            .iter()
            .all(|row| row.len() == rows[0].len() && row[size] == "64.00"),
        "{table}"
    );
}

#[test]
fn top_into_a_file_has_no_escapes_and_json_has_a_line_for_each_look() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let text = host.ok(&["top", "--count", "2", "--interval", "0.1"]);
    assert!(!text.contains('\x1b') && text.contains("NAME"), "{text}");
    let json = host.ok(&["top", "--count", "3", "--interval", "0.1", "--json"]);
    assert_eq!(json.lines().count(), 3);
    for line in json.lines() {
        let look: tests::Value = serde_json::from_str(line).expect("each line is JSON");
        assert_eq!(tests::vms(&look).len(), 1);
    }
}
