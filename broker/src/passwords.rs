//! Users with passwords, for plain MQTT devices: a file of argon2id hashes.
//!
//! A door that is given one ([`crate::Door::Passwords`]) lets in whom it knows and tells the rights the
//! user's name; what the user may do is theirs to say. Hashing takes tens of milliseconds of processor
//! on purpose: it runs beside the connections' threads, a few at a time, and nobody may guess for ever.

mod guesses;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::Refusal;
use crate::rights::Password;

pub use guesses::Guesses;
use guesses::Tally;

/// Hashes at one time; each takes the memory that its line names.
const AT_ONCE: usize = 2;
/// Memory of one hash, in KiB, and passes: more would be a way to stop the server.
const MEMORY_MAX: u32 = 64 << 10;
const PASSES_MAX: u32 = 10;

/// The users of a door. The text has a line `<user>:<argon2id hash in PHC form>` for each; empty
/// lines and lines beginning with `#` are left out.
pub struct Passwords {
    users: RwLock<Users>,
    places: Arc<Semaphore>,
    tally: Mutex<Tally>,
    /// Somebody to check for users that are not there: they take as long.
    decoy: Arc<str>,
}

type Users = HashMap<Box<str>, Arc<str>>;

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passwords")
    }
}

/// What is wrong with a password file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PasswordsError {
    /// The line is not `<user>:<hash>`.
    #[error("line {0} is not `<user>:<hash>`")]
    Line(usize),
    /// The hash is none of argon2id, or asks for more than is allowed.
    #[error("line {0}: the hash is no argon2id hash within 64 MiB and 10 passes; make a new one")]
    Hash(usize),
    /// The user was there before.
    #[error("line {0}: the user is there twice")]
    Twice(usize),
    /// A user name that cannot stand in the file.
    #[error("a user name has no colon, no control characters, and at least one letter")]
    User,
    /// No randomness, or no memory.
    #[error("the password could not be hashed")]
    Hashing,
}

impl Passwords {
    /// Reads a password file's text.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, PasswordsError> {
        let decoy = hash(b"nobody")?;
        Ok(Self {
            users: RwLock::new(users(text)?),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            tally: Mutex::new(Tally::new(Guesses::default())),
            decoy: decoy.into(),
        })
    }

    /// Takes another text's users from now on; connections that are there stay.
    ///
    /// # Errors
    /// The first line that is wrong: then nothing changes.
    pub fn replace(&self, text: &str) -> Result<(), PasswordsError> {
        let users = users(text)?;
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = users;
        Ok(())
    }

    /// The line for a user, with a fresh salt.
    ///
    /// # Errors
    /// For a name that cannot stand in the file, or without randomness.
    pub fn line(user: &str, password: &[u8]) -> Result<String, PasswordsError> {
        if !is_user(user) {
            return Err(PasswordsError::User);
        }
        Ok(format!("{user}:{}", hash(password)?))
    }

    /// The same with other bounds on guessing.
    #[must_use]
    pub fn guessed_at_most(self, guesses: Guesses) -> Self {
        let tally = Mutex::new(Tally::new(guesses));
        Self { tally, ..self }
    }

    /// The hash that stands behind the colon, with a fresh salt.
    ///
    /// # Errors
    /// Without randomness or memory.
    pub fn hash(password: &[u8]) -> Result<String, PasswordsError> {
        hash(password)
    }

    /// Whether this hash may stand in the file.
    #[must_use]
    pub fn takes(hash: &str) -> bool {
        is_bearable(hash)
    }

    /// The user, when name and password belong together; else why not.
    pub(crate) async fn check(
        &self,
        from: IpAddr,
        user: Option<&str>,
        password: Option<Password<'_>>,
    ) -> Result<Arc<str>, Refusal> {
        let (Some(user), Some(password)) = (user, password) else {
            return Err(Refusal::BadCredentials);
        };
        let password = Zeroizing::new(password.0.to_vec());
        // Before the work, not after it: whoever asks often at once gets no more.
        if !self.tally().take(from, user, Instant::now()) {
            return Err(Refusal::Busy);
        }
        let known = self
            .users
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(user)
            .cloned();
        let there = known.is_some();
        let hash = known.unwrap_or_else(|| Arc::clone(&self.decoy));
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| Refusal::Busy)?;
        // The place goes with the work: a connection that gives up frees none.
        let verified = tokio::task::spawn_blocking(move || {
            let _place = place;
            Argon2::default().verify_password(&password, &*hash).is_ok()
        });
        if !(verified.await.unwrap_or(false) && there) {
            return Err(Refusal::BadCredentials);
        }
        self.tally().give_back(from, user);
        Ok(user.into())
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(password: &[u8]) -> Result<String, PasswordsError> {
    Argon2::default()
        .hash_password(password)
        .map(|hash| hash.to_string())
        .map_err(|_| PasswordsError::Hashing)
}

fn is_user(user: &str) -> bool {
    !user.is_empty()
        && !user.starts_with('#')
        && !user.contains(|c: char| c == ':' || c.is_control())
}

fn users(text: &str) -> Result<Users, PasswordsError> {
    let mut users = Users::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let (user, hash) = line
            .trim_end()
            .split_once(':')
            .filter(|(user, _)| is_user(user))
            .ok_or(PasswordsError::Line(number))?;
        if !is_bearable(hash) {
            return Err(PasswordsError::Hash(number));
        }
        if users.insert(user.into(), hash.into()).is_some() {
            return Err(PasswordsError::Twice(number));
        }
    }
    Ok(users)
}

/// argon2id, and no more work than allowed.
fn is_bearable(hash: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else {
        return false;
    };
    let id = hash.algorithm.as_str() == Algorithm::Argon2id.as_str();
    let bearable = Params::try_from(&hash)
        .is_ok_and(|params| params.m_cost() <= MEMORY_MAX && params.t_cost() <= PASSES_MAX);
    id && bearable && hash.hash.is_some() && hash.salt.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(
        passwords: &Passwords,
        user: Option<&str>,
        password: Option<&[u8]>,
    ) -> Result<Arc<str>, Refusal> {
        let from = IpAddr::from([192, 0, 2, 1]);
        passwords.check(from, user, password.map(Password)).await
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_is_taken() {
        let text = format!(
            "# devices\n\n{}\n{}\n",
            Passwords::line("meter", b"right").unwrap(),
            Passwords::line("pump", b"other").unwrap()
        );
        let passwords = Passwords::parse(&text).unwrap();
        let known = check(&passwords, Some("meter"), Some(b"right")).await;
        assert_eq!(known.as_deref(), Ok("meter"));
        for (user, password) in [
            (Some("meter"), Some(&b"other"[..])),
            (Some("meter"), Some(b"")),
            (Some("meter"), None),
            (Some("nobody"), Some(b"nobody")),
            (None, Some(b"right")),
            (Some("METER"), Some(b"right")),
        ] {
            let found = check(&passwords, user, password).await;
            assert_eq!(found, Err(Refusal::BadCredentials), "{user:?}");
        }
        // A bad text changes nothing, a good one everything.
        assert!(passwords.replace("meter:plain").is_err());
        let right = Some(&b"right"[..]);
        assert!(check(&passwords, Some("meter"), right).await.is_ok());
        passwords.replace("").unwrap();
        assert!(check(&passwords, Some("meter"), right).await.is_err());
    }

    #[tokio::test]
    async fn who_guesses_too_often_is_not_even_checked() {
        let text = Passwords::line("meter", b"right").unwrap();
        let bounds = Guesses {
            of_one_user: 2,
            ..Guesses::default()
        };
        let passwords = Passwords::parse(&text).unwrap().guessed_at_most(bounds);
        let right = Some(&b"right"[..]);
        for _ in 0..5 {
            // What was right costs nothing.
            assert!(check(&passwords, Some("meter"), right).await.is_ok());
        }
        for _ in 0..2 {
            let wrong = check(&passwords, Some("meter"), Some(b"x")).await;
            assert_eq!(wrong, Err(Refusal::BadCredentials));
        }
        let late = check(&passwords, Some("meter"), right).await;
        assert_eq!(late, Err(Refusal::Busy));
    }

    #[test]
    fn a_file_says_which_line_is_wrong() {
        let good = Passwords::line("a", b"x").unwrap();
        let costly = good.replace("m=19456", "m=1000000");
        let other = good.replace("argon2id", "argon2i");
        for (text, error) in [
            ("a".to_owned(), PasswordsError::Line(1)),
            ("\n:x".to_owned(), PasswordsError::Line(2)),
            ("a:secret".to_owned(), PasswordsError::Hash(1)),
            (costly, PasswordsError::Hash(1)),
            (other, PasswordsError::Hash(1)),
            (format!("{good}\n{good}"), PasswordsError::Twice(2)),
        ] {
            assert_eq!(Passwords::parse(&text).unwrap_err(), error, "{text}");
        }
        for bad in ["", "a:b", "a\nb", "#a"] {
            assert_eq!(Passwords::line(bad, b"x"), Err(PasswordsError::User));
        }
    }
}
