//! Who did what in the tenant; nobody can change it.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, Query, page};
use super::openapi::{Doc, schema};
use crate::audit_chain;
use crate::store::{AuditFilter, AuditRow};
use crate::types::Timestamp;

/// How often the rows since the last checkpoint are sealed.
const SEAL_EVERY: Duration = Duration::from_secs(60);

/// Who did it.
#[derive(Serialize, ToSchema)]
pub struct AuditActorInfo {
    /// `user`, `service_client`, `device`, `provider` or `anonymous`.
    kind: String,
    id: Option<String>,
}

/// Something that was done, or tried.
#[derive(Serialize, ToSchema)]
pub struct AuditEntryInfo {
    id: String,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    actor: AuditActorInfo,
    /// What, as `device.renamed`.
    action: String,
    /// On what: an id or a name.
    target: Option<String>,
    /// `success`, `denied` or `failure`.
    outcome: String,
    remote_addr: Option<String>,
    request_id: Option<String>,
    /// More, by action.
    #[schema(value_type = Option<Object>)]
    detail: Option<Value>,
}

impl From<AuditRow> for AuditEntryInfo {
    fn from(row: AuditRow) -> Self {
        Self {
            id: row.seq.to_string(),
            at: row.at,
            actor: AuditActorInfo {
                kind: row.actor_kind,
                id: row.actor,
            },
            action: row.action,
            target: row.target,
            outcome: row.outcome,
            remote_addr: row.remote_addr,
            request_id: row.request_id,
            detail: row.detail.and_then(|text| serde_json::from_str(&text).ok()),
        }
    }
}

/// Part of the audit.
#[derive(Serialize, ToSchema)]
pub struct AuditPage {
    items: Vec<AuditEntryInfo>,
    next_cursor: Option<String>,
}

/// Which part of the audit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    limit: Option<String>,
    cursor: Option<String>,
    action: Option<String>,
    actor: Option<String>,
    target: Option<String>,
}

/// Lists the tenant's audit.
pub async fn list_audit(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Query(query): Query<AuditQuery>,
) -> Result<Json<AuditPage>, Error> {
    let page = page(query.limit.as_deref(), query.cursor)?;
    let filter = AuditFilter {
        action: query.action,
        actor: query.actor,
        target: query.target,
    };
    let tenant = &principal.tenant.id;
    let found = app.0.store.list_audit(tenant, filter, page).await?;
    Ok(Json(AuditPage {
        items: found.items.into_iter().map(Into::into).collect(),
        next_cursor: found.next_cursor,
    }))
}

impl AppState {
    /// Seals what was written down, from time to time.
    pub async fn seal_audit(self) {
        loop {
            tokio::time::sleep(SEAL_EVERY).await;
            self.seal_audit_now().await;
        }
    }

    async fn seal_audit_now(&self) {
        let (store, keys) = (&self.0.store, self.0.auth.cookies.keys());
        if let Err(error) = audit_chain::seal(store, keys, &self.0.clock).await {
            tracing::warn!(%error, "the audit could not be sealed");
        }
    }

    /// Writes down what is otherwise written from time to time: the last words of a process.
    pub async fn finish_records(&self) {
        self.write_usage().await;
        self.seal_audit_now().await;
    }
}

/// Describes [`list_audit`].
pub fn list_doc() -> Doc {
    Doc::new("records", "Who did what in the tenant, newest first")
        .paged()
        .query("action", "As device.renamed, or device for all of them")
        .query("actor", "An id")
        .query("target", "An id or a name")
        .returns(200, "Part of the audit", schema::<AuditPage>())
}
