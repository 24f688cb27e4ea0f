//! Programs that call the API with access tokens of the development issuer.

use std::net::SocketAddr;

use data_encoding::BASE64;
use http::Method;
use serde_json::json;

use super::browser::{Anonymous, Browser, text};
use super::cloud::TestCloud;
use super::http::Request;

/// A program with an access token.
#[derive(Clone)]
pub struct ServiceClient {
    /// Its registration.
    pub id: String,
    /// The access token.
    pub token: String,
    anonymous: Anonymous,
}

impl ServiceClient {
    /// A program that `owner` registers in the active tenant.
    pub async fn register(cloud: &TestCloud, owner: &Browser, name: &str, role: &str) -> Self {
        let client_id = format!("edgecloud-dev-{name}");
        let made = owner
            .post("/api/service-clients")
            .json(&json!({"client_id": client_id, "name": name, "role": role}))
            .send()
            .await
            .expect(201);
        Self {
            id: text(&made.json()["id"]),
            token: access_token(cloud.issuer_addr(), &client_id).await,
            anonymous: Anonymous::of(cloud),
        }
    }

    /// A request with the token.
    pub fn request(&self, method: Method, target: &str) -> Request {
        let bearer = format!("Bearer {}", self.token);
        let request = self.anonymous.request(method, target);
        request.header("authorization", &bearer)
    }
}

async fn access_token(issuer: SocketAddr, client_id: &str) -> String {
    let credentials = format!("{client_id}:edgecloud-dev-secret");
    let basic = format!("Basic {}", BASE64.encode(credentials.as_bytes()));
    let answer = Request::new(issuer, &issuer.to_string(), Method::POST, "/token")
        .header("authorization", &basic)
        .header("content-type", "application/x-www-form-urlencoded")
        .bytes("grant_type=client_credentials")
        .send()
        .await;
    text(&answer.expect(200).json()["access_token"])
}
