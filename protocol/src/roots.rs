//! Roots of trust and how one follows another: by a cross-certificate, the new root's key signed by
//! the old root. Whoever believes the old root believes the new one by it, and nobody else's word
//! is needed, so that a server which is not the root's holder cannot bring in a root of its own.
//!
//! Called by the authority, the gateway, the agent and the installer on what a peer showed or
//! answered. Chains are for webpki (in `link`); time is not judged here.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::crypto::{HashAlg, VerifyingKey, hash};

/// Most roots believed at a time: the present one, the one before it, and one more in an answer that
/// crossed a change.
pub const MOST_ROOTS: usize = 4;

/// Whether `der` was signed by the key of `above`, under its name.
#[must_use]
pub fn is_signed_by(der: &[u8], above: &[u8]) -> bool {
    let (Ok((_, signed)), Ok((_, issuer))) = (
        X509Certificate::from_der(der),
        X509Certificate::from_der(above),
    ) else {
        return false;
    };
    let key = VerifyingKey::from_spki_der(issuer.public_key().raw);
    signed.issuer() == issuer.subject()
        && key.is_ok_and(|key| {
            let (text, signature) = (signed.tbs_certificate.as_ref(), &signed.signature_value);
            key.verify_asn1(text, &signature.data).is_ok()
        })
}

/// Whether it is a root: an authority over other authorities, signed by itself.
#[must_use]
pub fn is_root(der: &[u8]) -> bool {
    is_above_authorities(der) && is_signed_by(der, der)
}

/// Takes a chain apart: what is shown above a leaf (intermediates, cross-certificates), and roots. Both
/// keep their order.
#[must_use]
pub fn split(chain: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (roots, shown) = chain.iter().cloned().partition(|der| is_root(der));
    (shown, roots)
}

/// Which of the roots told are believed by whom holds `held`: those held, and those that a believed one
/// has cross-signed. `crosses` may hold other certificates too. In the order told.
#[must_use]
pub fn believed(held: &[Vec<u8>], told: &[Vec<u8>], crosses: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let told: Vec<&Vec<u8>> = told
        .iter()
        .filter(|der| is_root(der))
        .take(MOST_ROOTS)
        .collect();
    let mut known: Vec<&Vec<u8>> = held.iter().collect();
    // Each round finds at least one more, or is the last.
    loop {
        let fresh = told.iter().find(|root| {
            !known.contains(root)
                && crosses
                    .iter()
                    .filter(|cross| is_cross_of(cross, root))
                    .any(|cross| known.iter().any(|old| is_signed_by(cross, old)))
        });
        match fresh {
            Some(root) => known.push(root),
            None => break,
        }
    }
    let believed = told.into_iter().filter(|root| known.contains(root));
    believed.cloned().collect()
}

/// The root of `roots` to which the first certificate of `chain` leads, by its own signature or by
/// those between: none if it leads to none of them without a cross-certificate.
#[must_use]
pub fn leads_to<'a>(chain: &[Vec<u8>], roots: &'a [Vec<u8>]) -> Option<&'a Vec<u8>> {
    let first = chain.first()?;
    let direct = roots.iter().find(|root| is_signed_by(first, root));
    direct.or_else(|| {
        let above = chain[1..].iter().find(|above| {
            !is_root(above) && !is_above_authorities(above) && is_signed_by(first, above)
        })?;
        roots.iter().find(|root| is_signed_by(above, root))
    })
}

/// SHA-256 of a certificate, as people compare it.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    let digest = hash(HashAlg::Sha256, der);
    let hex = digest.value().iter().map(|byte| format!("{byte:02x}"));
    hex.collect()
}

/// A cross-certificate is for the root's key and name, and for authorities over others. An
/// intermediate is none: its holder could call itself a root by it.
fn is_cross_of(der: &[u8], root: &[u8]) -> bool {
    let (Ok((_, cross)), Ok((_, root))) = (
        X509Certificate::from_der(der),
        X509Certificate::from_der(root),
    ) else {
        return false;
    };
    cross.public_key().raw == root.public_key().raw
        && cross.subject() == root.subject()
        && cross.subject() == cross.issuer()
        && is_above_authorities(der)
}

/// Path length 1 and no name constraint: only a root's holder makes such.
fn is_above_authorities(der: &[u8]) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else {
        return false;
    };
    let basic = parsed.basic_constraints().ok().flatten();
    let signs = parsed.key_usage().ok().flatten();
    let above = basic.is_some_and(|basic| {
        basic.value.ca && basic.value.path_len_constraint.is_none_or(|most| most >= 1)
    });
    above
        && signs.is_some_and(|usage| usage.value.key_cert_sign())
        && matches!(parsed.name_constraints(), Ok(None))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    };

    use super::*;

    fn params(name: &str, below: u8) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    fn signed(
        params: &CertificateParams,
        key: &KeyPair,
        by: (&CertificateParams, &KeyPair),
    ) -> Vec<u8> {
        let issuer = Issuer::from_params(by.0, by.1);
        params.signed_by(key, &issuer).unwrap().der().to_vec()
    }

    #[test]
    fn a_root_is_believed_by_the_word_of_the_one_before_and_by_no_other() {
        let root = params("root", 1);
        let keys: Vec<KeyPair> = (0..4).map(|_| KeyPair::generate().unwrap()).collect();
        let roots: Vec<Vec<u8>> = keys
            .iter()
            .map(|key| root.self_signed(key).unwrap().der().to_vec())
            .collect();
        let cross = |to: usize, by: usize| signed(&root, &keys[to], (&root, &keys[by]));
        let held = &roots[..1];
        assert_eq!(believed(held, &roots[..2], &[]), roots[..1]);
        assert_eq!(believed(held, &roots[..2], &[cross(1, 0)]), roots[..2]);
        // One after the other, in whatever order they come.
        let both = [cross(2, 1), cross(1, 0)];
        assert_eq!(believed(held, &roots[..3], &both), roots[..3]);
        assert_eq!(believed(held, &roots[2..3], &both), [] as [Vec<u8>; 0]);
        // By a stranger, and by itself.
        let own = roots[1].clone();
        assert_eq!(believed(held, &roots[..2], &[cross(1, 3), own]), roots[..1]);
        // Not told any more: not believed any more.
        assert_eq!(believed(&roots[..2], &roots[1..2], &[]), roots[1..2]);
    }

    #[test]
    fn an_intermediate_makes_its_holder_no_root() {
        let (root, site) = (params("root", 1), params("site", 0));
        let (top, own) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let held = root.self_signed(&top).unwrap().der().to_vec();
        let intermediate = signed(&site, &own, (&root, &top));
        for posing in [params("site", 1), params("root", 1)] {
            let posing = posing.self_signed(&own).unwrap().der().to_vec();
            assert!(is_root(&posing));
            let told = [held.clone(), posing];
            assert_eq!(
                believed(&told[..1], &told, std::slice::from_ref(&intermediate)),
                told[..1]
            );
        }
        // An intermediate of the root's own name, which no authority of ours makes.
        let named = signed(&params("root", 0), &own, (&root, &top));
        let posing = root.self_signed(&own).unwrap().der().to_vec();
        let told = [held.clone(), posing];
        assert_eq!(believed(&told[..1], &told, &[named]), told[..1]);
        assert_eq!(leads_to(&[intermediate], &told), Some(&held));
    }
}
