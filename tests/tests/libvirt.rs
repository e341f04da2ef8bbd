//! Claims about domains of libvirt's that are put under a host: a real libvirtd, real QEMUs.

use std::fs;
use std::time::Instant;
use tests::adviser::Adviser;
use tests::libvirt::Libvirtd;
use tests::linux::LinuxGuests;
use tests::place::Place;
use tests::process::{self, Signal};
use tests::{
    MIB, TestHost, Value, number, text, vms, wait_until, wait_until_at_least, wait_until_at_most,
};

const BALLOON: &str = "<memballoon model='virtio' autodeflate='on' freePageReporting='on'><address type='virtio-mmio'/></memballoon>";

fn metadata(attributes: &str) -> String {
    format!("<ballonet:memory xmlns:ballonet='urn:ballonet:memory' {attributes}/>")
}

fn host(libvirtd: &Libvirtd, budget: &str) -> TestHost {
    let place = Place::new();
    let libvirt = format!("--libvirt={}", libvirtd.uri());
    let command = place.command(&["host", "--memory", budget, "--interval-ms", "200", &libvirt]);
    TestHost::start_by(place, command)
}

fn events(host: &TestHost) -> Vec<String> {
    let overview = host.overview();
    let events = overview.pointer("/host/events").and_then(Value::as_array);
    let events = events.expect("a host has events");
    events
        .iter()
        .map(|event| text(event, "/what").to_owned())
        .collect()
}

fn is_told(host: &TestHost, word: &str) -> bool {
    events(host).iter().any(|what| what.contains(word))
}

fn answers(host: &TestHost, name: &str) -> bool {
    host.vm(name).pointer("/responding") == Some(&Value::Bool(true))
}

#[test]
fn domains_come_under_the_host_as_their_descriptions_say_and_leave_it_as_they_were() {
    let mut libvirtd = Libvirtd::start();
    let wishes = metadata("min='32M' max='256M' shares='high'");
    libvirtd.define_embedded("web", &wishes, 128, BALLOON);
    libvirtd.define_embedded("unwanted", &metadata("adopt='no'"), 256, BALLOON);
    libvirtd.define_embedded("wrong", &metadata("min='12Q'"), 256, BALLOON);
    libvirtd.define_embedded("bare", "", 256, "<memballoon model='none'/>");
    for name in ["unwanted", "wrong", "bare", "web"] {
        libvirtd.virsh(&["start", name]);
    }
    wait_until("libvirt's own limit holds", || {
        libvirtd.balloon_leaves("web") == 128 * MIB && libvirtd.printed("web").contains("> ")
    });
    let mut host = host(&libvirtd, "1G");
    wait_until("it is adopted", || host.has("web"));
    let vm = host.vm("web");
    assert_eq!(text(&vm, "/kind"), "qemu");
    assert_eq!(number(&vm, "/pid"), u64::from(libvirtd.pid("web")));
    assert_eq!(number(&vm, "/min_bytes"), 32 * MIB);
    assert_eq!(text(&vm, "/shares"), "high");
    wait_until("the others are told of", || {
        is_told(&host, "'wrong' is not adopted") && is_told(&host, "'bare' is not adopted")
    });
    for word in ["min=\"12Q\"", "virsh metadata", "it has no balloon"] {
        assert!(is_told(&host, word), "{word}: {:#?}", events(&host));
    }
    assert!(!is_told(&host, "'unwanted'"));
    wait_until_at_least("it is given what there is for it", 256 * MIB, || {
        host.held("web")
    });
    wait_until_at_least("its balloon follows", 256 * MIB, || {
        libvirtd.balloon_leaves("web")
    });

    // An administrator changes his mind, in libvirt and here.
    let change = |attributes: &str| {
        let element = format!("<memory {attributes}/>");
        let words = [
            "metadata",
            "web",
            "urn:ballonet:memory",
            "--live",
            "--key",
            "ballonet",
            "--set",
        ];
        libvirtd.virsh(&[&words[..], &[&element]].concat());
    };
    let begin = Instant::now();
    change("min='48M' shares='low'");
    wait_until("that holds", || {
        let vm = host.vm("web");
        number(&vm, "/min_bytes") == 48 * MIB && text(&vm, "/shares") == "low"
    });
    println!("what a description said held after {:?}", begin.elapsed());
    host.ok(&["set", "web", "shares=normal"]);
    change("min='much' shares='low'");
    wait_until("what is wrong is told of", || {
        is_told(&host, "min=\"much\"")
    });
    assert_eq!(text(&host.vm("web"), "/shares"), "normal");
    change("min='48M' shares='low'");

    // libvirtd goes and comes.
    let before = libvirtd.pid("web");
    libvirtd.die();
    wait_until("that is told of", || {
        is_told(&host, "libvirt is not reached")
    });
    assert!(host.has("web") && process::is_alive(before));
    let begin = Instant::now();
    libvirtd.start_again();
    wait_until("it is reached again", || {
        is_told(&host, "libvirt is reached again") && answers(&host, "web")
    });
    println!(
        "libvirtd served, and its domain answered again, after {:?}",
        begin.elapsed()
    );
    assert_eq!(number(&host.vm("web"), "/pid"), u64::from(before));

    // A domain ends and begins.
    libvirtd.virsh(&["destroy", "web"]);
    wait_until("it is dropped", || !host.has("web"));
    let begin = Instant::now();
    libvirtd.virsh(&["start", "web"]);
    wait_until("it is adopted anew", || host.has("web"));
    println!("a domain was adopted {:?} after its start", begin.elapsed());
    assert_ne!(number(&host.vm("web"), "/pid"), u64::from(before));
    wait_until_at_least("its guest has all", 256 * MIB, || host.held("web"));
    let is_paused = |host: &TestHost| host.vm("web").pointer("/paused") == Some(&Value::Bool(true));
    libvirtd.virsh(&["suspend", "web"]);
    wait_until("it is seen to be paused", || is_paused(&host));

    // The host goes and comes. That it is paused, libvirt alone can say.
    let pid = libvirtd.pid("web");
    let begin = Instant::now();
    host.die_and_start_again();
    wait_until("it is found again", || {
        host.has("web") && answers(&host, "web") && is_paused(&host)
    });
    println!(
        "a domain answered to another host {:?} after the death of its own",
        begin.elapsed()
    );
    assert_eq!(number(&host.vm("web"), "/pid"), u64::from(pid));
    libvirtd.virsh(&["resume", "web"]);
    wait_until("it is seen to run on", || !is_paused(&host));
    assert_eq!(text(&host.vm("web"), "/shares"), "high");
    assert!(!is_told(&host, "nothing was heard"), "{:#?}", events(&host));

    // It is let go as it was, and is not taken again.
    host.ok(&["release", "web"]);
    assert!(!host.has("web"));
    wait_until_at_most("its balloon is as libvirt left it", 128 * MIB, || {
        libvirtd.balloon_leaves("web")
    });
    libvirtd.define_embedded("new", "", 256, BALLOON);
    libvirtd.virsh(&["start", "new"]);
    wait_until("another one comes", || host.has("new"));
    assert!(!host.has("web"), "it was released");
    host.die_and_start_again();
    wait_until("the other is found again", || answers(&host, "new"));
    libvirtd.virsh(&["destroy", "new"]);
    wait_until("it is dropped", || !host.has("new"));
    assert!(!host.has("web"), "it was released");
    let reclaimed = ["adopt", "--domain", "web", "--reclaim"];
    host.fails(&reclaimed, 1, &["'web'", "without --reclaim"]);
    assert!(!host.has("web"), "it was refused");
    host.ok(&["adopt", "--domain", "web", "--min", "64M"]);
    let vm = host.vm("web");
    assert_eq!(number(&vm, "/min_bytes"), 64 * MIB);
    host.ok(&["release", "web"]);
    host.fails(
        &["adopt", "--domain", "nobody"],
        1,
        &["'nobody'", "virsh list"],
    );
    host.fails(&["adopt", "--domain", "wrong"], 1, &["12Q"]);
    for name in ["unwanted", "wrong", "bare", "web"] {
        let printed = libvirtd.printed(name);
        assert!(!printed.contains("error"), "{name}: {printed}");
    }
}

/// A QEMU that does not answer holds up its libvirtd's job for it, and nobody else.
#[test]
fn a_hung_domain_holds_up_no_other() {
    let libvirtd = Libvirtd::start();
    for name in ["hung", "well"] {
        libvirtd.define_embedded(name, "", 256, BALLOON);
        libvirtd.virsh(&["start", name]);
    }
    let host = host(&libvirtd, "1G");
    wait_until("both are adopted", || host.has("hung") && host.has("well"));
    wait_until("both answer", || {
        answers(&host, "hung") && answers(&host, "well")
    });
    let pid = libvirtd.pid("hung");
    process::signal(pid, Signal::STOP);
    // Something must be asked of it for libvirt to wait for it.
    let mut asked = std::process::Command::new("virsh")
        .args([
            "-q",
            "-c",
            &libvirtd.uri(),
            "qemu-monitor-command",
            "hung",
            "--hmp",
            "info status",
        ])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it is seen that one does not answer", || {
        !answers(&host, "hung")
    });
    assert!(host.has("hung"));
    wait_until("the other does", || answers(&host, "well"));
    libvirtd.virsh(&["destroy", "well"]);
    wait_until("that is seen at once", || !host.has("well"));
    process::signal(pid, Signal::CONT);
    drop(asked.wait());
    wait_until("it answers again", || answers(&host, "hung"));
}

/// Advisers see the domain come and learn what its guest needs; nothing of it changes but, where that is wanted and for as
/// long, how often it is asked.
fn is_looked_at(libvirtd: &Libvirtd, period: impl Fn(u64) -> bool) {
    let place = Place::new();
    let libvirt = format!("--libvirt={}", libvirtd.uri());
    let words = [&libvirt, "--memory", "320M"];
    let mut adviser = Adviser::start(&place, &words);
    wait_until("it has nobody to look at", || {
        vms(&adviser.next_line()).is_empty()
    });
    libvirtd.virsh(&["start", "linux"]);
    let needs = |wanted: &str, adviser: &mut Adviser| {
        let mut needs = 0;
        wait_until_at_least(wanted, MIB, || {
            let advice = adviser.next_line();
            let vm = vms(&advice).first();
            let said = vm.and_then(|vm| vm.pointer("/needs_bytes")?.as_u64());
            needs = said.unwrap_or(0);
            needs
        });
        assert!(needs < 320 * MIB, "{needs}");
    };
    needs("its guest's own period is enough", &mut adviser);
    assert!(adviser.end_by(Signal::INT).is_some());
    assert!(period(7), "nothing was changed");
    let set = |seconds: &str| {
        libvirtd.virsh(&["dommemstat", "linux", "--period", seconds, "--live"]);
    };
    set("0");
    let mut adviser = Adviser::start(&place, &[&words[..], &["--poll"]].concat());
    wait_until("its guest is asked", || {
        adviser.next_line();
        period(2)
    });
    needs("its guest answers", &mut adviser);
    assert!(adviser.end_by(Signal::INT).is_some());
    assert!(!period(2), "it is asked no longer");
    assert_eq!(libvirtd.balloon_leaves("linux"), 384 * MIB);
    set("7");
}

/// Where its balloon is a PCI device libvirt has its guest's figures, so that its memory follows the policy. (On an emulated
/// processor, where any machine runs Linux.)
#[test]
fn a_linux_guest_is_looked_at_and_gives_up_what_it_does_not_need_and_has_it_back_when_it_is_released()
 {
    let libvirtd = Libvirtd::start();
    let kernel = LinuxGuests::build().newest();
    let log = libvirtd.path().join("linux.log");
    libvirtd.define(
        "linux",
        &format!(
            "<domain type='qemu'><name>linux</name><memory unit='MiB'>384</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
             <cmdline>console=ttyS0 quiet panic=-1</cmdline></os><features><acpi/></features><devices>\
             <emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>\
             <serial type='file'><source path='{}'/></serial>\
             <memballoon model='virtio' autodeflate='on' freePageReporting='on'><stats period='7'/></memballoon></devices></domain>",
            kernel.image(tests::linux::Image::BzImage).display(),
            kernel.initrd().display(),
            log.display()
        ),
    );
    let period = |seconds: u64| {
        let description = libvirtd.virsh(&["dumpxml", "linux"]);
        description.contains(&format!("<stats period='{seconds}'/>"))
    };
    is_looked_at(&libvirtd, period);
    let host = host(&libvirtd, "448M");
    wait_until("it is adopted", || host.has("linux"));
    wait_until("its figures are asked for", || period(2));
    wait_until("its guest is up", || {
        libvirtd.printed("linux").contains("ready")
    });
    wait_until("its figures have come", || {
        host.vm("linux").pointer("/stale") == Some(&Value::Bool(false))
    });
    host.ok(&["set", "host", "memory=320M"]);
    wait_until_at_most("it gives up what is too much", 280 * MIB, || {
        host.held("linux")
    });
    let used = || number(&host.overview(), "/host/used_bytes");
    wait_until_at_most("no more is used than there is", 320 * MIB, used);
    host.ok(&["release", "linux"]);
    assert!(period(7), "{}", libvirtd.virsh(&["dumpxml", "linux"]));
    wait_until_at_least("it has all back", 384 * MIB, || {
        libvirtd.balloon_leaves("linux")
    });
    assert!(process::is_alive(libvirtd.pid("linux")));
    assert!(fs::read_to_string(log).unwrap().contains("ready"));
}
