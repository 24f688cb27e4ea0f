//! The OpenAPI 3.1 document, made from the route table and the types of requests and answers.

use std::sync::OnceLock;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::routes::{Route, Verb, table};
use crate::auth::access::Access;

/// A type's schema, its name, and those of the types within.
pub struct NamedSchema {
    name: String,
    all: Vec<(String, RefOr<Schema>)>,
}

/// The schema of a type.
pub fn schema<T: ToSchema + PartialSchema>() -> NamedSchema {
    let name = T::name().into_owned();
    let mut all = vec![(name.clone(), T::schema())];
    T::schemas(&mut all);
    NamedSchema { name, all }
}

struct Answer {
    status: u16,
    description: &'static str,
    schema: Option<NamedSchema>,
}

/// What a route says of itself.
pub struct Doc {
    tag: &'static str,
    summary: &'static str,
    hidden: bool,
    query: Vec<(&'static str, &'static str)>,
    takes: Option<NamedSchema>,
    answers: Vec<Answer>,
}

impl Doc {
    /// A route of a group.
    pub fn new(tag: &'static str, summary: &'static str) -> Self {
        Self {
            tag,
            summary,
            hidden: false,
            query: Vec::new(),
            takes: None,
            answers: Vec::new(),
        }
    }

    /// A second spelling of a path that another row describes.
    pub fn hidden() -> Self {
        Self {
            hidden: true,
            ..Self::new("", "")
        }
    }

    /// Adds a query parameter.
    pub fn query(mut self, name: &'static str, description: &'static str) -> Self {
        self.query.push((name, description));
        self
    }

    /// Adds the parameters of a list.
    pub fn paged(self) -> Self {
        self.query("limit", "Items, 1 to 200, else 50")
            .query("cursor", "next_cursor of the page before")
    }

    /// Says what the body is.
    pub fn takes(mut self, schema: NamedSchema) -> Self {
        self.takes = Some(schema);
        self
    }

    /// Adds an answer with a JSON body.
    pub fn returns(mut self, status: u16, description: &'static str, schema: NamedSchema) -> Self {
        self.answers.push(Answer {
            status,
            description,
            schema: Some(schema),
        });
        self
    }

    /// Adds an answer: an error with a problem, any other without a body.
    pub fn answer(mut self, status: u16, description: &'static str) -> Self {
        self.answers.push(Answer {
            status,
            description,
            schema: None,
        });
        self
    }
}

/// The methods under which OpenAPI can show a route that takes any.
const ANY_METHODS: &[&str] = &["get", "head", "post", "put", "patch", "delete", "options"];

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn problem(description: &str) -> Value {
    let content = json!({ "application/problem+json": { "schema": reference("Problem") } });
    json!({ "description": description, "content": content })
}

fn answers(route: &Route) -> Value {
    let mut answers = Map::new();
    for answer in &route.doc.answers {
        let value = match &answer.schema {
            Some(schema) => json!({
                "description": answer.description,
                "content": { "application/json": { "schema": reference(&schema.name) } },
            }),
            None if answer.status >= 400 => problem(answer.description),
            None => json!({ "description": answer.description }),
        };
        answers.insert(answer.status.to_string(), value);
    }
    let mut add = |status: &str, description: &str| {
        answers
            .entry(status)
            .or_insert_with(|| problem(description));
    };
    if route.access != Access::Public {
        add("401", "No valid credentials");
    }
    if matches!(
        route.access,
        Access::Role(_) | Access::PathTenant(_) | Access::Person
    ) {
        add(
            "403",
            "The role does not suffice, or the request comes from another site",
        );
    }
    if route.path.contains('{') {
        add("404", "It does not exist, or belongs to another tenant");
    }
    if route.doc.takes.is_some() {
        add("400", "The body cannot be read");
        add("413", "The body is too large");
        add("415", "The body is not application/json");
        add("422", "A field has a value that is not allowed");
    }
    Value::Object(answers)
}

fn operation(route: &Route, method: &str) -> Value {
    let name = |segment: &str| segment.trim_matches(['{', '}', '*']).to_owned();
    let in_path = route.path.split('/').filter(|segment| segment.starts_with('{')).map(|segment| {
        json!({ "name": name(segment), "in": "path", "required": true, "schema": { "type": "string" } })
    });
    let in_query = route.doc.query.iter().map(|(name, description)| {
        json!({ "name": name, "in": "query", "description": description, "schema": { "type": "string" } })
    });
    let words = route
        .path
        .split(['/', '{', '}', '*', '.', '-'])
        .filter(|word| !word.is_empty());
    let id: Vec<&str> = std::iter::once(method).chain(words).collect();
    let mut operation = json!({
        "operationId": id.join("_"),
        "tags": [route.doc.tag],
        "summary": route.doc.summary,
        "parameters": in_path.chain(in_query).collect::<Vec<_>>(),
        "responses": answers(route),
        "security": match route.access {
            Access::Public => json!([]),
            Access::Person => json!([{ "login": [] }]),
            _ => json!([{ "login": [] }, { "access_token": [] }]),
        },
    });
    if let Access::Role(role) | Access::PathTenant(role) = route.access {
        operation["x-role"] = role.as_str().into();
    }
    if let Some(takes) = &route.doc.takes {
        let content = json!({ "application/json": { "schema": reference(&takes.name) } });
        operation["requestBody"] = json!({ "content": content });
    }
    operation
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457",
        "required": ["type", "title", "status", "detail", "code", "request_id"],
        "properties": {
            "type": { "type": "string", "description": "Stable path of the kind of problem" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string", "description": "For people" },
            "code": { "type": "string", "description": "Stable, for programs" },
            "request_id": { "type": "string" },
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": { "field": { "type": "string" }, "message": { "type": "string" } },
                },
            },
        },
    })
}

/// The document.
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    let mut schemas = Map::new();
    schemas.insert("Problem".to_owned(), problem_schema());
    for route in table().iter().filter(|route| !route.doc.hidden) {
        let named = route
            .doc
            .answers
            .iter()
            .filter_map(|answer| answer.schema.as_ref());
        for (name, schema) in named.chain(&route.doc.takes).flat_map(|named| &named.all) {
            let schema = serde_json::to_value(schema).expect("a schema is JSON");
            schemas.insert(name.clone(), schema);
        }
        let path = route.path.replace("{*", "{");
        let item = paths.entry(path).or_insert_with(|| json!({}));
        match &route.verb {
            Verb::One(method) => {
                let method = method.as_str().to_ascii_lowercase();
                item[&method] = operation(route, &method);
            }
            Verb::Any => {
                for method in ANY_METHODS {
                    item[*method] = operation(route, method);
                }
            }
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "edgecloud",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "login": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "__Host-edgecloud",
                    "description": "From the sign-in. Unsafe methods must come from our own origin or carry Edgecloud-Csrf: 1.",
                },
                "access_token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "Of a registered service client: a JWT access token (RFC 9068) of the same issuer for the audience oidc.api.audience.",
                },
            },
        },
    })
}

/// The document as text, made once.
pub fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut text = serde_json::to_string_pretty(&document()).expect("JSON");
        text.push('\n');
        text
    })
}

/// Shows the document.
pub async fn show() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], text()).into_response()
}

/// Describes [`show`].
pub fn show_doc() -> Doc {
    Doc::new("system", "This document").answer(200, "OpenAPI 3.1")
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    /// Every `$ref` of the document.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    found.push(reference.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_described_and_every_reference_leads_somewhere() {
        let document = document();
        for route in table() {
            let path = route.path.replace("{*", "{");
            if route.doc.hidden {
                continue;
            }
            let method = match &route.verb {
                Verb::One(method) => method.clone(),
                Verb::Any => Method::GET,
            };
            let operation = &document["paths"][&path][method.as_str().to_ascii_lowercase()];
            assert!(
                operation["summary"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty()),
                "{path}"
            );
            let public = operation["security"].as_array().is_some_and(Vec::is_empty);
            assert_eq!(public, route.access == Access::Public, "{path}");
        }
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}
