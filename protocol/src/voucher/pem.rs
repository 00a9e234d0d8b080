//! Vouchers as text: a PEM block `OWNERSHIP VOUCHER` around the CBOR.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{MAX_VOUCHER, Voucher, VoucherError};

const BEGIN: &str = "-----BEGIN OWNERSHIP VOUCHER-----";
const END: &str = "-----END OWNERSHIP VOUCHER-----";
/// Columns of a line.
const LINE: usize = 64;
/// Most blocks read from one text.
const MAX_BLOCKS: usize = 1000;

impl Voucher {
    /// Reads the one PEM block in `text`; text around it is let pass.
    pub fn from_pem(text: &str) -> Result<Self, VoucherError> {
        let [block] = &Self::pem_blocks(text)?[..] else {
            return Err(VoucherError::Pem);
        };
        Self::parse(block)
    }

    /// Reads all PEM blocks in `text`: the CBOR of each, not parsed yet; at least one.
    pub fn pem_blocks(text: &str) -> Result<Vec<Vec<u8>>, VoucherError> {
        let mut blocks = Vec::new();
        let mut rest = text;
        while let Some((_, tail)) = rest.split_once(BEGIN) {
            let (body, tail) = tail.split_once(END).ok_or(VoucherError::Pem)?;
            blocks.push(decode(body)?);
            rest = tail;
            if blocks.len() > MAX_BLOCKS {
                return Err(VoucherError::Pem);
            }
        }
        if blocks.is_empty() {
            Err(VoucherError::Pem)
        } else {
            Ok(blocks)
        }
    }

    /// The voucher as one PEM block.
    pub fn to_pem(&self) -> String {
        let encoded = STANDARD.encode(self.as_bytes());
        let mut out = format!("{BEGIN}\n");
        // Base64 is ASCII, so any cut is a character boundary.
        for at in (0..encoded.len()).step_by(LINE) {
            out.push_str(&encoded[at..encoded.len().min(at + LINE)]);
            out.push('\n');
        }
        out.push_str(END);
        out.push('\n');
        out
    }
}

fn decode(body: &str) -> Result<Vec<u8>, VoucherError> {
    let dense: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    if dense.len() > MAX_VOUCHER.div_ceil(3) * 4 {
        return Err(VoucherError::TooLarge);
    }
    STANDARD.decode(dense).map_err(|_| VoucherError::Pem)
}
