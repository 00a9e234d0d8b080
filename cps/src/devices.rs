//! Devices as the registry knows them, and what a device is told of its site. Called by the
//! registrar, the API and the CLI. Reads only.

use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::{DeviceId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::DeviceRecord;
use holdfast_protocol::site_module::{ServerAddress, ServerRole, SiteConfig};
use holdfast_protocol::succession::KeyRole;
use holdfast_store::StoreError;
use serde::Serialize;

use crate::Core;
use crate::authority::{Authority, AuthorityError};
use crate::config::Role;
use crate::rotation::known::{of_cloud, of_gateway};
use crate::tables::{LockCause, PeerRow, When};

/// One device, for listings.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceView {
    /// Its id: its first GUID with this owner, 32 hex digits.
    pub device: String,
    /// Its present GUID, 32 hex digits.
    pub guid: String,
    /// Its site.
    pub site: String,
    /// What the voucher says of it.
    pub info: String,
    /// Whether it came by TO2.
    pub onboarded: bool,
    /// The server that onboarded it last.
    pub server: Option<String>,
    /// `proved`, `attested by gateway only` or `unknown manufacturer`.
    pub standing: Option<&'static str>,
    /// Two servers claim it; its next onboarding settles that.
    pub contested: bool,
    /// When it was onboarded last, as far as it is known by now.
    pub since: Option<When>,
    /// Servers that it was told of.
    pub told: Vec<String>,
    /// Serial numbers of its certificates that are not revoked.
    pub certificates: Vec<String>,
}

/// The devices; cheap to clone.
#[derive(Clone, Debug)]
pub struct Devices {
    core: Core,
    authority: Authority,
}

impl Devices {
    pub(crate) fn new(core: Core, authority: Authority) -> Self {
        Self { core, authority }
    }

    /// All devices, or those of a site.
    ///
    /// # Errors
    /// Our own store.
    pub fn list(&self, site: Option<&SiteId>) -> Result<Vec<DeviceView>, StoreError> {
        let ids = self.core.registry.read(|view| view.device_ids())?;
        let mut all = Vec::with_capacity(ids.len());
        for id in ids {
            all.extend(self.view(id)?);
        }
        all.retain(|one| site.is_none_or(|site| one.site == site.as_str()));
        Ok(all)
    }

    /// One device's record.
    ///
    /// # Errors
    /// Our own store.
    pub fn record(&self, device: DeviceId) -> Result<Option<DeviceRecord>, StoreError> {
        self.core.registry.device(device)
    }

    /// One device, for listings.
    ///
    /// # Errors
    /// Our own store.
    pub fn view(&self, device: DeviceId) -> Result<Option<DeviceView>, StoreError> {
        let Some(record) = self.core.registry.device(device)? else {
            return Ok(None);
        };
        let (guid, owner) = (record.guid(), record.owner());
        let (rows, entries, since) = self.core.registry.read(|view| {
            let mut rows = Vec::new();
            for guid in record.guids() {
                rows.extend(view.voucher(guid)?);
            }
            let entries = view.device_entries(device)?;
            let claim = owner.as_ref().map(|it| &it.claim.order.id);
            let claim = entries.iter().find(|one| Some(&one.entry().id) == claim);
            let since = claim.map(|one| view.when(one.entry())).transpose()?;
            Ok((rows, entries, since))
        })?;
        let voucher = rows
            .first()
            .and_then(|row| holdfast_protocol::voucher::Voucher::parse(&row.voucher).ok());
        let site = entries.first().map(|entry| entry.entry().site.to_string());
        let valid = record.certificates().filter(|(_, revoked)| !revoked);
        Ok(Some(DeviceView {
            device: device.to_string(),
            guid: DeviceId::from_guid(guid).to_string(),
            site: site.unwrap_or_default(),
            info: voucher
                .map(|it| it.device_info().to_owned())
                .unwrap_or_default(),
            onboarded: owner.is_some(),
            server: owner
                .as_ref()
                .map(|it| it.claim.order.id.origin.to_string()),
            standing: owner.as_ref().map(|it| it.standing.words()),
            contested: owner.as_ref().is_some_and(|it| it.contested),
            since,
            told: record.told().iter().map(ToString::to_string).collect(),
            certificates: valid.map(|(one, _)| one.serial.to_string()).collect(),
        }))
    }

    /// The servers for devices of a site, the one to prefer first: on the LAN, then the cloud.
    ///
    /// # Errors
    /// Our own store.
    pub fn servers(&self, site: &SiteId) -> Result<Vec<ServerAddress>, StoreError> {
        let (config, advertise) = (&self.core.config, self.core.advertise());
        let own = ServerAddress {
            server: config.server.clone(),
            role: match config.role {
                Role::Cloud => ServerRole::Cloud,
                Role::Gateway { .. } => ServerRole::Gateway,
            },
            name: self.authority.own_party().dns(&config.domain),
            mqtt: advertise.mqtt,
            https: advertise.https,
        };
        let mut all = vec![own];
        let mut peers = self.core.registry.read(|view| view.peers())?;
        // A gateway that was cut off right after its enrolment has not heard the cloud yet.
        if let Some(cloud) = &self.core.cloud
            && peers.iter().all(|row| !row.site.is_cloud())
        {
            peers.push(PeerRow {
                server: cloud.server(),
                site: SiteId::of_cloud(),
                mqtt: cloud.mqtt.clone(),
                https: cloud.https.clone(),
            });
        }
        for row in peers {
            let (server, cloud) = (row.server.clone(), row.site.is_cloud());
            // Nobody is sent to a gateway that was revoked.
            let revoked = self.core.roster.lock_of(&server) == Some(LockCause::Revoke);
            if !cloud && (row.site != *site || revoked) {
                continue;
            }
            let (role, party) = match cloud {
                true => (ServerRole::Cloud, Party::Cloud { server }),
                false => (
                    ServerRole::Gateway,
                    Party::Gateway {
                        server,
                        site: row.site,
                    },
                ),
            };
            all.push(ServerAddress {
                server: row.server,
                role,
                name: party.dns(&config.domain),
                mqtt: row.mqtt,
                https: row.https,
            });
        }
        all.sort_by_key(|server| server.role == ServerRole::Cloud);
        Ok(all)
    }

    /// All that a device needs to work at its site. `chain` goes with its certificate.
    ///
    /// # Errors
    /// Our own store or authority.
    pub(crate) fn site_config(
        &self,
        device: DeviceId,
        site: &SiteId,
        chain: Vec<Vec<u8>>,
    ) -> Result<SiteConfig, AuthorityError> {
        let core = &self.core;
        let notice_keys = self.notice_keys(site)?;
        Ok(SiteConfig {
            device,
            site: site.clone(),
            domain: core.config.domain.clone(),
            server: core.config.server.clone(),
            anchors: self.authority.anchors()?,
            chain,
            notice_keys,
            servers: self.servers(site)?,
            time: core.clock.certain(),
        })
    }

    /// The keys by which notices to a site's devices are signed now.
    ///
    /// # Errors
    /// Our own store.
    pub(crate) fn notice_keys(&self, site: &SiteId) -> Result<Vec<VerifyingKey>, StoreError> {
        let core = &self.core;
        let mut keys = vec![core.keys.record().public()];
        core.registry.read(|view| {
            for row in view.gateways()?.iter().filter(|row| row.site == *site) {
                keys.push(of_gateway(view, row, KeyRole::Signing)?);
            }
            keys.extend(of_cloud(core, view, KeyRole::Signing)?);
            Ok(())
        })?;
        let mut seen = Vec::new();
        keys.retain(|key| {
            let der = key.to_spki_der();
            let new = !seen.contains(&der);
            seen.push(der);
            new
        });
        Ok(keys)
    }
}
