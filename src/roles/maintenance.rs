//! `config` and `db`.

use anyhow::{Context, bail};

use super::{Failure, load_config, print, runtime, tell};
use crate::cli::{ConfigCommand, DbCommand};
use crate::config::{Config, Flags, StoreUrl};
use crate::store::{Location, Store};

/// `config check|show`.
pub fn config(command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check(args) => load_config(&args.into()).map(drop),
        ConfigCommand::Show(args) => Ok(print(load_config(&args.into())?.show())?),
    }
}

/// `db migrate|backup|check`.
pub fn db(command: DbCommand) -> Result<(), Failure> {
    let (DbCommand::Migrate(args) | DbCommand::Check(args) | DbCommand::Backup { args, .. }) =
        &command;
    let flags = Flags {
        // Only the database matters: the settings of listeners and sign-in may be missing.
        dev: true,
        ..args.clone().into()
    };
    let config = load_config(&flags)?;
    let makes_it = matches!(command, DbCommand::Migrate(_));
    runtime()?.block_on(async {
        // Opening brings the schema up to date.
        let store = match makes_it {
            true => open(&config).await?,
            false => open_existing(&config).await?,
        };
        match command {
            DbCommand::Migrate(_) => {}
            DbCommand::Backup { file, .. } => {
                let backed_up = store.backup(&file).await;
                backed_up.with_context(|| format!("back up to {}", file.display()))?;
            }
            DbCommand::Check(_) => {
                let damage = store.check().await.context("check the database")?;
                damage.iter().for_each(|line| tell(line));
                if !damage.is_empty() {
                    bail!("the database is damaged");
                }
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Opens the database that there is.
pub async fn open_existing(config: &Config) -> anyhow::Result<Store> {
    if let StoreUrl::Sqlite(path) = &config.store
        && !path.exists()
    {
        bail!("there is no database {}", path.display());
    }
    open(config).await
}

async fn open(config: &Config) -> anyhow::Result<Store> {
    let location = match &config.store {
        StoreUrl::Sqlite(path) => Location::Sqlite(path),
        StoreUrl::Postgres(_) => Location::Postgres,
    };
    Store::open(location).await.context("open the database")
}
