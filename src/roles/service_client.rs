//! `service-client remove`.

use anyhow::Context;

use super::maintenance::open_existing;
use super::{Failure, load_config, print, runtime};
use crate::cli::ServiceClientCommand;
use crate::config::Flags;
use crate::types::Clock;

/// `service-client remove`.
pub fn run(command: ServiceClientCommand) -> Result<(), Failure> {
    let ServiceClientCommand::Remove { client_id, args } = command;
    let flags = Flags {
        // Only the database matters: the settings of listeners and sign-in may be missing.
        dev: true,
        ..args.into()
    };
    let config = load_config(&flags)?;
    let removed = runtime()?.block_on(async {
        let store = open_existing(&config).await?;
        let removed = store.take_client_id(&client_id, Clock::system().now());
        removed.await.context("remove the service client")
    })?;
    let Some(client) = removed else {
        let error = anyhow::anyhow!("no tenant has registered the client id {client_id:?}");
        return Err(Failure::Failed(error));
    };
    print(&format!(
        "removed {}, which had the client id {} in the tenant {} ({})\n",
        client.id, client.client_id, client.tenant, client.tenant_name
    ))?;
    Ok(())
}
