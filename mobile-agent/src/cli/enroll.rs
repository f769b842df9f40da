//! The verb `mobile enroll`, which redeems an invitation.
//!
//! The key and the configuration are put in place together once the relay has accepted the key; if
//! it does not, neither is.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use mobile_host::text::printable;
use mobile_netlink::Netlink;
use mobile_proto::enroll::{EnrolmentRefusal, EnrolmentReply, EnrolmentRequest};
use mobile_transport::invitation::Invitation;
use mobile_transport::keys::{PrivateKey, PublicKey};
use mobile_transport::tls;
use tempfile::NamedTempFile;

use super::{agent_toml, enrolment, fetch_assignment};
use crate::config::load::default_paths;
use crate::config::{Config, DEFAULT_PATH, load_key};
use crate::routing::assignment::{Assignment, AssignmentCache};
use crate::routing::claim::{HostNetworks, judge};
use crate::routing::networks;
use crate::tunnel::known_relay::KnownRelay;

/// The number of attempts to redeem an invitation. If the relay accepted the key and its answer was
/// lost, the next attempt gets the same answer.
const ATTEMPTS: u32 = 3;
/// Longest invitation that is read, in bytes.
const MAX_INVITATION_BYTES: u64 = 4096;

/// Redeems `invitation` (`-` reads one from stdin), tests a session with the relay and prints the
/// persistent addresses, one a line.
pub(super) fn enroll(config: Option<&Path>, invitation: &str) -> anyhow::Result<()> {
    let invitation: Invitation = match invitation {
        "-" => read_stdin()?.parse()?,
        text => text.parse()?,
    };
    let path = config.unwrap_or(Path::new(DEFAULT_PATH));
    let staged = StagedFiles::prepare(path, &invitation)?;
    let key = staged.key.clone();
    super::runtime()?.block_on(async {
        let (name, relay_key) = redeem(&invitation, &key).await?;
        // The relay may have changed its key since it made the invitation.
        let is_other = relay_key != invitation.relay.current;
        let changed = is_other.then(|| agent_toml::text(&invitation.endpoint, &relay_key, &default_paths(path)));
        staged.publish(changed.as_deref()).context("the relay enrolled this host, but the key and the configuration could not be written")?;
        let name = printable(&name);
        note(&format!("enrolled as {name}; wrote {}", path.display()));
        let config = Config::load(Some(path))?;
        // Forget what another enrolment learnt.
        let mut known = KnownRelay::configured(&config.relay_identity()?);
        known.expect_key(invitation.relay.next);
        if let Err(error) = known.store(&config.state.dir) {
            note(&format!("{error:#}"));
        }
        let dial = tls::client_config(&key, invitation.relay);
        let assigned = async {
            let stream = enrolment::connect(&invitation.endpoint, &dial, THE_RELAY).await?;
            fetch_assignment::fetch_assignment(stream, |announced| {
                known.learn(announced);
                known.store(&config.state.dir)
            })
            .await
        };
        let assigned = assigned.await.context(
            "this host is enrolled, but a test session with the relay failed: run `mobile check` to find the cause",
        )?;
        // With cached addresses, mobile processes have a source address from the agent's first
        // start on, and their connections wait while the relay is unreachable.
        warn_of_refusals(&config, &assigned).await;
        if let Err(error) = AssignmentCache::new(&config.state.dir, &relay_key).store(&assigned) {
            note(&format!("cannot cache the addresses ({error:#}): the agent gets them when it first reaches the relay"));
        }
        let addresses = assigned.addresses();
        super::print(&addresses.iter().map(|address| format!("{address}\n")).collect::<String>())
    })
}

/// Warns about those parts of the assignment that the agent would refuse, judged by this host's
/// networks at this moment. The agent judges again at each start.
async fn warn_of_refusals(config: &Config, assigned: &Assignment) {
    let host = match Netlink::new() {
        Ok(netlink) => networks::read(&netlink, &config.tunnel.device, Vec::new()).await.unwrap_or_default(),
        Err(_) => HostNetworks::default(),
    };
    for refusal in judge(assigned, &config.tunnel.addresses, &host).refusals {
        let refusal = refusal.to_status();
        note(&format!(
            "the agent would refuse a part of the assignment: {}; {}",
            refusal.cause, refusal.next_step
        ));
    }
}

/// Writes a note to stderr, so that stdout has nothing but the addresses.
fn note(text: &str) {
    // Nothing depends on the note: ignore a closed stderr.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Reads the first line of stdin, which holds the invitation.
fn read_stdin() -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        note("paste the invitation, then press Enter:");
    }
    let mut line = String::new();
    stdin
        .lock()
        .take(MAX_INVITATION_BYTES)
        .read_line(&mut line)
        .context("cannot read the invitation from stdin")?;
    Ok(line)
}

/// The private key and the configuration in synced temporary files beside their final paths. If the
/// relay refuses or the host crashes, the final paths are untouched.
struct StagedFiles {
    key: PrivateKey,
    /// The key's temporary file and its final path; `None` if an existing key is used.
    key_file: Option<(NamedTempFile, PathBuf)>,
    config_file: NamedTempFile,
    config_path: PathBuf,
}

impl StagedFiles {
    /// Writes the key and the configuration to temporary files. Everything that can fail without
    /// the relay fails here, before the invitation is used.
    fn prepare(config: &Path, invitation: &Invitation) -> anyhow::Result<Self> {
        ensure!(
            config.file_name().is_some(),
            "--config {} is not a file name: name a file, for example agent.toml",
            config.display()
        );
        if config.symlink_metadata().is_ok() {
            bail!(
                "{} exists already, so this host is enrolled with a relay: move the file away to enrol again, or \
                 name another file with --config",
                config.display()
            );
        }
        let dir = match config.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot create the directory {}", dir.display()))?;
        let text = agent_toml::text(&invitation.endpoint, &invitation.relay.current, &default_paths(config));
        // The agent will expect its key there, unless a variable of the environment says otherwise.
        let settings = Config::of_text(config, &text)?;
        settings.relay_identity()?;
        super::connect::connect_to_own(Some(config), &settings)?;
        let key_path = settings.identity.private_key_file;
        ensure!(
            key_path.file_name() != config.file_name(),
            "--config {} is the name of the key file: choose another name",
            config.display()
        );
        let (key, key_file) = if key_path.symlink_metadata().is_ok() {
            // The key is from `mobile keygen`, or from an enrolment that was interrupted.
            (load_key(&key_path)?, None)
        } else {
            let key = PrivateKey::generate()?;
            let file = stage(key_path.parent().unwrap_or(dir), &format!("{}\n", *key.to_base64()))?;
            (key, Some((file, key_path)))
        };
        let config_file = stage(dir, &text)?;
        Ok(Self { key, key_file, config_file, config_path: config.to_owned() })
    }

    /// Moves the key and then the configuration to their final paths; `text` is the configuration's
    /// content if it differs from the staged one. A crash in between leaves only a key without a
    /// configuration, as `mobile keygen` does.
    fn publish(self, text: Option<&str>) -> anyhow::Result<()> {
        let Self { key_file, mut config_file, config_path, .. } = self;
        let dir = config_file.path().parent().unwrap_or(Path::new(".")).to_owned();
        if let Some(text) = text {
            config_file = stage(&dir, text)?;
        }
        let written = key_file.as_ref().map(|(_, path)| path.clone());
        if let Some((file, path)) = key_file {
            file.persist_noclobber(&path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Err(error) = config_file.persist_noclobber(&config_path) {
            if let Some(key) = written {
                // The error to report is the one above.
                let _ = std::fs::remove_file(key);
            }
            return Err(error).with_context(|| format!("cannot write {}", config_path.display()));
        }
        let synced = std::fs::File::open(&dir).and_then(|dir| dir.sync_all());
        synced.with_context(|| format!("cannot sync {}", dir.display()))
    }
}

/// Writes `text` to a temporary file in `dir` and syncs it. Only the file's owner may read it
/// (`tempfile` creates it so), and dropping the value removes the file unless it was moved.
fn stage(dir: &Path, text: &str) -> anyhow::Result<NamedTempFile> {
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".enroll-").suffix(".toml").tempfile_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        std::io::Result::Ok(file)
    };
    write().with_context(|| format!("cannot write to {}: run this as root", dir.display()))
}

/// Redeems the invitation. Returns the name that the relay gave this host, and the key that the
/// relay proved.
async fn redeem(invitation: &Invitation, key: &PrivateKey) -> anyhow::Result<(String, PublicKey)> {
    let config = tls::enrolment_config(key, invitation.relay);
    let mut was_sent = false;
    let mut last = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut stream = match enrolment::connect(&invitation.endpoint, &config, THE_RELAY).await {
            Ok(stream) => stream,
            Err(error) if was_sent => {
                last = Some(error);
                continue;
            }
            Err(error) => return Err(error.context(NOT_REACHED)),
        };
        was_sent = true;
        let proved = tls::peer_key(stream.get_ref().1).unwrap_or(invitation.relay.current);
        let request = EnrolmentRequest::Enroll(invitation.token.clone());
        match enrolment::ask(&mut stream, &request).await {
            Ok(EnrolmentReply::Enrolled(name)) => return Ok((name, proved)),
            Ok(EnrolmentReply::Refused(why)) => bail!("{why}; {}", next_step(why)),
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| anyhow::anyhow!("no attempt was made"));
    Err(error.context(
        "the relay did not confirm the enrolment, and nothing was written here: use the invitation again; if it \
         counts as used by then, ask the relay's owner to `revoke` the name and to invite this host again",
    ))
}

/// The server that an invitation leads to, in an error.
const THE_RELAY: &str = "the relay of the invitation";
const NOT_REACHED: &str = "cannot reach the relay; nothing was written, and the invitation can still be used";

fn next_step(why: EnrolmentRefusal) -> &'static str {
    match why {
        // The name is enrolled, so the relay refuses to invite it again.
        EnrolmentRefusal::Used => {
            "ask the relay's owner for a new invitation (`home-relay revoke NAME`, then `home-relay invite NAME`)"
        }
        EnrolmentRefusal::Expired => {
            "ask the relay's owner for a new invitation (`home-relay invite NAME`); if this one is new, the relay's clock \
             is wrong, as its log says"
        }
        EnrolmentRefusal::Unknown | EnrolmentRefusal::NotAClient => {
            "ask the relay's owner for a new invitation (`home-relay invite NAME`)"
        }
        EnrolmentRefusal::KeyTaken => {
            "write a configuration for this host's key, or move the key away to enrol with a new one"
        }
        EnrolmentRefusal::NoAddress => "ask the relay's owner to revoke a client or to enlarge [pool]",
        EnrolmentRefusal::Failed | EnrolmentRefusal::Malformed | EnrolmentRefusal::Other(_) => {
            "ask the relay's owner for the relay's log; its version may differ from this host's"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use mobile_proto::enroll::Token;
    use mobile_transport::keys::PublicKey;

    use super::*;

    fn invitation() -> Invitation {
        let relay = PublicKey::from_bytes([7; 32]);
        Invitation {
            endpoint: "[2001:db8::1]:443".into(),
            relay: relay.into(),
            token: Token::from_bytes([1; 16]),
        }
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
    fn only_a_used_invitation_has_a_name_to_revoke() {
        assert!(next_step(EnrolmentRefusal::Used).contains("`home-relay revoke NAME`, then"));
        assert!(!next_step(EnrolmentRefusal::Expired).contains("revoke"));
    }

    #[test]
    fn both_files_appear_together_and_only_their_owner_may_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("deep/agent.toml");
        drop(StagedFiles::prepare(&config, &invitation()).unwrap());
        assert_eq!(names(&dir.path().join("deep")), [""; 0]);

        let staged = StagedFiles::prepare(&config, &invitation()).unwrap();
        let key = staged.key.public();
        staged.publish(None).unwrap();
        assert_eq!(names(&dir.path().join("deep")), ["agent.key", "agent.toml"]);
        for name in ["agent.key", "agent.toml"] {
            let mode = std::fs::metadata(config.with_file_name(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{name}");
        }
        let loaded = Config::load(Some(&config)).unwrap();
        assert_eq!(load_key(&loaded.identity.private_key_file).unwrap().public(), key);
        let relay = loaded.relay_identity().unwrap();
        assert_eq!((relay.endpoint, relay.public_key), (invitation().endpoint, invitation().relay.current));
    }

    #[test]
    fn no_file_is_overwritten_and_an_existing_key_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("agent.toml");
        let key = PrivateKey::generate().unwrap();
        key.save_new(&dir.path().join("agent.key")).unwrap();
        let staged = StagedFiles::prepare(&config, &invitation()).unwrap();
        assert_eq!(staged.key.public(), key.public());

        // Another process creates the configuration first.
        std::fs::write(&config, "mine").unwrap();
        assert!(staged.publish(None).is_err());
        assert!(StagedFiles::prepare(&config, &invitation()).is_err());
        assert_eq!(std::fs::read_to_string(&config).unwrap(), "mine");
        assert_eq!(names(dir.path()), ["agent.key", "agent.toml"]);
    }

    #[test]
    fn a_generated_key_is_removed_if_the_configuration_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("agent.toml");
        let staged = StagedFiles::prepare(&config, &invitation()).unwrap();
        std::fs::write(&config, "mine").unwrap();
        assert!(staged.publish(None).is_err());
        assert_eq!(names(dir.path()), ["agent.toml"]);
    }
}
