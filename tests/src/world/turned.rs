//! Clocks that a test turns under real programs, by Debian's libfaketime: the wall clock alone, or all of them, as if
//! time went by. Called by tests; a part is put under such a clock before it is started.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Part;

/// Where Debian puts the library.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// True if the library is there.
#[must_use]
pub fn can_be_turned() -> bool {
    Path::new(LIBRARY).is_file()
}

/// Which clocks are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hands {
    /// The wall clock, as NTP, a battery or a hand would.
    Wall,
    /// All: time goes by.
    All,
}

/// A clock that programs see in the place of the machine's.
#[derive(Debug, Clone)]
pub struct TurnedClock {
    file: PathBuf,
    hands: Hands,
}

impl TurnedClock {
    /// A clock that shows the machine's time until it is turned; `name` is its file in `folder`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(folder: &Path, name: &str, hands: Hands) -> anyhow::Result<Self> {
        let clock = Self {
            file: folder.join(format!("{name}.clock")),
            hands,
        };
        clock.turn("+0")?;
        Ok(clock)
    }

    /// Turns it: `@1970-01-01 00:10:00` (in UTC, going on from the program's start) or an offset such as `+6h`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn turn(&self, to: &str) -> anyhow::Result<()> {
        let beside = self.file.with_extension("new");
        std::fs::write(&beside, to)?;
        Ok(std::fs::rename(beside, &self.file)?)
    }

    /// A script that starts `program` under this clock, in its own process.
    fn wrap(&self, program: &Path, script: &Path) -> anyhow::Result<()> {
        let steady = match self.hands {
            Hands::Wall => "FAKETIME_DONT_FAKE_MONOTONIC=1 ",
            Hands::All => "",
        };
        let text = format!(
            "#!/bin/sh\nexec env TZ=UTC LD_PRELOAD={LIBRARY} FAKETIME_NO_CACHE=1 {steady}FAKETIME_TIMESTAMP_FILE={} {} \"$@\"\n",
            self.file.display(),
            program.display()
        );
        std::fs::write(script, text)?;
        Ok(std::fs::set_permissions(
            script,
            std::fs::Permissions::from_mode(0o755),
        )?)
    }
}

/// Words for `env` that put a stock program under a wall clock off by `offset`.
#[must_use]
pub fn stock_clock(offset: &str) -> [String; 3] {
    [
        format!("LD_PRELOAD={LIBRARY}"),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        format!("FAKETIME={offset}"),
    ]
}

impl Part {
    /// Lets everything that is started of this part from now on see `clock`.
    ///
    /// # Errors
    /// The script for it cannot be written.
    pub fn put_under(&mut self, clock: &TurnedClock) -> anyhow::Result<()> {
        let script = self.config.with_extension("sh");
        clock.wrap(&self.program, &script)?;
        self.program = script;
        Ok(())
    }
}
