//! A device made by others: `astarte-device-fdo` runs DI, then TO1 and TO2, against the servers it is pointed at.
//! Called by the test `foreign_fdo` with a state folder of its own; it knows nothing of Holdfast's code.
//!
//! `foreign-device init URL FOLDER SERIAL` prints the GUID it was given; `foreign-device onboard FOLDER SERIAL`
//! prints the GUID that TO2 put in its place. Errors go to stderr and end it with 1.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use astarte_device_fdo::astarte_fdo_protocol::v101::device_credentials::DeviceCredential;
use astarte_device_fdo::client::http::InitialClient;
use astarte_device_fdo::crypto::software::SoftwareCrypto;
use astarte_device_fdo::di::Di;
use astarte_device_fdo::rustls::{ClientConfig, RootCertStore, crypto};
use astarte_device_fdo::srv_info::SkipServiceInfo;
use astarte_device_fdo::storage::{FileStorage, Storage};
use astarte_device_fdo::to1::To1;
use astarte_device_fdo::to2::To2;
use astarte_device_fdo::{Ctx, url::Url};

/// The device's model name, which its factory puts into the voucher as device information.
const MODEL: &str = "foreign-thermometer";

/// Where the library keeps its credential inside the folder.
const CREDENTIAL: &str = "device_creds.cbor";

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["init", url, folder, serial] => init(url, folder, serial).await,
        ["onboard", folder, serial] => onboard(folder, serial).await,
        _ => Err("use: foreign-device init URL FOLDER SERIAL | onboard FOLDER SERIAL".into()),
    };
    match outcome {
        Ok(guid) => {
            println!("{guid}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("foreign-device: {error}");
            ExitCode::FAILURE
        }
    }
}

/// DI: the factory at `url` gives this device its credential.
async fn init(url: &str, folder: &str, serial: &str) -> Outcome<String> {
    let mut parts = Parts::open(folder).await?;
    let client = InitialClient::create(Url::parse(url)?, no_tls()?).map_err(told)?;
    let mut ctx = Ctx::new(&mut parts.crypto, &mut parts.storage, no_tls()?);
    let di = Di::create(&mut ctx, client, MODEL, serial)
        .await
        .map_err(told)?;
    let credential = di.create_credentials(&mut ctx).await.map_err(told)?;
    Ok(credential.dc_guid.to_string())
}

/// TO1 then TO2 with whatever the credential names; the new credential replaces the old one.
async fn onboard(folder: &str, serial: &str) -> Outcome<String> {
    let mut parts = Parts::open(folder).await?;
    let credential = parts.credential().await?;
    let mut ctx = Ctx::new(&mut parts.crypto, &mut parts.storage, no_tls()?);
    let answer = To1::new(&credential)
        .rv_owner(&mut ctx)
        .await
        .map_err(told)?;
    let to2 = To2::create(credential, answer, serial, SkipServiceInfo::default()).map_err(told)?;
    let (done, ()) = to2.to2_change(&mut ctx).await.map_err(told)?;
    done.done(&mut ctx).await.map_err(told)?;
    Ok(parts.credential().await?.dc_guid.to_string())
}

struct Parts {
    crypto: SoftwareCrypto<FileStorage>,
    storage: FileStorage,
}

impl Parts {
    async fn open(folder: &str) -> Outcome<Self> {
        let storage = FileStorage::open(folder.into()).await?;
        let crypto = SoftwareCrypto::create(storage.clone())
            .await
            .map_err(told)?;
        Ok(Self { crypto, storage })
    }

    async fn credential(&self) -> Outcome<DeviceCredential<'static>> {
        let bytes = self
            .storage
            .read(CREDENTIAL)
            .await
            .map_err(told)?
            .ok_or("run init first")?;
        Ok(ciborium::from_reader(bytes.as_slice())?)
    }
}

/// FDO secures itself and is spoken over plain HTTP here: a TLS configuration that trusts nobody.
fn no_tls() -> Outcome<ClientConfig> {
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

/// The library's error with its causes, as text.
fn told(error: impl std::fmt::Display) -> Box<dyn Error> {
    format!("{error:#}").into()
}
