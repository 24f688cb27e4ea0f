//! `tcp`: a device's TCP port on this machine.

use super::{Failure, small_runtime};
use crate::cli::TcpArgs;
use crate::client::{ClientConfig, ClientError, TcpClient};
use crate::config::{LogConfig, environment};
use crate::runtime::{Asked, Signals};
use crate::telemetry::Telemetry;

/// Serves standard input and output to their end, or an address until a signal.
pub fn run(args: TcpArgs) -> Result<(), Failure> {
    let config = ClientConfig::from_args(args, &environment())
        .map_err(|mistakes| Failure::Usage(mistakes.to_string()))?;
    // Standard output is the connection's: the log goes to standard error.
    Telemetry::start(&LogConfig {
        level: "info".to_owned(),
        ..LogConfig::default()
    });
    let listen = config.listen;
    let runtime = small_runtime()?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let client = TcpClient::new(config).map_err(failure)?;
        let serving = async {
            match listen {
                Some(addr) => {
                    let bound = |addr| tracing::info!(%addr, "listening");
                    client.serve_listener(addr, bound).await
                }
                None => client.serve_stdio().await,
            }
        };
        tokio::select! {
            served = serving => served.map_err(failure),
            () = asked_to_stop(&mut signals) => Ok(()),
        }
    });
    // A read of standard input cannot be called off.
    runtime.shutdown_background();
    ended
}

/// What another command line would mend is wrong usage.
fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::Trust(_) | ClientError::Listen(..) => Failure::Usage(error.to_string()),
        error => error.into(),
    }
}

async fn asked_to_stop(signals: &mut Signals) {
    // There is nothing to read again.
    while signals.next().await == Asked::Reload {}
}
