//! A password as an operator gives it: typed twice on a terminal that does not show it, or the first line
//! of standard input. Never an argument, which every user of the machine can read.

use std::io::{self, IsTerminal as _, Write as _};

use holdfast_config::cli::Misuse;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use rustix::termios::{tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// Shortest password for which a hash is made; longest.
const SHORTEST: usize = 8;
const LONGEST: usize = 256;
/// What Ctrl-C sends.
const CTRL_C: u8 = 3;

/// Reads it.
///
/// # Errors
/// It cannot be read, is too short or too long, or was typed differently the second time.
pub(super) fn read() -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return judged(line(&mut stdin.lock())?);
    }
    let first = judged(ask("password: ")?)?;
    let again = ask("again: ")?;
    if *first != *again {
        return Err(Misuse("the two are different; nothing was made".to_owned()).into());
    }
    Ok(first)
}

fn judged(password: Zeroizing<Vec<u8>>) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    match password.len() {
        SHORTEST..=LONGEST => Ok(password),
        length => Err(Misuse(format!(
            "a password of {length} bytes; take one of {SHORTEST} to {LONGEST}"
        ))
        .into()),
    }
}

/// The first line without its end, no more than is ever taken. Ctrl-C ends it too and stays in it: a quiet
/// terminal gives it like any other character.
fn line(input: &mut impl io::BufRead) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    // One that never grows, so that no copy of it is left behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 2));
    for byte in io::Read::bytes(input).take(LONGEST + 2) {
        match byte? {
            b'\n' => break,
            CTRL_C => {
                bytes.push(CTRL_C);
                break;
            }
            byte => bytes.push(byte),
        }
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    Ok(bytes)
}

fn ask(prompt: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let quiet = Quiet::new()?;
    let mut out = io::stderr();
    out.write_all(prompt.as_bytes())?;
    out.flush()?;
    let typed = line(&mut io::stdin().lock());
    drop(quiet);
    out.write_all(b"\n")?;
    let typed = typed?;
    if typed.contains(&CTRL_C) {
        return Err(Misuse("cancelled".to_owned()).into());
    }
    Ok(typed)
}

/// The terminal shows nothing while this lives. Ctrl-C ends the line instead of the program, which would
/// leave the terminal like that.
struct Quiet(Termios);

impl Quiet {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut now = before.clone();
        now.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        now.special_codes[SpecialCodeIndex::VEOL] = CTRL_C;
        tcsetattr(io::stdin(), OptionalActions::Flush, &now)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Nothing can be done if the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_counts_and_must_be_of_a_fair_length() {
        let read = |text: &[u8]| line(&mut &text[..]).and_then(judged);
        for good in ["correct horse\n", "correct horse\r\nmore", "correct horse"] {
            let found = read(good.as_bytes()).expect("good");
            assert_eq!(*found, b"correct horse");
        }
        let cancelled = line(&mut &b"half\x03more\n"[..]).expect("read");
        assert_eq!(*cancelled, b"half\x03", "nobody waits for the line's end");
        assert!(read(b"short\n").is_err());
        assert!(read(&[b'x'; LONGEST + 10]).is_err());
        assert!(read(b"").is_err());
        assert!(read(&[b'x'; LONGEST]).is_ok());
    }
}
