//! `gateways`: the tokens by which they enrol, and what becomes of one that is lost, copied or not
//! wanted any more. Asks the running cloud over its admin socket.

use std::time::Duration;

use clap::Subcommand;
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_server::ask::{Ask, text_of};
use serde_json::{Value, json};

use super::duration;

/// `gateways ...`
#[derive(Debug, Subcommand)]
pub enum Gateways {
    /// Print a one-time token by which one gateway may enrol
    Token {
        /// Site the gateway will serve
        #[arg(long)]
        site: SiteId,
        /// Name of the gateway
        #[arg(long)]
        gateway: ServerId,
        /// How long the token may be used
        #[arg(long, default_value = "1h", value_parser = duration)]
        life: Duration,
        /// How often that gateway may enrol by it; each time the machine before it is out
        #[arg(long, default_value_t = 1)]
        uses: u32,
    },
    /// Tokens that were made: list them, take them back
    #[command(subcommand)]
    Tokens(Tokens),
    /// A gateway's machine is lost: lock it out and print a token for the one in its place
    Replace {
        /// Site of the gateway
        #[arg(long)]
        site: SiteId,
        /// Name of the gateway, which the new machine will carry on
        #[arg(long)]
        gateway: ServerId,
        /// How long the token may be used
        #[arg(long, default_value = "1h", value_parser = duration)]
        life: Duration,
    },
    /// Let a gateway in again that was to be replaced, before anything took its place, or of which
    /// a copy was seen, once every other machine is stopped
    Unlock {
        /// Site of the gateway
        #[arg(long)]
        site: SiteId,
        /// Name of the gateway
        #[arg(long)]
        gateway: ServerId,
    },
    /// Void a gateway for good, with its site authority and its tokens; its devices go to the cloud
    Revoke {
        /// Site of the gateway
        #[arg(long)]
        site: SiteId,
        /// Name of the gateway
        #[arg(long)]
        gateway: ServerId,
    },
    /// List the enrolled gateways
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `gateways tokens ...`
#[derive(Debug, Subcommand)]
pub enum Tokens {
    /// List the tokens; their secrets are not kept
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a token back: nobody enrols by it any more
    Void {
        /// The token's name, as the list shows it
        token: String,
    },
}

impl Gateways {
    pub(super) async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::List { json } => {
                let columns = [
                    "gateway", "site", "epoch", "enrolled", "state", "heard", "why",
                ];
                ask.table("/v1/gateways", &columns, json).await
            }
            Self::Token {
                site,
                gateway,
                life,
                uses,
            } => {
                let mut wanted = named(&site, &gateway);
                wanted["life_secs"] = json!(life.as_secs());
                wanted["uses"] = json!(uses);
                let answer = ask.post("/v1/gateways/token", &wanted).await?;
                text_of(&answer, "token").map(|token| token + "\n")
            }
            Self::Tokens(tokens) => tokens.execute(ask).await,
            Self::Replace {
                site,
                gateway,
                life,
            } => {
                let mut wanted = named(&site, &gateway);
                wanted["life_secs"] = json!(life.as_secs());
                let answer = ask.post("/v1/gateways/replace", &wanted).await?;
                text_of(&answer, "token").map(|token| token + "\n")
            }
            Self::Unlock { site, gateway } => {
                let wanted = named(&site, &gateway);
                ask.post("/v1/gateways/unlock", &wanted).await?;
                Ok(format!(
                    "gateway {gateway} of site {site} is let in again\n"
                ))
            }
            Self::Revoke { site, gateway } => {
                let wanted = named(&site, &gateway);
                let answer = ask.post("/v1/gateways/revoke", &wanted).await?;
                let count = answer["certificates"].as_u64().unwrap_or(0);
                Ok(format!(
                    "gateway {gateway} of site {site} is revoked, {count} certificates with it\n"
                ))
            }
        }
    }
}

impl Tokens {
    async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::List { json } => {
                let columns = [
                    "token", "site", "gateway", "state", "used", "uses", "expires",
                ];
                ask.table("/v1/gateways/tokens", &columns, json).await
            }
            Self::Void { token } => {
                let wanted = json!({ "token": token });
                ask.post("/v1/gateways/tokens/void", &wanted).await?;
                Ok(format!("token {token} is void\n"))
            }
        }
    }
}

fn named(site: &SiteId, gateway: &ServerId) -> Value {
    json!({ "site": site.as_str(), "gateway": gateway.as_str() })
}
