//! What happens to the tenant's devices: as a live stream (Server-Sent Events), and by device.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::stream::unfold;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, PageQuery, Query};
use super::gate::Arrived;
use super::openapi::{Doc, schema};
use crate::auth::live::LiveStream;
use crate::store::{Event, Store};
use crate::types::{DeviceId, TenantId, Timestamp};

/// Open streams of events of one login or service client.
const MAX_STREAMS: usize = 50;
/// How often new events are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often a stream without events shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events sent at once.
const BATCH: u32 = 200;

/// Something that happened.
#[derive(Serialize, ToSchema)]
pub struct EventInfo {
    id: String,
    /// What, as `device.connected`.
    kind: String,
    #[schema(value_type = Option<String>)]
    device_id: Option<DeviceId>,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// More, by kind.
    #[schema(value_type = Option<Object>)]
    detail: Option<Value>,
}

impl From<Event> for EventInfo {
    fn from(event: Event) -> Self {
        Self {
            id: event.seq.to_string(),
            kind: event.kind,
            device_id: event.device,
            at: event.at,
            detail: event
                .detail
                .and_then(|text| serde_json::from_str(&text).ok()),
        }
    }
}

/// Part of a device's events.
#[derive(Serialize, ToSchema)]
pub struct EventPage {
    items: Vec<EventInfo>,
    next_cursor: Option<String>,
}

/// Lists a device's events.
pub async fn list_device_events(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<EventPage>, Error> {
    let device = app.device(&principal.tenant.id, &id).await?;
    let store = &app.0.store;
    let found = store
        .list_device_events(&device.tenant, &device.id, query.page()?)
        .await?;
    Ok(Json(EventPage {
        items: found.items.into_iter().map(Into::into).collect(),
        next_cursor: found.next_cursor,
    }))
}

/// Where to begin, for those who can send no header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamQuery {
    /// The gate has checked it.
    #[serde(rename = "tenant")]
    _tenant: Option<String>,
    last_event_id: Option<String>,
}

/// Sends what happens, as it happens.
pub async fn stream_events(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Extension(Arrived(arrived)): Extension<Arrived>,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let rights = principal.rights();
    if app.0.live.count(&rights[0]) >= MAX_STREAMS {
        return Err(Error::rate_limited(KEEP_ALIVE));
    }
    let asked = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .or(query.last_event_id.as_deref())
        .filter(|text| !text.is_empty());
    let after = match asked {
        None => app.0.store.latest_event().await?,
        Some(text) => text.parse().map_err(|_| {
            Error::bad_request("Last-Event-ID: the id of an event of this stream is expected")
        })?,
    };
    let max = app.0.config.limits.open_requests_per_tenant;
    let tenant = &principal.tenant.id;
    let opened = app.0.live.open_in(tenant, max, rights, arrived);
    let live = opened.ok_or_else(Error::tenant_busy)?;
    let stream = EventStream {
        seen: app.0.newest_event.subscribe(),
        store: app.0.store.clone(),
        stop: app.0.lifecycle.stop.clone(),
        tenant: principal.tenant.id,
        after,
        live,
        state: Phase::Begin,
    };
    let frames = unfold(stream, |mut stream| async move {
        let text = stream.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), stream))
    });
    let mut response = Body::new(StreamBody::new(frames)).into_response();
    *response.status_mut() = StatusCode::OK;
    let fields = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream");
    fields.insert(header::CONTENT_TYPE, kind);
    // Proxies on the way must not collect what is sent.
    fields.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

#[derive(PartialEq, Eq)]
enum Phase {
    Begin,
    Running,
    Over,
}

struct EventStream {
    seen: tokio::sync::watch::Receiver<i64>,
    store: Store,
    stop: tokio_util::sync::CancellationToken,
    tenant: TenantId,
    after: i64,
    live: LiveStream,
    state: Phase,
}

impl EventStream {
    /// What is to be sent next; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        match self.state {
            Phase::Over => return None,
            Phase::Begin => {
                self.state = Phase::Running;
                return Some("retry: 2000\n: events follow\n\n".to_owned());
            }
            Phase::Running => {}
        }
        loop {
            self.seen.mark_unchanged();
            match self
                .store
                .read_events(&self.tenant, self.after, BATCH)
                .await
            {
                Ok(Some(events)) if !events.is_empty() => return Some(self.show(events)),
                Ok(Some(_)) => {}
                Ok(None) => return Some(self.begin_again().await),
                Err(error) => tracing::debug!(%error, "events could not be read"),
            }
            let (live, stop, seen) = (&self.live, &self.stop, &mut self.seen);
            tokio::select! {
                biased;
                () = live.ended() => return Some(self.bye("login_ended")),
                () = stop.cancelled() => return Some(self.bye("restarting")),
                changed = timeout(KEEP_ALIVE, seen.changed()) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Some(self.bye("restarting")),
                    Err(_) => return Some(": alive\n\n".to_owned()),
                },
            }
        }
    }

    fn show(&mut self, events: Vec<Event>) -> String {
        let mut text = String::new();
        for event in events {
            self.after = event.seq;
            let event = EventInfo::from(event);
            let data = serde_json::to_string(&event).expect("an event is JSON");
            text += &format!("id: {}\nevent: {}\ndata: {data}\n\n", event.id, event.kind);
        }
        text
    }

    /// Some events that the reader has not seen are gone: it has to look at everything anew.
    async fn begin_again(&mut self) -> String {
        self.after = self.store.latest_event().await.unwrap_or(self.after);
        format!("id: {}\nevent: reset\ndata: {{}}\n\n", self.after)
    }

    fn bye(&mut self, reason: &str) -> String {
        self.state = Phase::Over;
        format!("event: bye\ndata: {{\"reason\":\"{reason}\"}}\n\n")
    }
}

impl AppState {
    /// Looks for new events, once for all streams of this process.
    pub async fn watch_events(self) {
        loop {
            match self.0.store.latest_event().await {
                Ok(newest) => {
                    self.0.newest_event.send_if_modified(|known| {
                        let newer = *known != newest;
                        *known = newest;
                        newer
                    });
                }
                Err(error) => tracing::debug!(%error, "events could not be looked for"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Describes [`list_device_events`].
pub fn device_doc() -> Doc {
    Doc::new("devices", "What happened to a device lately, newest first")
        .paged()
        .returns(200, "Part of the list", schema::<EventPage>())
}

/// Describes [`stream_events`].
pub fn stream_doc() -> Doc {
    Doc::new(
        "live",
        "What happens to the tenant's devices, as Server-Sent Events; resumes with Last-Event-ID",
    )
    .query("tenant", "In the place of Edgecloud-Tenant")
    .query("last_event_id", "In the place of Last-Event-ID")
    .answer(
        200,
        "text/event-stream; `reset` when events are missing, `bye` at the end",
    )
    .answer(429, "Too many streams of this login")
}
