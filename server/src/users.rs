//! The clients that come with a password, as of the last reading of their file: who they are, and what
//! each may do at this server.
//!
//! Asked by [`crate::rights`] for every decision, replaced as a whole by [`crate::reload`]. Passwords are
//! checked by the broker's door; here only names count. A session of a user has an id that no
//! certificate's session can have, since no name in a certificate has a colon in it.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use holdfast_broker::{Guesses, Identity, Passwords, PasswordsError};
use holdfast_protocol::name::Party;
use holdfast_protocol::rights::{Place, Rights};

use crate::config::users::{self, User};

/// What stands before a user's name in session ids.
const SESSION: &str = "user:";
/// And in the subjects that are kept with sessions.
const SUBJECT: &str = "user ";
/// Wrong passwords for all names together, as a multiple of those for one.
const ALL_NAMES: u32 = 10;

/// The users; cheap to clone.
#[derive(Clone)]
pub struct Users {
    passwords: Arc<Passwords>,
    known: Arc<RwLock<Known>>,
    place: Place,
}

type Known = HashMap<Box<str>, Arc<Entry>>;

/// A user as it is needed for decisions.
struct Entry {
    user: User,
    rights: Rights,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({})", self.len())
    }
}

/// Why somebody with a right password is still nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stranger {
    /// The file was read again in between.
    Gone,
    /// It says another client id.
    ClientId,
}

impl Users {
    /// These users at this place.
    ///
    /// # Errors
    /// A hash that is none, which the configuration had let pass; or no randomness.
    pub fn new(
        users: users::Users,
        place: Place,
        guesses_per_minute: u32,
    ) -> Result<Self, PasswordsError> {
        let guesses = Guesses {
            of_one_user: guesses_per_minute,
            in_all: guesses_per_minute.saturating_mul(ALL_NAMES),
            within: Duration::from_secs(60),
        };
        let passwords = Passwords::parse(&lines(&users))?.guessed_at_most(guesses);
        let known = compile(users, &place);
        Ok(Self {
            passwords: Arc::new(passwords),
            known: Arc::new(RwLock::new(known)),
            place,
        })
    }

    /// Takes these in the place of those before; gives the names of those whose sessions must end:
    /// who is gone, and who has another password.
    ///
    /// # Errors
    /// As above; then nothing changes.
    pub fn replace(&self, users: users::Users) -> Result<BTreeSet<String>, PasswordsError> {
        self.passwords.replace(&lines(&users))?;
        let new = compile(users, &self.place);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let stays = |name: &str, old: &Entry| {
            let new = new.get(name);
            new.is_some_and(|new| new.user.password == old.user.password)
        };
        let ended = known.iter().filter(|(name, old)| !stays(name, old));
        let ended = ended.map(|(name, _)| name.to_string()).collect();
        *known = new;
        Ok(ended)
    }

    /// For the doors that ask for passwords.
    #[must_use]
    pub fn passwords(&self) -> Arc<Passwords> {
        Arc::clone(&self.passwords)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What this user may do now; nothing if it is gone.
    #[must_use]
    pub fn rights(&self, user: &str) -> Rights {
        self.find(user)
            .map_or_else(Rights::none, |entry| entry.rights.clone())
    }

    /// Who the user is, whose password was right.
    pub(crate) fn identify(&self, user: &str, said: &str) -> Result<Identity, Stranger> {
        let entry = self.find(user).ok_or(Stranger::Gone)?;
        let session = format!("{SESSION}{user}");
        let own = entry.user.client_id.as_deref();
        if !(said.is_empty() || said == user || said == session || Some(said) == own) {
            return Err(Stranger::ClientId);
        }
        Ok(Identity {
            client_id: session.into(),
            subject: format!("{SUBJECT}{user}").into(),
        })
    }

    fn find(&self, user: &str) -> Option<Arc<Entry>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(user).cloned()
    }
}

/// The user that a session's subject names, if it names one.
#[must_use]
pub fn named_by(subject: &str) -> Option<&str> {
    subject.strip_prefix(SUBJECT)
}

/// The text that the broker's passwords are read from. Names and hashes were checked: neither has a
/// colon or a line's end in it that would make another line.
fn lines(users: &users::Users) -> String {
    let line = |user: &User| format!("{}:{}\n", user.name, user.password);
    users.0.iter().map(line).collect()
}

fn compile(users: users::Users, place: &Place) -> Known {
    let entry = |user: User| {
        let site = match place {
            Place::Site(site) => Some(site.clone()),
            Place::Cloud => None,
        };
        let name = user.name.clone();
        let party = Party::Client { name, site };
        let rights = Rights::compile(&party, Some(&user.patterns), place);
        (user.name.as_str().into(), Arc::new(Entry { user, rights }))
    };
    users.0.into_iter().map(entry).collect()
}
