//! What is open on behalf of a login, so that it can be cut when the login or the device's place in
//! the tenant ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::types::{DeviceId, LoginId};

#[derive(Default)]
struct Table {
    logins: HashMap<LoginId, (usize, CancellationToken)>,
    devices: HashMap<DeviceId, (usize, CancellationToken)>,
}

/// Everything that is open in this process. Cheap to clone.
#[derive(Clone, Default)]
pub struct LiveStreams(Arc<Mutex<Table>>);

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

    /// Puts something on the list.
    pub fn open(&self, login: &LoginId, device: &DeviceId) -> LiveStream {
        let mut table = self.table();
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
        if let Some((_, ended)) = self.table().logins.remove(login) {
            ended.cancel();
        }
    }

    /// Cuts everything that is open to a device.
    pub fn end_device(&self, device: &DeviceId) {
        if let Some((_, ended)) = self.table().devices.remove(device) {
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
        let new = streams.open(&alice, &device);
        drop(hers);
        assert!(!new.is_ended());
        streams.end_device(&device);
        assert!(new.is_ended() && his.is_ended());
        drop((new, his));
        let table = streams.table();
        assert!(table.logins.is_empty() && table.devices.is_empty());
    }
}
