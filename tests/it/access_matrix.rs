//! Who may call which operation: every operation of the API's document, by every kind of caller.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::support::{
    Anonymous, Browser, Manner, RawDevice, Request, ServedDevice, ServiceClient, TestCloud,
    on_both_topologies, random_token, text,
};

on_both_topologies![
    tn_01_every_operation_answers_every_caller_as_the_table_says,
    tn_02_what_is_foreign_and_what_is_missing_look_alike,
];

/// One line an operation, one column a caller, in a cell the status of the answer.
///
/// The things that a path names are those of tenant A. What is no thing of a tenant, such as a list,
/// is the caller's own. The callers:
///
/// - `none`: no credentials
/// - `view`, `oper`, `admin`, `owner`: members of A by role
/// - `f-view`, `f-own`: a viewer and the owner of tenant B
/// - `device`: a device of A, with its token as a bearer token
/// - `ended`: the cookie of a login of A's owner that was signed out
/// - `gone`: somebody who was an admin of A, and of no other tenant, and was taken out
/// - `s-view`, `s-admin`: service clients of A by role
/// - `s-gone`: a service client whose registration was taken away
const TABLE: &str = "
                                                  none view oper admin owner f-view f-own device ended gone  s-view s-admin s-gone
GET     /healthz                                  200  200  200  200   200   200    200   200    200   200    200    200     200
GET     /readyz                                   200  200  200  200   200   200    200   200    200   200    200    200     200
GET     /api/openapi.json                         200  200  200  200   200   200    200   200    200   200    200    200     200
GET     /api/version                              401  200  200  200   200   200    200   401    401   401    200    200     401
GET     /api/auth/login                           303  303  303  303   303   303    303   303    303   303    303    303     303
GET     /api/auth/callback                        400  400  400  400   400   400    400   400    400   400    400    400     400
POST    /api/auth/backchannel-logout              415  415  415  415   415   415    415   415    415   415    415    415     415
GET     /api/auth/me                              401  200  200  200   200   200    200   401    401   401    200    200     401
GET     /api/auth/logins                          401  200  200  200   200   200    200   401    401   401    403    403     401
DELETE  /api/auth/logins/{id}                     401  404  404  404   204   404    404   401    401   401    403    403     401
PUT     /api/auth/tenant                          401  200  200  200   200   403    403   401    401   401    403    403     401
GET     /api/tenants                              401  200  200  200   200   200    200   401    401   401    200    200     401
POST    /api/tenants                              401  201  201  201   201   201    201   401    401   401    403    403     401
GET     /api/tenants/{id}                         401  200  200  200   200   404    404   401    401   401    200    200     401
PATCH   /api/tenants/{id}                         401  403  403  403   200   404    404   401    401   401    403    403     401
DELETE  /api/tenants/{id}                         401  403  403  403   204   404    404   401    401   401    403    403     401
GET     /api/tenants/{id}/members                 401  200  200  200   200   404    404   401    401   401    200    200     401
PUT     /api/tenants/{id}/members/{user}          401  403  403  403   200   404    404   401    401   401    403    403     401
DELETE  /api/tenants/{id}/members/{user}          401  403  403  403   204   404    404   401    401   401    403    403     401
GET     /api/tenants/{id}/invitations             401  403  403  200   200   404    404   401    401   401    403    200     401
POST    /api/tenants/{id}/invitations             401  403  403  201   201   404    404   401    401   401    403    201     401
DELETE  /api/tenants/{id}/invitations/{inv}       401  403  403  204   204   404    404   401    401   401    403    204     401
POST    /api/invitations/accept                   401  404  404  404   404   404    404   401    401   401    403    403     401
GET     /api/service-clients                      401  403  403  200   200   403    200   401    401   401    403    200     401
POST    /api/service-clients                      401  403  403  201   201   403    201   401    401   401    403    201     401
GET     /api/service-clients/{id}                 401  403  403  200   200   404    404   401    401   401    403    200     401
PATCH   /api/service-clients/{id}                 401  403  403  200   200   404    404   401    401   401    403    200     401
DELETE  /api/service-clients/{id}                 401  403  403  204   204   404    404   401    401   401    403    204     401
GET     /api/pairing/codes                        401  403  403  200   200   403    200   401    401   401    403    200     401
POST    /api/pairing/codes                        401  403  403  201   201   403    201   401    401   401    403    201     401
GET     /api/pairing/codes/{id}                   401  403  403  200   200   404    404   401    401   401    403    200     401
DELETE  /api/pairing/codes/{id}                   401  403  403  204   204   404    404   401    401   401    403    204     401
POST    /api/pairing/exchange                     404  404  404  404   404   404    404   404    404   404    404    404     404
GET     /api/devices                              401  200  200  200   200   200    200   401    401   401    200    200     401
GET     /api/devices/{id}                         401  200  200  200   200   404    404   401    401   401    200    200     401
PATCH   /api/devices/{id}                         401  403  403  200   200   404    404   401    401   401    403    200     401
DELETE  /api/devices/{id}                         401  403  403  204   204   404    404   401    401   401    403    204     401
POST    /api/devices/{id}/token                   401  403  403  200   200   404    404   401    401   401    403    200     401
GET     /api/devices/{id}/session                 401  200  200  200   200   404    404   401    401   401    200    200     401
DELETE  /api/devices/{id}/session                 401  403  204  204   204   404    404   401    401   401    403    204     401
GET     /api/devices/{id}/events                  401  200  200  200   200   404    404   401    401   401    200    200     401
GET     /api/devices/{id}/metrics                 401  200  200  200   200   404    404   401    401   401    200    200     401
PUT     /api/devices/{id}/tags/{key}              401  403  200  200   200   404    404   401    401   401    403    200     401
DELETE  /api/devices/{id}/tags/{key}              401  403  204  204   204   404    404   401    401   401    403    204     401
POST    /api/devices/{id}/diagnose                401  403  200  200   200   404    404   401    401   401    403    200     401
POST    /api/devices/{id}/open                    401  403  201  201   201   404    404   401    401   401    403    403     401
GET     /api/devices/{id}/tcp/{port}              401  403  426  426  426   404    404   401    401   401    403    426     401
GET     /api/devices/{id}/http/{path}             401  403  200  200   200   404    404   401    401   401    403    200     401
HEAD    /api/devices/{id}/http/{path}             401  403  200  200   200   404    404   401    401   401    403    200     401
POST    /api/devices/{id}/http/{path}             401  403  200  200   200   404    404   401    401   401    403    200     401
PUT     /api/devices/{id}/http/{path}             401  403  200  200   200   404    404   401    401   401    403    200     401
PATCH   /api/devices/{id}/http/{path}             401  403  200  200   200   404    404   401    401   401    403    200     401
DELETE  /api/devices/{id}/http/{path}             401  403  200  200   200   404    404   401    401   401    403    200     401
OPTIONS /api/devices/{id}/http/{path}             401  403  200  200   200   404    404   401    401   401    403    200     401
GET     /api/groups                               401  200  200  200   200   200    200   401    401   401    200    200     401
POST    /api/groups                               401  403  403  201   201   403    201   401    401   401    403    201     401
GET     /api/groups/{id}                          401  200  200  200   200   404    404   401    401   401    200    200     401
PATCH   /api/groups/{id}                          401  403  403  200   200   404    404   401    401   401    403    200     401
DELETE  /api/groups/{id}                          401  403  403  204   204   404    404   401    401   401    403    204     401
PUT     /api/groups/{id}/devices/{device}         401  403  403  204   204   404    404   401    401   401    403    204     401
DELETE  /api/groups/{id}/devices/{device}         401  403  403  204   204   404    404   401    401   401    403    204     401
GET     /api/events                               401  200  200  200   200   200    200   401    401   401    200    200     401
GET     /api/audit                                401  403  403  200   200   403    200   401    401   401    403    200     401
GET     /api/usage                                401  200  200  200   200   200    200   401    401   401    200    200     401
DELETE  /api/auth/logins                          401  204  204  204   204   204    204   401    401   401    403    403     401
POST    /api/auth/logout                          401  200  200  200   200   200    200   401    401   401    403    403     401
";

/// A line of the table.
pub struct Row {
    /// The method.
    pub method: &'static str,
    /// The path, with `{name}` where it names a thing.
    pub path: &'static str,
    cells: Vec<u16>,
}

/// The names of the columns, and the lines.
fn table() -> (Vec<&'static str>, Vec<Row>) {
    let mut lines = TABLE.lines().filter(|line| !line.is_empty());
    let head = lines.next().expect("a head");
    let columns: Vec<_> = head.split_whitespace().collect();
    let rows: Vec<_> = lines
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [method, path, cells @ ..] = &words[..] else {
                panic!("not a line of the table: {line}");
            };
            assert_eq!(cells.len(), columns.len(), "{line}");
            let cells = cells.iter().map(|cell| cell.parse().expect("a status"));
            Row {
                method,
                path,
                cells: cells.collect(),
            }
        })
        .collect();
    (columns, rows)
}

/// Every operation that there is to be.
pub fn rows() -> Vec<Row> {
    table().1
}

/// The operations of the API's document, as the server tells it.
pub async fn documented(cloud: &TestCloud) -> BTreeSet<(String, String)> {
    let answer = Anonymous::of(cloud).get("/api/openapi.json").send().await;
    let document = answer.expect(200).json();
    let paths = document["paths"].as_object().expect("paths");
    let methods = |item: &Value| -> Vec<String> {
        let fields = item.as_object().expect("a path item").keys();
        let is_method = |field: &&String| !matches!(field.as_str(), "parameters" | "summary");
        fields
            .filter(is_method)
            .map(|it| it.to_uppercase())
            .collect()
    };
    paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = methods(item).into_iter();
            methods.map(|method| (method, path.clone()))
        })
        .collect()
}

/// The things that paths name, one of each kind.
#[derive(Clone)]
struct Things {
    tenant: String,
    device: String,
    code: String,
    group: String,
    service_client: String,
    invitation: String,
    member: String,
    login: String,
}

impl Things {
    fn fill(&self, path: &str) -> String {
        let id = match path {
            _ if path.starts_with("/api/tenants/") => &self.tenant,
            _ if path.starts_with("/api/devices/") => &self.device,
            _ if path.starts_with("/api/pairing/codes/") => &self.code,
            _ if path.starts_with("/api/groups/") => &self.group,
            _ if path.starts_with("/api/service-clients/") => &self.service_client,
            _ if path.starts_with("/api/auth/logins/") => &self.login,
            _ => "",
        };
        let filled = path
            .replace("{id}", id)
            .replace("{device}", &self.device)
            .replace("{user}", &self.member)
            .replace("{inv}", &self.invitation)
            .replace("{key}", "place")
            .replace("{port}", "22")
            .replace("{path}", "x");
        assert!(!filled.contains('{') && !filled.contains("//"), "{filled}");
        filled
    }
}

/// Two tenants with their people and things.
struct Scene {
    cloud: TestCloud,
    owner: Browser,
    people: Vec<(&'static str, Browser)>,
    ended: String,
    gone: String,
    programs: Vec<(&'static str, ServiceClient)>,
    things: Things,
    device: RawDevice,
    _served: ServedDevice,
}

impl Scene {
    async fn set(cloud: TestCloud) -> Self {
        let owner = Browser::sign_in(&cloud, "alice").await;
        let foreign = Browser::sign_in(&cloud, "bob").await;
        let people = vec![
            ("view", owner.colleague(&cloud, "vera", "viewer").await),
            ("oper", owner.colleague(&cloud, "otto", "operator").await),
            ("admin", owner.colleague(&cloud, "adam", "admin").await),
            ("owner", owner.clone()),
            ("f-view", foreign.colleague(&cloud, "faye", "viewer").await),
            ("f-own", foreign),
        ];
        let device = RawDevice::pair(&cloud, &owner).await;
        let served = device.serve(Manner::Says("hello")).await;
        owner.wait_for_status(&device.id, "online").await;
        let mut things = Things::of(&cloud, &owner).await;
        things.device.clone_from(&device.id);
        tag(&owner, &things.device).await;
        Self {
            programs: programs(&cloud, &owner).await,
            ended: ended_login(&cloud).await,
            gone: removed_member(&cloud, &owner).await,
            cloud,
            owner,
            people,
            things,
            device,
            _served: served,
        }
    }

    fn request(&self, caller: &str, method: &str, path: &str) -> Request {
        let method: Method = method.parse().expect("a method");
        let nobody = |method| Anonymous::of(&self.cloud).request(method, path);
        let with_cookie = |method, cookie: &str| {
            let request = nobody(method).header("cookie", cookie);
            request.header("sec-fetch-site", "same-origin")
        };
        match caller {
            "none" => nobody(method),
            "device" => {
                let token = format!("Bearer {}", self.device.token);
                nobody(method).header("authorization", &token)
            }
            "s-view" | "s-admin" | "s-gone" => {
                let program = self.programs.iter().find(|(of, _)| *of == caller);
                let (_, program) = program.expect("a program");
                program.request(method, path)
            }
            "ended" => with_cookie(method, &self.ended),
            "gone" => with_cookie(method, &self.gone),
            name => {
                let person = self.people.iter().find(|(of, _)| *of == name);
                let (_, person) = person.unwrap_or_else(|| panic!("who is {name}?"));
                person.request(method, path)
            }
        }
    }

    async fn spare(&self, row: &Row) -> Things {
        let (cloud, alice) = (&self.cloud, &self.owner);
        self.things.with_spare(row.path, cloud, alice).await
    }

    async fn status(&self, caller: &str, row: &Row, path: &str) -> u16 {
        let mut request = self.request(caller, row.method, path);
        if row.path == "/api/auth/login" {
            request = request.header("sec-fetch-dest", "document");
        }
        if let Some(body) = body_of(row, &self.things.tenant) {
            request = request.json(&body);
        }
        // Not the whole answer: a stream of events has no end.
        request.open().await.status.as_u16()
    }
}

async fn created(owner: &Browser, path: &str, body: Value) -> String {
    let made = owner.post(path).json(&body).send().await;
    text(&made.expect(201).json()["id"])
}

async fn tag(owner: &Browser, device: &str) {
    let path = format!("/api/devices/{device}/tags/place");
    let set = owner.put(&path).json(&json!({"value": "here"}));
    set.send().await.expect(200);
}

async fn new_device(cloud: &TestCloud, owner: &Browser) -> String {
    let device = RawDevice::pair(cloud, owner).await.id;
    tag(owner, &device).await;
    device
}

async fn new_group(owner: &Browser, device: &str) -> String {
    let body = json!({"name": random_token()});
    let group = created(owner, "/api/groups", body).await;
    let path = format!("/api/groups/{group}/devices/{device}");
    owner.put(&path).send().await.expect(204);
    group
}

async fn new_service_client(owner: &Browser) -> String {
    let body = json!({"client_id": random_token(), "role": "viewer"});
    created(owner, "/api/service-clients", body).await
}

async fn new_member(cloud: &TestCloud, owner: &Browser) -> String {
    let member = owner.colleague(cloud, &random_token(), "viewer").await;
    member.user_id().await
}

async fn new_login(cloud: &TestCloud) -> String {
    let login = Browser::sign_in(cloud, "alice").await;
    text(&login.me().await["login"]["id"])
}

impl Things {
    /// One of each kind, in the tenant of alice, who is its owner.
    async fn of(cloud: &TestCloud, alice: &Browser) -> Self {
        let device = new_device(cloud, alice).await;
        Self {
            tenant: alice.tenant_id().await,
            code: alice.pairing_code().await.0,
            group: new_group(alice, &device).await,
            service_client: new_service_client(alice).await,
            invitation: alice.invite("viewer").await.0,
            member: new_member(cloud, alice).await,
            login: new_login(cloud).await,
            device,
        }
    }

    /// The same things, but for another one where a path names what a request takes away.
    async fn with_spare(&self, path: &str, cloud: &TestCloud, alice: &Browser) -> Self {
        let mut things = self.clone();
        match path {
            "/api/tenants/{id}" => things.tenant = alice.create_tenant("spare").await,
            "/api/pairing/codes/{id}" => things.code = alice.pairing_code().await.0,
            "/api/auth/logins/{id}" => things.login = new_login(cloud).await,
            _ if path.contains("{inv}") => things.invitation = alice.invite("viewer").await.0,
            _ if path.contains("{user}") => things.member = new_member(cloud, alice).await,
            _ if path.starts_with("/api/devices/") => {
                things.device = new_device(cloud, alice).await
            }
            _ if path.starts_with("/api/groups/") => {
                things.group = new_group(alice, &things.device).await;
            }
            _ if path.starts_with("/api/service-clients/") => {
                things.service_client = new_service_client(alice).await;
            }
            _ => panic!("what does {path} take away?"),
        }
        things
    }
}

async fn programs(cloud: &TestCloud, owner: &Browser) -> Vec<(&'static str, ServiceClient)> {
    let gone = ServiceClient::register(cloud, owner, "gone", "admin").await;
    let path = format!("/api/service-clients/{}", gone.id);
    owner.delete(&path).send().await.expect(204);
    vec![
        (
            "s-view",
            ServiceClient::register(cloud, owner, "view", "viewer").await,
        ),
        (
            "s-admin",
            ServiceClient::register(cloud, owner, "admin", "admin").await,
        ),
        ("s-gone", gone),
    ]
}

fn cookie_of(person: &Browser) -> String {
    format!("{}={}", crate::support::LOGIN_COOKIE, person.login_cookie())
}

async fn ended_login(cloud: &TestCloud) -> String {
    let owner = Browser::sign_in(cloud, "alice").await;
    let cookie = cookie_of(&owner);
    owner.sign_out().await;
    cookie
}

async fn removed_member(cloud: &TestCloud, owner: &Browser) -> String {
    let person = Browser::sign_in_new(cloud, "gone").await;
    let own = person.tenant_id().await;
    owner.take_in(&person, "admin").await;
    let path = format!("/api/tenants/{own}");
    person.delete(&path).send().await.expect(204);
    person.devices().await;
    let (tenant, user) = (owner.tenant_id().await, person.user_id().await);
    let cookie = cookie_of(&person);
    let path = format!("/api/tenants/{tenant}/members/{user}");
    owner.delete(&path).send().await.expect(204);
    cookie
}

/// A good body for an operation that takes one, or one that harms nothing.
fn body_of(row: &Row, tenant: &str) -> Option<Value> {
    let name = random_token();
    Some(match (row.method, row.path) {
        ("PUT", "/api/auth/tenant") => json!({"tenant_id": tenant}),
        ("POST", "/api/tenants" | "/api/groups") => json!({"name": name}),
        ("POST", "/api/tenants/{id}/invitations") => json!({"role": "viewer"}),
        ("POST", "/api/service-clients") => json!({"client_id": name, "role": "viewer"}),
        ("POST", "/api/invitations/accept") => json!({"token": name}),
        ("POST", "/api/pairing/exchange") => json!({"code": "AAAA-AAAA", "device": {}}),
        ("PUT", "/api/tenants/{id}/members/{user}") => json!({"role": "viewer"}),
        ("PUT", "/api/devices/{id}/tags/{key}") => json!({"value": name}),
        ("PATCH", path) if !path.contains("/http/") => json!({"name": name}),
        _ => return None,
    })
}

/// Whether a success takes away something that the next line needs.
fn is_destructive(row: &Row) -> bool {
    !row.path.contains("/http/")
        && row.path.contains('{')
        && (row.method == "DELETE" || row.path.ends_with("/token"))
}

async fn tn_01_every_operation_answers_every_caller_as_the_table_says(cloud: TestCloud) {
    let (callers, rows) = table();
    let listed: BTreeSet<_> = rows
        .iter()
        .map(|row| (row.method.to_owned(), row.path.to_owned()))
        .collect();
    assert_eq!(
        listed,
        documented(&cloud).await,
        "the table and the document"
    );
    let closed = rows.iter().filter(|row| row.cells[0] == 401).count();
    assert!(closed >= 51, "{closed} operations need a login");

    let scene = Scene::set(cloud).await;
    let mut wrong = Vec::new();
    for row in &rows {
        for (caller, expected) in callers.iter().zip(&row.cells) {
            let things = match is_destructive(row) && *expected < 300 {
                true => scene.spare(row).await,
                false => scene.things.clone(),
            };
            let path = things.fill(row.path);
            let status = scene.status(caller, row, &path).await;
            if status != *expected {
                wrong.push(format!("{} {} by {caller}: {status}", row.method, row.path));
            }
        }
        if row.path == "/api/usage" {
            still_there(&scene, &rows).await;
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// No refused request has done anything to what it was about.
async fn still_there(scene: &Scene, rows: &[Row]) {
    for row in rows.iter().filter(|row| row.method == "GET") {
        // A port takes WebSockets only.
        if row.path.contains("{id}") && !row.path.contains("{port}") {
            let path = scene.things.fill(row.path);
            scene.owner.get(&path).send().await.expect(200);
        }
    }
}

async fn tn_02_what_is_foreign_and_what_is_missing_look_alike(cloud: TestCloud) {
    let owner = Browser::sign_in(&cloud, "alice").await;
    let foreign = Browser::sign_in(&cloud, "bob").await;
    let things = Things::of(&cloud, &owner).await;
    let missing = |of: &str| {
        let (prefix, _) = of.split_once('_').expect("an id");
        format!("{prefix}_{}", "a".repeat(26))
    };
    let nothing = Things {
        tenant: missing(&things.tenant),
        device: missing(&things.device),
        code: missing(&things.code),
        group: missing(&things.group),
        service_client: missing(&things.service_client),
        invitation: missing(&things.invitation),
        member: missing(&things.member),
        login: missing(&things.login),
    };
    for row in rows() {
        if !row.path.contains("{id}") || row.method == "HEAD" {
            continue;
        }
        let send = async |things: &Things| {
            let request = foreign.request(
                row.method.parse().expect("a method"),
                &things.fill(row.path),
            );
            let answer = match body_of(&row, "") {
                Some(body) => request.json(&body).send().await,
                None => request.send().await,
            };
            answer.expect_problem(404, "not_found")
        };
        let (theirs, nobodys) = (send(&things).await, send(&nothing).await);
        let operation = format!("{} {}", row.method, row.path);
        assert_eq!(
            theirs.without_request_id(),
            nobodys.without_request_id(),
            "{operation}"
        );
        for (name, value) in &theirs.headers {
            if name != "x-request-id" && name != "date" {
                assert_eq!(
                    nobodys.headers.get(name),
                    Some(value),
                    "{operation}: {name}"
                );
            }
        }
        assert_eq!(theirs.headers.len(), nobodys.headers.len(), "{operation}");
    }
}
