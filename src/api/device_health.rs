//! Finds out where a request to a device would fail, by going the way step by step.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::{Extension, Json};
use http::Method;
use serde::Serialize;
use tokio::time::{Instant, timeout};
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, Trail};
use super::openapi::{Doc, schema};
use crate::forward::{self, Door};
use crate::net::Client;
use crate::session::{Handle, SessionError, Sessions};
use crate::store::Device;
use crate::types::RequestId;

/// How long one step may take.
const STEP: Duration = Duration::from_secs(10);
/// From when on an answer is called slow.
const SLOW: Duration = Duration::from_secs(2);

/// One part of the way.
#[derive(Serialize, ToSchema)]
pub struct Step {
    /// `session`, `node`, `stream` or `origin`, in this order.
    name: &'static str,
    ok: bool,
    /// How long it took, in milliseconds.
    ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Where a request would fail.
#[derive(Serialize, ToSchema)]
pub struct Diagnosis {
    /// Whether the origin answers.
    reachable: bool,
    /// Why not, or `slow`: `never_connected`, `disconnected`, `node_lost`, `device_busy`,
    /// `stream_refused`, `origin_refused`, `origin_invalid`, `origin_timeout` or `tunnel_lost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    steps: Vec<Step>,
}

impl Diagnosis {
    fn step(
        &mut self,
        name: &'static str,
        began: Instant,
        outcome: Result<Option<String>, (&'static str, String)>,
    ) -> bool {
        let ok = outcome.is_ok();
        let detail = match outcome {
            Ok(detail) => detail,
            Err((reason, detail)) => {
                self.reason = Some(reason);
                Some(detail)
            }
        };
        self.steps.push(Step {
            name,
            ok,
            ms: began.elapsed().as_secs_f64() * 1e3,
            detail,
        });
        ok
    }
}

/// Goes the way to the device step by step.
pub async fn diagnose_device(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Extension(client): Extension<Client>,
    Extension(request_id): Extension<RequestId>,
    Path(id): Path<String>,
    trail: Trail,
) -> Result<Json<Diagnosis>, Error> {
    let mut found = Diagnosis {
        reachable: false,
        reason: None,
        steps: Vec::new(),
    };
    let began = Instant::now();
    let device = app.device(&principal.tenant.id, &id).await?;
    let entry = trail.of("device.diagnosed", &device.id);
    app.0.store.append_audit(entry).await?;
    let session = match device.offline_reason() {
        Some(reason) => Err((reason, "the device has no session".to_owned())),
        None => Ok(None),
    };
    if !found.step("session", began, session) || !go_to_device(&app, &device, &mut found).await {
        return Ok(Json(found));
    }
    let public_url = &app.0.public_url;
    let caller = forward::Caller {
        device: device.id.clone(),
        user: principal.id().to_owned(),
        rights: principal.rights(),
        checked: began,
        tenant: principal.tenant.id,
        request_id,
        client,
        door: Door {
            scheme: public_url.scheme,
            authority: public_url.authority().clone(),
            prefix: format!("/api/devices/{}/http", device.id),
        },
        auth_time: Duration::ZERO,
    };
    ask_origin(&app, caller, &mut found).await;
    Ok(Json(found))
}

/// Finds the node and opens a stream; whether both succeeded.
async fn go_to_device(app: &AppState, device: &Device, found: &mut Diagnosis) -> bool {
    let began = Instant::now();
    // Not what is cached: what would be found now.
    app.0.sessions.forget(&device.id);
    let Some(row) = device.live_session() else {
        return false;
    };
    let asked = async {
        let session = app.0.sessions.find(&device.tenant, &device.id).await?;
        let summary = app.0.sessions.ask(&device.tenant, row).await?;
        Ok::<_, SessionError>(session.zip(summary))
    };
    let lost = |detail: &str| Err(("node_lost", detail.to_owned()));
    let (session, outcome) = match timeout(STEP, asked).await {
        Err(_) => (None, lost("the node of the device does not answer")),
        Ok(Ok(Some((session, summary)))) => {
            let rtt = summary
                .rtt_ms
                .map_or("unknown".to_owned(), |rtt| format!("{rtt:.1} ms"));
            (
                Some(session),
                Ok(Some(format!("round trip to the device: {rtt}"))),
            )
        }
        Ok(Ok(None)) => (
            None,
            Err(("disconnected", "the session has just ended".to_owned())),
        ),
        Ok(Err(error)) => (None, lost(&error.to_string())),
    };
    if !found.step("node", began, outcome) {
        return false;
    }
    let Some(session) = session else {
        return false;
    };
    let began = Instant::now();
    let outcome = match timeout(STEP, Handle::open_stream(&*session)).await {
        Ok(Ok(_)) => Ok(None),
        Ok(Err(error @ SessionError::Busy)) => Err(("device_busy", error.to_string())),
        Ok(Err(error @ SessionError::NodeLost)) => Err(("node_lost", error.to_string())),
        Ok(Err(error)) => Err(("stream_refused", error.to_string())),
        Err(_) => Err(("stream_refused", SessionError::Timeout.to_string())),
    };
    found.step("stream", began, outcome)
}

/// Asks the device's own HTTP server for something.
async fn ask_origin(app: &AppState, caller: forward::Caller, found: &mut Diagnosis) {
    let began = Instant::now();
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::HEAD;
    let asked = timeout(STEP, app.0.forwarder.forward(caller, "/", request)).await;
    let outcome = match asked {
        Ok(Ok(response)) => Ok(Some(format!("answers HEAD / with {}", response.status()))),
        Ok(Err(error)) => {
            let detail = error.to_string();
            Err((Error::from(error).code(), detail))
        }
        Err(_) => Err(("origin_timeout", "the origin does not answer".to_owned())),
    };
    found.reachable = found.step("origin", began, outcome);
    if found.reachable && began.elapsed() > SLOW {
        found.reason = Some("slow");
    }
}

/// Describes [`diagnose_device`].
pub fn diagnose_doc() -> Doc {
    Doc::new(
        "devices",
        "Find out where a request to the device would fail",
    )
    .returns(
        200,
        "The way to the device, step by step",
        schema::<Diagnosis>(),
    )
}
