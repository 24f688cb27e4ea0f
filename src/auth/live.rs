//! What is open on behalf of a login, so that it can be cut when the login or the device's place in
//! the tenant ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio_util::sync::CancellationToken;

use crate::types::{DeviceId, LoginId};

/// How long an end is remembered: a request that was checked just before it may open its stream just
/// after it.
const REMEMBER_FOR: Duration = Duration::from_secs(60);
/// Ends that are remembered at once.
const MAX_REMEMBERED: u64 = 100_000;

struct Table {
    logins: HashMap<LoginId, (usize, CancellationToken)>,
    devices: HashMap<DeviceId, (usize, CancellationToken)>,
    ended_logins: Cache<LoginId, ()>,
    ended_devices: Cache<DeviceId, ()>,
}

/// Everything that is open in this process. Cheap to clone.
#[derive(Clone)]
pub struct LiveStreams(Arc<Mutex<Table>>);

impl Default for LiveStreams {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Table {
            logins: HashMap::new(),
            devices: HashMap::new(),
            ended_logins: Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_live(REMEMBER_FOR)
                .build(),
            ended_devices: Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_live(REMEMBER_FOR)
                .build(),
        })))
    }
}

/// Something open; taken off the list when dropped.
pub struct LiveStream {
    streams: LiveStreams,
    login: LoginId,
    device: DeviceId,
    login_ended: CancellationToken,
    device_ended: CancellationToken,
}

impl LiveStreams {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something on the list; it has ended already when its login or device has just now.
    pub fn open(&self, login: &LoginId, device: &DeviceId) -> LiveStream {
        let mut table = self.table();
        if table.ended_logins.contains_key(login) || table.ended_devices.contains_key(device) {
            let ended = CancellationToken::new();
            ended.cancel();
            return LiveStream {
                streams: self.clone(),
                login: login.clone(),
                device: device.clone(),
                login_ended: ended.clone(),
                device_ended: ended,
            };
        }
        let login_entry = table.logins.entry(login.clone()).or_default();
        login_entry.0 += 1;
        let login_ended = login_entry.1.clone();
        let device_entry = table.devices.entry(device.clone()).or_default();
        device_entry.0 += 1;
        let device_ended = device_entry.1.clone();
        LiveStream {
            streams: self.clone(),
            login: login.clone(),
            device: device.clone(),
            login_ended,
            device_ended,
        }
    }

    /// Cuts everything that a login has open.
    pub fn end_login(&self, login: &LoginId) {
        let mut table = self.table();
        table.ended_logins.insert(login.clone(), ());
        if let Some((_, ended)) = table.logins.remove(login) {
            ended.cancel();
        }
    }

    /// Cuts everything that is open to a device.
    pub fn end_device(&self, device: &DeviceId) {
        let mut table = self.table();
        table.ended_devices.insert(device.clone(), ());
        if let Some((_, ended)) = table.devices.remove(device) {
            ended.cancel();
        }
    }
}

impl LiveStream {
    /// Waits until it has to be cut.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.login_ended.cancelled() => {}
            () = self.device_ended.cancelled() => {}
        }
    }

    /// As [`LiveStream::ended`], for a task that does not hold the stream.
    pub fn ended_owned(&self) -> impl Future<Output = ()> + Send + 'static {
        let login = self.login_ended.clone().cancelled_owned();
        let device = self.device_ended.clone().cancelled_owned();
        async move {
            tokio::select! {
                () = login => {}
                () = device => {}
            }
        }
    }

    /// Whether it has to be cut.
    pub fn is_ended(&self) -> bool {
        self.login_ended.is_cancelled() || self.device_ended.is_cancelled()
    }
}

impl Drop for LiveStream {
    fn drop(&mut self) {
        let mut table = self.streams.table();
        if !self.login_ended.is_cancelled()
            && let Some(entry) = table.logins.get_mut(&self.login)
        {
            entry.0 -= 1;
            if entry.0 == 0 {
                table.logins.remove(&self.login);
            }
        }
        if !self.device_ended.is_cancelled()
            && let Some(entry) = table.devices.get_mut(&self.device)
        {
            entry.0 -= 1;
            if entry.0 == 0 {
                table.devices.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ending_a_login_cuts_its_streams_and_no_others_and_leaves_nothing_behind() {
        let streams = LiveStreams::default();
        let (alice, bob, device) = (LoginId::random(), LoginId::random(), DeviceId::random());
        let hers = [streams.open(&alice, &device), streams.open(&alice, &device)];
        let his = streams.open(&bob, &device);
        streams.end_login(&alice);
        assert!(hers.iter().all(LiveStream::is_ended) && !his.is_ended());
        let late = streams.open(&alice, &device);
        assert!(late.is_ended(), "checked before the end, opened after it");
        let other = streams.open(&bob, &device);
        drop((hers, late));
        assert!(!other.is_ended());
        streams.end_device(&device);
        assert!(other.is_ended() && his.is_ended());
        drop((other, his));
        let table = streams.table();
        assert!(table.logins.is_empty() && table.devices.is_empty());
    }
}
