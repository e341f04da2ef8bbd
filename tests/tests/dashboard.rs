//! Claims about the dashboard, as a person meets it in a browser.

use tests::browser::{Browser, ENTER, TAB};
use tests::process::{self, Signal};
use tests::qemu::Qemu;
use tests::web::Web;
use tests::{Place, TestHost, number, text, wait_until};

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
        "return document.querySelector('#host-use canvas') !== null",
    );
    host.ok(&["stop", "a"]);
    browser.wait_until("one row", &rows_are("b"));
    browser.wait_until(
        "its end is told",
        "return document.querySelector('#events').textContent.includes('stopped')",
    );
    assert_eq!(browser.errors(), Vec::<String>::new());
}

/// A script that tells whether an element's text has these words.
fn says(selector: &str, words: &str) -> String {
    format!("return document.querySelector('{selector}')?.textContent.includes('{words}') ?? false")
}

#[test]
fn a_change_on_the_page_reaches_the_vm_once_the_token_was_given() {
    let (host, web) = Web::start("256M");
    for name in ["a", "b"] {
        host.boot_vm(name, &["--memory", "160M", "--min", "16M"]);
    }
    let target = || number(&host.vm("a"), "/target_bytes");
    let before = target();
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
        "return document.querySelector('#claims-outcome').matches('.good')",
    );
    wait_until("its target follows", || target() > before);
    assert_eq!(browser.errors(), Vec::<String>::new());
}

/// Whose guests QEMU runs, and what of them is known, is seen at a glance.
#[test]
fn a_vm_that_qemu_runs_is_marked_in_the_list_and_on_its_page() {
    let (host, web) = Web::start("512M");
    host.boot_vm("ours", &["--memory", "64M"]);
    let qemu = Qemu::boot_unattended("theirs", "64M", "idle");
    host.ok(&["adopt", "--qmp", qemu.socket()]);
    let browser = open(&web);
    browser.wait_until("two rows", &rows_are("ours,theirs"));
    let mark = |name: &str, text: &str| {
        format!(
            "return document.querySelector('#vms tr[data-vm={name}] .kind').textContent === '{text}'"
        )
    };
    browser.wait_until("it is marked", &mark("theirs", "QEMU"));
    browser.wait_until("ours is not", &mark("ours", ""));
    browser.go(&format!("http://{}/#/vm/theirs", web.address));
    browser.wait_until("its page says so", &says("#vm-kind", "QEMU"));
    process::signal(qemu.pid(), Signal::STOP);
    browser.wait_until("it is silent", &says("#vm-state", "silent"));
    process::signal(qemu.pid(), Signal::CONT);
    browser.wait_until("it runs", &says("#vm-state", "running"));
    assert_eq!(browser.errors(), Vec::<String>::new());
    let listed = host.ok(&["ps"]);
    let line = |name: &str| listed.lines().find(|line| line.starts_with(name));
    assert!(
        line("NAME").is_some_and(|line| line.ends_with("KIND")),
        "{listed}"
    );
    for (name, kind) in [("ours", "ballonet"), ("theirs", "qemu")] {
        assert!(
            line(name).is_some_and(|line| line.ends_with(kind)),
            "{listed}"
        );
    }
    host.ok(&["release", "theirs"]);
    assert!(!host.ok(&["ps"]).contains("KIND"));
}

#[test]
fn the_page_of_a_vm_shows_its_disks_and_nothing_of_the_kind_where_there_are_none() {
    let (host, web) = Web::start("256M");
    let disk = host.temporary_folder().join("disk.img");
    std::fs::write(&disk, [0; 8192]).expect("a file can be made");
    let path = disk.display().to_string();
    host.boot_vm("a", &["--memory", "64M", "--disk", &format!("{path},ro")]);
    host.boot_vm("b", &["--memory", "64M"]);
    let browser = open(&web);
    browser.go(&format!("http://{}/#/vm/a", web.address));
    for words in [&*path, "8 KiB, read only", "0 reads"] {
        browser.wait_until(words, &says("#vm-devices", words));
    }
    browser.go(&format!("http://{}/#/vm/b", web.address));
    browser.wait_until(
        "no disks",
        "return document.querySelector('#vm-name').textContent === 'b' && document.querySelector('#devices-panel').hidden",
    );
    assert_eq!(browser.errors(), Vec::<String>::new());
    std::fs::remove_file(disk).expect("it was made above");
}

/// The host's own checks, in its own words, where they were caused.
#[test]
fn what_the_host_refuses_is_said_beside_what_was_typed() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M", "--min", "16M"]);
    let browser = open(&web);
    browser.prepare(&format!(
        "sessionStorage.setItem('ballonet-token', '{}')",
        web.token
    ));
    browser.go(&format!("http://{}/?again#/vm/a", web.address));
    browser.wait_until(
        "its claims",
        "return document.querySelector('#claims [name=min]').value === '16M'",
    );
    for (form, field, typed, said) in [
        ("claims", "min", "128M", "128 MiB"),
        ("claims", "max", "much", "not a size"),
        ("balloon", "balloon", "60M", "16 MiB"),
    ] {
        browser.type_into(&format!("#{form} [name={field}]"), typed);
        browser.click(&format!("#{form} button"));
        browser.wait_until(
            said,
            &format!(
                "const outcome = document.querySelector('#{form}-outcome'); return outcome.matches('.bad') && outcome.textContent.includes('{said}')"
            ),
        );
        browser.type_into(&format!("#{form} [name={field}]"), "16M");
    }
    assert_eq!(host.vm("a")["min_bytes"], 16 << 20);
    assert!(host.vm("a")["pinned_bytes"].is_null());
}

#[test]
fn the_page_of_a_vm_says_in_sentences_why_it_holds_what_it_holds() {
    let (host, web) = Web::start("256M");
    host.boot_vm("anna", &["--memory", "64M"]);
    let browser = open(&web);
    browser.go(&format!("http://{}/#/vm/anna", web.address));
    browser.wait_until(
        "a sentence",
        &says("#why li:first-child", "anna should hold"),
    );
    browser.wait_until("its shares", &says("#why li:nth-child(2)", "shares"));
    assert_eq!(
        browser.eval("return document.querySelector('#why').textContent.includes('VM 1')"),
        false,
        "VMs have names"
    );
    browser.type_into("#more [name=more]", "64M");
    browser.click("#more button");
    browser.wait_until(
        "what it would take",
        &says("#more-answer", "cannot hold more"),
    );
}

/// What is saved, instead of a file that somebody would have to find: its name and content.
const CATCH_SAVED: &str = "
    window.saved = {};
    URL.createObjectURL = (blob) => ((window.blob = blob), 'blob:caught');
    HTMLAnchorElement.prototype.click = function () {
        const { download } = this;
        window.blob.text().then((text) => (window.saved[download] = text));
    };";

#[test]
fn charts_can_be_saved_as_images_and_tables() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let browser = Browser::start(1280, 800);
    browser.prepare(CATCH_SAVED);
    for (path, chart, name, words) in [
        ("/", "host-use", "machine-memory-by-use", "keep free"),
        ("/", "host-free", "free-memory-and-state", "low"),
        ("/#/vm/a", "vm-states", "a-memory-by-state", "ballooned"),
        ("/#/vm/a", "vm-use", "a-what-it-uses", "working set"),
    ] {
        browser.go(&format!("http://{}/?{chart}{}", web.address, &path[1..]));
        browser.wait_until(
            "it is drawn",
            &format!("return document.querySelector('#{chart} canvas') !== null"),
        );
        for button in [1, 3] {
            browser.click(&format!("#{chart}-tools button:nth-child({button})"));
        }
        let file = format!("ballonet-{name}-10m");
        browser.wait_until(
            "an image",
            &format!(
                "const text = window.saved['{file}.svg'] ?? ''; const image = new DOMParser().parseFromString(text, 'image/svg+xml'); return image.documentElement.tagName === 'svg' && text.includes('>{words}<')"
            ),
        );
        browser.wait_until(
            "a table",
            &format!(
                "const rows = (window.saved['{file}.csv'] ?? '').trim().split('\\r\\n').map((row) => row.split(',')); return rows.length > 1 && rows.every((row) => row.length === rows[0].length) && rows[0][0] === 'time'"
            ),
        );
    }
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[test]
fn rows_tell_the_working_set_with_its_interval_once_it_is_known() {
    let (host, web) = Web::start("256M");
    host.ok(&["set", "host", "sample-period=1"]);
    host.boot_vm("a", &["--memory", "64M", "--workload", "toucher:size=16M"]);
    let browser = open(&web);
    browser.wait_until(
        "an interval",
        "return /^[0-9.]+–[0-9.]+ MiB$/.test(document.querySelector('#vms td small')?.textContent)",
    );
    browser.wait_until("how memory is", &says("#tiles .state-high", "high"));
}

/// A VM whose balloon is dead: it may touch a part of what it wants only.
fn start_driverless(host: &TestHost, name: &str) {
    let words = ["--min", "64M", "--workload", "toucher:size=max"];
    host.start_driverless_vm(name, &words);
}

#[test]
fn a_vm_that_is_blocked_is_marked_in_its_row_and_its_page_says_what_it_may_touch() {
    let (host, web) = Web::start("256M");
    host.ok(&["set", "host", "sample-period=1"]);
    host.boot_vm("good", &["--memory", "64M"]);
    start_driverless(&host, "driverless");
    let browser = open(&web);
    browser.wait_until(
        "the mark",
        "const mark = document.querySelector('#vms tr[data-vm=driverless] .phase-blocked'); return /^blocked [0-9]+ %$/.test(mark?.textContent) && mark.title.includes('stands still')",
    );
    browser.wait_until(
        "the other has none",
        "return document.querySelector('#vms tr[data-vm=good] .phase-running') !== null",
    );
    browser.click("#vms tr[data-vm=driverless] a");
    browser.wait_until("it says so", &says("#vm-state", "blocked"));
    browser.wait_until(
        "and what it may touch",
        "const said = document.querySelector('#vm-blocked'); return !said.hidden && /may touch [0-9.]+ MiB/.test(said.textContent)",
    );
    host.ok(&["set", "host", "memory=640M"]);
    browser.wait_until(
        "it runs freely, and nothing is said",
        "return document.querySelector('#vm-blocked').hidden && document.querySelector('#vm-state').textContent === 'running'",
    );
    browser.wait_until(
        "and what the policy makes of what it uses, now that it can be seen",
        "return [...document.querySelectorAll('#vm-tiles div')].some((tile) => /^Policy assumes[0-9.]+ [KMG]iB/.test(tile.textContent) && tile.title.includes('slow to fall'))",
    );
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[test]
fn who_waits_to_be_admitted_is_told_while_somebody_does() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "128M", "--min", "120M"]);
    let browser = open(&web);
    browser.wait_until("a row", &rows_are("a"));
    let is_hidden = "return document.querySelector('#queue-panel').hidden";
    assert_eq!(browser.eval(is_hidden), true);
    let late = [
        "run", "--name", "late", "--memory", "192M", "--min", "160M", "--wait",
    ];
    let mut late = host.start_command(&late);
    browser.wait_until("who waits", &says("#queue dt", "1. late"));
    browser.wait_until("with what", &says("#queue dd", "192 MiB, waiting for"));
    browser.wait_until("and why", &says("#queue small", "min 160 MiB + overhead"));
    browser.go(&format!("http://{}/?late#/vm/late", web.address));
    browser.wait_until(
        "where it is looked for",
        &says("#vm-gone", "has waited to be admitted for"),
    );
    browser.go(&format!("http://{}/", web.address));
    browser.wait_until("who waits", &says("#queue dt", "1. late"));
    host.ok(&["stop", "a"]);
    let status = late.wait().expect("a child can be waited for");
    assert!(status.success(), "{status}");
    browser.wait_until("nobody waits", is_hidden);
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[test]
fn the_page_says_when_the_host_is_gone_and_goes_on_when_it_is_back() {
    let (mut host, web) = Web::start("256M");
    let browser = open(&web);
    let is =
        |state: &str| format!("return document.querySelector('#connection').matches('.{state}')");
    browser.wait_until("it is live", &is("live"));
    for (signal, name) in [(Signal::TERM, "a"), (Signal::KILL, "b")] {
        host.end_by(signal);
        browser.wait_until("it says so", &is("lost"));
        let place: Place = host.into_place();
        let address = web.address.to_string();
        let command = place.command(&["host", "--memory", "256M", "--http", &address]);
        host = TestHost::start_by(place, command);
        browser.wait_until("it is live again", &is("live"));
        host.start_vm(name, &["--memory", "64M"]);
        browser.wait_until("it shows what is new", &rows_are(name));
        host.ok(&["stop", name]);
    }
}

/// Everything in the order in which it is read, each with a ring around it while it has the focus.
#[test]
fn the_page_can_be_used_by_keys_alone() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M", "--min", "16M"]);
    let browser = open(&web);
    browser.wait_until("a row", "return document.querySelector('#vms a') !== null");
    let focus = "const it = document.activeElement; const style = getComputedStyle(it); return [it.textContent.trim() || it.name || it.id, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 1]";
    let mut reached = Vec::new();
    while reached.last().is_none_or(|last| last != "a") {
        assert!(reached.len() < 60, "the VM is not reached: {reached:?}");
        browser.press(TAB);
        let now = browser.eval(focus);
        assert_eq!(now[1], true, "{} shows no focus", now[0]);
        reached.push(now[0].as_str().unwrap_or_default().to_owned());
    }
    let place = |word: &str| reached.iter().position(|name| name == word);
    for pair in [
        "Skip to content",
        "Ballonet",
        "10 minutes",
        "SVG",
        "Working set",
        "a",
    ]
    .windows(2)
    {
        assert!(
            place(pair[0]).is_some() && place(pair[0]) < place(pair[1]),
            "{pair:?} in {reached:?}"
        );
    }
    browser.press(ENTER);
    browser.wait_until("its page", &says("#vm-name", "a"));
    browser.wait_until(
        "its claims",
        "return document.querySelector('#claims [name=min]').value === '16M'",
    );
    let unnamed = browser.eval("return [...document.querySelectorAll('button, input, a')].filter((it) => !(it.labels?.length || it.textContent.trim() || it.ariaLabel)).map((it) => it.outerHTML)");
    assert_eq!(unnamed, serde_json::json!([]));
    while browser.eval("return document.activeElement.name") != "shares" {
        browser.press(TAB);
    }
    browser.press(&format!("high{ENTER}"));
    browser.wait_until(
        "it asks for the token, with the focus where it is typed",
        "return document.querySelector('#token-dialog').open && document.activeElement.name === 'token'",
    );
    browser.press(&format!("{}{ENTER}", web.token));
    wait_until("the change arrives", || {
        text(&host.vm("a"), "/shares") == "high"
    });
}

/// As the guidelines for accessible pages want it: a contrast of at least 4.5.
#[test]
fn words_can_be_read_in_light_and_in_dark() {
    let (_host, web) = Web::start("256M");
    let browser = open(&web);
    let mut backs = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        let faint = browser.eval("
            const color = (name) => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
            const light = (name) => {
                const hex = color(name).replace(/^#(.)(.)(.)$/, '#$1$1$2$2$3$3');
                const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
            const pairs = ['text', 'quiet', 'link', 'error', 'good'].flatMap((ink) => ['panel', 'back'].map((paper) => [ink, paper]));
            return pairs.map(([ink, paper]) => [ink, paper, contrast(ink, paper)]).filter(([, , contrast]) => !(contrast >= 4.5));");
        assert_eq!(faint, serde_json::json!([]), "{scheme}");
        backs.push(browser.eval("return getComputedStyle(document.body).backgroundColor"));
    }
    assert_ne!(backs[0], backs[1]);
}

/// Makes a hundred VMs of the first that the host tells of. They stay as they are, but for the one that
/// `window.moving` names, or for all.
const HUNDREDFOLD: &str = "
    const real = window.fetch;
    let round = 0;
    window.moving = null;
    const many = (moment) => {
        window.first ??= moment.figures.vms[0];
        round += 1;
        moment.figures.vms = Array.from({ length: 100 }, (_, index) => {
            const vm = { ...window.first, name: `vm-${index}`, id: index + 1 };
            const moves = [index, 'all'].includes(window.moving);
            return moves ? { ...vm, sztgt: vm.sztgt - 1048576 * (round % 16), used: vm.used + 1048576 * (round % 16) } : vm;
        });
        moment.figures.host = window.host ??= moment.figures.host;
        return moment;
    };
    window.fetch = async (...request) => {
        const response = await real(...request);
        if (!request[0].endsWith('/stream')) return response;
        let rest = '';
        const rewrite = new TransformStream({
            transform(text, out) {
                const messages = (rest + text).split('\\n\\n');
                rest = messages.pop();
                for (const message of messages) {
                    const moment = JSON.parse(message.slice(message.indexOf('data: ') + 6));
                    if (moment.figures.vms.length) out.enqueue(`data: ${JSON.stringify(many(moment))}\\n\\n`);
                }
            },
        });
        const body = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(rewrite);
        return new Response(body.pipeThrough(new TextEncoderStream()), { headers: response.headers });
    };
    window.took = [];
    new PerformanceObserver((list) => window.took.push(...list.getEntries().map((entry) => entry.duration))).observe({ type: 'measure' });";

/// The time is for people to look at: it is printed, and no claim on a machine where others work.
#[test]
fn of_a_hundred_vms_only_what_has_changed_is_touched() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let browser = Browser::start(1280, 800);
    browser.prepare(HUNDREDFOLD);
    browser.go(&format!("http://{}/", web.address));
    browser.wait_until(
        "a hundred rows",
        "return document.querySelectorAll('#vms tbody tr').length === 100",
    );
    let moments = |count: usize| {
        browser.wait_until(
            "moments pass",
            &format!("return window.took.length >= {count}"),
        );
        let took = browser.eval("const took = window.took.sort((a, b) => a - b); window.took = []; return [took[took.length >> 1], took.at(-1)]");
        println!("script time of a moment: median and longest in ms {took}");
    };
    let _watched = browser.eval("
        window.touched = new Set();
        const row = (node) => (node.parentElement ?? node).closest('tr')?.dataset.vm ?? 'something else';
        new MutationObserver((changes) => changes.forEach((change) => window.touched.add(row(change.target)))).observe(document.querySelector('#vms'), { subtree: true, childList: true, characterData: true, attributes: true });");
    let touched = || {
        browser.eval(
            "const touched = [...window.touched].sort(); window.touched.clear(); return touched",
        )
    };
    moments(10);
    assert_eq!(touched(), serde_json::json!([]));
    let _moving = browser.eval("window.moving = 7");
    moments(10);
    assert_eq!(touched(), serde_json::json!(["vm-7"]));
    let _moving = browser.eval("window.moving = 'all'");
    moments(20);
    assert_eq!(touched().as_array().map(Vec::len), Some(100));
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[test]
fn nothing_is_wider_than_a_telephone() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    start_driverless(&host, "driverless");
    let long = "a-name-as-long-as-names-can-be.".repeat(2);
    let late = [
        "run", "--name", &long, "--memory", "192M", "--min", "160M", "--wait",
    ];
    let mut late = host.start_command(&late);
    let browser = Browser::start(390, 844);
    browser.go(&format!("http://{}/", web.address));
    for exception in ["#queue dt", "#vms .phase-blocked"] {
        browser.wait_until(
            exception,
            &format!("return document.querySelector('{exception}') !== null"),
        );
    }
    for path in ["/", "/#/vm/a", "/#/vm/driverless"] {
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
    process::signal(late.id(), Signal::INT);
    let _status = late.wait().expect("a child can be waited for");
}

/// Who may only look sees so before typing anything.
#[test]
fn a_browser_with_a_read_token_sees_everything_and_its_controls_say_that_it_may_not_change() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M", "--min", "16M"]);
    let reads = host.ok(&["token", "add", "reads", "--role", "read"]);
    let browser = open(&web);
    browser.prepare(&format!(
        "sessionStorage.setItem('ballonet-token', '{}')",
        reads.trim()
    ));
    browser.go(&format!("http://{}/?again#/vm/a", web.address));
    browser.wait_until("its role", &says("#access", "reads: read"));
    browser.wait_until(
        "its claims, which it may not change",
        "const min = document.querySelector('#claims [name=min]'); return min.value === '16M' && min.matches(':disabled')",
    );
    browser.wait_until(
        "what it may not do is said",
        "return !document.querySelector('#may-not-change').hidden",
    );
    browser.click("#other-token");
    browser.wait_until(
        "it asks for another",
        "return document.querySelector('#token-dialog').open",
    );
    browser.type_into("#token-form [name=token]", &web.token);
    browser.click("#token-form [type=submit]");
    browser.wait_until(
        "what it may now",
        "return document.querySelector('#claims [name=min]').matches(':enabled') && document.querySelector('#may-not-change').hidden",
    );
    host.ok(&["token", "rm", "host"]);
    browser.wait_until("it reads on without", &says("#connection", "live"));
    browser.wait_until(
        "it has no token any more",
        "return sessionStorage.getItem('ballonet-token') === null && document.querySelector('#access').textContent === ''",
    );
}
