//! Claims about the document that describes the host's interface: what it says is what is served.

use std::process::Command;
use tests::web::Web;
use tests::{Value, run_to_end};

const RUN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/run");

fn json(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

/// Schemathesis makes requests from the document, right ones and wrong ones, some of which start VMs and change
/// the host. No answer may be a server's error, or one that the document does not know.
#[test]
fn every_answer_is_one_that_the_document_knows() {
    let (host, web) = Web::start("512M");
    // Something must be there to be asked about: the document's own example of a name is `web`.
    host.boot_vm("web", &["--memory", "64M"]);
    let done = run_to_end(Command::new(RUN).args([
        &*web.address.to_string(),
        &web.token,
        "--max-time",
        "45",
    ]));
    let _report = done.expect_success();
    // The host is as good as before. It may have been given more memory, and have promised that.
    host.stop_all_but("");
    host.ok(&["set", "host", "memory=512M", "sharing=on"]);
    host.boot_vm("after", &["--memory", "64M"]);
}

#[test]
fn the_document_is_served_to_whoever_may_look() {
    let (host, web) = Web::start("64M");
    let over_tcp = json(&web.get("/v1/openapi.json").body);
    assert_eq!(over_tcp["openapi"], "3.1.0");
    let over_socket = tests::raw_client::ask(&host.socket(), "GET", "/v1/openapi.json", b"");
    let (_head, body) = over_socket
        .split_once("\r\n\r\n")
        .expect("a head and a body");
    assert_eq!(json(body), over_tcp);
}
