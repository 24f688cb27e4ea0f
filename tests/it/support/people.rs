//! More people than the development issuer knows, and how they come into a tenant.

use http::Method;
use serde_json::json;

use super::browser::{Browser, text};
use super::cloud::TestCloud;
use super::http::{Answer, Request};

/// Who lends a sign-in to everybody that the development issuer does not know.
const LENDER: &str = "bob";
const ASIDE: &str = "bob, for a moment aside";

impl Browser {
    /// A browser in which somebody new has signed in, with a tenant of their own.
    pub async fn sign_in_new(cloud: &TestCloud, name: &str) -> Self {
        rename_subject(cloud, LENDER, ASIDE);
        let browser = Self::sign_in(cloud, LENDER).await;
        rename_subject(cloud, LENDER, name);
        rename_subject(cloud, ASIDE, LENDER);
        browser
    }

    /// A PUT of the console.
    pub fn put(&self, target: &str) -> Request {
        self.request(Method::PUT, target)
    }

    /// The id of the person.
    pub async fn user_id(&self) -> String {
        text(&self.me().await["user"]["id"])
    }

    /// The id of the active tenant.
    pub async fn tenant_id(&self) -> String {
        text(&self.me().await["tenant"]["id"])
    }

    /// Invites somebody into the active tenant: the invitation's id and token.
    pub async fn invite(&self, role: &str) -> (String, String) {
        let path = format!("/api/tenants/{}/invitations", self.tenant_id().await);
        let made = self.post(&path).json(&json!({"role": role})).send().await;
        let made = made.expect(201).json();
        (text(&made["id"]), text(&made["token"]))
    }

    /// Shows an invitation's token.
    pub async fn accept(&self, token: &str) -> Answer {
        let request = self.post("/api/invitations/accept");
        request.json(&json!({"token": token})).send().await
    }

    /// Makes a tenant the one that requests are about.
    pub async fn enter_tenant(&self, tenant: &str) {
        let request = self.put("/api/auth/tenant");
        let chosen = request.json(&json!({"tenant_id": tenant})).send().await;
        chosen.expect(200);
    }

    /// Makes a tenant that this person owns.
    pub async fn create_tenant(&self, name: &str) -> String {
        let request = self.post("/api/tenants").json(&json!({"name": name}));
        text(&request.send().await.expect(201).json()["id"])
    }

    /// Invites `person`, who accepts and enters this person's active tenant.
    pub async fn take_in(&self, person: &Browser, role: &str) {
        let (_, token) = self.invite(role).await;
        person.accept(&token).await.expect(200);
        person.enter_tenant(&self.tenant_id().await).await;
    }

    /// Somebody new with a role in this person's active tenant.
    pub async fn colleague(&self, cloud: &TestCloud, name: &str, role: &str) -> Self {
        let person = Self::sign_in_new(cloud, name).await;
        self.take_in(&person, role).await;
        person
    }
}

fn rename_subject(cloud: &TestCloud, from: &str, to: &str) {
    let sql = "UPDATE users SET subject = ?2, name = ?2 WHERE subject = ?1";
    let renamed = cloud.database().execute(sql, [from, to]);
    renamed.expect("rename a person");
}
