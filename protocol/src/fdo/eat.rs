//! The device's proof, an Entity Attestation Token as FDO cuts it down (wire reference section 9).
//!
//! Made by the device in TO1.ProveToRV and TO2.ProveDevice, checked there by rendezvous and owner.

use super::Error;
use super::message::{MessageType, Nonce, read_body};
use crate::crypto::{SigningKey, VerifyingKey};
use crate::id::Guid;
use crate::wire::cbor::{self, CborError};
use crate::wire::cose::{Headers, Sign1};

/// Claims in the payload, in the order of their encodings.
const CLAIM_NONCE: i64 = 10;
const CLAIM_UEID: i64 = 256;
const CLAIM_FDO: i64 = -257;
/// Unprotected header with NonceTO2SetupDv.
pub(super) const HEADER_NONCE: i64 = -259;
/// First byte of a UEID: what follows is a random identifier.
const UEID_RANDOM: u8 = 1;
/// Most claims; unknown ones are let pass.
const MAX_CLAIMS: usize = 8;
/// Largest UEID of any kind.
const MAX_UEID: usize = 33;

/// Signs a proof; `fdo` is the encoded EAT-FDO claim, if the message has one.
pub(super) fn sign(
    guid: Guid,
    nonce: Nonce,
    fdo: Option<&[u8]>,
    headers: Headers,
    key: &SigningKey,
) -> Sign1 {
    let payload = cbor::encode(|w| {
        w.map(2 + usize::from(fdo.is_some()));
        w.int(CLAIM_NONCE).bytes(&nonce.0);
        w.int(CLAIM_UEID)
            .bytes(&[&[UEID_RANDOM][..], &guid.0].concat());
        if let Some(fdo) = fdo {
            w.int(CLAIM_FDO).raw(fdo);
        }
    });
    Sign1::sign_with(&payload, headers, key)
}

/// Verifies a proof: signature by the device key, nonce, GUID. Gives the EAT-FDO claim, encoded,
/// and the unprotected headers.
pub(super) fn verify(
    kind: MessageType,
    body: &[u8],
    guid: Guid,
    nonce: Nonce,
    key: &VerifyingKey,
) -> Result<(Option<Vec<u8>>, Headers), Error> {
    let blame = |fault| Error::Cose {
        message: kind,
        fault,
    };
    let token = Sign1::parse(body).map_err(blame)?;
    token.verify(key).map_err(blame)?;
    let (mut got_nonce, mut ueid, mut fdo) = (None, None, None);
    read_body(kind, token.payload(), |r| {
        for _ in 0..r.map_len(MAX_CLAIMS)? {
            match r.int()? {
                CLAIM_NONCE if got_nonce.is_none() => got_nonce = Some(Nonce(r.bytes_exact()?)),
                CLAIM_UEID if ueid.is_none() => ueid = Some(r.bytes(MAX_UEID)?),
                CLAIM_FDO if fdo.is_none() => fdo = Some(r.raw()?.to_vec()),
                CLAIM_NONCE | CLAIM_UEID | CLAIM_FDO => {
                    return Err(CborError::Value("a claim occurs twice"));
                }
                _ => _ = r.raw()?,
            }
        }
        Ok(())
    })?;
    if got_nonce != Some(nonce) {
        return Err(Error::Check {
            message: kind,
            what: "nonce",
        });
    }
    if ueid != Some(&[&[UEID_RANDOM][..], &guid.0].concat()[..]) {
        return Err(Error::Check {
            message: kind,
            what: "GUID",
        });
    }
    Ok((fdo, token.unprotected().clone()))
}
