//! The host's HTTP interface: each route turns a request into one call of [`Host`], and describes itself, so
//! that the OpenAPI document at `/v1/openapi.json` is made of what is served.

mod answer;
mod console;
mod document;
mod host;
mod roles;
mod stream;
mod tokens;
mod vms;

pub(super) use answer::{refuse, write_problems};
pub(super) use roles::needed;
pub(super) use stream::Hangup;

use super::Host;
use answer::{method_not_offered, no_such_route, read_body_in_time};
use axum::middleware;
use axum::{Extension, Router};
use document::Document;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// All routes of `host`.
pub(super) fn router(host: Host) -> Router {
    let (routes, openapi) = described();
    routes
        .fallback(no_such_route)
        .method_not_allowed_fallback(method_not_offered)
        .layer(Extension(Document::new(openapi)))
        .layer(middleware::from_fn(read_body_in_time))
        .layer(middleware::from_fn(write_problems))
        .with_state(host)
}

/// The routes and what they say of themselves.
fn described() -> (Router<Host>, OpenApi) {
    OpenApiRouter::with_openapi(document::frame())
        .routes(routes!(host::overview))
        .routes(routes!(host::figures))
        .routes(routes!(host::history))
        .routes(routes!(host::host_view, host::change_host))
        .routes(routes!(host::audit))
        .routes(routes!(host::events))
        .routes(routes!(stream::stream))
        .routes(routes!(vms::list, vms::run))
        .routes(routes!(vms::show, vms::change, vms::stop))
        .routes(routes!(vms::restart))
        .routes(routes!(vms::definitions))
        .routes(routes!(vms::forget))
        .routes(routes!(vms::adopt))
        .routes(routes!(vms::release))
        .routes(routes!(vms::set_balloon))
        .routes(routes!(vms::explain))
        .routes(routes!(console::console))
        .routes(routes!(tokens::access))
        .routes(routes!(tokens::list, tokens::add))
        .routes(routes!(tokens::remove))
        .routes(routes!(host::metrics))
        .routes(routes!(host::problems))
        .routes(routes!(document::openapi))
        .split_for_parts()
}

#[cfg(test)]
mod tests {
    use super::stream::tests::host;
    use super::*;
    use crate::host::tokens::Access;
    use api::{Problem, ProblemKind};
    use axum::body::{Body, to_bytes};
    use axum::http::{Method, Request};
    use axum::response::Response;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use std::collections::BTreeSet;

    const METHODS: [Method; 5] = [
        Method::GET,
        Method::PUT,
        Method::POST,
        Method::DELETE,
        Method::PATCH,
    ];

    async fn ask(router: &Router, method: &Method, path: &str) -> Response {
        let request = Request::builder().method(method).uri(path);
        let request = request.extension(Hangup::default());
        let request = request.extension(Access::by_socket(None));
        let request = request.body(Body::from("{}")).unwrap();
        let service = TowerToHyperService::new(router.clone());
        service.call(request).await.unwrap()
    }

    async fn kind_of(response: Response) -> Option<String> {
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let problem = serde_json::from_slice::<Problem>(&body);
        problem.ok().map(|problem| problem.title)
    }

    #[tokio::test]
    async fn what_is_described_is_served_and_with_no_other_methods() {
        let (host, _folder) = host();
        let router = router(host);
        for (path, item) in described().1.paths.paths {
            let path = path.replace("{name}", "nobody");
            let operations = document::operations(&item).into_iter();
            let described: BTreeSet<Method> = operations.map(|(method, _)| method).collect();
            for method in METHODS {
                let answer = ask(&router, &method, &path).await;
                let status = answer.status();
                if path.ends_with("/stream") && described.contains(&method) {
                    continue;
                }
                let kind = kind_of(answer).await;
                let offered = kind.as_deref() != Some(ProblemKind::MethodNotOffered.title());
                assert_eq!(
                    offered,
                    described.contains(&method),
                    "{method} {path}: {status}"
                );
                assert_ne!(
                    kind.as_deref(),
                    Some(ProblemKind::NoSuchRoute.title()),
                    "{path}"
                );
            }
        }
    }

    /// The router does not list its routes but for who debugs it.
    #[test]
    fn what_is_served_is_described() {
        let (router, openapi) = described();
        let debugged = format!("{router:?}");
        // The first and the last are where its fallback lies.
        let own = ["/", "/{*__private__axum_fallback}"];
        let words = debugged.split('"').filter(|word| word.starts_with('/'));
        let served: BTreeSet<&str> = words.filter(|word| !own.contains(word)).collect();
        let described: BTreeSet<&str> = openapi.paths.paths.keys().map(String::as_str).collect();
        assert_eq!(served, described);
    }

    #[tokio::test]
    async fn who_uses_a_wrong_method_is_told_the_right_ones() {
        let (host, _folder) = host();
        let answer = ask(&router(host), &Method::DELETE, "/v1/vms").await;
        assert_eq!(answer.status(), 405);
        assert_eq!(answer.headers()["allow"], "GET,HEAD,POST");
    }
}
