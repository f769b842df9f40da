//! A PostgreSQL server that runs for one case.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::ns::Ns;
use crate::process::{Process, finish_within};
use crate::wait::PATIENCE;

/// The user id of `nobody`, as which the server runs, since it refuses to run as root.
const USER: u32 = 65_534;

/// The directory in which Debian installs the servers, one directory for each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// A running server with a database cluster in the lab's directory, killed when dropped.
pub struct Postgres {
    _server: Process,
}

impl Postgres {
    /// Starts a server at every address of `ns` that accepts every client as the user `postgres`
    /// without a password.
    pub fn start(ns: &Ns, dir: &Path) -> Result<Self> {
        let binaries = newest()?;
        let home = dir.join("postgres");
        std::fs::create_dir(&home)?;
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700))?;
        chown(&home, Some(USER), Some(USER))?;
        let data = home.join("data");
        let mut initdb = ns.command_as(USER, binaries.join("initdb"));
        initdb.args(["--username=postgres", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8"]);
        finish_within(initdb.current_dir(&home).arg("-D").arg(&data), None, PATIENCE * 2)?
            .ok()
            .context("initdb")?;
        let access = "local all all trust\nhost all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
        std::fs::write(data.join("pg_hba.conf"), access)?;
        let mut postgres = ns.command_as(USER, binaries.join("postgres"));
        postgres.current_dir(&home).arg("-D").arg(&data).arg("-k").arg(&home);
        postgres.args(["-c", "listen_addresses=*", "-c", "fsync=off"]);
        let mut server = Process::start("postgres", &mut postgres, &dir.join("postgres.txt"))?;
        server.wait_output("ready to accept connections", PATIENCE)?;
        Ok(Self { _server: server })
    }
}

/// Returns the directory of programs of the newest PostgreSQL version installed.
fn newest() -> Result<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS)
        .with_context(|| format!("no PostgreSQL server in {VERSIONS}: `cargo xtask setup` installs one"))?;
    versions
        .flatten()
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .max()
        .with_context(|| format!("no PostgreSQL server in {VERSIONS}: `cargo xtask setup` installs one"))
}
