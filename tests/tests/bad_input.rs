//! Claims about what is wrong with what people and programs send: each error names the thing and
//! the remedy, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use tests::program::program;
use tests::raw_client::{RawClient, ask};
use tests::{MIB, Place, TestHost, number, vms, wait_until};

/// The host runs on and has no VM.
fn assert_untouched(host: &TestHost) {
    assert_eq!(vms(&host.overview()).len(), 0);
    assert_eq!(host.processes(), [host.host_pid()]);
}

#[test]
fn sizes_that_make_no_sense_are_refused_by_name() {
    let host = TestHost::start("256M");
    let cases: [(&[&str], i32, &[&str]); 12] = [
        (&["--memory", "0"], 1, &["size is 0", "--memory 512M"]),
        (&["--memory", "4097"], 2, &["4097", "multiple of 4096"]),
        (
            &["--memory", "900G"],
            1,
            &["921600 MiB", "larger than this machine", "smaller --memory"],
        ),
        (&["--memory", "many"], 2, &["'many'", "as in 512M"]),
        (&["--memory", "-1"], 2, &["-1"]),
        (
            &["--memory", "99999999999T"],
            2,
            &["99999999999T", "smaller"],
        ),
        (&["--vcpus", "0"], 1, &["0 processors", "1 to 8"]),
        (&["--vcpus", "9"], 1, &["9 processors", "1 to 8"]),
        (&["--vcpus", "256"], 2, &["256"]),
        (
            &["--memory", "64M", "--min", "32M", "--max", "16M"],
            1,
            &["min 32 MiB", "max 16 MiB", "lower --min"],
        ),
        (
            &["--memory", "64M", "--max", "128M"],
            1,
            &["max 128 MiB", "size 64 MiB", "lower --max"],
        ),
        (&["--memory", "64M", "--max", "0"], 1, &["max is 0"]),
    ];
    for (words, status, said) in cases {
        host.fails(&[&["run"], words].concat(), status, said);
        assert_untouched(&host);
    }
}

#[test]
fn names_shares_and_words_that_make_no_sense_are_refused() {
    let host = TestHost::start("256M");
    let cases: [(&[&str], &[&str]); 10] = [
        (&["run", "--shares", "0"], &["0"]),
        (&["run", "--shares", "much"], &["much", "low"]),
        (&["run", "--name", "a/b"], &["a/b", "letters"]),
        (&["run", "--name", "host"], &["'host'", "cannot name a VM"]),
        (&["run", "--name", ""], &["letters"]),
        (&["run", "--name=-x"], &["'-x'", "no '-' at the beginning"]),
        (&["run", "--nmae", "a"], &["--nmae", "--name"]),
        (&["runn"], &["runn"]),
        (&["balloon", "a", "x"], &["'x'", "as in 512M"]),
        (&["host", "--memory", "x"], &["'x'", "as in 512M"]),
    ];
    for (words, said) in cases {
        host.fails(words, 2, said);
    }
    let long = "x".repeat(65);
    host.fails(&["run", "--name", &long], 2, &["1 to 64"]);
    assert_untouched(&host);
}

#[test]
fn kernels_that_cannot_be_booted_are_refused_by_name() {
    let host = TestHost::start("256M");
    let file = |name: &str| host.temporary_folder().join(name);
    let elf = fs::read(program()).expect("the program can be read");
    fs::write(file("text"), "not a kernel").expect("a file can be made");
    fs::write(file("empty"), "").expect("a file can be made");
    fs::write(file("cut"), &elf[..100]).expect("a file can be made");
    fs::write(file("cut-later"), &elf[..4096]).expect("a file can be made");
    fs::create_dir(file("folder")).expect("a folder can be made");
    for name in ["text", "empty", "cut", "cut-later", "missing", "folder"] {
        let path = file(name).display().to_string();
        host.fails(
            &["run", "--memory", "64M", "--kernel", &path],
            1,
            &[&path, "ELF"],
        );
        assert_untouched(&host);
    }
    let own = program().display().to_string();
    host.fails(
        &["run", "--memory", "64M", "--kernel", &own],
        1,
        &[&own, "PVH"],
    );
    assert_untouched(&host);
    for name in ["text", "empty", "cut", "cut-later"] {
        fs::remove_file(file(name)).expect("it was made above");
    }
    fs::remove_dir(file("folder")).expect("it was made above");
}

/// A bzImage with a header that says what is asked for and code that is never reached.
struct FakeBzImage {
    bytes: Vec<u8>,
}

impl FakeBzImage {
    const SETUP_SECTORS: u8 = 4;
    const CODE_BYTES: u32 = 64 << 10;

    /// One in which nothing is wrong (Documentation/arch/x86/boot.rst has the offsets).
    fn new() -> Self {
        let code = usize::try_from(Self::CODE_BYTES).expect("it is small");
        let mut image = Self {
            bytes: vec![0; (usize::from(Self::SETUP_SECTORS) + 1) * 512 + code],
        };
        image.set(0x1f1, &[Self::SETUP_SECTORS]);
        image.set(0x1f4, &(Self::CODE_BYTES / 16).to_le_bytes());
        image.set(0x202, b"HdrS");
        image.set(0x206, &0x020f_u16.to_le_bytes());
        image.set(0x211, &[1]);
        image.set(0x214, &0x10_0000_u32.to_le_bytes());
        image.set(0x22c, &u32::MAX.to_le_bytes());
        image.set(0x236, &[1]);
        image.set(0x238, &2047_u32.to_le_bytes());
        image.set(0x258, &0x100_0000_u64.to_le_bytes());
        image.set(0x260, &(8_u32 << 20).to_le_bytes());
        image
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn with(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.set(offset, bytes);
        self
    }

    fn cut_to(mut self, count: usize) -> Self {
        self.bytes.truncate(count);
        self
    }
}

#[test]
fn kernels_that_would_die_without_a_word_are_refused_with_the_reason() {
    let host = TestHost::start("256M");
    let path = host.temporary_folder().join("bzImage");
    let kernel = path.display().to_string();
    let refused = |image: FakeBzImage, words: &[&str], said: &[&str]| {
        fs::write(&path, image.bytes).expect("a file can be made");
        let run = ["run", "--memory", "64M", "--kernel", &kernel];
        host.fails(
            &[&run[..], words].concat(),
            1,
            &[&[&*kernel], said].concat(),
        );
        assert_untouched(&host);
    };
    let cut = FakeBzImage::new().cut_to(40_000);
    refused(
        cut,
        &[],
        &["cut short", "28096 bytes are missing", "copy it again"],
    );
    let within_the_setup = FakeBzImage::new().cut_to(1000);
    refused(within_the_setup, &[], &["give a whole bzImage"]);
    let greedy = FakeBzImage::new().with(0x260, &(100_u32 << 20).to_le_bytes());
    refused(greedy, &[], &["needs 116 MiB", "64 MiB", "--memory"]);
    let of_32_bits = FakeBzImage::new().with(0x236, &[0]);
    refused(of_32_bits, &[], &["64-bit", "x86-64"]);
    let nameless = FakeBzImage::new().with(0x202, b"HdrX");
    refused(nameless, &[], &["give a whole bzImage or ELF file"]);
    fs::remove_file(&path).expect("it was made above");
    let image = fs::read(tests::guest_image::guest_image()).expect("it was built");
    let half_an_elf_file = FakeBzImage {
        bytes: image[..image.len() / 2].to_vec(),
    };
    refused(half_an_elf_file, &[], &["give a whole bzImage or ELF file"]);
    fs::remove_file(&path).expect("it was made above");
}

/// A kernel cuts a longer one off, and what was cut off is missed much later.
#[test]
fn a_command_line_longer_than_the_kernel_takes_is_refused() {
    let host = TestHost::start("256M");
    let path = host.temporary_folder().join("bzImage");
    fs::write(&path, FakeBzImage::new().bytes).expect("a file can be made");
    let kernel = path.display().to_string();
    let long = "x".repeat(2048);
    let run = ["run", "--memory", "64M", "--kernel", &kernel];
    host.fails(
        &[&run[..], &["--cmdline", &long]].concat(),
        1,
        &["2049 bytes", "2048 fit", "shorten --cmdline"],
    );
    assert_untouched(&host);
    fs::remove_file(&path).expect("it was made above");
}

#[test]
fn initrds_that_cannot_be_loaded_are_refused_by_name() {
    let host = TestHost::start("256M");
    let file = |name: &str| host.temporary_folder().join(name);
    let bzimage = file("bzImage");
    fs::write(&bzimage, FakeBzImage::new().bytes).expect("a file can be made");
    fs::write(file("empty"), "").expect("a file can be made");
    fs::create_dir(file("folder")).expect("a folder can be made");
    let large = fs::File::create(file("large")).expect("a file can be made");
    large.set_len(40 * MIB + 1).expect("a hole is cheap");
    let cases: [(&str, &[&str]); 4] = [
        ("missing", &["No such file", "give a cpio archive"]),
        ("folder", &["no file", "give a cpio archive"]),
        ("empty", &["empty", "give a cpio archive"]),
        ("large", &["41943041 bytes", "64 MiB", "--memory"]),
    ];
    let image = tests::guest_image::guest_image().display().to_string();
    let bzimage = bzimage.display().to_string();
    for (name, said) in cases {
        let path = file(name).display().to_string();
        let words = ["run", "--memory", "64M", "--initrd", &path, "--kernel"];
        let said = [&[&*path], said].concat();
        host.fails(&[&words[..], &[&bzimage]].concat(), 1, &said);
        assert_untouched(&host);
        // The embedded guest leaves more room, and has no use for an initrd.
        if name != "large" {
            host.fails(&[&words[..], &[&image]].concat(), 1, &said);
            assert_untouched(&host);
        }
    }
    host.fails(&["run", "--initrd", "/x"], 2, &["--kernel"]);
    for name in ["bzImage", "empty", "large"] {
        fs::remove_file(file(name)).expect("it was made above");
    }
    fs::remove_dir(file("folder")).expect("it was made above");
}

#[test]
fn files_that_cannot_be_disks_are_refused_by_name() {
    let host = TestHost::start("256M");
    let file = |name: &str| host.temporary_folder().join(name);
    fs::write(file("empty"), "").expect("a file can be made");
    fs::write(file("short"), [0; 511]).expect("a file can be made");
    fs::write(file("odd"), [0; 1000]).expect("a file can be made");
    fs::create_dir(file("folder")).expect("a folder can be made");
    let cases: [(&str, &[&str]); 5] = [
        ("missing", &["No such file", "truncate -s 1G"]),
        ("folder", &["raw image or a block device"]),
        ("empty", &["0 bytes", "truncate -s 1G"]),
        ("short", &["511 bytes", "give a raw image"]),
        ("odd", &["1000 bytes", "multiple", "truncate -s %512"]),
    ];
    for (name, said) in cases {
        let path = file(name).display().to_string();
        for disk in [path.clone(), format!("{path},ro")] {
            let words = ["run", "--name", "a", "--memory", "64M", "--disk", &disk];
            host.fails(&words, 1, &[&["'a'", &path], said].concat());
            assert_untouched(&host);
        }
    }
    host.fails(&["run", "--disk", ",ro"], 2, &["names no file", "FILE,ro"]);
    for name in ["empty", "short", "odd"] {
        fs::remove_file(file(name)).expect("it was made above");
    }
    fs::remove_dir(file("folder")).expect("it was made above");
}

/// The guest would take the file for the disk itself, and might write over its header.
#[test]
fn an_image_that_is_not_raw_is_refused_with_the_command_that_makes_a_raw_one_of_it() {
    let host = TestHost::start("256M");
    let path = host.temporary_folder().join("disk");
    let disk = path.display().to_string();
    let run = |disk: &str| host.run(&["run", "--name", "a", "--memory", "64M", "--disk", disk]);
    for (at, bytes, command) in [
        (
            0,
            &b"QFI\xfb\0\0\0\x03"[..],
            "qemu-img convert -f qcow2 -O raw",
        ),
        (0, b"KDMV", "qemu-img convert -f vmdk -O raw"),
        (7680, b"conectix", "qemu-img convert -f vpc -O raw"),
        (64, b"\x7f\x10\xda\xbe", "qemu-img convert -f vdi -O raw"),
        (0, b"\x1f\x8b\x08\0", "gzip -dc"),
    ] {
        let mut contents = vec![0; 8192];
        contents[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, contents).expect("a file can be made");
        let said = [&*disk, command, ",raw"];
        run(&disk).expect_failure(1, &said);
        run(&format!("{disk},ro")).expect_failure(1, &said);
        let body = format!(r#"{{"memory_bytes": 67108864, "disks": [{{"path": "{disk}"}}]}}"#);
        let answer = ask(&host.socket(), "POST", "/v1/vms", body.as_bytes());
        assert_eq!(status_of(&answer), "422", "{answer}");
        assert!(answer.contains(command), "{answer}");
        assert_untouched(&host);
    }
    let _started = run(&format!("{disk},raw")).expect_success();
    // Its disks show when its process has answered.
    wait_until("it shows", || host.vm("a")["disks"][0]["raw"] == true);
    assert!(host.ok(&["run", "--help"]).contains(",raw"));
    host.ok(&["stop", "a"]);
    fs::remove_file(path).expect("it was made above");
}

#[test]
fn a_disk_has_one_vm_that_writes_it() {
    let host = TestHost::start("512M");
    let file = host.temporary_folder().join("disk");
    fs::write(&file, [0; 4096]).expect("a file can be made");
    let disk = file.display().to_string();
    let read_only = format!("{disk},ro");
    let run = |name: &'static str, words: &[&str]| {
        host.run(&[&["run", "--name", name, "--memory", "64M"], words].concat())
    };
    let in_use = [&*disk, "in use by another VM", ",ro"];
    run("twice", &["--disk", &disk, "--disk", &disk]).expect_failure(1, &in_use);
    assert_untouched(&host);
    host.boot_vm("a", &["--memory", "64M", "--disk", &disk]);
    run("b", &["--disk", &disk]).expect_failure(1, &in_use);
    run("b", &["--disk", &read_only]).expect_failure(1, &in_use);
    drop(host.run(&["stop", "a"]).expect_success());
    // The embedded guest has no driver for them and finds its balloon all the same.
    host.boot_vm("b", &["--memory", "64M", "--disk", &read_only]);
    host.boot_vm("c", &["--memory", "64M", "--disk", &read_only]);
    wait_until("its disk shows", || !host.vm("c")["disks"][0].is_null());
    let vm = host.vm("c");
    assert_eq!(vm["disks"][0]["path"], disk.as_str(), "{vm:#}");
    assert_eq!(vm["disks"][0]["read_only"], true, "{vm:#}");
    assert_eq!(number(&vm, "/disks/0/size_bytes"), 4096);
    run("d", &["--disk", &disk]).expect_failure(1, &in_use);
    drop(host.run(&["stop", "b", "c"]).expect_success());
    fs::remove_file(&file).expect("it was made above");
}

#[test]
fn more_disks_than_there_is_room_for_are_refused() {
    let host = TestHost::start("256M");
    let folder = host.temporary_folder();
    let paths: Vec<_> = (0..8)
        .map(|number| folder.join(format!("disk{number}")))
        .collect();
    let mut words = vec!["run".into(), "--memory".into(), "64M".into()];
    for path in &paths {
        fs::write(path, [0; 512]).expect("a file can be made");
        words.extend(["--disk".into(), path.display().to_string()]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    host.fails(&words, 1, &["8 virtio devices", "fewer --disk"]);
    assert_untouched(&host);
    host.boot_vm("a", &words[1..words.len() - 2]);
    drop(host.run(&["stop", "a"]).expect_success());
    for path in paths {
        fs::remove_file(path).expect("it was made above");
    }
}

/// As root every file can be opened, but not on a file system that is mounted to be read only.
#[test]
fn a_disk_that_may_only_be_read_is_refused_unless_it_is_asked_for_so() {
    let place = Place::new();
    let file = place.temporary_folder().join("disk");
    fs::write(&file, [0; 4096]).expect("a file can be made");
    let disk = file.display().to_string();
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$2\" \"$2\" && mount -o remount,ro,bind \"$2\" && \
                  exec \"$1\" host --memory 256M";
    command
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(program())
        .arg(&file);
    place.adapt(&mut command);
    let host = TestHost::start_by(place, command);
    host.fails(
        &["run", "--memory", "64M", "--disk", &disk],
        1,
        &[&disk, "Read-only file system", &format!("'{disk},ro'")],
    );
    assert_untouched(&host);
    host.boot_vm("a", &["--memory", "64M", "--disk", &format!("{disk},ro")]);
    drop(host.run(&["stop", "a"]).expect_success());
    fs::remove_file(&file).expect("it was made above");
}

#[test]
fn a_reason_is_given_once() {
    let host = TestHost::start("256M");
    let path = "/nowhere/kernel";
    let done = host.run(&["run", "--memory", "64M", "--kernel", path]);
    done.expect_failure(1, &[path, "No such file"]);
    assert_eq!(done.stderr.matches(path).count(), 1, "{}", done.stderr);
}

#[test]
fn a_command_line_or_workload_that_does_not_fit_is_refused() {
    let host = TestHost::start("256M");
    let long = "x".repeat(5000);
    host.fails(
        &["run", "--memory", "64M", "--cmdline", &long],
        1,
        &["command line", "4096", "shorten --cmdline"],
    );
    host.fails(
        &["run", "--workload", "idle", "--kernel", "/x"],
        1,
        &["--workload", "--cmdline"],
    );
    assert_untouched(&host);
}

/// The host asks the guest's own parser, so that nothing is started that waits for a better word on a console which
/// nobody reads.
#[test]
fn a_workload_that_the_guest_would_refuse_is_refused_in_the_guests_words() {
    let host = TestHost::start("256M");
    let cases: [(&[&str], &str); 6] = [
        (
            &["--workload", "dance:size=1M"],
            "no workload `dance`; there are idle, toucher",
        ),
        (
            &["--workload", ""],
            "no workload ``; there are idle, toucher",
        ),
        (
            &["--workload", "toucher:size=0"],
            "size=0: must be a size from 4K up",
        ),
        (&["--workload", "verify:speed=9"], "no key `speed`"),
        (&["--workload", "dbench"], "dbench needs a disk"),
        (
            &["--cmdline", "quiet workload=dance"],
            "no workload `dance`",
        ),
    ];
    for (words, said) in cases {
        host.fails(&[&["run", "--memory", "64M"], words].concat(), 1, &[said]);
        assert_untouched(&host);
    }
    let body = b"{\"memory_bytes\": 67108864, \"workload\": \"dance\"}";
    let answer = ask(&host.socket(), "POST", "/v1/vms", body);
    assert_eq!(status_of(&answer), "400", "{answer}");
    assert!(answer.contains("no workload `dance`"), "{answer}");
    assert_untouched(&host);
}

/// What the parser lets pass, the guest must find whole in its command line.
#[test]
fn a_workload_with_spaces_in_it_is_what_the_guest_runs() {
    let host = TestHost::start("256M");
    let workload = " toucher:size=16M, write=5 ";
    host.boot_vm("a", &["--memory", "64M", "--workload", workload]);
    let report = host.console("a").report();
    let runs = tests::text(&report, "/workload");
    assert!(
        runs.starts_with("toucher:size=16M,active=max,write=5,"),
        "{runs}"
    );
}

#[test]
fn an_unknown_workload_that_is_typed_is_named_on_the_console_and_the_guest_lives() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let mut console = host.console("a");
    assert!(
        console
            .ask("workload verify:speed=9")
            .contains("no key `speed`")
    );
    console.workload("verify:size=16M");
    console.wait_for_checks(100);
}

#[test]
fn a_name_has_one_vm_at_a_time() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    host.fails(
        &["run", "--name", "a", "--memory", "64M"],
        1,
        &["'a'", "another name"],
    );
    assert_eq!(vms(&host.overview()).len(), 1);
    assert_eq!(host.vm("a")["responding"], true);
}

#[test]
fn a_promise_that_could_not_be_kept_is_refused_with_figures() {
    let host = TestHost::start("100M");
    host.boot_vm("a", &["--memory", "64M", "--min", "60M"]);
    host.fails(
        &["run", "--memory", "64M", "--min", "60M"],
        1,
        &[
            "budget is 100 MiB",
            "66 MiB are promised",
            "min 60 MiB",
            "32 MiB more than is left",
        ],
    );
    host.fails(
        &["set", "a", "min=64M", "max=32M"],
        1,
        &["min 64 MiB", "max 32 MiB"],
    );
    host.boot_vm("b", &["--memory", "64M", "--min", "16M"]);
    host.fails(
        &["set", "b", "min=64M"],
        1,
        &["budget is 100 MiB", "more than is left"],
    );
    host.fails(
        &["balloon", "a", "32M"],
        1,
        &["'a'", "32 MiB", "min is 60 MiB", "smaller balloon"],
    );
    host.fails(
        &["balloon", "a", "1G"],
        1,
        &["'a'", "1024 MiB", "smaller balloon"],
    );
    host.fails(&["set", "host", "memory=10M"], 1, &["10 MiB", "promised"]);
    host.fails(
        &["set", "host", "memory=900G"],
        1,
        &["larger than this machine"],
    );
    assert_eq!(vms(&host.overview()).len(), 2);
    assert_eq!(number(&host.vm("a"), "/min_bytes"), 60 * MIB);
}

#[test]
fn an_unknown_vm_is_named_by_every_command() {
    let host = TestHost::start("256M");
    let commands: [&[&str]; 6] = [
        &["stats", "ghost"],
        &["explain", "ghost"],
        &["set", "ghost", "shares=low"],
        &["balloon", "ghost", "8M"],
        &["console", "ghost"],
        &["stop", "ghost"],
    ];
    for words in commands {
        host.fails(words, 1, &["'ghost'", "ballonet ps"]);
    }
    host.boot_vm("a", &["--memory", "64M"]);
    host.fails(
        &["set", "a", "size=1M"],
        1,
        &["'size'", "min, max, shares, idle-tax or large-pages"],
    );
    host.fails(&["set", "a", "shares"], 1, &["'shares'", "KEY=VALUE"]);
    host.fails(&["set", "a", "min=x"], 1, &["'x'"]);
    host.fails(&["set", "host", "shares=1"], 1, &["'shares'", "memory"]);
}

#[test]
fn commands_without_a_host_say_how_to_start_one() {
    let place = Place::new();
    let commands: [&[&str]; 6] = [
        &["ps"],
        &["stats"],
        &["top", "--count", "1"],
        &["stop", "a"],
        &["console", "a"],
        &["balloon", "a", "auto"],
    ];
    for words in commands {
        place.fails(words, 1, &["no host answers", "host.sock", "ballonet host"]);
    }
}

#[test]
fn a_socket_has_one_host() {
    let host = TestHost::start("256M");
    let pid = host.host_pid().to_string();
    host.fails(
        &["host", "--memory", "256M"],
        1,
        &["already serves", "host.sock", &pid, "--socket"],
    );
    assert_untouched(&host);
}

#[test]
fn a_host_whose_socket_cannot_be_made_says_so() {
    let place = Place::new();
    let blocked = place.temporary_folder().join("file/host.sock");
    fs::write(place.temporary_folder().join("file"), "").expect("a file can be made");
    let path = blocked.display().to_string();
    place.fails(&["--socket", &path, "host"], 1, &[&path, "--socket"]);
    let folder = place.temporary_folder().display().to_string();
    place.fails(
        &["--socket", &path, "run"],
        1,
        &[&folder, "Not a directory"],
    );
    fs::remove_file(place.temporary_folder().join("file")).expect("it was made above");
    place.fails(
        &["host", "--memory", "900G"],
        1,
        &["larger than this machine", "--memory"],
    );
    for size in ["0", "1M"] {
        place.fails(
            &["host", "--memory", size],
            1,
            &["give a --memory from 6 MiB to", "this machine has"],
        );
    }
}

/// Neither a pipe without a writer nor a device without an end is waited for.
#[test]
fn files_that_are_pipes_or_devices_are_refused_at_once() {
    let host = TestHost::start("256M");
    let pipe = host.temporary_folder().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).expect("a pipe can be made");
    let pipe = pipe.display().to_string();
    let image = tests::guest_image::guest_image().display().to_string();
    let other = host.path().join("other.sock").display().to_string();
    for (file, kind) in [(&*pipe, "a pipe"), ("/dev/zero", "a device")] {
        let commands: [&[&str]; 6] = [
            &["run", "--memory", "64M", "--kernel", file],
            &[
                "run", "--memory", "64M", "--kernel", &image, "--initrd", file,
            ],
            &["--socket", &other, "host", "--config", file],
            &["replay", file],
            &["simulate", file],
            &["experiment", "run", file],
        ];
        for words in commands {
            host.fails(words, 1, &[file, kind]);
        }
        assert_untouched(&host);
    }
    fs::remove_file(&pipe).expect("it was made above");
    // A file of settings or decisions that is larger than any is not read whole.
    let large = host.temporary_folder().join("large");
    let file = fs::File::create(&large).expect("a file can be made");
    file.set_len(1 << 40).expect("a hole is cheap");
    let name = large.display().to_string();
    for words in [
        &["--socket", &other, "host", "--config", &name][..],
        &["replay", &name],
    ] {
        host.fails(words, 1, &[&name, "the most that is read"]);
    }
    fs::remove_file(&large).expect("it was made above");
}

/// A `run` that had to start a host and then fails takes the host away again.
#[test]
fn a_run_that_is_refused_leaves_no_host_behind() {
    let place = Place::new();
    place.fails(&["run", "--vcpus", "9"], 1, &["9 processors"]);
    wait_until("the host ends", || place.processes().is_empty());
}

/// Runs a shell script in a mount namespace of its own whose /dev has nothing but null and what
/// the script makes; the program is `$1`.
fn host_with_dev(place: &Place, script: &str) -> Command {
    let begin = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", &format!("{begin} && {script}"), "sh"])
        .arg(program());
    place.adapt(&mut command);
    command
}

#[test]
fn a_machine_without_kvm_is_told_what_to_load() {
    let place = Place::new();
    let command = host_with_dev(&place, "exec \"$1\" host --memory 256M");
    let host = TestHost::start_by(place, command);
    host.fails(
        &["run", "--name", "a", "--memory", "64M"],
        1,
        &["'a'", "/dev/kvm", "No such file", "kvm_intel or kvm_amd"],
    );
    wait_until("the process has ended", || host.processes().len() == 1);
    assert_untouched(&host);
}

#[test]
fn a_user_who_may_not_use_kvm_is_told_which_group_to_join() {
    let place = Place::new();
    let everybody = fs::Permissions::from_mode(0o777);
    fs::set_permissions(place.path(), everybody).expect("it is ours");
    let script = "mknod -m 600 /dev/kvm c 10 232 && exec setpriv --reuid 65534 --regid 65534 \
                  --clear-groups \"$1\" host --memory 256M";
    let command = host_with_dev(&place, script);
    let host = TestHost::start_by(place, command);
    host.fails(
        &["run", "--name", "a", "--memory", "64M"],
        1,
        &["'a'", "/dev/kvm", "Permission denied", "group"],
    );
    assert_untouched(&host);
}

#[test]
fn a_dev_kvm_that_is_not_kvm_is_refused() {
    let place = Place::new();
    let command = host_with_dev(&place, "echo > /dev/kvm && exec \"$1\" host --memory 256M");
    let host = TestHost::start_by(place, command);
    host.fails(
        &["run", "--name", "a", "--memory", "64M"],
        1,
        &["'a'", "KVM"],
    );
    assert_untouched(&host);
}

#[test]
fn a_vm_process_is_nothing_to_start_by_hand() {
    let place = Place::new();
    let done = place.run(&["vm", "a", "/nowhere/host.sock"]);
    assert!(matches!(done.status, Some(1 | 2)), "{done:?}");
}

fn status_of(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[test]
fn requests_that_make_no_sense_are_answered_as_problems() {
    let host = TestHost::start("256M");
    let socket = host.socket();
    let cases: [(&str, &str, &str, &str, &str); 12] = [
        ("POST", "/v1/vms", "{", "400", "not understood"),
        ("POST", "/v1/vms", "", "400", "not understood"),
        ("POST", "/v1/vms", "[]", "400", "not understood"),
        (
            "POST",
            "/v1/vms",
            "{\"memory_bytes\": 67108864, \"colour\": 1}",
            "400",
            "colour",
        ),
        (
            "POST",
            "/v1/vms",
            "{\"memory_bytes\": -1}",
            "400",
            "not understood",
        ),
        ("POST", "/v1/vms", "{\"memory_bytes\": 4097}", "400", "4097"),
        (
            "POST",
            "/v1/vms",
            "{\"memory_bytes\": 18446744073709547520}",
            "400",
            "machine",
        ),
        (
            "POST",
            "/v1/vms",
            "{\"memory_bytes\": 67108864, \"name\": \"../x\"}",
            "400",
            "../x",
        ),
        (
            "POST",
            "/v1/vms",
            "{\"memory_bytes\": 67108864, \"name\": \"-x\"}",
            "400",
            "no '-' at the beginning",
        ),
        ("PATCH", "/v1/host", "{\"memory\": 1}", "400", "memory"),
        ("GET", "/v2/everything", "", "404", "/v1/overview"),
        ("DELETE", "/v1/overview", "", "405", "/v1/overview"),
    ];
    for (method, path, body, status, word) in cases {
        let answer = ask(&socket, method, path, body.as_bytes());
        assert_eq!(
            status_of(&answer),
            status,
            "{method} {path} {body}: {answer}"
        );
        assert!(answer.contains(word), "{method} {path} {body}: {answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
    }
    let deep = "[".repeat(60_000);
    let answer = ask(&socket, "POST", "/v1/vms", deep.as_bytes());
    assert_eq!(status_of(&answer), "400", "{answer}");
    assert_untouched(&host);
}

#[test]
fn a_body_or_head_that_is_too_large_is_refused() {
    let host = TestHost::start("256M");
    let answer = ask(&host.socket(), "POST", "/v1/vms", &vec![b' '; 1 << 20]);
    assert!(answer.is_empty() || status_of(&answer) == "413", "{answer}");
    let mut client = RawClient::connect(&host.socket());
    client.send(b"GET /v1/overview HTTP/1.1\r\nHost: x\r\nX: ");
    client.send(&vec![b'x'; 2 << 20]);
    client.send(b"\r\n\r\n");
    let answer = client.answer();
    assert!(answer.is_empty() || status_of(&answer) == "431", "{answer}");
    let mut client = RawClient::connect(&host.socket());
    client
        .send(b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n");
    let answer = client.answer();
    assert!(
        answer.is_empty() || status_of(&answer).starts_with('4'),
        "{answer}"
    );
    assert_untouched(&host);
}

#[test]
fn garbage_is_answered_or_hung_up_on() {
    let host = TestHost::start("256M");
    let zeros = vec![0; 5000];
    let all: Vec<u8> = (0..=255).cycle().take(20_000).collect();
    let garbage: [&[u8]; 5] = [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &zeros,
        &all,
        b"GET / HTTP/9.9\r\n\r\n",
    ];
    for bytes in garbage {
        let mut client = RawClient::connect(&host.socket());
        client.send(bytes);
        // A blank line ends whatever head it may take this for.
        client.send(b"\r\n\r\n");
        let answer = client.answer();
        assert!(
            answer.is_empty() || status_of(&answer).starts_with('4'),
            "{answer}"
        );
    }
    assert_untouched(&host);
}

#[test]
fn clients_that_fall_silent_hold_up_nobody_and_are_hung_up_on() {
    let host = TestHost::start("256M");
    let mut head = RawClient::connect(&host.socket());
    head.send(b"GET /v1/overview HTT");
    let mut body = RawClient::connect(&host.socket());
    body.send(b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"memory");
    host.boot_vm("a", &["--memory", "64M"]);
    host.ok(&["stop", "a"]);
    // Both are given up on, the one within the head, the other with an answer.
    let answer = head.answer();
    assert!(answer.is_empty() || status_of(&answer) == "408", "{answer}");
    let answer = body.answer();
    assert_eq!(status_of(&answer), "408", "{answer}");
    assert_untouched(&host);
}

#[test]
fn hundreds_of_idle_connections_end_nothing() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let idle: Vec<RawClient> = (0..200)
        .map(|_| RawClient::connect(&host.socket()))
        .collect();
    // Places come free when idle clients are given up on.
    assert_eq!(host.vm("a")["name"], "a");
    drop(idle);
    for _ in 0..20 {
        host.ok(&["ps"]);
    }
    let descriptors = fs::read_dir(format!("/proc/{}/fd", host.host_pid()))
        .expect("the host runs")
        .count();
    assert!(descriptors < 150, "{descriptors} descriptors are open");
}

#[test]
fn the_log_of_a_background_host_is_bounded() {
    let place = Place::new();
    place.ok(&["run", "--name", "a", "--memory", "64M"]);
    let socket = place.socket();
    // Each refused VM and each changed budget may be worth a line.
    let mut size = 0;
    for round in 0..20_000_u64 {
        if round % 2000 == 0 {
            size = log_bytes(&place.host_folder());
        }
        let memory = 256 * MIB + round % 2 * 4096;
        let body = format!("{{\"memory_bytes\": {memory}}}");
        let answer = ask(&socket, "PATCH", "/v1/host", body.as_bytes());
        assert_eq!(status_of(&answer), "200", "{answer}");
    }
    size = size.max(log_bytes(&place.host_folder()));
    assert!(size > 0, "changes of the budget are logged");
    assert!(size <= 2 * MIB + 16384, "the log has {size} bytes");
    place.ok(&["stop", "a"]);
}

fn log_bytes(folder: &Path) -> u64 {
    let sizes = ["log", "log.old"].map(|name| fs::metadata(folder.join(name)));
    sizes.iter().flatten().map(fs::Metadata::len).sum()
}

/// Where a place's name begins as an option does, a VM's process is told of it all the same.
#[test]
fn a_host_in_a_folder_that_is_called_like_an_option_starts_vms() {
    let place = Place::new();
    let folder = place.temporary_folder();
    let in_folder = |words: &[&str]| {
        let mut command = place.command(words);
        command
            .env("BALLONET_SOCKET", "-x/host.sock")
            .current_dir(&folder);
        tests::run_to_end(&mut command)
    };
    let run = ["run", "--name", "a", "--memory", "64M"];
    assert_eq!(in_folder(&run).expect_success(), "a\n");
    let _stopped = in_folder(&["stop", "a"]).expect_success();
    wait_until("the host ends", || place.processes().is_empty());
    fs::remove_dir_all(folder.join("-x")).expect("it was made there");
}

#[test]
fn all_that_can_be_stopped_are_and_then_the_failures_are_told() {
    let host = TestHost::start("512M");
    for name in ["b", "c", "d"] {
        host.boot_vm(name, &["--memory", "64M"]);
    }
    let done = host.run(&["stop", "b", "ghost", "c", "spirit"]);
    done.expect_failure(1, &["no VM is called 'ghost'", "no VM is called 'spirit'"]);
    let overview = host.overview();
    let left: Vec<&str> = vms(&overview)
        .iter()
        .map(|vm| tests::text(vm, "/name"))
        .collect();
    assert_eq!(left, ["d"]);
    host.boot_vm("e", &["--memory", "64M"]);
    host.fails(&["stop"], 2, &["NAME"]);
    host.fails(&["stop", "--all", "d"], 2, &["--all"]);
    assert_eq!(host.ok(&["stop", "--all"]), "");
    assert_untouched(&host);
    assert_eq!(host.ok(&["stop", "--all"]), "");
}

/// Words that are run with `$1` as the program.
fn in_shell(place: &Place, script: &str) -> tests::Done {
    let mut shell = Command::new("bash");
    shell.args(["-c", script, "bash"]).arg(program());
    place.adapt(&mut shell);
    tests::run_to_end(&mut shell)
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let commands = [
        "--help",
        "--version",
        "run --help",
        "completions bash",
        "ps",
        "stats --json",
        "top --count 1",
        "top --batch --count 1",
        "top --json --count 1",
        "console a",
        "experiment list",
        "experiment show idle-tax",
    ];
    for command in commands {
        let done = in_shell(&host, &format!("\"$1\" {command} >/dev/full"));
        done.expect_failure(
            1,
            &["ballonet: cannot write to standard output: No space left"],
        );
        let done = in_shell(
            &host,
            &format!("\"$1\" {command} | true; echo ${{PIPESTATUS[0]}}"),
        );
        assert_eq!(
            (done.stdout.as_str(), done.stderr.as_str()),
            ("0\n", ""),
            "{command}"
        );
    }
}

#[test]
fn an_error_that_cannot_be_told_is_still_one() {
    let host = TestHost::start("256M");
    for (command, status) in [
        ("stats nosuch", 1),
        ("console nosuch", 1),
        ("replay /nowhere", 1),
        ("ps >/dev/full", 1),
        ("--help >/dev/full", 1),
        ("stats --nosuch", 2),
        ("nosuch", 2),
    ] {
        for nowhere in ["2>/dev/full", "2> >(true)"] {
            let done = in_shell(&host, &format!("\"$1\" {command} {nowhere}"));
            assert_eq!(done.status, Some(status), "{command} {nowhere}");
        }
    }
}

/// A reader that stops in the middle, as `head -1` does, is no error.
#[test]
fn output_that_nobody_reads_is_no_error() {
    let host = TestHost::start("256M");
    let mut script = Command::new("bash");
    script
        .args([
            "-c",
            "\"$1\" stats | head -1; echo ${PIPESTATUS[0]}",
            "bash",
        ])
        .arg(program());
    host.adapt(&mut script);
    let printed = tests::run_to_end(&mut script).expect_success();
    assert!(printed.ends_with("\n0\n"), "{printed}");
}

#[test]
fn what_is_typed_at_a_guest_in_excess_ends_nothing() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let mut garbage: Vec<u8> = (0..=255).cycle().take(20_000).collect();
    garbage.extend(b"\r\n");
    let done = tests::program::run_with_input(&mut host.command(&["console", "a"]), &garbage);
    assert_eq!(done.status, Some(0), "{done:?}");
    wait_until("the guest reads on", || {
        host.console("a").ask("report").contains("report {")
    });
}
