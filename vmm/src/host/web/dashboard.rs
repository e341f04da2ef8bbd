//! The dashboard's files, which are part of the program: a machine without a network shows it as well.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// Path, type and content of each file.
const FILES: [(&str, &str, &str); 16] = [
    ("/", HTML, include_str!("../../../dashboard/index.html")),
    ("/app.js", SCRIPT, include_str!("../../../dashboard/app.js")),
    ("/api.js", SCRIPT, include_str!("../../../dashboard/api.js")),
    (
        "/charts.js",
        SCRIPT,
        include_str!("../../../dashboard/charts.js"),
    ),
    ("/dom.js", SCRIPT, include_str!("../../../dashboard/dom.js")),
    (
        "/events.js",
        SCRIPT,
        include_str!("../../../dashboard/events.js"),
    ),
    (
        "/format.js",
        SCRIPT,
        include_str!("../../../dashboard/format.js"),
    ),
    (
        "/host.js",
        SCRIPT,
        include_str!("../../../dashboard/host.js"),
    ),
    (
        "/memory.js",
        SCRIPT,
        include_str!("../../../dashboard/memory.js"),
    ),
    (
        "/models.js",
        SCRIPT,
        include_str!("../../../dashboard/models.js"),
    ),
    ("/svg.js", SCRIPT, include_str!("../../../dashboard/svg.js")),
    ("/vm.js", SCRIPT, include_str!("../../../dashboard/vm.js")),
    (
        "/style.css",
        STYLE,
        include_str!("../../../dashboard/style.css"),
    ),
    (
        "/icon.svg",
        IMAGE,
        include_str!("../../../dashboard/icon.svg"),
    ),
    (
        "/uplot/uPlot.iife.min.js",
        SCRIPT,
        include_str!("../../../dashboard/uplot/uPlot.iife.min.js"),
    ),
    (
        "/uplot/uPlot.min.css",
        STYLE,
        include_str!("../../../dashboard/uplot/uPlot.min.css"),
    ),
];

pub(super) fn router() -> Router {
    FILES
        .into_iter()
        .fold(Router::new(), |router, (path, kind, content)| {
            router.route(
                path,
                get(move || async move { ([(CONTENT_TYPE, kind)], content) }),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use page::PageState;

    fn file(path: &str) -> &'static str {
        let mut files = FILES.iter();
        files.find(|(name, ..)| *name == path).unwrap().2
    }

    #[test]
    fn every_state_of_pages_has_its_place_and_its_color() {
        let names = PageState::ALL.map(|state| format!("{:?}", state.name()));
        let list = format!("STATES = [{}];", names.join(", "));
        assert!(file("/memory.js").contains(&list), "{list}");
        let style = file("/style.css");
        for state in PageState::ALL {
            let name = state.name();
            let colors = style.matches(&format!("--{name}: #")).count();
            assert_eq!(colors, 2, "{name}: by day and by night");
            assert!(style.contains(&format!(".{name} {{ background: var(--{name})")));
        }
    }
}
