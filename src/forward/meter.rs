//! Counts what goes to and from devices, until somebody writes it down.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::Traffic;
use crate::types::{DeviceId, IdMap, TenantId};

/// What is counted of one device; streams add to it as they go.
#[derive(Debug, Default)]
pub struct Counter {
    requests: AtomicU64,
    to_device: AtomicU64,
    from_device: AtomicU64,
}

impl Counter {
    /// Counts a request.
    pub fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes towards the device.
    pub fn add_to_device(&self, bytes: usize) {
        self.to_device.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes from the device.
    pub fn add_from_device(&self, bytes: usize) {
        self.from_device.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add(&self, traffic: Traffic) {
        self.requests.fetch_add(traffic.requests, Ordering::Relaxed);
        self.to_device
            .fetch_add(traffic.bytes_to_device, Ordering::Relaxed);
        self.from_device
            .fetch_add(traffic.bytes_from_device, Ordering::Relaxed);
    }

    fn take(&self) -> Traffic {
        Traffic {
            requests: self.requests.swap(0, Ordering::Relaxed),
            bytes_to_device: self.to_device.swap(0, Ordering::Relaxed),
            bytes_from_device: self.from_device.swap(0, Ordering::Relaxed),
        }
    }
}

type Key = (TenantId, DeviceId);

/// The counters of all devices with traffic. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TrafficMeter(Arc<Mutex<IdMap<Key, Arc<Counter>>>>);

impl TrafficMeter {
    fn counters(&self) -> MutexGuard<'_, IdMap<Key, Arc<Counter>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counter of a device that exists.
    pub fn counter(&self, tenant: &TenantId, device: &DeviceId) -> Arc<Counter> {
        let key = (tenant.clone(), device.clone());
        Arc::clone(self.counters().entry(key).or_default())
    }

    /// What was counted since the last time; counters that nobody uses any more are let go.
    pub fn take(&self) -> Vec<(TenantId, DeviceId, Traffic)> {
        let mut counted = Vec::new();
        self.counters().retain(|(tenant, device), counter| {
            // Looked at first: whoever holds it now may add after the numbers were taken.
            let in_use = Arc::strong_count(counter) > 1;
            let traffic = counter.take();
            if traffic != Traffic::default() {
                counted.push((tenant.clone(), device.clone(), traffic));
            }
            in_use
        });
        counted
    }

    /// Counts again what could not be written down.
    pub fn give_back(&self, counted: Vec<(TenantId, DeviceId, Traffic)>) {
        for (tenant, device, traffic) in counted {
            self.counter(&tenant, &device).add(traffic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_taken_once_and_idle_counters_go() {
        let meter = TrafficMeter::default();
        let (tenant, device) = (TenantId::random(), DeviceId::random());
        let counter = meter.counter(&tenant, &device);
        counter.request();
        counter.add_to_device(5);
        let first = meter.take();
        let expected = Traffic {
            requests: 1,
            bytes_to_device: 5,
            bytes_from_device: 0,
        };
        assert_eq!(first, [(tenant.clone(), device.clone(), expected)]);
        assert!(meter.take().is_empty());
        counter.add_from_device(7);
        drop(counter);
        meter.give_back(first);
        let again = meter.take();
        assert_eq!(again[0].2.bytes_from_device, 7);
        assert_eq!(again[0].2.requests, 1);
        assert!(meter.counters().is_empty());
    }
}
