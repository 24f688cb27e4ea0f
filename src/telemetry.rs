//! Logs to standard error, and the process's metrics.

use std::io::IsTerminal;
use std::sync::Arc;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{LogConfig, LogFormat};

/// What libraries may say, whatever the configured level: some of them let a peer write log lines
/// as fast as it can send.
const LIBRARIES: &[&str] = &[
    "tungstenite=off",
    "tokio_tungstenite=off",
    "hyper=warn",
    "rustls=warn",
];

/// The running log; its level can be changed.
#[derive(Clone)]
pub struct Telemetry {
    level: Arc<dyn Fn(EnvFilter) -> bool + Send + Sync>,
}

impl Telemetry {
    /// Starts logging. Only the first call of a process has an effect.
    pub fn start(config: &LogConfig) -> Self {
        let (filter, handle) = reload::Layer::new(filter(&config.level));
        let lines = match config.format {
            LogFormat::Text => fmt::layer()
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr)
                .boxed(),
            LogFormat::Json => fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(std::io::stderr)
                .boxed(),
        };
        // A second start, in tests, keeps the first one's log.
        let _ = Registry::default()
            .with(lines.with_filter(filter))
            .try_init();
        Self {
            level: Arc::new(move |filter| handle.reload(filter).is_ok()),
        }
    }

    /// Changes which lines are written.
    pub fn set_level(&self, level: &str) {
        if !(self.level)(filter(level)) {
            tracing::warn!("the log level could not be changed");
        }
    }
}

/// The configured level, with the libraries held back.
fn filter(level: &str) -> EnvFilter {
    let with_libraries = format!("{level},{}", LIBRARIES.join(","));
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse_lossy(with_libraries)
}

#[cfg(feature = "_server")]
mod metering {
    use std::sync::OnceLock;

    use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

    static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

    /// The process's metrics in Prometheus' text format; the first call starts recording.
    pub fn render_metrics() -> String {
        let recorder = RECORDER.get_or_init(|| PrometheusBuilder::new().install_recorder().ok());
        recorder
            .as_ref()
            .map(PrometheusHandle::render)
            .unwrap_or_default()
    }
}

#[cfg(feature = "_server")]
pub use metering::render_metrics;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_stay_quiet_at_any_level() {
        for level in ["trace", "info,edgecloud::forward=debug", "off"] {
            assert!(
                filter(level).to_string().contains("tungstenite=off"),
                "{level}"
            );
        }
    }
}
