//! Claims about network cards as they are asked for: on taps of the machine, which belong to one VM at
//! a time. Needs root, `/dev/net/tun` and iproute2's `ip`: the hosts here have a network of their own.
//!
//! The embedded guest has no driver for them. What goes through a card is tested beside the device,
//! on a tap of the kernel.

use tests::{TestHost, Value, text, vms, wait_until};

fn net(tap: &str) -> [&str; 5] {
    ["run", "--memory", "32M", "--net", tap]
}

/// The host runs on with these VMs and no other process.
fn expect_vms(host: &TestHost, count: usize) {
    assert_eq!(vms(&host.overview()).len(), count);
    assert_eq!(host.processes().len(), count + 1);
}

#[test]
fn a_vm_has_the_cards_that_were_asked_for_each_with_an_address_of_its_own() {
    let host = TestHost::start_with_taps("256M");
    let words = ["--memory", "32M", "--net", "tap=tap0,rate=1M"];
    let more = ["--net", "tap=tap1,mac=52:54:00:12:34:56"];
    let start = |words: &[&str]| {
        host.start_vm("a", words);
        wait_until("its cards show", || !host.vm("a")["nets"][0].is_null());
        host.vm("a")
    };
    let vm = start(&[&words[..], &more].concat());
    assert_eq!(text(&vm, "/nets/0/tap"), "tap0");
    assert_eq!(
        vm.pointer("/nets/0/bytes_per_s"),
        Some(&Value::from(1 << 20))
    );
    assert_eq!(text(&vm, "/nets/1/mac"), "52:54:00:12:34:56");
    let address = text(&vm, "/nets/0/mac").to_owned();
    let first = u8::from_str_radix(&address[..2], 16).expect("two digits");
    assert_eq!(first & 3, 2, "{address} is of one station, and local");
    host.ok(&["stop", "a"]);
    let again = start(&["--memory", "32M", "--net", "tap=tap0"]);
    assert_eq!(text(&again, "/nets/0/mac"), address, "the name decides it");
    assert!(host.ok(&["stats", "a"]).contains("tap0"));
}

#[test]
fn a_tap_belongs_to_one_vm_until_it_ends() {
    let host = TestHost::start_with_taps("256M");
    host.start_vm("a", &["--memory", "32M", "--net", "tap=tap0"]);
    host.fails(
        &net("tap=tap0"),
        1,
        &["'tap0'", "in use", "each VM its own"],
    );
    expect_vms(&host, 1);
    host.ok(&["stop", "a"]);
    host.start_vm("b", &["--memory", "32M", "--net", "tap=tap0"]);
}

#[test]
fn a_card_that_cannot_be_had_is_refused_with_the_remedy_and_nothing_is_left() {
    let host = TestHost::start_with_taps("256M");
    let missing = ["no interface 'tap7'", "ip tuntap add tap7 mode tap"];
    host.fails(&net("tap=tap7"), 1, &missing);
    host.fails(&net("tap=tap7"), 1, &missing);
    host.fails(&net("tap=lo"), 1, &["'lo'", "no tap"]);
    host.fails(&net("tap=tun0"), 1, &["'tun0'", "no tap"]);
    let one = ["--net", "tap=tap0"];
    let five = [&["run", "--memory", "32M"][..], &one.repeat(5)].concat();
    host.fails(&five, 1, &["5 network cards", "4 at most"]);
    for (spec, said) in [
        ("tap0", "write tap=NAME"),
        ("mac=52:54:00:12:34:56", "needs a tap"),
        ("tap=tap%d", "cannot name a tap"),
        ("tap=tap0,mac=01:00:5e:00:00:01", "01:00:5e:00:00:01"),
        ("tap=tap0,rate=0", "rate=0"),
        ("tap=tap0,tap=tap1", "write it once"),
    ] {
        host.fails(&net(spec), 2, &[said]);
    }
    expect_vms(&host, 0);
    // The tap that was opened for a VM which then did not start is free.
    let second = ["--net", "tap=tap0", "--net", "tap=tap7"];
    host.fails(
        &[&["run", "--memory", "32M"][..], &second].concat(),
        1,
        &missing,
    );
    host.start_vm("a", &["--memory", "32M", "--net", "tap=tap0"]);
}
