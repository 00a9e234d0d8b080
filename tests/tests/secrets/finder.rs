//! Finds known secrets in places where they should not be: raw, in hexadecimal digits and in base64, whatever stands
//! before them. Called by all modules; it changes nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// A secret of which all written forms are known.
pub(crate) struct Known {
    /// For people.
    pub(crate) name: String,
    forms: Vec<Vec<u8>>,
}

impl Known {
    pub(crate) fn new(name: impl Into<String>, secret: &[u8]) -> Self {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = |numbers: Vec<String>| numbers.join(", ").into_bytes();
        let mut forms = vec![
            secret.to_vec(),
            hex.to_uppercase().into_bytes(),
            list(secret.iter().map(ToString::to_string).collect()),
            list(secret.iter().map(|byte| format!("{byte:02x}")).collect()),
            list(secret.iter().map(|byte| format!("0x{byte:02x}")).collect()),
            hex.into_bytes(),
        ];
        // In base64 three bytes share four digits: what the whole digits say, for each offset in a longer text.
        for offset in 0..3 {
            let padded = [&vec![0; offset][..], secret].concat();
            for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
                let text = engine.encode(&padded);
                let (from, to) = ((offset * 8).div_ceil(6), padded.len() * 8 / 6);
                forms.push(text.as_bytes()[from..to].to_vec());
            }
        }
        forms.sort();
        forms.dedup();
        Self {
            name: name.into(),
            forms,
        }
    }

    pub(crate) fn is_in(&self, place: &[u8]) -> bool {
        !hits_in("", place, std::slice::from_ref(self)).is_empty()
    }
}

/// Which secrets lie in which files below `folder`, as lines for people.
pub(crate) fn hits(folder: &Path, secrets: &[Known]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files(folder) {
        // A socket cannot be read.
        let Ok(content) = std::fs::read(&file) else {
            continue;
        };
        found.extend(hits_in(&file.display().to_string(), &content, secrets));
    }
    found
}

/// The secrets in one place, each once. One pass for all of them: their first two bytes choose what is compared.
pub(crate) fn hits_in(place: &str, content: &[u8], secrets: &[Known]) -> Vec<String> {
    let start = |bytes: &[u8]| usize::from(bytes[0]) << 8 | usize::from(bytes[1]);
    let mut by_start: Vec<Vec<(usize, &[u8])>> = vec![Vec::new(); 1 << 16];
    for (number, secret) in secrets.iter().enumerate() {
        for form in &secret.forms {
            by_start[start(form)].push((number, form));
        }
    }
    let mut here = BTreeSet::new();
    for (at, pair) in content.windows(2).enumerate() {
        for (number, form) in &by_start[start(pair)] {
            if content[at..].starts_with(form) {
                here.insert(*number);
            }
        }
    }
    let line = |number: usize| format!("{} in {place}", secrets[number].name);
    here.into_iter().map(line).collect()
}

/// All files below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => all.extend(files(&path)),
            Ok(kind) if kind.is_file() => all.push(path),
            _ => {}
        }
    }
    all
}

/// The 32 bytes of a P-256 private key in PKCS#8.
pub(crate) fn scalar(pkcs8: &[u8]) -> Option<[u8; 32]> {
    // INTEGER 1, then OCTET STRING of 32 bytes: RFC 5915's ECPrivateKey.
    let mark = [0x02, 0x01, 0x01, 0x04, 0x20];
    let at = pkcs8.windows(mark.len()).position(|part| part == mark)?;
    pkcs8.get(at + 5..at + 37)?.try_into().ok()
}

#[test]
fn control_every_form_is_found_and_another_secret_is_not() {
    let secret: Vec<u8> = (0..32).map(|n| n * 7 + 3).collect();
    let known = Known::new("it", &secret);
    let other = Known::new("another", &[9; 32]);
    for lead in 0..4 {
        let text = [&vec![b'x'; lead][..], &secret, b"tail"].concat();
        let hex: String = text.iter().map(|byte| format!("{byte:02x}")).collect();
        for place in [
            text.clone(),
            hex.clone().into_bytes(),
            hex.to_uppercase().into_bytes(),
            STANDARD_NO_PAD.encode(&text).into_bytes(),
            URL_SAFE_NO_PAD.encode(&text).into_bytes(),
            format!("{text:?}").into_bytes(),
            format!("{text:02x?}").into_bytes(),
        ] {
            assert!(known.is_in(&place), "{}", String::from_utf8_lossy(&place));
            assert!(!other.is_in(&place));
        }
    }
}
