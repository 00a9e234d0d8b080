//! Ordinary MQTT clients: programs with a certificate and topic patterns, admitted by the operator.
//! Called by the CLI through the admin API. The rights come from the roster, which reads what is
//! recorded here; a client that was never admitted has none.

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::id::{ClientName, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::Change;
use holdfast_protocol::topic::Filter;
use holdfast_store::StoreError;
use zeroize::Zeroizing;

use crate::Core;
use crate::authority::{Authority, AuthorityError, pem};
use crate::registry::Draft;
use crate::tables::ClientRow;

/// What a stock MQTT client needs, as PEM files.
pub struct ClientFiles {
    /// The root certificate.
    pub ca: String,
    /// Its certificate and the intermediate.
    pub cert: String,
    /// Its private key, PKCS#8.
    pub key: Zeroizing<String>,
}

impl std::fmt::Debug for ClientFiles {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ClientFiles").finish_non_exhaustive()
    }
}

/// The clients; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clients {
    core: Core,
    authority: Authority,
}

impl Clients {
    pub(crate) fn new(core: Core, authority: Authority) -> Self {
        Self { core, authority }
    }

    /// Admits a client, or changes its rights, and makes it a key and certificate. At a gateway
    /// the site is the gateway's own; at the cloud, none is a client of the whole domain.
    ///
    /// # Errors
    /// A foreign site, or our own keys and store.
    pub async fn issue(
        &self,
        name: ClientName,
        site: Option<SiteId>,
        publish: Vec<Filter>,
        subscribe: Vec<Filter>,
    ) -> Result<ClientFiles, AuthorityError> {
        let site = site.or_else(|| self.core.config.role.site().cloned());
        let party = Party::Client {
            name: name.clone(),
            site: site.clone(),
        };
        let key = SigningKey::generate(&mut SystemRandom);
        let issued = self.authority.certify(party, key.public(), &[]).await?;
        let log = site.unwrap_or_else(SiteId::of_cloud);
        let change = Change::ClientAdmitted {
            name,
            publish,
            subscribe,
        };
        self.core
            .registry
            .append(vec![Draft {
                site: log,
                device: None,
                change,
            }])
            .await?;
        let der = key.to_pkcs8_der();
        Ok(ClientFiles {
            ca: pem::chain(&self.authority.anchors()?),
            cert: pem::chain(&issued.full_chain()),
            key: Zeroizing::new(pem::block("PRIVATE KEY", &der)),
        })
    }

    /// All admitted clients.
    ///
    /// # Errors
    /// Our own store.
    pub fn list(&self) -> Result<Vec<ClientRow>, StoreError> {
        self.core.registry.read(|view| view.clients())
    }
}
