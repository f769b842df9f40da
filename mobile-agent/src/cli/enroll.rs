//! `mobile enroll`: redeems an invitation. Key and configuration appear together, once the relay has accepted the key,
//! or not at all.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use mobile_io::invitation::Invitation;
use mobile_io::keys::PrivateKey;
use mobile_io::netlink::Netlink;
use mobile_io::text::printable;
use mobile_io::tls::{self, TlsStream};
use mobile_io::transport;
use mobile_proto::enroll::{self, Answer, Refusal};
use rustls::ClientConfig;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::trial;
use crate::check::resolve;
use crate::config::{Config, DEFAULT_PATH};
use crate::routing::claim::{HostNetworks, judge};
use crate::routing::lease::{Assigned, Lease};
use crate::routing::networks;

/// For each step of a connection: a satellite's round trip, three times repeated; and a person waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// The relay may have let the key in although its answer was lost; asked again, it says the same again.
const ATTEMPTS: u32 = 3;
/// Longer texts than this are no invitation, and are not read whole.
const MAX_TEXT: u64 = 4096;

/// Redeems `invitation`, `-` for one on stdin, then tries the tunnel and prints the persistent addresses, one a line.
pub(super) fn enroll(config: Option<&Path>, invitation: &str) -> anyhow::Result<()> {
    let invitation: Invitation = match invitation {
        "-" => read_line()?.parse()?,
        text => text.parse()?,
    };
    let path = config.unwrap_or(Path::new(DEFAULT_PATH));
    let staged = Staged::prepare(path, &invitation)?;
    let key = staged.key.clone();
    super::runtime()?.block_on(async {
        let name = redeem(&invitation, &key).await?;
        staged.publish().context("the relay let this host in, but that could not be written down")?;
        let name = printable(&name);
        tell(&format!("enrolled as {name}; wrote {}", path.display()));
        let dial = tls::client_config(&key, invitation.relay);
        let assigned = async {
            let stream = connect(&invitation.endpoint, &dial).await?;
            trial::assigned(stream).await
        };
        let assigned = assigned.await.context(
            "this host is enrolled, but a session with the relay did not come about: `mobile check` looks for the cause",
        )?;
        // So that from the agent's first start on mobile processes have an address to send from, and wait if they must.
        let config = Config::load(Some(path))?;
        warn_of_refusals(&config, &assigned).await;
        if let Err(error) = Lease::new(&config.state.dir, &invitation.relay).store(&assigned) {
            tell(&format!("the agent will learn the addresses when it first reaches the relay: {error:#}"));
        }
        let addresses = assigned.addresses();
        super::print(&addresses.iter().map(|address| format!("{address}\n")).collect::<String>())
    })
}

/// Warns of what the agent would refuse of the assignment now. The agent judges by itself at each
/// start.
async fn warn_of_refusals(config: &Config, assigned: &Assigned) {
    let host = match Netlink::new() {
        Ok(netlink) => networks::read(&netlink, &config.tunnel.device, Vec::new()).await.unwrap_or_default(),
        Err(_) => HostNetworks::default(),
    };
    for refusal in judge(assigned, &config.tunnel.addresses, &host).refusals {
        let refusal = refusal.told();
        tell(&format!("the agent will refuse this: {}; {}", refusal.cause, refusal.next_step));
    }
}

/// What is no answer, but good to know, goes to stderr.
fn tell(text: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn read_line() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_TEXT)
        .read_to_string(&mut text)
        .context("cannot read the invitation from stdin")?;
    Ok(text)
}

/// Key and configuration, written and synced beside their places, which a crash or a refusal leaves empty.
struct Staged {
    key: PrivateKey,
    /// None: a key was there already, and is used.
    key_file: Option<(NamedTempFile, PathBuf)>,
    config_file: NamedTempFile,
    config_path: PathBuf,
}

impl Staged {
    /// Everything that can fail without the relay fails here, while the invitation is still good.
    fn prepare(config: &Path, invitation: &Invitation) -> anyhow::Result<Self> {
        ensure!(
            config.file_name().is_some(),
            "--config {}: name a file, for example agent.toml",
            config.display()
        );
        if config.symlink_metadata().is_ok() {
            bail!(
                "{} is there already and is not overwritten: this host belongs to a relay; move the file away, or \
                 name another with --config",
                config.display()
            );
        }
        let dir = match config.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
        let key_path = config.with_file_name("agent.key");
        ensure!(key_path != config, "--config {}: that is the key's name", config.display());
        let (key, key_file) = if key_path.symlink_metadata().is_ok() {
            // `mobile keygen` made it, or an enrolment that was cut off in between.
            (PrivateKey::load(&key_path)?, None)
        } else {
            let key = PrivateKey::generate()?;
            let file = stage(dir, &format!("{}\n", *key.to_base64()))?;
            (key, Some((file, key_path)))
        };
        let config_file = stage(dir, &text(invitation))?;
        Config::load(Some(config_file.path()))?.relay_identity()?;
        Ok(Self { key, key_file, config_file, config_path: config.to_owned() })
    }

    /// Puts both in their places, the configuration last: without it the key is only one that `keygen` could have made.
    fn publish(self) -> anyhow::Result<()> {
        let Self { key_file, config_file, config_path, .. } = self;
        let dir = config_file.path().parent().unwrap_or(Path::new(".")).to_owned();
        let written = key_file.as_ref().map(|(_, path)| path.clone());
        if let Some((file, path)) = key_file {
            file.persist_noclobber(&path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Err(error) = config_file.persist_noclobber(&config_path) {
            if let Some(key) = written {
                // The error to report is the first.
                let _ = std::fs::remove_file(key);
            }
            return Err(error).with_context(|| format!("cannot write {}", config_path.display()));
        }
        let synced = std::fs::File::open(&dir).and_then(|dir| dir.sync_all());
        synced.with_context(|| format!("cannot sync {}", dir.display()))
    }
}

/// A file for its owner alone (that is how `tempfile` makes them), on the disk, gone if nothing becomes of it.
fn stage(dir: &Path, text: &str) -> anyhow::Result<NamedTempFile> {
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".enroll-").suffix(".toml").tempfile_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        std::io::Result::Ok(file)
    };
    write().with_context(|| format!("cannot write to {}: run as root", dir.display()))
}

fn text(invitation: &Invitation) -> String {
    let Invitation { endpoint, relay, .. } = invitation;
    format!(
        "# Written by `mobile enroll`. docs/operating.md has the other settings.\n\n\
         [relay]\nendpoint = \"{endpoint}\"\npublic_key = \"{relay}\"\n\n\
         [identity]\n# Beside this file.\nprivate_key_file = \"agent.key\"\n"
    )
}

/// The name the relay knows this key by from now on.
async fn redeem(invitation: &Invitation, key: &PrivateKey) -> anyhow::Result<String> {
    let config = tls::enrolment_config(key, invitation.relay);
    let mut asked = false;
    let mut last = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut stream = match connect(&invitation.endpoint, &config).await {
            Ok(stream) => stream,
            Err(error) if asked => {
                last = Some(error);
                continue;
            }
            Err(error) => return Err(error.context(UNTOUCHED)),
        };
        asked = true;
        match ask(&mut stream, invitation).await {
            Ok(Answer::Enrolled(name)) => return Ok(name),
            Ok(Answer::Refused(why)) => bail!("{why}; {}", next_step(why)),
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| anyhow::anyhow!("no attempt was made"));
    Err(error.context(
        "the relay did not say whether it let this host in, and nothing was written here: use the invitation again, \
         and if it counts as used, have the relay's owner `revoke` the name and invite it again",
    ))
}

const UNTOUCHED: &str =
    "the relay was not reached, nothing was written, and the invitation is as good as before";

fn next_step(why: Refusal) -> &'static str {
    match why {
        Refusal::Unknown | Refusal::Expired | Refusal::Used => {
            "ask the relay's owner for a new one (`home-relay invite NAME`)"
        }
        Refusal::KeyTaken => {
            "write a configuration for the key that is here, or move the key away to get another one"
        }
        Refusal::NoAddress => "the relay's owner has to revoke a client or widen [pool]",
        Refusal::Failed | Refusal::Malformed | Refusal::Other(_) => {
            "ask the relay's owner what its log says; another version may be the cause"
        }
    }
}

async fn ask(stream: &mut TlsStream, invitation: &Invitation) -> anyhow::Result<Answer> {
    let exchange = async {
        stream.write_all(&enroll::request(&invitation.token)).await?;
        stream.flush().await?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 512];
        loop {
            if let Some(answer) = enroll::read_answer(&bytes)? {
                // It waits for our end; if it is gone already, that is all the same.
                let _ = stream.shutdown().await;
                return Ok(answer);
            }
            match stream.read(&mut buffer).await.map_err(|error| tls::explain(&error))? {
                0 => {
                    bail!("the relay closed the connection without an answer: it is busy, or being restarted")
                }
                read => bytes.extend_from_slice(&buffer[..read]),
            }
        }
    };
    match tokio::time::timeout(2 * PATIENCE, exchange).await {
        Ok(answer) => answer,
        Err(_) => bail!("the relay did not answer within {:?}", 2 * PATIENCE),
    }
}

/// TCP and TLS by the ordinary route, with the first address that answers; a wrong key ends it.
async fn connect(endpoint: &str, config: &Arc<ClientConfig>) -> anyhow::Result<TlsStream> {
    let addresses: Vec<SocketAddr> =
        resolve(endpoint).await.map_err(|error| anyhow::anyhow!("{endpoint} cannot be resolved: {error}"))?;
    let mut failure = anyhow::anyhow!("{endpoint} has no address");
    for address in addresses {
        let tcp = match transport::connect(address, None, PATIENCE).await {
            Ok(tcp) => tcp,
            Err(error) => {
                failure = error.into();
                continue;
            }
        };
        match tls::connect(config, tcp, PATIENCE).await {
            Ok(stream) => return Ok(stream),
            Err(tls::Cause::WrongRelayKey { expected, offered }) => bail!(
                "whoever answers at {address} is not the relay of the invitation: it has the key {offered}, not {expected}"
            ),
            Err(cause) => failure = anyhow::anyhow!("{address}: {cause}"),
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use mobile_io::keys::PublicKey;
    use mobile_proto::enroll::Token;

    use super::*;

    fn invitation() -> Invitation {
        let relay = PublicKey::from_bytes([7; 32]);
        Invitation { endpoint: "[2001:db8::1]:443".into(), relay, token: Token::from_bytes([1; 16]) }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn both_files_appear_together_for_their_owner_alone_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("deep/agent.toml");
        drop(Staged::prepare(&config, &invitation()).unwrap());
        assert_eq!(names(&dir.path().join("deep")), [""; 0]);

        let staged = Staged::prepare(&config, &invitation()).unwrap();
        let key = staged.key.public();
        staged.publish().unwrap();
        assert_eq!(names(&dir.path().join("deep")), ["agent.key", "agent.toml"]);
        for name in ["agent.key", "agent.toml"] {
            let mode = std::fs::metadata(config.with_file_name(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{name}");
        }
        let loaded = Config::load(Some(&config)).unwrap();
        assert_eq!(PrivateKey::load(&loaded.identity.private_key_file).unwrap().public(), key);
        let relay = loaded.relay_identity().unwrap();
        assert_eq!((relay.endpoint, relay.public_key), (invitation().endpoint, invitation().relay));
    }

    #[test]
    fn nothing_is_overwritten_and_a_key_that_is_there_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("agent.toml");
        let key = PrivateKey::generate().unwrap();
        key.save_new(&dir.path().join("agent.key")).unwrap();
        let staged = Staged::prepare(&config, &invitation()).unwrap();
        assert_eq!(staged.key.public(), key.public());

        // Somebody was faster.
        std::fs::write(&config, "mine").unwrap();
        assert!(staged.publish().is_err());
        assert!(Staged::prepare(&config, &invitation()).is_err());
        assert_eq!(std::fs::read_to_string(&config).unwrap(), "mine");
        assert_eq!(names(dir.path()), ["agent.key", "agent.toml"]);
    }

    #[test]
    fn a_key_of_ours_goes_when_the_configuration_cannot_come() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("agent.toml");
        let staged = Staged::prepare(&config, &invitation()).unwrap();
        std::fs::write(&config, "mine").unwrap();
        assert!(staged.publish().is_err());
        assert_eq!(names(dir.path()), ["agent.toml"]);
    }
}
