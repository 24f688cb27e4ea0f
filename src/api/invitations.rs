//! Ways into a tenant, for people who have a link's token.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use data_encoding::BASE64URL_NOPAD;
use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::error::Error;
use super::extract::{Caller, JsonBody, PageQuery, Query, Signed, Trail, name, role};
use super::openapi::{Doc, schema};
use crate::device_token::sha256;
use crate::fail_point;
use crate::net::Client;
use crate::store::{Acceptance, Invitation, NewInvitation, StoreError};
use crate::types::{InvitationId, Role, TenantId, Timestamp, UserId, random_bytes};

/// Open invitations of one tenant at once.
const MAX_OPEN: u32 = 100;
/// How long an invitation is valid when the request does not say, in seconds.
const DEFAULT_TTL_SECS: u64 = 7 * 86_400;
const TTL_SECS: std::ops::RangeInclusive<u64> = 300..=30 * 86_400;

/// An invitation, without its token.
#[derive(Serialize, ToSchema)]
pub struct InvitationInfo {
    #[schema(value_type = String)]
    id: InvitationId,
    role: &'static str,
    /// For whom, as a note.
    email: Option<String>,
    /// `open`, `accepted` or `expired`.
    status: &'static str,
    /// A person or a service client.
    created_by: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    #[schema(value_type = Option<String>)]
    accepted_by: Option<UserId>,
}

fn describe(invitation: Invitation, now: Timestamp) -> InvitationInfo {
    InvitationInfo {
        status: match invitation.accepted_at {
            Some(_) => "accepted",
            None if invitation.expires_at <= now => "expired",
            None => "open",
        },
        id: invitation.id,
        role: invitation.role.as_str(),
        email: invitation.email,
        created_by: invitation.created_by,
        created_at: invitation.created_at,
        expires_at: invitation.expires_at,
        accepted_by: invitation.accepted_by,
    }
}

/// Part of a tenant's invitations.
#[derive(Serialize, ToSchema)]
pub struct InvitationPage {
    items: Vec<InvitationInfo>,
    next_cursor: Option<String>,
}

/// Lists a tenant's invitations.
pub async fn list_invitations(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Query(query): Query<PageQuery>,
) -> Result<Json<InvitationPage>, Error> {
    let (tenant, now) = (&principal.tenant.id, app.0.clock.now());
    let found = app.0.store.list_invitations(tenant, query.page()?).await?;
    let items = found.items.into_iter();
    Ok(Json(InvitationPage {
        items: items.map(|invitation| describe(invitation, now)).collect(),
        next_cursor: found.next_cursor,
    }))
}

/// An invitation to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InvitationRequest {
    /// What the person will be: `viewer`, `operator`, `admin` or `owner`; not more than the maker.
    role: String,
    /// For whom, as a note; nothing is sent and nothing is checked.
    email: Option<String>,
    /// How long it is valid, in seconds: 300 to 2,592,000, else a week.
    ttl_secs: Option<u64>,
}

/// An invitation that was made; the only time that its token is shown.
#[derive(Serialize, ToSchema)]
pub struct InvitationCreated {
    #[schema(value_type = String)]
    id: InvitationId,
    role: &'static str,
    /// What the person shows at `POST /api/invitations/accept`.
    token: String,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Makes an invitation.
pub async fn create_invitation(
    State(app): State<AppState>,
    Caller(principal): Caller,
    trail: Trail,
    JsonBody(body): JsonBody<InvitationRequest>,
) -> Result<(StatusCode, Json<InvitationCreated>), Error> {
    let role: Role = role(&body.role)?;
    let email = body.email.map(|text| name("email", &text)).transpose()?;
    let ttl = body.ttl_secs.unwrap_or(DEFAULT_TTL_SECS);
    if !TTL_SECS.contains(&ttl) {
        let allowed = "a whole number from 300 to 2592000";
        return Err(Error::invalid_field("ttl_secs", allowed));
    }
    if role > principal.tenant.role {
        return Err(Error::role_insufficient(role));
    }
    let (secret, now) = (random_bytes::<32>(), app.0.clock.now());
    let new = NewInvitation {
        id: InvitationId::random(),
        token_hash: sha256(&secret),
        role,
        email,
        created_by: principal.id().to_owned(),
        expires_at: now.plus(Duration::from_secs(ttl)),
    };
    let created = InvitationCreated {
        id: new.id.clone(),
        role: role.as_str(),
        token: BASE64URL_NOPAD.encode(&secret),
        expires_at: new.expires_at,
    };
    let detail = serde_json::json!({ "role": role.as_str() });
    let store = app
        .0
        .store
        .audited(trail.with("invitation.created", &new.id, detail));
    let made = store.create_invitation(&principal.tenant.id, new, MAX_OPEN, now);
    made.await.map_err(|error| match error {
        StoreError::Conflict(_) => Error::new(
            StatusCode::CONFLICT,
            "too_many_invitations",
            format!("the tenant has {MAX_OPEN} open invitations: revoke one first"),
        ),
        error => error.into(),
    })?;
    Ok((StatusCode::CREATED, Json(created)))
}

/// Takes an invitation back.
pub async fn delete_invitation(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path((_, id)): Path<(TenantId, String)>,
    trail: Trail,
) -> Result<StatusCode, Error> {
    let id: InvitationId = id.parse().map_err(|_| Error::not_found())?;
    let store = app.0.store.audited(trail.of("invitation.revoked", &id));
    match store.delete_invitation(&principal.tenant.id, &id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Error::not_found()),
    }
}

/// An invitation to be used.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InvitationToken {
    /// The token that came with it.
    #[schema(value_type = String)]
    #[serde(deserialize_with = "super::extract::secret")]
    token: SecretString,
}

/// What the caller has joined.
#[derive(Serialize, ToSchema)]
pub struct Joined {
    tenant: JoinedTenant,
}

/// A tenant and the caller's role in it.
#[derive(Serialize, ToSchema)]
pub struct JoinedTenant {
    #[schema(value_type = String)]
    id: TenantId,
    name: String,
    role: &'static str,
}

/// Makes the caller a member by an invitation.
pub async fn accept_invitation(
    State(app): State<AppState>,
    Signed(person): Signed,
    Extension(client): Extension<Client>,
    trail: Trail,
    JsonBody(body): JsonBody<InvitationToken>,
) -> Result<Json<Joined>, Error> {
    let attempt = app.0.pairing_failures.attempt(client.addr);
    let attempt = attempt.map_err(Error::rate_limited)?;
    let secret = BASE64URL_NOPAD.decode(body.token.expose_secret().trim().as_bytes());
    let hash = sha256(&secret.unwrap_or_default());
    let (user, now) = (&person.user.id, app.0.clock.now());
    let store = app.0.store.audited(trail.of("invitation.accepted", user));
    let accepted = store.accept_invitation(hash, user, now).await;
    // That the database does not answer is nobody's guess.
    if !matches!(accepted, Ok(Acceptance::Invalid)) {
        attempt.succeeded();
    }
    match accepted? {
        Acceptance::Joined(membership) => {
            fail_point::reach("accept.after_commit");
            Ok(Json(Joined {
                tenant: JoinedTenant {
                    id: membership.id,
                    name: membership.name,
                    role: membership.role.as_str(),
                },
            }))
        }
        Acceptance::AlreadyMember => {
            let detail = "you are a member of this tenant already";
            Err(Error::new(StatusCode::CONFLICT, "already_member", detail))
        }
        Acceptance::Invalid => {
            let detail = "the invitation is wrong, used, expired or revoked: ask for a new one";
            Err(Error::new(
                StatusCode::NOT_FOUND,
                "invitation_invalid",
                detail,
            ))
        }
    }
}

/// Describes [`list_invitations`].
pub fn list_doc() -> Doc {
    Doc::new("tenants", "List a tenant's invitations, oldest first")
        .paged()
        .returns(200, "Part of the list", schema::<InvitationPage>())
}

/// Describes [`create_invitation`].
pub fn create_doc() -> Doc {
    Doc::new("tenants", "Invite somebody")
        .takes(schema::<InvitationRequest>())
        .returns(
            201,
            "The invitation; its token is shown this once",
            schema::<InvitationCreated>(),
        )
        .answer(409, "The tenant has 100 open invitations")
}

/// Describes [`delete_invitation`].
pub fn delete_doc() -> Doc {
    Doc::new("tenants", "Revoke an invitation").answer(204, "Revoked")
}

/// Describes [`accept_invitation`].
pub fn accept_doc() -> Doc {
    Doc::new("tenants", "Join a tenant by an invitation")
        .takes(schema::<InvitationToken>())
        .returns(200, "What you have joined", schema::<Joined>())
        .answer(404, "The invitation is wrong, used, expired or revoked")
        .answer(409, "You are a member already")
        .answer(429, "Too many wrong invitations")
}
