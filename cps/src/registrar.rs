//! The registrar: TO2 as the owner. Called by HTTP with messages 60 to 70. It proves our ownership,
//! has the device make its CPS key and state it, issues the certificate from a template, tells the
//! device its site, and records all of it as one signed change with its evidence.
//!
//! Commit point: the change is durable before message 71 leaves. When 71 is lost the device comes
//! again with the old GUID, which stays served until the device was seen with the new one.

mod talk;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::fdo::service_info::MAX_MTU;
use holdfast_protocol::fdo::to2::{
    HelloDevice, Outcome, OwnerSession, OwnerStep, Replacement, Terms,
};
use holdfast_protocol::fdo::{Error, Message, MessageType};
use holdfast_protocol::id::{DeviceId, Guid, ServerId};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::record::{Change, Evidence, Onboarded};
use holdfast_protocol::voucher::Voucher;
use rand_core::Rng as _;

use crate::Core;
use crate::authority::Authority;
use crate::devices::Devices;
use crate::errors::{end_run, own_store};
use crate::fdo::{Answer, FdoParty, FdoReply, FdoRequest, Sessions, Token};
use crate::registry::Draft;
use crate::rendezvous::reply;
use crate::tables::VoucherRow;
use crate::to0::registrable;
use crate::vouchers::advance;

use talk::Talk;

/// TO2 owner.
#[derive(Debug)]
pub struct Registrar {
    core: Core,
    authority: Authority,
    devices: Devices,
    runs: Sessions<Ongoing>,
}

/// One device on its way.
#[derive(Debug)]
struct Ongoing {
    session: OwnerSession,
    about: About,
    talk: Talk,
}

/// What a run is about.
#[derive(Clone, Debug)]
pub(crate) struct About {
    device: DeviceId,
    row: VoucherRow,
    /// The voucher as the device sees it in this run.
    voucher: Voucher,
    new_guid: Guid,
}

impl Registrar {
    pub(crate) fn new(core: Core, authority: Authority, devices: Devices) -> Self {
        let limits = &core.config.limits;
        let runs = Sessions::new(limits.fdo_sessions, limits.fdo_session_life);
        Self {
            core,
            authority,
            devices,
            runs,
        }
    }

    async fn answer_message(&self, request: FdoRequest) -> FdoReply {
        let kind = MessageType::from_number(request.message).unwrap_or(MessageType::Error);
        let message = Message::new(kind, request.body.to_vec());
        let token = request.token.clone();
        let mut about = String::new();
        let done = match kind {
            MessageType::To2HelloDevice => self.begin(&message, &mut about),
            _ => self.go_on(request.token, &message, &mut about).await,
        };
        done.unwrap_or_else(|error| end_run(&self.core.metrics, "to2", &error, kind, token, &about))
    }

    fn begin(&self, message: &Message, name: &mut String) -> Result<FdoReply, Error> {
        let hello = HelloDevice::read(message)?;
        let guid = hello.guid();
        *name = DeviceId::from_guid(guid).to_string();
        let row = self.core.registry.read(|view| view.voucher(guid));
        let row = row
            .map_err(|error| own_store(&error))?
            .filter(|row| row.live);
        let row = row.ok_or(Error::NotFound)?;
        let voucher = registrable(&row, &self.core)?;
        // An earlier key of ours serves the vouchers that name it; the successor names the present one.
        let key = self.core.keys.owner_of(&voucher)?;
        let owner = PublicKey::x509(&self.core.keys.owner().public());
        let mut new_guid = Guid([0; 16]);
        SystemRandom.fill_bytes(&mut new_guid.0);
        let terms = Terms {
            voucher: voucher.clone(),
            key: (*key).clone(),
            replacement: Replacement::Replace {
                guid: new_guid,
                rendezvous: voucher.rendezvous().clone(),
                owner,
            },
            max_service_info: MAX_MTU,
        };
        let (session, answer) = hello.answer(terms, &mut SystemRandom)?;
        let about = About {
            device: row.device,
            row,
            voucher,
            new_guid,
        };
        let talk = Talk::new(&mut SystemRandom);
        let token = self.runs.begin(Ongoing {
            session,
            about,
            talk,
        });
        Ok(reply(answer, Some(token)))
    }

    async fn go_on(
        &self,
        token: Option<Token>,
        message: &Message,
        name: &mut String,
    ) -> Result<FdoReply, Error> {
        let (run, ongoing) = token
            .and_then(|token| self.runs.take(&token))
            .ok_or(Error::NoSession)?;
        let Ongoing {
            session,
            about,
            mut talk,
        } = ongoing;
        *name = about.device.to_string();
        let token = Some(run.token().clone());
        let step = session.step(message, &mut SystemRandom)?;
        if message.kind == MessageType::To2ProveDevice {
            // One TO2 per device: who proves to be it has given up what was before. Not sooner:
            // anybody may say hello in its name.
            self.runs
                .end_where(|other| other.about.device == about.device);
        }
        let (session, answer) = match step {
            OwnerStep::Continue(session, answer) => (session, answer),
            OwnerStep::ServiceInfo(turn) => talk.answer(self, &about, turn).await?,
            OwnerStep::Finished(outcome, answer) => {
                self.commit(&about, talk, outcome).await?;
                return Ok(reply(answer, token));
            }
        };
        self.runs.keep(
            run,
            Ongoing {
                session,
                about,
                talk,
            },
        );
        Ok(reply(answer, token))
    }

    /// Records the onboarding; message 71 leaves only after this.
    async fn commit(&self, about: &About, talk: Talk, outcome: Outcome) -> Result<(), Error> {
        let (new_guid, successor) = match outcome {
            Outcome::Replaced(voucher) => (about.new_guid, Some(*voucher)),
            Outcome::Unsellable => (about.new_guid, None),
            Outcome::Reused => (about.row.guid, Some(about.voucher.clone())),
        };
        let fdo_key = about.voucher.device_key().cloned();
        let cps_key = talk
            .cps_key()
            .or(fdo_key)
            .ok_or(Error::Own("no device key"))?;
        let told = talk.told().to_vec();
        let onboarded = Onboarded {
            old_guid: about.row.guid,
            new_guid,
            voucher: successor
                .as_ref()
                .map(|it| it.as_bytes().to_vec())
                .unwrap_or_default(),
            cps_key,
            evidence: Evidence {
                voucher: about.voucher.as_bytes().to_vec(),
                statement: talk.into_statement(),
            },
        };
        let mut drafts = vec![self.draft(about, Change::Onboarded(Box::new(onboarded)))];
        if let Some(successor) = &successor {
            let row = VoucherRow {
                guid: new_guid,
                voucher: successor.as_bytes().to_vec(),
                ..about.row.clone()
            };
            let ahead = advance(&self.core, &row).map_err(|_| Error::Own("extension"))?;
            drafts.extend(ahead);
        }
        drafts.extend(told.into_iter().map(|server| self.told(about, server)));
        self.core.registry.append(drafts).await.map_err(|error| {
            tracing::error!(device = %about.device, %error, "cannot record an onboarding");
            Error::Own("registry")
        })?;
        self.core.metrics.onboarded();
        tracing::info!(device = %about.device, site = %about.row.site, "device onboarded");
        Ok(())
    }

    fn draft(&self, about: &About, change: Change) -> Draft {
        Draft {
            site: about.row.site.clone(),
            device: Some(about.device),
            change,
        }
    }

    fn told(&self, about: &About, server: ServerId) -> Draft {
        self.draft(about, Change::AlternateTold { server })
    }

    /// Runs open now.
    #[must_use]
    pub fn open_runs(&self) -> usize {
        self.runs.len()
    }
}

impl FdoParty for Registrar {
    fn messages(&self) -> &'static [u8] {
        &[60, 62, 64, 66, 68, 70]
    }

    fn answer(&self, request: FdoRequest) -> Answer<'_> {
        Box::pin(self.answer_message(request))
    }

    fn give_up(&self, token: &Token) {
        self.runs.end(token);
    }
}
