//! Claims about the dashboard, as a person meets it in a browser.

use tests::browser::Browser;
use tests::process::Signal;
use tests::web::Web;
use tests::{Place, TestHost, text, wait_until};

/// A script that tells whether these VMs have rows, in this order.
fn rows_are(names: &str) -> String {
    let rows =
        "[...document.querySelectorAll('#vms tbody tr')].map((row) => row.dataset.vm).join()";
    format!("return {rows} === '{names}'")
}

fn open(web: &Web) -> Browser {
    let browser = Browser::start(1280, 800);
    browser.go(&format!("http://{}/", web.address));
    browser
}

#[test]
fn vms_appear_and_go_while_one_looks_and_nothing_is_wrong_on_the_console() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let browser = open(&web);
    browser.wait_until("one row", &rows_are("a"));
    host.start_vm("b", &["--memory", "64M"]);
    browser.wait_until("two rows", &rows_are("a,b"));
    browser.wait_until(
        "a chart",
        "return document.querySelector('#host-chart canvas') !== null",
    );
    host.ok(&["stop", "a"]);
    browser.wait_until("one row", &rows_are("b"));
    browser.wait_until(
        "its end is told",
        "return document.querySelector('#events').textContent.includes('stopped')",
    );
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[test]
fn a_change_on_the_page_reaches_the_vm_once_the_token_was_given() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M", "--min", "16M"]);
    let browser = open(&web);
    browser.wait_until("a row", "return document.querySelector('#vms a') !== null");
    browser.click("#vms a");
    browser.wait_until(
        "its claims",
        "return document.querySelector('#claims [name=min]').value === '16M'",
    );
    browser.type_into("#claims [name=shares]", "high");
    browser.click("#claims button");
    browser.wait_until(
        "it asks for the token",
        "return document.querySelector('#token-dialog').open",
    );
    browser.type_into("#token-form [name=token]", &web.token);
    browser.click("#token-form [type=submit]");
    wait_until("the change arrives", || {
        text(&host.vm("a"), "/shares") == "high"
    });
    browser.wait_until(
        "the page says so",
        "return document.querySelector('#outcome').className === 'good'",
    );
    assert_eq!(browser.errors(), Vec::<String>::new());
    // The host's own check, in its own words, and no second question for the token.
    browser.type_into("#claims [name=min]", "128M");
    browser.click("#claims button");
    browser.wait_until("the refusal is shown", "return document.querySelector('#outcome').className === 'bad' && document.querySelector('#outcome').textContent.includes('128 MiB')");
    assert_eq!(host.vm("a")["min_bytes"], 16 << 20);
}

#[test]
fn the_page_says_when_the_host_is_gone_and_goes_on_when_it_is_back() {
    let (mut host, web) = Web::start("256M");
    let browser = open(&web);
    browser.wait_until(
        "it is live",
        "return document.querySelector('#connection').className === 'live'",
    );
    assert!(host.end_by(Signal::TERM).success());
    browser.wait_until(
        "it says so",
        "return document.querySelector('#connection').className === 'lost'",
    );
    let place: Place = host.into_place();
    let address = web.address.to_string();
    let command = place.command(&["host", "--memory", "256M", "--http", &address]);
    let _host = TestHost::start_by(place, command);
    browser.wait_until(
        "it is live again",
        "return document.querySelector('#connection').className === 'live'",
    );
}

#[test]
fn nothing_is_wider_than_a_telephone() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let browser = Browser::start(390, 844);
    for path in ["/", "/#/vm/a"] {
        browser.go(&format!("http://{}{path}", web.address));
        browser.wait_until(
            "a chart",
            "return document.querySelector('section:not([hidden]) canvas') !== null",
        );
        browser.wait_until(
            "it fits",
            "return document.documentElement.scrollWidth <= document.documentElement.clientWidth",
        );
    }
}
