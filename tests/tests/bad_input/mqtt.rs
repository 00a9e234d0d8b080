//! Bad MQTT clients at the gateway's door: no certificate, a foreign or an expired one, a client id that is not the
//! certificate's, topics that are not theirs, packets that are none. Stock clients where they can do it, raw TLS else.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use holdfast_tests::process::{Finished, run};
use holdfast_tests::skip::{has_program, skip};
use holdfast_tests::world::{Plan, Server, World};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::watch::Watch;

/// The client's name and the only topics it may use.
const NAME: &str = "good";
const OWN: &str = "plant/good/state";
const OTHER: &str = "plant/other/state";
/// A bad connection must be closed within this time.
const CLOSED: Duration = Duration::from_secs(15);

#[tokio::test]
async fn bad_clients_are_refused() {
    if !has_program("mosquitto_pub") {
        return skip("bad_input::mqtt", "mosquitto-clients is not installed");
    }
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    let identity = world
        .admit(Server::Gateway, NAME, &["plant/good/#"], &["plant/good/#"])
        .await
        .unwrap();
    let door = Door {
        world: &world,
        identity,
        cases: AtomicU8::new(0),
    };

    door.control_the_good_client_is_served().await;
    door.another_client_id_is_refused().await;
    door.publishing_outside_is_refused().await;
    door.subscribing_outside_is_refused().await;
    door.no_certificate_is_refused().await;
    door.foreign_certificate_is_refused().await;
    door.expired_certificate_is_refused().await;
    door.malformed_packets_are_refused().await;
    door.control_the_good_client_is_served().await;
    world.stop().await.unwrap();
}

/// The gateway's door. Each case comes from an address of its own: of one address and fault the broker logs only the
/// first within a minute.
struct Door<'a> {
    world: &'a World,
    identity: PathBuf,
    cases: AtomicU8,
}

impl Door<'_> {
    async fn control_the_good_client_is_served(&self) {
        let told = self.publish(&self.identity, NAME, OWN).await;
        assert_eq!(
            (told.code, told.err.as_str()),
            (Some(0), ""),
            "the good client"
        );
    }

    async fn another_client_id_is_refused(&self) {
        let watch = self.watch().await;
        let told = self.publish(&self.identity, "somebody-else", OWN).await;
        assert_ne!(
            told.code,
            Some(0),
            "a client id that is not the certificate's was accepted"
        );
        watch
            .refused_once(&self.world.gateway, "another client id")
            .await;
    }

    async fn publishing_outside_is_refused(&self) {
        let watch = self.watch().await;
        let told = self.publish(&self.identity, NAME, OTHER).await;
        assert!(
            told.err.to_lowercase().contains("not authorized"),
            "publish outside: {told:?}"
        );
        watch
            .refused_once(&self.world.gateway, "a publish outside")
            .await;
    }

    async fn subscribing_outside_is_refused(&self) {
        for filter in [OTHER, "#", "plant/#", "+/good/state"] {
            let watch = self.watch().await;
            let told = self
                .stock(
                    "mosquitto_sub",
                    &self.identity,
                    NAME,
                    &["-q", "1", "-t", filter, "-E"],
                )
                .await;
            let said = format!("{}{}", told.out, told.err).to_lowercase();
            assert!(said.contains("denied"), "subscribe to {filter}: {told:?}");
            watch
                .refused_once(&self.world.gateway, &format!("a subscription to {filter}"))
                .await;
        }
    }

    async fn no_certificate_is_refused(&self) {
        let watch = self.watch().await;
        let (host, port) = self.address();
        let ca = self.identity.join("ca.pem").display().to_string();
        let source = self.source().to_string();
        let words = [
            "-A", &source, "-V", "5", "-h", &host, "-p", &port, "--cafile", &ca, "-i", NAME, "-t",
            OWN, "-m", "x", "-q", "1",
        ];
        let told = run(Path::new("mosquitto_pub"), &words, "").await.unwrap();
        assert_ne!(
            told.code,
            Some(0),
            "a client without a certificate was served"
        );
        watch
            .refused_once(&self.world.gateway, "no certificate")
            .await;
    }

    /// A certificate of the same name from an authority that calls itself the same but is not.
    async fn foreign_certificate_is_refused(&self) {
        let folder = self.world.folder().join("foreign-client");
        std::fs::create_dir_all(&folder).unwrap();
        forge(&self.identity, &folder);
        let watch = self.watch().await;
        let told = self.publish(&folder, NAME, OWN).await;
        assert_ne!(told.code, Some(0), "a foreign certificate was accepted");
        watch
            .refused_once(&self.world.gateway, "a foreign certificate")
            .await;
    }

    /// A certificate that the site's own authority made, for a time that is over. The control has the same, still valid.
    async fn expired_certificate_is_refused(&self) {
        let folder = self.world.folder().join("expired-client");
        std::fs::create_dir_all(&folder).unwrap();
        issue_by_the_site(self.world, &self.identity, &folder, 2035);
        let told = self.publish(&folder, NAME, OWN).await;
        assert_eq!(
            told.code,
            Some(0),
            "control: the same certificate, valid: {}",
            told.err
        );
        issue_by_the_site(self.world, &self.identity, &folder, 2020);
        let watch = self.watch().await;
        let told = self.publish(&folder, NAME, OWN).await;
        assert_ne!(told.code, Some(0), "an expired certificate was accepted");
        watch
            .refused_once(&self.world.gateway, "an expired certificate")
            .await;
    }

    /// Bytes that are no MQTT, before and after CONNECT: the connection is closed, nothing else happens.
    async fn malformed_packets_are_refused(&self) {
        let connect = connect_packet(NAME);
        let cases: [(&str, Vec<u8>); 5] = [
            ("no MQTT at all", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            (
                "a length without end",
                vec![0x10, 0xff, 0xff, 0xff, 0xff, 0xff],
            ),
            ("PUBLISH before CONNECT", vec![0x30, 0x03, 0x00, 0x01, b'a']),
            (
                "a second CONNECT",
                [connect.clone(), connect.clone()].concat(),
            ),
            (
                "PUBLISH with quality of service 3",
                [connect, vec![0x36, 0x06, 0, 1, b'a', 0, 1, 0]].concat(),
            ),
        ];
        for (what, bytes) in cases {
            let watch = self.watch().await;
            let mut stream = self.raw().await;
            stream.write_all(&bytes).await.unwrap();
            let mut answer = Vec::new();
            let ended = timeout(CLOSED, stream.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "{what}: the connection stayed open");
            watch.refused_once(&self.world.gateway, what).await;
        }
    }

    async fn publish(&self, identity: &Path, client: &str, topic: &str) -> Finished {
        self.stock(
            "mosquitto_pub",
            identity,
            client,
            &["-q", "1", "-t", topic, "-m", "{}"],
        )
        .await
    }

    /// A stock client with this certificate and client id.
    async fn stock(&self, program: &str, identity: &Path, client: &str, more: &[&str]) -> Finished {
        let (host, port) = self.address();
        let file = |name: &str| identity.join(name).display().to_string();
        let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
        let source = self.source().to_string();
        let mut words = vec![
            "-A", &source, "-V", "5", "-h", &host, "-p", &port, "-i", client,
        ];
        words.extend(["--cafile", &ca, "--cert", &cert, "--key", &key]);
        words.extend(more);
        run(Path::new(program), &words, "").await.unwrap()
    }

    /// A TLS connection with the good client's certificate, no MQTT yet.
    async fn raw(&self) -> TlsStream<TcpStream> {
        let door = self.world.gateway_doors.mqtt;
        let certificates = |name: &str| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_file_iter(self.identity.join(name))
                .unwrap()
                .map(Result::unwrap)
                .collect()
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(certificates("ca.pem"));
        let key = PrivateKeyDer::from_pem_file(self.identity.join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates("cert.pem"), key)
            .unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.source(), 0).into()).unwrap();
        let stream = socket.connect(door).await.unwrap();
        let name = ServerName::from(door.ip());
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .expect("the good certificate is let in")
    }

    /// The address the next client comes from.
    fn source(&self) -> Ipv4Addr {
        Ipv4Addr::new(127, 251, 0, self.cases.fetch_add(1, Ordering::Relaxed) + 1)
    }

    async fn watch(&self) -> Watch {
        Watch::begin(&self.world.gateway, self.world.gateway_doors.metrics).await
    }

    fn address(&self) -> (String, String) {
        let door = self.world.gateway_doors.mqtt;
        (door.ip().to_string(), door.port().to_string())
    }
}

/// MQTT 5 CONNECT with a clean start and this client id.
fn connect_packet(client: &str) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0];
    body.push(u8::try_from(client.len()).expect("a short client id"));
    body.extend(client.as_bytes());
    let mut packet = vec![0x10, u8::try_from(body.len()).expect("a short packet")];
    packet.extend(body);
    packet
}

/// Writes a certificate for the good client's DNS name, signed by an authority of our own, beside the true `ca.pem`.
fn forge(good: &Path, folder: &Path) {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        KeyUsagePurpose,
    };
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::from_params(&authority, &authority_key);
    let key = KeyPair::generate().unwrap();
    let name = "good.clients.harbour.holdfast.internal".to_owned();
    let mut leaf = CertificateParams::new(vec![name]).unwrap();
    leaf.distinguished_name = rcgen::DistinguishedName::new();
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let chain = format!("{}{}", leaf.pem(), authority_certificate.pem());
    std::fs::write(folder.join("cert.pem"), chain).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::copy(good.join("ca.pem"), folder.join("ca.pem")).unwrap();
}

/// Writes a certificate of the good client by the cloud's own key for the site (of its own the gateway knows every serial),
/// valid from 2019 to the first day of `until`.
fn issue_by_the_site(world: &World, good: &Path, folder: &Path, until: i32) {
    use rcgen::{
        CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair,
        KeyUsagePurpose,
    };
    let place = find(&world.cloud.state, "ca-site-harbour.pem").expect("kept in a file");
    let site_key = find(&world.cloud.state, "ca-site-harbour.key").expect("kept in a file");
    let authority = std::fs::read_to_string(place).unwrap();
    let own = CertificateDer::from_pem_slice(authority.as_bytes()).unwrap();
    let site_key = KeyPair::try_from(std::fs::read(site_key).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&own, &site_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut leaf =
        CertificateParams::new(vec!["good.clients.harbour.holdfast.internal".to_owned()]).unwrap();
    leaf.distinguished_name = DistinguishedName::new();
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    leaf.not_before = rcgen::date_time_ymd(2019, 1, 1);
    leaf.not_after = rcgen::date_time_ymd(until, 1, 1);
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let chain = format!("{}{authority}", leaf.pem());
    std::fs::write(folder.join("cert.pem"), chain).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::copy(good.join("ca.pem"), folder.join("ca.pem")).unwrap();
}

/// The file of this name anywhere below `folder`.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find_map(|path| {
            if path.is_dir() {
                find(&path, name)
            } else {
                path.ends_with(name).then_some(path)
            }
        })
}
