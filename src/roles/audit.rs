//! `audit verify`.

use anyhow::Context;
use data_encoding::HEXLOWER_PERMISSIVE;

use super::maintenance::open_existing;
use super::server::ring;
use super::{Failure, load_config, print, runtime, tell};
use crate::audit_chain::{self, AuditReport};
use crate::cli::AuditCommand;
use crate::config::Flags;

/// `audit verify`.
pub fn run(command: AuditCommand) -> Result<(), Failure> {
    let AuditCommand::Verify { expect, args } = command;
    let expect = expect.as_deref().map(hash).transpose()?;
    let flags = Flags {
        // Only the database and the keys matter: the settings of listeners and sign-in may be missing.
        dev: true,
        ..args.into()
    };
    let config = load_config(&flags)?;
    let keys = ring(&config, &config.login.cookie_key, "cookie.key")?;
    let report = runtime()?.block_on(async {
        let store = open_existing(&config).await?;
        let verified = audit_chain::verify(&store, &keys, expect).await;
        verified.context("read the audit")
    })?;
    print(&describe(&report))?;
    report.mistakes.iter().for_each(|line| tell(line));
    if !report.mistakes.is_empty() {
        return Err(Failure::Failed(anyhow::anyhow!(
            "the audit is not as it was written"
        )));
    }
    Ok(())
}

fn hash(text: &str) -> Result<[u8; 32], Failure> {
    let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Failure::Usage("--expect: 64 hexadecimal digits are expected".to_owned()))
}

fn describe(report: &AuditReport) -> String {
    let mut text = format!(
        "{} rows under {} checkpoints, {} rows since the last one\n",
        report.sealed,
        report.checkpoints + report.foreign_keys,
        report.unsealed
    );
    if report.foreign_keys > 0 {
        text += &format!(
            "{} checkpoints are signed with a key that is not configured here\n",
            report.foreign_keys
        );
    }
    if let Some(head) = report.head {
        let head = data_encoding::HEXLOWER.encode(&head);
        text += &format!("head: {head}\n");
    }
    text
}
