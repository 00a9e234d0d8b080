//! Certificate requests that want more than they may have, at the real cloud's enrolment: refused, or answered by the
//! template whatever they wish. What is issued is looked at with openssl.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use holdfast_tests::skip::{has_program, skip};
use holdfast_tests::world::{Plan, SITE, World, fetch};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Eku, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::doors::{VERSIONS, client};
use crate::makers::{DOMAIN, openssl, pem};

#[tokio::test]
async fn a_request_decides_nothing_but_its_key() {
    if !has_program("openssl") {
        return skip("vectors::requests", "openssl is not installed");
    }
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.cloud.ask(&["sites", "add", SITE]).await.unwrap();
    world.cloud.ask(&["sites", "add", "other"]).await.unwrap();
    let desk = Desk::of(&world);
    // One token for all that is refused: what never came to an issue has not used it up.
    let token = desk.token("gw1").await;
    desk.bad_requests_are_refused(&token).await;
    desk.a_good_request_gets_the_template(&token).await;
    desk.greedy_requests_get_the_template().await;
    desk.a_replayed_request_gains_nothing().await;
    world.stop().await.unwrap();
}

/// The cloud's desk for enrolments, as a stranger with a token sees it.
struct Desk<'a> {
    world: &'a World,
    root: CertificateDer<'static>,
    folder: PathBuf,
}

/// What a gateway sends.
struct Asked {
    issuer: Vec<u8>,
    server: Vec<u8>,
}

fn request(params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

fn plain(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    request(&params, key)
}

fn fresh() -> KeyPair {
    KeyPair::generate().unwrap()
}

impl<'a> Desk<'a> {
    fn of(world: &'a World) -> Self {
        let root = world.cloud.state.join("keys/ca-root.pem");
        Self {
            world,
            root: CertificateDer::from_pem_file(root).unwrap(),
            folder: world.folder().to_path_buf(),
        }
    }

    /// A token for a gateway of the site: the secret's part.
    async fn token(&self, gateway: &str) -> Token {
        let words = ["gateways", "token", "--site", SITE, "--gateway", gateway];
        let said = self.world.cloud.ask(&words).await.unwrap();
        let text = said
            .split_whitespace()
            .find(|word| word.starts_with("hf1."))
            .unwrap();
        let secret = URL_SAFE_NO_PAD
            .decode(text.split('.').nth(3).unwrap())
            .unwrap();
        Token {
            gateway: gateway.to_owned(),
            secret: STANDARD.encode(secret),
        }
    }

    /// Asks; the status line and the JSON of the answer.
    async fn ask(&self, token: &Token, asked: &Asked) -> (String, Value) {
        let key = |pair: &KeyPair| STANDARD.encode(pair.subject_public_key_info());
        let body = json!({
            "secret": token.secret,
            "issuer_request": STANDARD.encode(&asked.issuer),
            "server_request": STANDARD.encode(&asked.server),
            "record_key": key(&fresh()),
            "owner_key": key(&fresh()),
            "gateway": token.gateway,
            "addresses": ["10.1.2.3"],
            "mqtt": ["10.1.2.3:8883"],
            "https": ["10.1.2.3:8443"],
        })
        .to_string();
        let door = self.world.cloud_doors.https;
        let stream = TcpStream::connect(door).await.unwrap();
        let config = Arc::new(client(None, VERSIONS[0], &self.root));
        let name = ServerName::from(door.ip());
        let mut stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .unwrap();
        let head = format!(
            "POST /api/v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        // The server may refuse before it has read all.
        let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        let _ = stream.flush().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let line = head.lines().next().unwrap_or_default().to_owned();
        (line, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn refused(&self) -> f64 {
        let page = fetch(self.world.cloud_doors.metrics, "/metrics")
            .await
            .unwrap();
        let ours = page.lines().filter(|line| {
            line.starts_with("holdfast_cps_refused_total") && line.contains("area=\"enrolment\"")
        });
        ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// As the request for its authority and as that for its own certificate.
    async fn bad_requests_are_refused(&self, token: &Token) {
        for (what, bad) in self.bad() {
            for place in ["issuer", "server"] {
                let good = plain(&fresh());
                let asked = match place {
                    "issuer" => Asked {
                        issuer: bad.clone(),
                        server: good,
                    },
                    _ => Asked {
                        issuer: good,
                        server: bad.clone(),
                    },
                };
                let before = self.refused().await;
                let (line, answer) = self.ask(token, &asked).await;
                assert!(
                    line.starts_with("HTTP/1.1 4"),
                    "{what}, {place}: {line} {answer}"
                );
                if what == "1 MiB" {
                    // Over the bound for bodies: nobody has parsed it.
                    continue;
                }
                let why = answer["error"].as_str().unwrap_or_default();
                assert!(why.contains("request"), "{what}, {place}: {answer}");
                assert!(
                    self.refused().await > before,
                    "{what}, {place}: not counted"
                );
            }
        }
        let log = self.world.cloud.logged();
        for said in [
            "neither P-256",
            "not signed by its own key",
            "not a PKCS#10",
        ] {
            assert!(log.contains(said), "the log does not say {said:?}");
        }
    }

    fn bad(&self) -> Vec<(&'static str, Vec<u8>)> {
        let good = plain(&fresh());
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let kinds = [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384];
        let [ed25519, p384] = kinds.map(|kind| plain(&KeyPair::generate_for(kind).unwrap()));
        vec![
            ("a bit of the signature flipped", flipped),
            ("bytes behind it", [&good[..], b"x"].concat()),
            ("nothing", Vec::new()),
            ("another structure", b"\x30\x03\x02\x01\x00".to_vec()),
            ("1 MiB", vec![0x30; 1 << 20]),
            ("5 KiB", vec![0x30; 5 << 10]),
            ("Ed25519", ed25519),
            ("P-384", p384),
            ("P-224", self.by_openssl("secp224r1")),
            ("RSA 1024", self.by_openssl("rsa")),
            ("somebody else's key", somebody_elses()),
        ]
    }

    fn by_openssl(&self, kind: &str) -> Vec<u8> {
        let file = |name: &str| self.folder.join(format!("request-{kind}-{name}"));
        let curve = format!("ec_paramgen_curve:{kind}");
        let key: &[&str] = match kind {
            "rsa" => &["-newkey", "rsa:1024"],
            _ => &["-newkey", "ec", "-pkeyopt", &curve],
        };
        let words = [&["req", "-new", "-nodes", "-subj", "/CN=gw1"], key].concat();
        openssl(&words, &[("-keyout", file("key")), ("-out", file("csr"))]);
        CertificateSigningRequestDer::from_pem_file(file("csr"))
            .unwrap()
            .to_vec()
    }

    async fn a_good_request_gets_the_template(&self, token: &Token) {
        let asked = Asked {
            issuer: plain(&fresh()),
            server: plain(&fresh()),
        };
        let (line, given) = self.ask(token, &asked).await;
        assert!(
            line.starts_with("HTTP/1.1 200"),
            "the control is refused: {line} {given}"
        );
        self.is_by_template(&given, "gw1");
        // Another try with the same token is another party.
        let again = Asked {
            issuer: plain(&fresh()),
            server: plain(&fresh()),
        };
        let (line, _) = self.ask(token, &again).await;
        assert!(
            line.starts_with("HTTP/1.1 4"),
            "the token worked twice: {line}"
        );
    }

    async fn greedy_requests_get_the_template(&self) {
        for (number, (what, params)) in greedy().into_iter().enumerate() {
            let gateway = format!("greedy{number}");
            let token = self.token(&gateway).await;
            let asked = Asked {
                issuer: request(&params, &fresh()),
                server: request(&params, &fresh()),
            };
            let (line, given) = self.ask(&token, &asked).await;
            assert!(line.starts_with("HTTP/1.1 200"), "{what}: {line} {given}");
            self.is_by_template(&given, &gateway);
        }
    }

    /// A request seen on its way and handed in with another token: a certificate for that token's gateway, over a key
    /// that the thief does not have.
    async fn a_replayed_request_gains_nothing(&self) {
        let (issuer, server) = (fresh(), fresh());
        let asked = Asked {
            issuer: plain(&issuer),
            server: plain(&server),
        };
        for gateway in ["victim", "thief"] {
            let token = self.token(gateway).await;
            let (line, given) = self.ask(&token, &asked).await;
            assert!(
                line.starts_with("HTTP/1.1 200"),
                "{gateway}: {line} {given}"
            );
            self.is_by_template(&given, gateway);
        }
    }

    /// Openssl's view of both certificates is that of the templates, and nothing of the request's is in it.
    fn is_by_template(&self, given: &Value, gateway: &str) {
        let chain = |field: &str| -> Vec<PathBuf> {
            let ders = given[field].as_array().unwrap().iter();
            let write = |(number, der): (usize, &Value)| {
                let der = STANDARD.decode(der.as_str().unwrap()).unwrap();
                let path = self.folder.join(format!("{gateway}-{field}-{number}.pem"));
                std::fs::write(&path, pem("CERTIFICATE", &der)).unwrap();
                path
            };
            ders.enumerate().map(write).collect()
        };
        let (issuer, server) = (chain("issuer_chain"), chain("server_chain"));
        let root = issuer.last().unwrap();
        let text = shown(&issuer[0]);
        for wanted in [
            "CA:TRUE, pathlen:0",
            "Certificate Sign, CRL Sign",
            &format!("DNS:.{SITE}.{DOMAIN}"),
        ] {
            assert!(
                text.contains(wanted),
                "{gateway}'s authority lacks {wanted:?}:\n{text}"
            );
        }
        let text = shown(&server[0]);
        let name = format!("DNS:{gateway}.gateways.{SITE}.{DOMAIN}, IP Address:10.1.2.3\n");
        for wanted in [
            "CA:FALSE",
            &name,
            "TLS Web Server Authentication, TLS Web Client Authentication\n",
            "Digital Signature\n",
        ] {
            assert!(
                text.contains(wanted),
                "{gateway}'s certificate lacks {wanted:?}:\n{text}"
            );
        }
        for path in [&issuer[0], &server[0]] {
            let text = shown(path);
            for wish in [
                "evil",
                "*.",
                "Code Signing",
                "Any Extended",
                "1.3.6.1.4.1.99999",
                "gw9",
            ] {
                assert!(
                    !text.contains(wish),
                    "{gateway} got its wish {wish:?}:\n{text}"
                );
            }
        }
        verified(root, None, &issuer[0]);
        verified(root, Some(&server[1]), &server[0]);
        // No certificate lives longer than the template says: checkend asks whether it still holds then.
        assert!(
            !holds_after(&server[0], 400 * 86_400),
            "{gateway}'s own lives too long"
        );
        assert!(
            !holds_after(&issuer[0], 3 * 366 * 86_400),
            "{gateway}'s authority lives too long"
        );
    }
}

struct Token {
    gateway: String,
    secret: String,
}

/// The victim's key in a request signed by us: the 65 bytes of the point swapped.
fn somebody_elses() -> Vec<u8> {
    let (mine, victim) = (fresh(), fresh());
    let mut stolen = plain(&mine);
    let point = mine.der_bytes();
    let at = stolen
        .windows(point.len())
        .position(|part| part == point)
        .unwrap();
    stolen[at..at + point.len()].copy_from_slice(victim.der_bytes());
    stolen
}

/// Requests that are well-formed and want what they may not have.
fn greedy() -> Vec<(&'static str, CertificateParams)> {
    type Wish = fn(&mut CertificateParams);
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let wishes: [(&'static str, Wish); 5] = [
        ("an authority without bounds", |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        }),
        ("other names", |params| {
            params
                .distinguished_name
                .push(DnType::CommonName, "evil.servers.holdfast.internal");
        }),
        ("other uses", |params| {
            params.extended_key_usages = vec![Eku::CodeSigning, Eku::Any];
        }),
        ("an extension of its own, twice", |params| {
            let own =
                || CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
            params.custom_extensions = vec![own(), own()];
        }),
        ("nothing", |_| {}),
    ];
    wishes
        .into_iter()
        .map(|(what, wish)| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            if what == "other names" {
                params.subject_alt_names = vec![
                    dns("*.holdfast.internal"),
                    dns("gw9.gateways.other.holdfast.internal"),
                ];
            }
            wish(&mut params);
            (what, params)
        })
        .collect()
}

fn shown(certificate: &Path) -> String {
    let told = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(certificate)
        .output()
        .unwrap();
    assert!(told.status.success());
    String::from_utf8_lossy(&told.stdout).into_owned()
}

fn holds_after(certificate: &Path, secs: u64) -> bool {
    let mut command = Command::new("openssl");
    command
        .args(["x509", "-noout", "-checkend", &secs.to_string(), "-in"])
        .arg(certificate);
    command.output().unwrap().status.success()
}

/// Openssl builds the chain from the root, by what stands between.
fn verified(root: &Path, between: Option<&Path>, certificate: &Path) {
    let mut command = Command::new("openssl");
    command
        .args(["verify", "-x509_strict", "-CAfile"])
        .arg(root);
    if let Some(between) = between {
        command.arg("-untrusted").arg(between);
    }
    let told = command.arg(certificate).output().unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    let shown = certificate.display();
    assert!(
        told.status.success(),
        "openssl does not believe {shown}: {said}"
    );
}
