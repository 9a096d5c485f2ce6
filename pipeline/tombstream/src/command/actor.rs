//! Who orders: what the ledger keeps beside each order.

use anyhow::Context as _;

/// `--actor`, in every command that orders something.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ActorArg {
    /// Who orders it, as the ledger keeps it. By default user@host of this machine.
    #[arg(long, value_name = "NAME", env = "TOMBSTREAM_ACTOR")]
    actor: Option<String>,
}

impl ActorArg {
    /// The name that was given, or who runs this.
    pub(super) fn name(self) -> anyhow::Result<String> {
        if let Some(actor) = self.actor {
            return Ok(actor);
        }
        let of_environment = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let user = of_environment("USER").or_else(|| of_environment("LOGNAME"));
        let user = user.context("nobody is known to order this: say who with --actor NAME")?;
        let host = ["/proc/sys/kernel/hostname", "/etc/hostname"];
        let host = host.iter().find_map(|file| std::fs::read_to_string(file).ok());
        match host.as_deref().map(str::trim) {
            Some(host) if !host.is_empty() => Ok(format!("{user}@{host}")),
            _ => Ok(user),
        }
    }
}
