//! The forger's workshop: an attacker who has any key that he likes, the site's and the cloud's too, so that each vector
//! is spoilt in one place only. Called by all modules; it contacts nobody.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use holdfast_tests::world::{Part, SITE, World};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PublicKeyData, SanType, date_time_ymd,
};
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{Signer, SigningKey};

/// The domain of every world.
pub(crate) const DOMAIN: &str = "holdfast.internal";
/// The attacker's device, and one that he would like to be.
pub(crate) const DEVICE: &str = "00112233445566778899aabbccddeeff";
pub(crate) const VICTIM: &str = "ffeeddccbbaa99887766554433221100";

/// A device's name at a site.
pub(crate) fn device_at(device: &str, site: &str) -> String {
    format!("{device}.devices.{site}.{DOMAIN}")
}

/// An authority whose key the forger has.
pub(crate) struct Ca {
    pub(crate) der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// One of a server's own, from its key folder.
    pub(crate) fn stolen(part: &Part, label: &str) -> Self {
        let file = |kind: &str| part.state.join("keys").join(format!("ca-{label}.{kind}"));
        let key = KeyPair::try_from(std::fs::read(file("key")).unwrap()).unwrap();
        let der = CertificateDer::from_pem_file(file("pem")).unwrap();
        let issuer = Issuer::from_ca_cert_der(&der, key).unwrap();
        Self { der, issuer }
    }

    /// One that nobody knows, below nobody; its subject is that of `like` if given.
    pub(crate) fn invented(like: Option<&Self>) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority("Holdfast site-harbour gw1");
        let der = params.self_signed(&key).unwrap().der().clone();
        let issuer = match like {
            None => Issuer::new(params, key),
            Some(like) => Issuer::from_ca_cert_der(&like.der, key).unwrap(),
        };
        Self { der, issuer }
    }

    /// One below this.
    pub(crate) fn below(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        Self { der, issuer }
    }

    /// A party that plays the authority with the certificate it has.
    pub(crate) fn with_leaf(der: CertificateDer<'static>, key: KeyPair) -> Self {
        let issuer = Issuer::from_ca_cert_der(&der, key).unwrap();
        Self { der, issuer }
    }

    /// A certificate over this key.
    pub(crate) fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> CertificateDer<'static> {
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }
}

/// An intermediate as the cloud makes them, for another site.
pub(crate) fn intermediate_of(site: &str) -> CertificateParams {
    let mut params = authority("Holdfast site-other gw9");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(format!(".{site}.{DOMAIN}"))],
        excluded_subtrees: Vec::new(),
    });
    params
}

pub(crate) fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A good leaf as the templates make them, to be spoilt.
pub(crate) fn leaf(dns: &str, eku: Eku) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::DnsName(dns.try_into().unwrap())];
    params.distinguished_name = DistinguishedName::new();
    let label = dns.split('.').next().unwrap_or_default();
    params.distinguished_name.push(DnType::CommonName, label);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![eku];
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2045, 1, 1);
    params.use_authority_key_identifier_extension = true;
    params
}

/// What a peer shows: a chain, and whatever it signs the handshake with.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Arc<dyn SigningKey>,
}

impl Shown {
    pub(crate) fn new(leaf: CertificateDer<'static>, above: &[&Ca], key: &KeyPair) -> Self {
        let above = above.iter().map(|ca| ca.der.clone());
        Self {
            chain: std::iter::once(leaf).chain(above).collect(),
            key: signing(key),
        }
    }

    /// A fresh key, certified by `issuer`.
    pub(crate) fn by(params: &CertificateParams, issuer: &Ca, above: &[&Ca]) -> Self {
        let key = KeyPair::generate().unwrap();
        Self::new(issuer.sign(params, &key), above, &key)
    }

    /// What lies in a folder that `clients issue` wrote.
    pub(crate) fn from_folder(folder: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(folder.join("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
        Self {
            chain: chain.map(Result::unwrap).collect(),
            key: any_supported_type(&key).unwrap(),
        }
    }
}

pub(crate) fn signing(key: &KeyPair) -> Arc<dyn SigningKey> {
    let der = PrivatePkcs8KeyDer::from(key.serialize_der());
    any_supported_type(&PrivateKeyDer::from(der)).unwrap()
}

/// Signs with another key than the one it speaks for, whatever that one is: the certificate must be refused before, or
/// the signature.
pub(crate) struct Junk(KeyPair);

impl Junk {
    pub(crate) fn key() -> Arc<dyn SigningKey> {
        Arc::new(Self(KeyPair::generate().unwrap()))
    }
}

impl fmt::Debug for Junk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Junk")
    }
}

impl SigningKey for Junk {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        signing(&self.0).choose_scheme(offered)
    }

    fn algorithm(&self) -> rustls::SignatureAlgorithm {
        rustls::SignatureAlgorithm::ECDSA
    }
}

/// Words that tell of one reason.
#[derive(Clone, Copy)]
pub(crate) struct Reason {
    /// The counter's label.
    pub(crate) counted: &'static str,
    /// Part of the log's line.
    pub(crate) said: &'static str,
}

pub(crate) const fn because(counted: &'static str, said: &'static str) -> Reason {
    Reason { counted, said }
}

/// One bad certificate.
pub(crate) struct Vector {
    /// Its number in the list of client certificates.
    pub(crate) number: u8,
    pub(crate) what: &'static str,
    /// Nothing: it shows no certificate.
    pub(crate) shown: Option<Shown>,
    pub(crate) reason: Reason,
}

/// The authorities around a gateway, and what the vectors need beside them.
pub(crate) struct Forge {
    pub(crate) root: Ca,
    /// The cloud's own of the site. A gateway goes by it alone, for the cloud's record may come late.
    pub(crate) site: Ca,
    /// The gateway's own of the site, of which it knows every serial.
    pub(crate) own: Ca,
    /// Admitted by the site and then revoked.
    pub(crate) revoked: Option<Shown>,
    folder: std::path::PathBuf,
}

impl Forge {
    pub(crate) fn of(world: &World) -> Self {
        Self {
            root: Ca::stolen(&world.cloud, "root"),
            site: Ca::stolen(&world.cloud, "site-harbour"),
            own: Ca::stolen(&world.gateway, "site-harbour"),
            revoked: None,
            folder: world.folder().to_path_buf(),
        }
    }

    pub(crate) fn good(&self) -> Shown {
        let dns = device_at(DEVICE, SITE);
        Shown::by(&leaf(&dns, Eku::ClientAuth), &self.site, &[&self.site])
    }

    /// Right in everything, signed with the gateway's stolen key: it is not on record.
    pub(crate) fn by_hand(&self) -> Shown {
        let dns = device_at(DEVICE, SITE);
        Shown::by(&leaf(&dns, Eku::ClientAuth), &self.own, &[&self.own])
    }

    /// A certificate by the site's own authority, spoilt in one place.
    pub(crate) fn spoilt(&self, spoil: impl Fn(&mut CertificateParams)) -> Shown {
        let mut params = leaf(&device_at(DEVICE, SITE), Eku::ClientAuth);
        spoil(&mut params);
        Shown::by(&params, &self.site, &[&self.site])
    }

    /// Numbers 1 to 24, some of them in several forms. Number 6 is apart, since it is a matter of the clock.
    pub(crate) fn bad(&self) -> Vec<Vector> {
        let mut all = Vec::new();
        let mut add = |number, what, shown: Shown, reason| {
            all.push(Vector {
                number,
                what,
                shown: Some(shown),
                reason,
            });
        };
        self.chains(&mut add);
        self.uses(&mut add);
        self.names(&mut add);
        self.encodings(&mut add);
        all.push(Vector {
            number: 1,
            what: "none",
            shown: None,
            reason: because("no certificate", "certificate"),
        });
        all
    }

    /// Who issued it: numbers 2 to 4, 12 to 14.
    fn chains(&self, add: &mut impl FnMut(u8, &'static str, Shown, Reason)) {
        let good = leaf(&device_at(DEVICE, SITE), Eku::ClientAuth);
        let unknown = because("unknown issuer", "authority that is not ours");
        let constraint = |said| because("constraint", said);
        let key = KeyPair::generate().unwrap();
        let own = good.self_signed(&key).unwrap().der().clone();
        add(2, "self-signed", Shown::new(own, &[], &key), unknown);
        let foreign = Ca::invented(None);
        add(
            3,
            "unknown authority",
            Shown::by(&good, &foreign, &[&foreign]),
            unknown,
        );
        let alike = Ca::invented(Some(&self.site));
        let forged = because("bad signature", "not signed by it");
        add(
            4,
            "same authority's name, other key",
            Shown::by(&good, &alike, &[&self.site]),
            forged,
        );
        let key = KeyPair::generate().unwrap();
        let honest = self.site.sign(&good, &key);
        let by_leaf = Ca::with_leaf(honest, key);
        let victim = leaf(&device_at(VICTIM, SITE), Eku::ClientAuth);
        let shown = Shown::by(&victim, &by_leaf, &[&by_leaf, &self.site]);
        add(12, "issued by a leaf", shown, constraint("constraint"));
        let below = self.site.below(authority("below"));
        let shown = Shown::by(&good, &below, &[&below, &self.site]);
        add(13, "below path length 0", shown, constraint("constraint"));
        let other = self.root.below(intermediate_of("other"));
        let shown = Shown::by(&good, &other, &[&other]);
        add(
            14,
            "another site's intermediate",
            shown,
            constraint("constraint"),
        );
    }

    /// What it is for and when: numbers 5, 7 to 11, 19, 20.
    fn uses(&self, add: &mut impl FnMut(u8, &'static str, Shown, Reason)) {
        let use_of = |said| because("wrong use", said);
        let shown = self.spoilt(|leaf| {
            leaf.not_before = date_time_ymd(2019, 1, 1);
            leaf.not_after = date_time_ymd(2020, 1, 1);
        });
        add(5, "expired", shown, because("expired", "expired"));
        if let Some(revoked) = &self.revoked {
            add(7, "revoked", revoked.clone(), because("revoked", "revoked"));
        }
        let shown = self.spoilt(|leaf| leaf.extended_key_usages = vec![Eku::ServerAuth]);
        add(
            8,
            "for servers only",
            shown,
            use_of("not made for this use"),
        );
        let shown = self.spoilt(|leaf| leaf.extended_key_usages.clear());
        add(
            9,
            "no extended key usage",
            shown,
            use_of("no extended key usage"),
        );
        let shown = self.spoilt(|leaf| leaf.extended_key_usages = vec![Eku::Any]);
        add(
            10,
            "any extended key usage",
            shown,
            use_of("not made for this use"),
        );
        let shown = self.spoilt(|leaf| leaf.extended_key_usages.push(Eku::Any));
        add(10, "any besides the right one", shown, use_of("is any"));
        let shown = self.spoilt(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        add(11, "an authority's", shown, use_of("not made for this use"));
        let shown = self.spoilt(|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
        add(
            19,
            "key usage without signatures",
            shown,
            use_of("lacks digital signature"),
        );
        let shown = self.spoilt(|leaf| leaf.key_usages.clear());
        add(19, "no key usage", shown, use_of("lacks digital signature"));
        let shown = self.spoilt(|leaf| {
            let mut odd =
                CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
            odd.set_criticality(true);
            leaf.custom_extensions.push(odd);
        });
        add(
            20,
            "unknown critical extension",
            shown,
            because("unknown critical extension", "critical extension"),
        );
    }

    /// Whom it names: numbers 15 to 18 and 24.
    fn names(&self, add: &mut impl FnMut(u8, &'static str, Shown, Reason)) {
        let named = |names: &[&str]| {
            self.spoilt(|leaf| {
                let dns = |name: &&str| SanType::DnsName((*name).try_into().unwrap());
                leaf.subject_alt_names = names.iter().map(dns).collect();
                leaf.distinguished_name = DistinguishedName::new();
            })
        };
        let nobody = because("name of nobody", "names nobody");
        let constraint = because("constraint", "constraint");
        add(
            15,
            "a name of another site",
            named(&[&device_at(DEVICE, "other")]),
            constraint,
        );
        add(
            15,
            "a server of the cloud",
            named(&[&format!("cloud.servers.{DOMAIN}")]),
            constraint,
        );
        let wildcard = named(&[&device_at("*", SITE)]);
        add(16, "a wildcard", wildcard, because("wildcard", "wildcard"));
        let (own, victim) = (device_at(DEVICE, SITE), device_at(VICTIM, SITE));
        let two = because("names", "exactly one DNS name");
        add(
            17,
            "another device's name beside its own",
            named(&[&own, &victim]),
            two,
        );
        add(17, "no name", named(&[]), two);
        let shown = self.spoilt(|leaf| {
            leaf.distinguished_name.push(DnType::CommonName, VICTIM);
        });
        add(
            18,
            "common name of another",
            shown,
            because("subject", "subject"),
        );
        let clients = format!("clients.{SITE}.{DOMAIN}");
        add(
            24,
            "an underscore",
            named(&[&format!("a_b.{clients}")]),
            nobody,
        );
        add(
            24,
            "upper case",
            named(&[&format!("Pump.{clients}")]),
            nobody,
        );
        add(
            24,
            "a hyphen in front",
            named(&[&format!("-pump.{clients}")]),
            because("malformed", "malformed"),
        );
        add(
            24,
            "too many labels",
            named(&[&format!("a.b.{own}")]),
            nobody,
        );
    }

    /// How it is signed and written: numbers 21 to 23.
    fn encodings(&self, add: &mut impl FnMut(u8, &'static str, Shown, Reason)) {
        let weak = because("weak key", "neither P-256 nor P-384");
        for (what, kind) in [("P-224", "ec"), ("RSA 1024", "rsa")] {
            let shown = Shown {
                chain: vec![self.by_openssl(kind, "-sha256"), self.site.der.clone()],
                key: Junk::key(),
            };
            add(21, what, shown, weak);
        }
        let shown = Shown {
            chain: vec![self.by_openssl("good", "-sha1"), self.site.der.clone()],
            key: Junk::key(),
        };
        add(21, "SHA-1", shown, because("weak signature", "too weak"));
        let mut flipped = self.good();
        let mut der = flipped.chain[0].to_vec();
        *der.last_mut().unwrap() ^= 1;
        flipped.chain[0] = der.into();
        add(
            22,
            "a bit of the signature flipped",
            flipped,
            because("bad signature", "not signed by it"),
        );
        let mut stolen = self.good();
        stolen.key = Junk::key();
        add(
            23,
            "the right certificate, another key",
            stolen,
            because("key not held", "BadSignature"),
        );
    }

    /// What rcgen cannot make: openssl signs by the site's key.
    fn by_openssl(&self, kind: &str, digest: &str) -> CertificateDer<'static> {
        let file = |name: &str| self.folder.join(format!("openssl-{kind}{digest}-{name}"));
        std::fs::write(file("ca.pem"), pem("CERTIFICATE", &self.site.der)).unwrap();
        std::fs::write(file("ca.key"), self.site.key_pem()).unwrap();
        let name = device_at(DEVICE, SITE);
        let extensions = format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
             extendedKeyUsage=clientAuth\nsubjectAltName=DNS:{name}\n"
        );
        std::fs::write(file("ext"), extensions).unwrap();
        let key: &[&str] = match kind {
            "rsa" => &["-newkey", "rsa:1024"],
            "ec" => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp224r1"],
            _ => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        };
        let subject = format!("/CN={DEVICE}");
        let request: Vec<&str> = ["req", "-new", "-nodes", "-subj", &subject].into();
        openssl(
            &[&request, key].concat(),
            &[("-keyout", file("key")), ("-out", file("csr"))],
        );
        // `ca` and not `x509 -req`: only it can date a certificate back, as the authority does. One that begins at this
        // second is not valid yet to a party whose trusted clock is a moment behind.
        let register = file("register");
        std::fs::write(file("serial"), "1267").unwrap();
        std::fs::write(&register, "").unwrap();
        let config = format!(
            "[ca]\ndefault_ca=site\n[site]\ndatabase={}\nserial={}\nnew_certs_dir={}\npolicy=names\n\
             [names]\ncommonName=supplied\n",
            register.display(),
            file("serial").display(),
            self.folder.display()
        );
        std::fs::write(file("config"), config).unwrap();
        let sign = [
            "ca",
            "-batch",
            "-notext",
            "-startdate",
            "20260101000000Z",
            "-days",
            "3650",
            "-md",
            digest.trim_start_matches('-'),
        ];
        let files = ["config", "csr", "ca.pem", "ca.key", "ext", "crt"].map(file);
        let options = ["-config", "-in", "-cert", "-keyfile", "-extfile", "-out"];
        let files: Vec<_> = options.into_iter().zip(files).collect();
        openssl(&sign, &files);
        CertificateDer::from_pem_file(file("crt")).unwrap()
    }
}

pub(crate) fn openssl(words: &[&str], files: &[(&str, std::path::PathBuf)]) {
    let mut command = Command::new("openssl");
    command.args(words);
    for (option, file) in files {
        command.arg(option).arg(file);
    }
    let told = command.output().unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "openssl {words:?}: {said}");
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
