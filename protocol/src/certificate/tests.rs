//! Certificate vectors, made here: the good, and each fault alone (security list 3.2, as far as one
//! certificate alone can show it; chains are tried where they are built).

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose as Use,
    IsCa, KeyPair, KeyUsagePurpose as Key, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};

use super::*;
use crate::{fixture::Dice, id::InvalidId, time::TimeQuality};

const DEVICE: &str = "000102030405060708090a0b0c0d0e0f";

fn domain() -> Domain {
    "holdfast.internal".parse().unwrap()
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

fn device_name() -> String {
    format!("{DEVICE}.devices.plant.holdfast.internal")
}

/// A good device certificate, changed by `edit` before it is signed.
fn made(
    algorithm: &'static SignatureAlgorithm,
    edit: impl FnOnce(&mut CertificateParams),
) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![dns(&device_name())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![Key::DigitalSignature];
    params.extended_key_usages = vec![Use::ClientAuth];
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params.serial_number = Some(SerialNumber::from_slice(&[0x17; 20]));
    edit(&mut params);
    let key = KeyPair::generate_for(algorithm).unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn device(edit: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    made(&PKCS_ECDSA_P256_SHA256, edit)
}

fn gateway(edit: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    device(|params| {
        params.subject_alt_names = vec![dns("gw1.gateways.plant.holdfast.internal")];
        params.extended_key_usages = vec![Use::ServerAuth, Use::ClientAuth];
        edit(params);
    })
}

fn common_name(params: &mut CertificateParams, name: &str) {
    params.distinguished_name.push(DnType::CommonName, name);
}

fn refusal(der: &[u8], purpose: Purpose) -> CertificateFault {
    Leaf::inspect(der, &domain(), purpose).expect_err("this certificate is bad")
}

#[test]
fn the_good_pass() {
    let plain = Leaf::inspect(&device(|_| {}), &domain(), Purpose::Client).unwrap();
    assert_eq!(plain.party.to_string(), format!("device {DEVICE} of plant"));
    assert_eq!(plain.serial.as_bytes(), [0x17; 20]);
    assert_eq!(
        (plain.not_before, plain.not_after),
        (1_767_225_600, 1_798_761_600)
    );
    for good in [
        device(|params| params.extended_key_usages.push(Use::ServerAuth)),
        device(|params| common_name(params, DEVICE)),
        made(&PKCS_ECDSA_P384_SHA384, |_| {}),
        device(|params| params.is_ca = IsCa::NoCa),
        gateway(|params| common_name(params, "gw1.gateways.plant.holdfast.internal")),
    ] {
        assert!(Leaf::inspect(&good, &domain(), Purpose::Client).is_ok());
    }
    let with_addresses = gateway(|params| {
        params
            .subject_alt_names
            .push(SanType::IpAddress("192.168.1.2".parse().unwrap()));
        params
            .subject_alt_names
            .push(SanType::IpAddress("fd00::2".parse().unwrap()));
    });
    let server = Leaf::inspect(&with_addresses, &domain(), Purpose::Server).unwrap();
    assert_eq!(server.addresses.len(), 2);
    assert!(server.party.is_server());
}

#[test]
fn each_fault_has_its_reason() {
    use CertificateFault as Fault;
    let client = |der: Vec<u8>, fault: Fault| assert_eq!(refusal(&der, Purpose::Client), fault);
    // 8, 9, 10: extended key usage.
    client(
        device(|p| p.extended_key_usages = vec![Use::ServerAuth]),
        Fault::WrongPurpose,
    );
    client(
        device(|p| p.extended_key_usages.clear()),
        Fault::NoExtendedKeyUsage,
    );
    client(
        device(|p| p.extended_key_usages = vec![Use::Any]),
        Fault::AnyExtendedKeyUsage,
    );
    client(
        device(|p| p.extended_key_usages.push(Use::Any)),
        Fault::AnyExtendedKeyUsage,
    );
    // 11: a leaf that is a CA.
    let ca = IsCa::Ca(BasicConstraints::Unconstrained);
    client(device(|p| p.is_ca = ca), Fault::Authority);
    // 16: wildcard; 24: alphabet and length; and names that are none.
    let named = |name: &str| device(|p| p.subject_alt_names = vec![dns(name)]);
    for bad in [
        "*.devices.plant.holdfast.internal".to_owned(),
        format!("{}.devices.plant.holdfast.internal", DEVICE.to_uppercase()),
        format!("{DEVICE}.devices.pl_ant.holdfast.internal"),
        format!("{DEVICE}.devices.{}.holdfast.internal", "x".repeat(65)),
        format!("{DEVICE}.devices.clients.holdfast.internal"),
        format!("{DEVICE}x.devices.plant.holdfast.internal"),
    ] {
        let fault = refusal(&named(&bad), Purpose::Client);
        let id = matches!(fault, Fault::Name(InvalidName::Id(InvalidId { .. })));
        assert!(id, "{bad}: {fault:?}");
    }
    let foreign = refusal(
        &named(&format!("{DEVICE}.devices.plant.example.com")),
        Purpose::Client,
    );
    assert!(matches!(foreign, Fault::Name(InvalidName::Foreign { .. })));
    let form = refusal(&named("plant.holdfast.internal"), Purpose::Client);
    assert_eq!(form, Fault::Name(InvalidName::Form));
    // 18: the subject says another.
    client(
        device(|p| common_name(p, "ffeeddccbbaa99887766554433221100")),
        Fault::Subject,
    );
    client(device(|p| common_name(p, "")), Fault::Subject);
    // 19: key usage.
    client(
        device(|p| p.key_usages = vec![Key::KeyAgreement]),
        Fault::KeyUsage,
    );
    client(device(|p| p.key_usages.clear()), Fault::KeyUsage);
    client(
        device(|p| p.key_usages.push(Key::KeyCertSign)),
        Fault::KeyUsageTooWide,
    );
    client(
        device(|p| p.key_usages.push(Key::CrlSign)),
        Fault::KeyUsageTooWide,
    );
    // 20: an unknown critical extension; uncritical it passes.
    let extension = |critical| {
        device(|p| {
            let mut odd =
                CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999], vec![5, 0]);
            odd.set_criticality(critical);
            p.custom_extensions.push(odd);
        })
    };
    client(extension(true), Fault::UnknownCritical);
    assert!(Leaf::inspect(&extension(false), &domain(), Purpose::Client).is_ok());
    // An extension twice.
    let again = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
    client(
        device(|p| p.custom_extensions.push(again)),
        Fault::RepeatedExtension,
    );
    // 21: weak or other algorithms.
    client(weak_signature(), Fault::Algorithm);
    client(made(&PKCS_ED25519, |_| {}), Fault::Algorithm);
    // Names of other kinds, two names, none, an address for a device.
    let also = |name: SanType| device(|p| p.subject_alt_names.push(name));
    client(also(dns("b.servers.holdfast.internal")), Fault::Names);
    client(
        also(SanType::URI("urn:x".try_into().unwrap())),
        Fault::Names,
    );
    client(
        also(SanType::Rfc822Name("a@b".try_into().unwrap())),
        Fault::Names,
    );
    client(
        also(SanType::IpAddress("10.0.0.1".parse().unwrap())),
        Fault::Addresses,
    );
    client(device(|p| p.subject_alt_names.clear()), Fault::Names);
    // Times and numbers.
    client(
        device(|p| p.not_before = date_time_ymd(2028, 1, 1)),
        Fault::Validity,
    );
    client(
        device(|p| p.serial_number = Some(SerialNumber::from_slice(&[0]))),
        Fault::SerialNumber,
    );
    let long = SerialNumber::from_slice(&[0x17; 21]);
    client(
        device(|p| p.serial_number = Some(long)),
        Fault::SerialNumber,
    );
    // Bytes after it, and nothing at all.
    client([device(|_| {}), vec![0]].concat(), Fault::Malformed);
    client(Vec::new(), Fault::Malformed);
    client(vec![0x30; MAX_DER + 1], Fault::Malformed);
}

/// 8 and F2 from the other side: who may not serve.
#[test]
fn only_servers_serve() {
    let both = device(|params| params.extended_key_usages.push(Use::ServerAuth));
    assert_eq!(
        refusal(&both, Purpose::Server),
        CertificateFault::WrongPurpose
    );
    assert_eq!(
        refusal(&device(|_| {}), Purpose::Server),
        CertificateFault::WrongPurpose
    );
    let client_only = gateway(|params| params.extended_key_usages = vec![Use::ClientAuth]);
    assert_eq!(
        refusal(&client_only, Purpose::Server),
        CertificateFault::WrongPurpose
    );
}

#[test]
fn usage_alone_asks_for_no_name() {
    let foreign = device(|p| p.subject_alt_names = vec![dns("broker.example.com")]);
    assert_eq!(check_usage(&foreign, Purpose::Client), Ok(()));
    assert_eq!(
        check_usage(&foreign, Purpose::Server),
        Err(CertificateFault::WrongPurpose)
    );
    let ca = device(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(
        check_usage(&ca, Purpose::Client),
        Err(CertificateFault::Authority)
    );
}

/// The algorithm's OID turned to ecdsa-with-SHA224, in both places.
fn weak_signature() -> Vec<u8> {
    const SHA256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let mut der = device(|_| {});
    let places: Vec<usize> = der
        .windows(8)
        .enumerate()
        .filter(|(_, at)| *at == SHA256)
        .map(|(at, _)| at)
        .collect();
    assert_eq!(places.len(), 2);
    places.iter().for_each(|at| der[at + 7] = 0x01);
    der
}

#[test]
fn time_is_judged_by_its_quality() {
    let leaf = Leaf::inspect(&device(|_| {}), &domain(), Purpose::Client).unwrap();
    let at = |secs, quality| leaf.check_time(Time::new(secs, quality));
    let (before, within, after) = (leaf.not_before - 1, leaf.not_before + 1, leaf.not_after + 1);
    for quality in [
        TimeQuality::None,
        TimeQuality::Floor,
        TimeQuality::Authenticated,
    ] {
        assert_eq!(at(within, quality), Ok(()));
        assert_eq!(at(leaf.not_after, quality), Ok(()));
        assert_eq!(at(after, quality), Err(CertificateFault::Expired));
    }
    // A clock that may be behind locks nobody out.
    assert_eq!(at(before, TimeQuality::None), Ok(()));
    assert_eq!(at(before, TimeQuality::Floor), Ok(()));
    assert_eq!(
        at(before, TimeQuality::Authenticated),
        Err(CertificateFault::NotYetValid)
    );
}

#[test]
fn damaged_certificates_never_panic_nor_name_another() {
    let good = device(|_| {});
    let mut dice = Dice::new(1);
    for round in 0..20_000 {
        let mut bad = good.clone();
        for _ in 0..=dice.below(3) {
            let at = usize::try_from(dice.below(bad.len() as u64)).unwrap();
            match dice.below(3) {
                0 => bad[at] ^= 1 << dice.below(8),
                1 => bad.truncate(at.max(1)),
                _ => bad[at] = u8::try_from(dice.below(256)).unwrap(),
            }
        }
        if let Ok(leaf) = Leaf::inspect(&bad, &domain(), Purpose::Client) {
            // What still reads as a name must be one that this room would print.
            assert_eq!(leaf.party.dns(&domain()), leaf.dns, "round {round}");
        }
    }
}
