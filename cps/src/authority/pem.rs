//! PEM text for certificates and keys that leave this server. Called by `authority`, `clients`
//! and the signer's files; reading is done by rustls's own reader.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// One block of the given kind.
#[must_use]
pub(crate) fn block(kind: &str, der: &[u8]) -> String {
    const LINE: usize = 64;
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {kind}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = next;
    }
    text.push_str(&format!("-----END {kind}-----\n"));
    text
}

/// Certificates, one block each.
#[must_use]
pub(crate) fn chain(certificates: &[Vec<u8>]) -> String {
    certificates
        .iter()
        .map(|der| block("CERTIFICATE", der))
        .collect()
}

/// Certificates of a PEM text, in order; `None` when there is none or a block is broken.
#[must_use]
pub(crate) fn certificates(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let all: Result<Vec<Vec<u8>>, _> = CertificateDer::pem_slice_iter(text)
        .map(|one| one.map(|der| der.to_vec()))
        .collect();
    all.ok().filter(|all| !all.is_empty())
}
