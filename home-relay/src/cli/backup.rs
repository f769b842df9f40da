//! The `backup` and `restore` commands.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use mobile_host::control::{Client as ControlClient, ControlError};
use mobile_transport::keys::PrivateKey;

use super::args::{DEFAULT_PATH, Restore};
use super::clients::{UNEXPECTED_REPLY, call, connect};
use crate::admin::{AdminReply, Request};
use crate::backup::{Backup, Configuration, Destination, MAX_SIZE, PrivateKeys};
use crate::config::Config;
use crate::footprint::{self, Footprint};
use crate::store::{self, Snapshot, Store};

/// The file name that stands for stdin or stdout.
const STANDARD_STREAM: &str = "-";
/// How often the files are read again if a key changed meanwhile.
const ATTEMPTS: usize = 3;

/// Writes the configuration, the private keys and the content of the store to a new file, or to
/// stdout.
pub(crate) fn backup(path: &Path, file: &Path) -> anyhow::Result<()> {
    let to_stdout = file == Path::new(STANDARD_STREAM);
    if !to_stdout && file.symlink_metadata().is_ok() {
        bail!("{} is already there and is not overwritten: name another file", file.display());
    }
    let backup = gather(path)?;
    let counts = backup.store.counts(backup.created)?;
    let document = backup.encode().context("cannot encode the backup")?;
    if to_stdout {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(document.as_bytes())
            .and_then(|()| stdout.flush())
            .context("cannot write to stdout")?;
    } else {
        write_new(file, document.as_bytes())?;
    }
    eprintln!("backed up: configuration, private key, {counts}");
    eprintln!("the backup holds the relay's private key: keep it as secret as the key");
    Ok(())
}

fn write_new(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).with_context(failed)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written.with_context(failed)
}

/// Gathers a backup of the relay with the configuration file `path`.
fn gather(path: &Path) -> anyhow::Result<Backup> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config = Config::parse(path, &text)?;
    let mode =
        fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.permissions().mode();
    let key_file = &config.identity.private_key_file;
    let mut private_keys = read_keys(key_file)?;
    for _ in 0..ATTEMPTS {
        let store = read_store(&config)?;
        // The store knows which key was announced to whom, so the keys must be of the same time.
        let again = read_keys(key_file)?;
        if again == private_keys {
            let current: PrivateKey = private_keys.current.parse()?;
            return Ok(Backup {
                program: env!("CARGO_PKG_VERSION").to_owned(),
                created: store::now(),
                public_key: current.public(),
                configuration: Configuration { path: path.display().to_string(), mode: mode & 0o777, text },
                private_keys,
                store,
            });
        }
        private_keys = again;
    }
    bail!("the key {} keeps changing: repeat the command when its rotation is done", key_file.display())
}

/// The next step when a key file does not exist.
const NO_KEY: &str = "restore it: a backup without the key is of no use";

fn read_keys(file: &Path) -> anyhow::Result<PrivateKeys> {
    let read = |path: &Path| -> anyhow::Result<String> {
        Ok(PrivateKey::load(path, NO_KEY)?.to_base64().as_str().to_owned())
    };
    let optional = |path: PathBuf| path.symlink_metadata().is_ok().then(|| read(&path)).transpose();
    let [next, old] = Destination::keys_beside(file);
    Ok(PrivateKeys { current: read(file)?, next: optional(next)?, old: optional(old)? })
}

/// Reads the store, from the running relay if there is one.
fn read_store(config: &Config) -> anyhow::Result<Snapshot> {
    let Some(mut relay) = connect(config)? else {
        return match Store::open_existing(&config.state.dir)? {
            Some(store) => Ok(store.snapshot()?),
            None => Ok(Snapshot::empty()?),
        };
    };
    let mut reply = call(&mut relay, &Request::Snapshot)?;
    let mut snapshot = Snapshot::default();
    loop {
        let AdminReply::Snapshot { part, more } = reply else { bail!(UNEXPECTED_REPLY) };
        snapshot.append(part);
        if !more {
            return Ok(snapshot);
        }
        reply = relay.read_reply()?;
    }
}

/// Writes the files of a backup, if no relay is running and none of the files is there.
pub(crate) fn restore(path: &Path, options: &Restore) -> anyhow::Result<()> {
    let name = options.file.display();
    let document = read_document(&options.file).with_context(|| format!("cannot read {name}"))?;
    let backup =
        Backup::decode(&document).with_context(|| format!("nothing restored: {name} cannot be used"))?;
    let config = Config::parse(path, &backup.configuration.text)
        .with_context(|| format!("nothing restored: {name} cannot be used here"))?;
    refuse_running(path, &config)?;
    let restored = Destination::of(path, &config).restore(&backup, options.force)?;
    for (from, to) in &restored.replaced {
        eprintln!("renamed {} to {}", from.display(), to.display());
    }
    for file in &restored.written {
        eprintln!("restored {}", file.display());
    }
    if restored.written.is_empty() {
        eprintln!("all files are already as in the backup");
    }
    eprintln!("the backup has {}", backup.store.counts(store::now())?);
    eprintln!("public key of the backup, which clients must know:");
    println!("{}", backup.public_key);
    eprintln!("{}", next_step(path, &config));
    Ok(())
}

fn read_document(file: &Path) -> io::Result<Vec<u8>> {
    let source: Box<dyn io::Read> = if file == Path::new(STANDARD_STREAM) {
        Box::new(io::stdin())
    } else {
        Box::new(fs::File::open(file)?)
    };
    let mut document = Vec::new();
    source.take(MAX_SIZE + 1).read_to_end(&mut document)?;
    if document.len() as u64 > MAX_SIZE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any backup"));
    }
    Ok(document)
}

/// Fails if a relay runs that uses the configuration file, or the socket of the configuration to
/// be restored.
fn refuse_running(path: &Path, config: &Config) -> anyhow::Result<()> {
    let mut sockets = vec![config.admin.socket.clone()];
    sockets.extend(Config::load(path).map(|present| present.admin.socket));
    let recorded = footprint::state_file(path).and_then(|record| record.read::<Footprint>());
    sockets.extend(recorded.into_iter().flatten().map(|footprint| footprint.socket));
    for socket in sockets {
        match ControlClient::connect(&socket) {
            Err(ControlError::NotRunning { .. }) => {}
            Err(error) => return Err(error).context("nothing restored"),
            Ok(_) => bail!(
                "nothing restored: a relay is running (it answers on {}): stop it first with `systemctl stop home-relay`",
                socket.display()
            ),
        }
    }
    Ok(())
}

fn next_step(path: &Path, config: &Config) -> String {
    let (start, option) = if path == Path::new(DEFAULT_PATH) {
        ("systemctl enable --now home-relay".to_owned(), String::new())
    } else {
        let option = format!(" --config {}", path.display());
        (format!("home-relay serve{option}"), option)
    };
    let name = config.listen.endpoint.as_deref().unwrap_or("the name that clients use");
    format!(
        "next: run `home-relay check{option}`, start the relay (`{start}`), and on another machine point {name} to it; \
         never run both relays"
    )
}
