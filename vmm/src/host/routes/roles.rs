//! The one table of who may do what: which role each route needs of those who come over TCP. The interface's document tells it,
//! and a test that there is a line for each route and no other.

use api::Role;
use axum::http::Method;

const READ: Role = Role::Read;
const OPERATE: Role = Role::Operate;
const ADMIN: Role = Role::Admin;

/// Method, path, and what it needs. Who may start a VM may name files that the host opens as its user, and who may forget one
/// or change the host changes what all others have.
#[rustfmt::skip]
const ROLES: [(Method, &str, Role); 28] = [
    (Method::GET,    "/metrics",                    READ),
    (Method::GET,    "/v1/access",                  READ),
    (Method::GET,    "/v1/definitions",             READ),
    (Method::GET,    "/v1/events",                  READ),
    (Method::GET,    "/v1/events/stream",           READ),
    (Method::GET,    "/v1/figures",                 READ),
    (Method::GET,    "/v1/history",                 READ),
    (Method::GET,    "/v1/host",                    READ),
    (Method::GET,    "/v1/openapi.json",            READ),
    (Method::GET,    "/v1/overview",                READ),
    (Method::GET,    "/v1/problems",                READ),
    (Method::GET,    "/v1/vms",                     READ),
    (Method::GET,    "/v1/vms/{name}",              READ),
    (Method::GET,    "/v1/vms/{name}/explanation",  READ),
    // What is typed there changes the guest.
    (Method::GET,    "/v1/vms/{name}/console",      OPERATE),
    (Method::POST,   "/v1/host/audit",              OPERATE),
    (Method::PATCH,  "/v1/vms/{name}",              OPERATE),
    (Method::DELETE, "/v1/vms/{name}",              OPERATE),
    (Method::PUT,    "/v1/vms/{name}/balloon",      OPERATE),
    (Method::POST,   "/v1/vms/{name}/restart",      OPERATE),
    (Method::POST,   "/v1/vms",                     ADMIN),
    (Method::DELETE, "/v1/definitions/{name}",      ADMIN),
    (Method::POST,   "/v1/adoptions",               ADMIN),
    (Method::DELETE, "/v1/adoptions/{name}",        ADMIN),
    (Method::PATCH,  "/v1/host",                    ADMIN),
    (Method::GET,    "/v1/tokens",                  ADMIN),
    (Method::POST,   "/v1/tokens",                  ADMIN),
    (Method::DELETE, "/v1/tokens/{name}",           ADMIN),
];

/// What a route needs.
pub(super) fn of_route(method: &Method, path: &str) -> Option<Role> {
    let mut roles = ROLES.iter();
    let found = roles.find(|(of, at, _)| of == method && *at == path);
    found.map(|(_, _, role)| *role)
}

/// What a request needs: `route` is the path of the route that answers it, if there is one. None if anybody may send it, as for
/// the dashboard's own files.
pub(in crate::host) fn needed(method: &Method, route: Option<&str>, path: &str) -> Option<Role> {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let listed_as = match is_read {
        true => &Method::GET,
        false => method,
    };
    let listed = route.and_then(|route| of_route(listed_as, route));
    let is_static = !path.starts_with("/v1/") && path != "/metrics";
    match (listed, is_read, is_static, route) {
        (Some(role), ..) => Some(role),
        (None, true, true, _) => None,
        // There is nothing there, which whoever may read may know.
        (None, true, false, None) => Some(READ),
        _ => Some(ADMIN),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{described, document};
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_route_has_its_line_and_each_line_its_route() {
        let (_, openapi) = described();
        let mut served = BTreeSet::new();
        for (path, item) in &openapi.paths.paths {
            let methods = document::operations(item).into_iter();
            served.extend(methods.map(|(method, _)| (method.to_string(), path.clone())));
        }
        let lines: BTreeSet<_> = ROLES
            .iter()
            .map(|(method, path, _)| (method.to_string(), (*path).to_owned()))
            .collect();
        assert_eq!(lines, served);
        assert_eq!(lines.len(), ROLES.len(), "no line is there twice");
    }

    #[test]
    fn whatever_is_not_in_the_table_is_for_nobody_but_admins() {
        let console = "/v1/vms/{name}/console";
        let asked = [
            (Method::HEAD, Some("/v1/vms"), "/v1/vms", Some(READ)),
            (
                Method::GET,
                Some(console),
                "/v1/vms/a/console",
                Some(OPERATE),
            ),
            (
                Method::HEAD,
                Some(console),
                "/v1/vms/a/console",
                Some(OPERATE),
            ),
            (Method::GET, Some("/v1/new"), "/v1/new", Some(ADMIN)),
            (Method::PUT, Some("/v1/vms"), "/v1/vms", Some(ADMIN)),
            (Method::GET, None, "/v1/nowhere", Some(READ)),
            (Method::POST, None, "/v1/nowhere", Some(ADMIN)),
            (Method::GET, Some("/app.js"), "/app.js", None),
            (Method::GET, None, "/favicon.ico", None),
            (Method::POST, Some("/"), "/", Some(ADMIN)),
        ];
        for (method, route, path, role) in asked {
            assert_eq!(needed(&method, route, path), role, "{method} {path}");
        }
    }
}
