//! Server-sent events: the figures of each round and what happened in it, for as long as a client
//! listens.
//!
//! Nobody is waited for. A client that is slow gets the newest figures when it is ready again, and misses
//! those between; one that takes nothing for a while is hung up on, so that it does not keep a place.

use super::document::Follows;
use crate::host::tokens::Access;
use crate::host::{Host, HostError};
use api::EventView;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use http_body_util::channel::{Channel, Sender};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// Messages that wait to be sent to one client.
const WAITING_MESSAGES: usize = 1;
/// How long a client may take nothing.
const STALL_PATIENCE: Duration = Duration::from_secs(10);
/// Rounds can be short; people cannot see faster.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Ends a client's connection, whatever is under way there.
#[derive(Clone, Debug, Default)]
pub(in crate::host) struct Hangup(pub(in crate::host) Arc<Notify>);

/// Follows the host: server-sent events named `moment`, each with a [`Moment`](api::Moment) as JSON, one for every round and
/// the first at once. Who takes them slowly misses some; who takes none for ten seconds is hung up on.
#[utoipa::path(
    get, path = "/v1/events/stream", tag = "host",
    responses((status = OK, body = String, content_type = "text/event-stream"), Follows)
)]
pub(super) async fn stream(
    State(host): State<Host>,
    Extension(hangup): Extension<Hangup>,
    Extension(access): Extension<Access>,
) -> Result<Response, HostError> {
    let place = host.stream_place()?;
    let (sender, body) = Channel::<Bytes, Infallible>::new(WAITING_MESSAGES);
    tokio::spawn(async move {
        let _place = place;
        let followed = tokio::select! {
            followed = follow(&host, sender, STALL_PATIENCE) => followed,
            () = access.ends() => Ok(()),
        };
        if followed.is_err() {
            hangup.0.notify_one();
        }
    });
    Ok(([(CONTENT_TYPE, "text/event-stream")], Body::new(body)).into_response())
}

/// The client took nothing for too long.
#[derive(Debug, PartialEq, Eq)]
struct Stalled;

/// Sends until the client leaves, or takes nothing for as long as `patience`.
async fn follow(host: &Host, mut sender: Sender<Bytes>, patience: Duration) -> Result<(), Stalled> {
    let mut rounds = host.rounds();
    let mut seen_events = 0;
    loop {
        let (published, events) = host.moment(&mut seen_events);
        let message = message(&published.figures_json(), &events);
        match timeout(patience, sender.send_data(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_gone)) => return Ok(()),
            Err(_late) => return Err(Stalled),
        }
        sleep(SHORTEST_PAUSE).await;
        if rounds.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// A [`Moment`](api::Moment), of which the large part was written once for all clients.
fn message(figures_json: &[u8], events: &[EventView]) -> Bytes {
    let events_json = serde_json::to_vec(events).expect("events have only text keys");
    // JSON has no line ends but escaped ones, so it is one line.
    let pieces: [&[u8]; 5] = [
        b"event: moment\ndata: {\"figures\":",
        figures_json,
        b",\"events\":",
        &events_json,
        b"}\n\n",
    ];
    pieces.concat().into()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::host::HostOptions;
    use crate::host::runtime_dir::Place;
    use api::{Figures, Moment};
    use page::PageCount;
    use tempfile::TempDir;

    /// A host whose files lie in a folder that goes with it.
    pub(in crate::host::routes) fn host() -> (Host, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mut options = HostOptions::new(PageCount::from_mebibytes(64));
        options.interval = Duration::from_millis(50);
        options.settings.sharing = false;
        let place = Place::prepare(&folder.path().join("host.sock")).unwrap();
        (Host::start(&options, &place).unwrap(), folder)
    }

    #[test]
    fn a_message_is_a_moment() {
        let events = [EventView {
            time_ms: 7,
            vm: None,
            what: "a\nb".into(),
        }];
        let figures = Figures::default();
        let json = serde_json::to_vec(&figures).unwrap();
        let text = message(&json, &events);
        let text = std::str::from_utf8(&text).unwrap();
        let data = text.strip_prefix("event: moment\ndata: ").unwrap();
        let moment: Moment = serde_json::from_str(data.strip_suffix("\n\n").unwrap()).unwrap();
        assert_eq!(moment.figures, figures);
        assert_eq!(moment.events, events);
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (sender, body) = Channel::<Bytes, Infallible>::new(WAITING_MESSAGES);
        let patience = Duration::from_millis(50);
        let (host, _folder) = host();
        assert_eq!(follow(&host, sender, patience).await, Err(Stalled));
        drop(body);
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_its_stream() {
        let (sender, body) = Channel::<Bytes, Infallible>::new(WAITING_MESSAGES);
        drop(body);
        let (host, _folder) = host();
        assert_eq!(follow(&host, sender, STALL_PATIENCE).await, Ok(()));
    }
}
