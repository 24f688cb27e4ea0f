//! How much goes through the cloud: by tenant and by device.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::devices::SessionDetail;
use super::error::Error;
use super::extract::{Caller, Query};
use super::openapi::{Doc, schema};
use crate::store::Traffic;
use crate::types::{DeviceId, TenantId, Timestamp};

/// How often counted traffic is written to the database.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// What is shown when a request does not say.
const SHOWN: Duration = Duration::from_secs(30 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Most devices in a report, the busiest first.
const MAX_DEVICES: u32 = 1_000;

/// What went to and from devices.
#[derive(Serialize, ToSchema)]
pub struct TrafficInfo {
    /// Requests that were forwarded.
    requests: u64,
    /// Bytes of bodies and WebSockets towards the device.
    bytes_to_device: u64,
    /// The same from the device.
    bytes_from_device: u64,
}

impl From<Traffic> for TrafficInfo {
    fn from(traffic: Traffic) -> Self {
        Self {
            requests: traffic.requests,
            bytes_to_device: traffic.bytes_to_device,
            bytes_from_device: traffic.bytes_from_device,
        }
    }
}

/// The traffic of one device.
#[derive(Serialize, ToSchema)]
pub struct DeviceUsage {
    #[schema(value_type = String)]
    device_id: DeviceId,
    #[serde(flatten)]
    traffic: TrafficInfo,
}

/// A tenant's traffic.
#[derive(Serialize, ToSchema)]
pub struct UsageReport {
    #[schema(value_type = String, format = DateTime)]
    from: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    to: Timestamp,
    total: TrafficInfo,
    /// By device, the busiest first, at most 1,000.
    items: Vec<DeviceUsage>,
    next_cursor: Option<String>,
}

/// Between which points in time.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageQuery {
    from: Option<String>,
    to: Option<String>,
}

fn time(field: &str, text: &str) -> Result<Timestamp, Error> {
    let parsed: Result<jiff::Timestamp, _> = text.parse();
    parsed
        .map(|time| Timestamp::from_millis(time.as_millisecond()))
        .map_err(|_| Error::invalid_field(field, "a time as 2026-01-31T12:00:00Z"))
}

/// Shows the tenant's traffic.
pub async fn get_usage(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Query(query): Query<UsageQuery>,
) -> Result<Json<UsageReport>, Error> {
    let now = app.0.clock.now();
    let to = query.to.map_or(Ok(now), |text| time("to", &text))?;
    let default_from =
        Timestamp::from_millis(to.as_millis() - i64::try_from(SHOWN.as_millis()).unwrap_or(0));
    let from = query
        .from
        .map_or(Ok(default_from), |text| time("from", &text))?;
    if from > to {
        return Err(Error::invalid_field("from", "a time before `to`"));
    }
    let (tenant, store) = (&principal.tenant.id, &app.0.store);
    let total = store.total_usage(tenant, (from, to)).await?;
    let devices = store.list_usage(tenant, (from, to), MAX_DEVICES).await?;
    let items = devices.into_iter().map(|usage| DeviceUsage {
        device_id: usage.of,
        traffic: usage.traffic.into(),
    });
    Ok(Json(UsageReport {
        from,
        to,
        total: total.into(),
        items: items.collect(),
        next_cursor: None,
    }))
}

/// The traffic of one hour.
#[derive(Serialize, ToSchema)]
pub struct HourUsage {
    /// When the hour began.
    #[schema(value_type = String, format = DateTime)]
    hour: Timestamp,
    #[serde(flatten)]
    traffic: TrafficInfo,
}

/// What is measured of a device.
#[derive(Serialize, ToSchema)]
pub struct DeviceMetrics {
    #[schema(value_type = String)]
    device_id: DeviceId,
    /// Its live session, `null` when it is offline.
    session: Option<SessionDetail>,
    /// Its traffic of the last 24 hours, by hour; hours without any are left out.
    hours: Vec<HourUsage>,
}

/// Shows what is measured of a device.
pub async fn get_device_metrics(
    State(app): State<AppState>,
    Caller(principal): Caller,
    Path(id): Path<String>,
) -> Result<Json<DeviceMetrics>, Error> {
    let device = app.device(&principal.tenant.id, &id).await?;
    let summary = app.current_summary(&device).await;
    let now = app.0.clock.now();
    let day = i64::try_from(DAY.as_millis()).unwrap_or(0);
    let from = Timestamp::from_millis(now.as_millis() - day);
    let store = &app.0.store;
    let hours = store
        .list_device_usage(&device.tenant, &device.id, from)
        .await?;
    let hours = hours.into_iter().map(|usage| HourUsage {
        hour: usage.of,
        traffic: usage.traffic.into(),
    });
    Ok(Json(DeviceMetrics {
        device_id: device.id,
        session: summary.as_ref().map(Into::into),
        hours: hours.collect(),
    }))
}

impl AppState {
    /// Writes counted traffic down from time to time.
    pub async fn record_usage(self) {
        loop {
            tokio::time::sleep(WRITE_EVERY).await;
            self.write_usage().await;
        }
    }

    /// Writes down the traffic that was counted since the last time; what cannot be written is counted
    /// again.
    pub async fn write_usage(&self) {
        let meter = self.0.forwarder.meter();
        let counted: Vec<(TenantId, DeviceId, Traffic)> = meter.take();
        if counted.is_empty() {
            return;
        }
        let (store, now) = (&self.0.store, self.0.clock.now());
        if let Err(error) = store.add_usage(counted.clone(), now).await {
            tracing::warn!(%error, "traffic could not be written down");
            meter.give_back(counted);
        }
    }
}

/// Describes [`get_usage`].
pub fn get_doc() -> Doc {
    Doc::new("records", "The tenant's traffic")
        .query("from", "A time (RFC 3339), else 30 days before `to`")
        .query("to", "A time (RFC 3339), else now")
        .returns(200, "The traffic", schema::<UsageReport>())
        .answer(422, "A time cannot be read")
}

/// Describes [`get_device_metrics`].
pub fn device_doc() -> Doc {
    Doc::new("devices", "What is measured of a device").returns(
        200,
        "Its session now and its traffic by hour",
        schema::<DeviceMetrics>(),
    )
}
