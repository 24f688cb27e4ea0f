//! Health and version.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::AppState;
use super::openapi::{Doc, schema};
use crate::auth::oidc::ServiceToken;

/// Whether the process lives.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the process can serve: 503 before start-up ends, while draining, and without the database.
pub async fn readyz(State(app): State<AppState>) -> Response {
    let app = &app.0;
    let ready = app.lifecycle.is_ready() && app.store.ping().await.is_ok();
    if !ready {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({ "ready": false })),
        )
            .into_response();
    }
    let service_token = app.service_token.as_ref();
    let mut degraded = Vec::new();
    if app.oidc.is_degraded() {
        degraded.push("oidc");
    }
    if service_token.is_some_and(ServiceToken::is_degraded) {
        degraded.push("oidc.service_client");
    }
    Json(Readiness { degraded }).into_response()
}

/// The answer of either, whatever the host.
pub async fn health(app: &AppState, path: &str) -> Response {
    match path {
        "/healthz" => healthz().await.into_response(),
        _ => readyz(State(app.clone())).await,
    }
}

/// What does not work although the process serves.
#[derive(Serialize, ToSchema)]
pub struct Readiness {
    /// `oidc`: nobody new can sign in. `oidc.service_client`: the provider gives us no access token of
    /// our own.
    #[schema(value_type = Vec<String>)]
    degraded: Vec<&'static str>,
}

/// What runs.
#[derive(Serialize, ToSchema)]
pub struct Version {
    version: &'static str,
}

/// Tells what runs.
pub async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// Describes [`healthz`].
pub fn healthz_doc() -> Doc {
    Doc::new("system", "Whether the process lives").answer(200, "It does")
}

/// Describes [`readyz`].
pub fn readyz_doc() -> Doc {
    Doc::new("system", "Whether the process can serve")
        .returns(200, "It can", schema::<Readiness>())
        .answer(503, "Starting, draining, or without its database")
}

/// Describes [`version`].
pub fn version_doc() -> Doc {
    Doc::new("system", "What runs").returns(200, "The version", schema::<Version>())
}
