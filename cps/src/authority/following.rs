//! A gateway follows its cloud: asks now and then which roots hold, and renews its authority when it is
//! old, when the cloud's root is another, or when the cloud wants it. Called by the gateway's upkeep.
//! Without the cloud everything stays as it is.

use holdfast_link::https;
use holdfast_protocol::roots;

use super::intermediate::is_endorsement;
use super::{Authority, Issuer, RenewalError};
use crate::enrol::Bytes;
use crate::http::wire::RootsGiven;

/// Where the cloud tells.
pub(crate) const PATH: &str = "/api/v1/authority";

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Nothing was due.
    Nothing,
    /// The site's authority was renewed.
    Renewed,
    /// A root is believed no longer.
    Dropped,
}

impl Authority {
    /// At a gateway: asks the cloud and does what is due. Nothing at the cloud.
    ///
    /// # Errors
    /// See [`RenewalError`]; nothing has changed then.
    pub async fn follow(&self, cloud: &https::Client) -> Result<Followed, RenewalError> {
        let Some(site) = self.core.config.role.site() else {
            return Ok(Followed::Nothing);
        };
        let told = ask(cloud).await?;
        let (told_roots, crosses) = (plain(told.roots), plain(told.crosses));
        let believed = roots::believed(&self.anchors()?, &told_roots, &crosses);
        let chain = self.chain(Some(site))?;
        let is_other = roots::leads_to(&chain, &believed) != believed.first();
        if told.rotate || is_other || self.is_aged(&chain) {
            self.refresh_intermediate(cloud).await?;
            return Ok(Followed::Renewed);
        }
        self.drop_roots(&believed, &crosses)
    }

    /// Believes only these from now on, if everything here leads to the present one.
    fn drop_roots(
        &self,
        believed: &[Vec<u8>],
        crosses: &[Vec<u8>],
    ) -> Result<Followed, RenewalError> {
        let _one = self.changing();
        let site = self.core.config.role.site();
        let chain = self.chain(site)?;
        let (Some(site), Some(present)) = (site, believed.first()) else {
            return Ok(Followed::Nothing);
        };
        let gone = self.anchors()?.iter().any(|root| !believed.contains(root));
        let ready =
            roots::leads_to(&chain, believed) == Some(present) && self.own_leads_to(present);
        if !gone || !ready {
            return Ok(Followed::Nothing);
        }
        let crosses = crosses.iter().filter(|der| is_endorsement(der, believed));
        let kept: Vec<Vec<u8>> = chain
            .iter()
            .take(1)
            .chain(crosses)
            .chain(believed)
            .cloned()
            .collect();
        let issuer = Issuer::Site(site.clone());
        self.core.keys.signer().install(&issuer, &kept)?;
        self.believe()?;
        tracing::warn!(%site, "a root that the cloud has retired is believed no longer");
        Ok(Followed::Dropped)
    }
}

async fn ask(cloud: &https::Client) -> Result<RootsGiven, RenewalError> {
    let answer = cloud.get(PATH).await?;
    if !answer.status.is_success() {
        let why = serde_json::from_slice::<serde_json::Value>(&answer.body).ok();
        let why = why.and_then(|it| it["error"].as_str().map(str::to_owned));
        return Err(RenewalError::Refused {
            status: answer.status.as_u16(),
            why: why.unwrap_or_default(),
        });
    }
    serde_json::from_slice(&answer.body).map_err(|error| RenewalError::Answer(error.to_string()))
}

fn plain(list: Vec<Bytes>) -> Vec<Vec<u8>> {
    list.into_iter().map(|Bytes(der)| der).collect()
}
