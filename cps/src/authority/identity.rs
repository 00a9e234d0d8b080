//! This server's own certificate and key for TLS: made, kept and renewed through the same authority
//! as everybody else's. Called by the binaries before they listen or dial.

use std::net::IpAddr;

use holdfast_link::tls::Identity;
use holdfast_protocol::certificate::validity;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::name::Party;
use holdfast_protocol::renewal::due_at;
use holdfast_protocol::roots;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Authority, AuthorityError, BACKDATE, pem};
use crate::config::Role;
use crate::keys::{load_or_make, read_file, write_secret};

impl Authority {
    /// This server's own certificate and key for TLS. Made anew when there is none, when the
    /// addresses changed, or when two thirds of its life are over.
    ///
    /// # Errors
    /// Our own keys, files or store.
    pub async fn own_identity(&self, addresses: &[IpAddr]) -> Result<Identity, AuthorityError> {
        let folder = self.core.keys.folder();
        let (key_file, chain_file) = (folder.join("server.key"), folder.join("server.pem"));
        let key = load_or_make(&key_file)?;
        let kept = read_file(&chain_file)?.and_then(|text| pem::certificates(&text));
        let party = self.own_party();
        if let Some(chain) = kept.filter(|chain| self.still_good(chain, &key, &party, addresses)) {
            return Ok(Identity::new(chain, key.to_pkcs8_der())?);
        }
        let issued = self.certify(party, key.public(), addresses).await?;
        let mut chain = issued.full_chain();
        // Who knows only a root's hash, at first contact, is shown the roots as well.
        chain.extend(self.anchors()?);
        write_secret(&chain_file, pem::chain(&chain).as_bytes())?;
        Ok(Identity::new(chain, key.to_pkcs8_der())?)
    }

    /// Who this server is.
    #[must_use]
    pub fn own_party(&self) -> Party {
        let server = self.core.config.server.clone();
        match &self.core.config.role {
            Role::Cloud => Party::Cloud { server },
            Role::Gateway { site } => Party::Gateway {
                server,
                site: site.clone(),
            },
        }
    }

    /// What this server shows above its own certificate if that is made now.
    fn above_own(&self, party: &Party) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let chain = self.core.keys.signer().chain(&self.issuer_of(party)?)?;
        let (mut above, _) = roots::split(&chain);
        above.extend(self.anchors()?);
        Ok(above)
    }

    /// Whether this server's own certificate leads to that root.
    pub(super) fn own_leads_to(&self, root: &[u8]) -> bool {
        let kept = read_file(&self.core.keys.folder().join("server.pem"));
        let chain = kept.ok().flatten();
        let chain = chain.and_then(|text| pem::certificates(&text));
        chain.is_some_and(|chain| roots::leads_to(&chain[1..], &[root.to_vec()]).is_some())
    }

    fn still_good(
        &self,
        chain: &[Vec<u8>],
        key: &SigningKey,
        party: &Party,
        addresses: &[IpAddr],
    ) -> bool {
        // By another authority than the present one, or with other roots: each outlives its use by far,
        // but nobody should have to lean on what was replaced.
        if self.above_own(party).ok().as_deref() != chain.get(1..) {
            return false;
        }
        let Some((_, leaf)) = chain
            .first()
            .and_then(|der| X509Certificate::from_der(der).ok())
        else {
            return false;
        };
        let (Some(due), Some((from, to))) = (due_at(&chain[0]), validity(&chain[0])) else {
            return false;
        };
        let now = self.core.clock.certain();
        // Made while the time was unknown, or before the configured life was shortened.
        let usual = self.core.config.lives.server + BACKDATE + BACKDATE;
        let too_long = now.is_authenticated() && to - from > usual.as_secs();
        let (names, shown) = sans(&leaf);
        leaf.public_key().raw == key.public().to_spki_der()
            && now.secs < due
            && !too_long
            && names == [party.dns(&self.core.config.domain)]
            && shown == addresses
    }
}

/// DNS names and IP addresses of a certificate.
fn sans(certificate: &X509Certificate<'_>) -> (Vec<String>, Vec<IpAddr>) {
    use x509_parser::extensions::GeneralName;
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return (names, addresses);
    };
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(dns) => names.push((*dns).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                addresses.extend(address.ok());
            }
            _ => {}
        }
    }
    (names, addresses)
}
