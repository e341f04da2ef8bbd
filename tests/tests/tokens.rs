//! Claims about tokens: each allows what its role does, as long as it is worth anything, and not longer.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::Path;
use tests::web::{Answer, Web, bearer, json, next_moment};
use tests::{Place, TestHost, Value, text, wait_until};

const ROLES: [&str; 3] = ["read", "operate", "admin"];
/// What needs more than reading, so that the host's own table is not only compared with itself.
const OPERATED: [&str; 6] = [
    "get /v1/vms/{name}/console",
    "post /v1/host/audit",
    "patch /v1/vms/{name}",
    "delete /v1/vms/{name}",
    "put /v1/vms/{name}/balloon",
    "post /v1/vms/{name}/restart",
];
const ADMINISTERED: [&str; 8] = [
    "post /v1/adoptions",
    "delete /v1/adoptions/{name}",
    "post /v1/vms",
    "delete /v1/definitions/{name}",
    "patch /v1/host",
    "get /v1/tokens",
    "post /v1/tokens",
    "delete /v1/tokens/{name}",
];

fn add(host: &Place, name: &str, role: &str) -> String {
    let token = host.ok(&["token", "add", name, "--role", role]);
    let token = token.trim().to_owned();
    assert_eq!(token.len(), 64, "256 bits: {token}");
    token
}

fn listed(host: &Place, name: &str) -> Option<Value> {
    let tokens = host.json(&["token", "list"]);
    let tokens = tokens.as_array().expect("a list");
    tokens.iter().find(|token| token["name"] == name).cloned()
}

/// What the document says that an operation needs.
fn role_in(operation: &Value) -> &str {
    let security = operation["security"].as_array().expect("a list");
    let mut roles = security.iter().filter_map(|way| way.pointer("/token/0"));
    roles.next().and_then(Value::as_str).expect("a role")
}

fn refused(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let problem = json(&answer.body);
    assert_eq!(problem["status"], status);
    assert!(text(&problem, "/detail").contains(words), "{problem}");
    assert!(answer.header("www-authenticate").is_some());
}

#[test]
fn each_role_may_use_its_routes_and_no_others() {
    let (host, web) = Web::start("128M");
    let tokens = ROLES.map(|role| add(&host, role, role));
    let document = json(&web.get("/v1/openapi.json").body);
    let mut seen = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let route = format!("{method} {path}");
            let needed = match &*route {
                route if OPERATED.contains(&route) => 1,
                route if ADMINISTERED.contains(&route) => 2,
                _ => 0,
            };
            assert_eq!(role_in(operation), ROLES[needed], "{route}");
            let method = method.to_uppercase();
            let at = path.replace("{name}", "nobody");
            let ask = |token: Option<&str>| match at.ends_with("/stream") {
                true => web.open(&at, token.map(bearer).as_deref().as_slice()).0,
                false => web.ask_with(token, &method, &at, "{}").status,
            };
            for (has, token) in tokens.iter().enumerate() {
                let status = ask(Some(token));
                assert_eq!(
                    status == 403,
                    has < needed,
                    "{} {route}: {status}",
                    ROLES[has]
                );
                assert_ne!(status, 401, "{route}");
            }
            assert_eq!(ask(None) == 401, needed > 0, "{route}, without a token");
            assert_eq!(ask(Some("0123")), 401, "{route}, with a wrong one");
            seen += 1;
        }
    }
    assert!(seen > OPERATED.len() + ADMINISTERED.len(), "{seen} routes");
    let less = web.ask_with(Some(&tokens[0]), "PATCH", "/v1/host", "{}");
    refused(&less, 403, "role admin");
    refused(&web.ask_with(None, "PATCH", "/v1/host", "{}"), 401, "admin");
    let access = json(&web.ask_with(Some(&tokens[1]), "GET", "/v1/access", "").body);
    assert_eq!(text(&access, "/role"), "operate");
    assert_eq!(text(&access, "/token/name"), "operate");
    assert_eq!(json(&web.get("/v1/access").body)["role"], "read");
}

/// All that still comes on a connection until the host ends it.
fn rest_of(mut stream: BufReader<TcpStream>) {
    let mut rest = Vec::new();
    stream
        .read_to_end(&mut rest)
        .expect("the host ends it before patience does");
}

/// Reads a stream of events, which goes on between keeping-alive connections, until its end.
fn until_the_stream_ends(mut stream: BufReader<TcpStream>) {
    let mut line = String::new();
    loop {
        line.clear();
        let count = stream.read_line(&mut line).expect("more, or the end");
        // The last chunk of a body has no bytes.
        if count == 0 || line.trim_end() == "0" {
            return;
        }
    }
}

#[test]
fn what_was_opened_with_a_token_ends_when_it_is_withdrawn() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let [reads, operates, stays] = [
        ("reads", "read"),
        ("operates", "operate"),
        ("stays", "read"),
    ]
    .map(|(name, role)| add(&host, name, role));
    let follow = |token: &str| {
        let (status, mut stream) = web.open("/v1/events/stream", &[&bearer(token)]);
        assert_eq!(status, 200);
        let _first = next_moment(&mut stream);
        stream
    };
    let (stream, mut other) = (follow(&reads), follow(&stays));
    let upgrade = ["Connection: upgrade", "Upgrade: ballonet-console"];
    let (status, console) = web.open(
        "/v1/vms/a/console",
        &[&[&*bearer(&operates)][..], &upgrade].concat(),
    );
    assert_eq!(status, 101);
    host.ok(&["token", "rm", "reads", "operates"]);
    until_the_stream_ends(stream);
    rest_of(console);
    let _still = next_moment(&mut other);
    for token in [&reads, &operates] {
        let answer = web.ask_with(Some(token), "GET", "/v1/host", "");
        refused(&answer, 401, "withdrawn");
    }
    assert_eq!(
        web.ask_with(Some(&stays), "GET", "/v1/host", "").status,
        200
    );
    assert_eq!(listed(&host, "reads"), None);
    host.ok(&["token", "rm", "host"]);
    refused(
        &web.ask_with(Some(&web.token), "GET", "/v1/host", ""),
        401,
        "withdrawn",
    );
    assert!(!host.host_folder().join("token").exists());
}

#[test]
fn a_token_is_worth_nothing_once_its_time_is_over() {
    let (host, web) = Web::start("128M");
    let short = host.ok(&["token", "add", "short", "--role", "read", "--expires", "2s"]);
    let (status, stream) = web.open("/v1/events/stream", &[&bearer(short.trim())]);
    assert_eq!(status, 200);
    until_the_stream_ends(stream);
    let answer = web.ask_with(Some(short.trim()), "GET", "/v1/host", "");
    refused(&answer, 401, "expired");
    assert!(host.ok(&["token", "list"]).contains("worth nothing"));
    add(&host, "short", "read");
}

fn holds(folder: &Path, text: &str) -> bool {
    let files = fs::read_dir(folder).expect("it is there");
    let mut files = files.map(|entry| entry.expect("it can be read").path());
    files.any(|path| {
        let bytes = fs::read(path).unwrap_or_default();
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    })
}

#[test]
fn tokens_outlive_a_killed_host_and_withdrawn_ones_do_not() {
    let (mut host, web) = Web::start("128M");
    let kept = add(&host, "kept", "operate");
    let gone = add(&host, "gone", "admin");
    host.ok(&["token", "rm", "gone"]);
    let old = listed(&host, "kept").expect("it is listed");
    assert_eq!(
        (&old["kept"], &old["used_ms"]),
        (&Value::Bool(true), &Value::Null)
    );
    assert!(!holds(&host.state_folder(), &kept), "only a hash is kept");
    host.die_and_start_again();
    let again = Web::of(&host);
    assert_ne!(again.token, web.token, "its own is another");
    let ask = |token: &str| {
        again
            .ask_with(Some(token), "POST", "/v1/host/audit", "")
            .status
    };
    assert_eq!(ask(&kept), 200);
    assert_eq!(ask(&gone), 401);
    assert_eq!(ask(&web.token), 401);
    assert_eq!(ask(&again.token), 200);
    let new = listed(&host, "kept").expect("it is listed");
    assert_eq!(new["made_ms"], old["made_ms"]);
    assert!(new["used_ms"].is_u64(), "{new}");
}

#[test]
fn without_state_tokens_live_as_long_as_their_host() {
    let place = Place::new();
    let words = [
        "host",
        "--memory",
        "128M",
        "--http",
        "127.0.0.1:0",
        "--state",
        "none",
    ];
    let command = place.command(&words);
    let mut host = TestHost::start_by(place, command);
    let token = add(&host, "a", "read");
    assert_eq!(
        Web::of(&host)
            .ask_with(Some(&token), "GET", "/v1/host", "")
            .status,
        200
    );
    assert!(host.ok(&["token", "list"]).contains("with the host"));
    host.die_and_start_again();
    assert_eq!(
        Web::of(&host)
            .ask_with(Some(&token), "GET", "/v1/host", "")
            .status,
        401
    );
    assert_eq!(listed(&host, "a"), None);
}

#[test]
fn what_is_wrong_with_a_token_is_said() {
    let host = TestHost::start("128M");
    add(&host, "a", "read");
    let wrong: [(&[&str], i32, &str); 6] = [
        (&["add", "a", "--role", "admin"], 1, "there already"),
        (&["add", "b"], 2, "--role"),
        (&["add", "b", "--role", "root"], 2, "read, operate or admin"),
        (&["add", "host", "--role", "read"], 2, "not 'host'"),
        (
            &["add", "b", "--role", "read", "--expires", "soon"],
            2,
            "30d",
        ),
        (&["rm", "nobody"], 1, "token list"),
    ];
    for (words, status, said) in wrong {
        host.fails(&[&["token"], words].concat(), status, &[said]);
    }
    let unnamed = host.json(&["token", "add", "--role", "read"]);
    assert_eq!(text(&unnamed, "/view/name"), "token-1");
    wait_until("the events tell of it", || {
        let overview = host.overview().to_string();
        overview.contains("token 'a' was made by user")
            && !overview.contains(text(&unnamed, "/token"))
    });
}
