//! What a device says of itself beside its token: never believed, and written down when it is another's.

use std::collections::BTreeSet;

use http::{HeaderMap, Uri, header};
use url::form_urlencoded;

use crate::store::{AuditActor, AuditEntry, AuditOutcome, Store};
use crate::types::{DeviceId, TenantId, Timestamp};

/// Claims of one handshake that are written down; more tell nothing new.
const MAX_CLAIMS: usize = 4;

/// Ids of devices and tenants that a handshake names, whose token says something else.
#[derive(Debug, Default)]
pub struct Claims(BTreeSet<String>);

impl Claims {
    /// What the head of a handshake names, in any field or query parameter but the token's.
    pub fn of_head(uri: &Uri, headers: &HeaderMap) -> Self {
        let mut claims = Self::default();
        let fields = headers.iter();
        for (_, value) in fields.filter(|(name, _)| **name != header::AUTHORIZATION) {
            claims.add(value.to_str().ok());
        }
        let query = uri.query().unwrap_or_default();
        for (_, value) in form_urlencoded::parse(query.as_bytes()) {
            claims.add(Some(&value));
        }
        claims
    }

    /// Takes a text for a claim when it is an id.
    pub fn add(&mut self, text: Option<&str>) {
        let Some(text) = text.map(str::trim) else {
            return;
        };
        let is_id = text.parse::<DeviceId>().is_ok() || text.parse::<TenantId>().is_ok();
        if is_id && self.0.len() < MAX_CLAIMS {
            self.0.insert(text.to_owned());
        }
    }

    /// Takes over what was claimed elsewhere in the same handshake.
    pub fn extend(&mut self, others: Claims) {
        others.0.iter().for_each(|other| self.add(Some(other)));
    }

    /// Writes down what is not the device's own.
    pub async fn note(
        &self,
        store: &Store,
        (tenant, device): (&TenantId, &DeviceId),
        (at, remote_addr): (Timestamp, std::net::IpAddr),
    ) {
        let own = [tenant.as_str(), device.as_str()];
        for claim in self.0.iter().filter(|claim| !own.contains(&claim.as_str())) {
            tracing::warn!(%device, %claim, "a device names another id than its token's");
            let actor = AuditActor::Device(device.clone());
            let entry = AuditEntry {
                target: Some(claim.clone()),
                outcome: AuditOutcome::Denied,
                remote_addr: Some(remote_addr),
                ..AuditEntry::new(at, Some(tenant.clone()), actor, "device.claim_ignored")
            };
            if let Err(error) = store.append_audit(entry).await {
                tracing::warn!(%error, %device, "an ignored claim could not be written down");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn tu_18_claims_are_ids_and_bounded() {
        let mut headers = HeaderMap::new();
        let id = DeviceId::random().to_string();
        let value = |text: &str| HeaderValue::from_str(text).expect("a value");
        headers.insert("edgecloud-device", value(&id));
        headers.insert("edgecloud-agent", value("agent/1"));
        headers.insert("authorization", value(DeviceId::random().as_str()));
        let uri = Uri::from_static("/tunnel?token=edt_x&name=box");
        let claims = Claims::of_head(&uri, &headers);
        assert_eq!(claims.0, BTreeSet::from([id]));
        for _ in 0..100 {
            headers.append("x-many", value(TenantId::random().as_str()));
        }
        assert_eq!(Claims::of_head(&uri, &headers).0.len(), MAX_CLAIMS);
    }

    crate::fuzzing::fuzz_target!(handshake_claims, |bytes| {
        let (uri, fields) = bytes.split_at(bytes.len().min(64));
        let uri = Uri::try_from(uri).unwrap_or_default();
        let claims = Claims::of_head(&uri, &crate::fuzzing::fields(fields));
        assert!(claims.0.len() <= MAX_CLAIMS);
    });
}
