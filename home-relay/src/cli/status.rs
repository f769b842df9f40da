//! The `status` command: shows what an operator looks at first.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use mobile_host::check::{CheckReport, Finding, Level};
use mobile_host::control::Client as ControlClient;
use serde::Serialize;

use super::clients::{UNEXPECTED_REPLY, call, connect, format_duration, not_running};
use super::running::connect_recorded;
use crate::admin::{AdminReply, Request};
use crate::config::Config;
use crate::status::{Activity, PoolUsage, Process, RelayStatus, Setup, Traffic};
use crate::store::{self, Store};

/// The result, as `status --json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether a relay is running.
    running: bool,
    /// The configuration file.
    config: PathBuf,
    #[serde(flatten)]
    status: RelayStatus,
    /// The findings of `home-relay check` that are not `ok`.
    warnings: Vec<Finding>,
}

/// Prints the state of the relay; fails after that if none is running.
pub(crate) fn run(path: &Path, json: bool) -> anyhow::Result<()> {
    let config = Config::load(path);
    let relay = match &config {
        Ok(config) => connect(config)?,
        // The relay may be running with the earlier content of the file.
        Err(_) => connect_recorded(path),
    };
    let running = relay.is_some();
    let status = match (relay, &config) {
        (Some(relay), _) => ask(relay)?,
        (None, Ok(config)) => RelayStatus { setup: read_files(config), ..RelayStatus::default() },
        (None, Err(_)) => RelayStatus::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let CheckReport { mut findings, .. } =
        runtime.context("cannot start the runtime")?.block_on(crate::check::check(path));
    findings.retain(|finding| finding.level != Level::Ok);
    let report = Report { running, config: path.to_owned(), status, warnings: findings };
    if json {
        println!("{}", serde_json::to_string_pretty(&report).context("cannot encode the answer")?);
    } else {
        print!("{}", report.render(store::now()));
    }
    // The state precedes the summary on stderr.
    std::io::stdout().flush().context("cannot write to stdout")?;
    match config {
        _ if running => Ok(()),
        Ok(config) => bail!(not_running(&config)),
        Err(error) => Err(error.context("no relay is running")),
    }
}

fn ask(mut relay: ControlClient) -> anyhow::Result<RelayStatus> {
    let AdminReply::Status(status) = call(&mut relay, &Request::Status)? else { bail!(UNEXPECTED_REPLY) };
    Ok(*status)
}

/// Returns what the files say. What this user may not read stays unknown.
fn read_files(config: &Config) -> Setup {
    let key = config.identity.load_key().ok();
    let mut setup = Setup::of(config, key.map(|key| key.public()));
    match Store::open_existing(&config.state.dir) {
        Ok(Some(store)) => {
            if let Err(error) = setup.add_store(&store, store::now()) {
                tracing::warn!(%error, "cannot read the clients");
            }
        }
        Ok(None) => setup.add_empty_store(),
        Err(error) => tracing::warn!(%error, "cannot read the clients"),
    }
    setup
}

impl Report {
    fn render(&self, now: u64) -> String {
        let RelayStatus { process, setup, activity } = &self.status;
        let mut text = Lines::default();
        text.add("relay", render_process(process, now));
        let reloaded = process.reloaded.map(|at| format!(", reloaded {}", ago(at, now)));
        text.add("configuration", Some(format!("{}{}", self.config.display(), reloaded.unwrap_or_default())));
        text.add("listens on", setup.listen.map(|address| address.to_string()));
        text.add("endpoint", setup.endpoint.clone());
        text.add("public key", setup.public_key.map(|key| key.to_string()));
        let addresses: Vec<String> = setup.addresses.iter().map(ToString::to_string).collect();
        let addresses = addresses.join(" ");
        text.add("device", setup.device.as_ref().map(|device| format!("{device} {addresses}")));
        for pool in &setup.pools {
            text.add("pool", Some(render_pool(pool)));
        }
        text.add("clients", render_clients(setup, activity));
        let forwards = setup.forwards.map(|forwards| forwards.to_string());
        text.add("forwards", forwards);
        if let Some(traffic) = &activity.traffic {
            text.add("traffic", Some(render_traffic(traffic)));
        }
        if let Some(drops) = &activity.drops {
            let drops = drops.iter().filter(|(_, packets)| **packets > 0);
            let drops: Vec<String> = drops.map(|(reason, packets)| format!("{reason} {packets}")).collect();
            let drops = if drops.is_empty() { "none".to_owned() } else { drops.join(", ") };
            text.add("dropped", Some(format!("{drops} (packets)")));
        }
        text.0 + &CheckReport::new(self.warnings.clone()).render()
    }
}

/// Lines of a name and a value.
#[derive(Default)]
struct Lines(String);

impl Lines {
    /// Adds a line unless the value is unknown.
    fn add(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.0 += format!("{name:<14} {value}").trim_end();
            self.0.push('\n');
        }
    }
}

fn render_process(process: &Process, now: u64) -> Option<String> {
    let Process { version: Some(version), pid: Some(pid), started: Some(started), .. } = process else {
        return Some("not running".to_owned());
    };
    Some(format!("home-relay {version}, running as process {pid}, started {}", ago(*started, now)))
}

fn render_pool(pool: &PoolUsage) -> String {
    let used = pool.used.map(|used| format!(", {used} used")).unwrap_or_default();
    // The number of free addresses of an IPv6 pool tells nothing.
    let free = pool.free.filter(|free| *free < u64::from(u32::MAX));
    let free = free.map(|free| format!(", {free} free")).unwrap_or_default();
    format!("{}{used}{free}", pool.network)
}

fn render_clients(setup: &Setup, activity: &Activity) -> Option<String> {
    let mut text = format!("{}, {} invited", setup.clients?, setup.invitations?);
    if let (Some(sessions), Some(connected)) = (activity.sessions, activity.connected) {
        text += &format!(", {sessions} sessions ({connected} connected)");
    }
    Some(text)
}

fn render_traffic(traffic: &Traffic) -> String {
    let direction =
        |name: &str, packets: u64, bytes: u64| format!("{} {name} ({packets} packets)", size(bytes));
    let from = direction("from clients", traffic.from_clients_packets, traffic.from_clients_bytes);
    let to = direction("to clients", traffic.to_clients_packets, traffic.to_clients_bytes);
    format!("{from}, {to}")
}

fn ago(at: u64, now: u64) -> String {
    format!("{} ago", format_duration(now.saturating_sub(at)))
}

/// Formats a number of bytes in a suitable unit.
fn size(bytes: u64) -> String {
    let unit = |shift: u32, name: &str| {
        // One digit after the point is enough to read once.
        let tenths = (u128::from(bytes) * 10) >> shift;
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    };
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => unit(10, "KiB"),
        0x10_0000..0x4000_0000 => unit(20, "MiB"),
        _ => unit(30, "GiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(status: RelayStatus) -> String {
        let warnings = vec![Finding::warn("reach", "not set", "set it")];
        Report { running: true, config: "/etc/relay.toml".into(), status, warnings }.render(10_000)
    }

    #[test]
    fn a_running_relay_is_shown_with_its_drops_that_are_not_zero() {
        let process = Process {
            version: Some("1.2.3".into()),
            pid: Some(7),
            started: Some(9_000),
            reloaded: Some(9_990),
        };
        let pool = |network: &str, free| PoolUsage {
            network: network.parse().unwrap(),
            used: Some(3),
            free: Some(free),
        };
        let setup = Setup {
            device: Some("home0".into()),
            addresses: vec!["100.64.0.1/20".parse().unwrap()],
            pools: vec![pool("100.64.0.0/20", 4090), pool("fd00::/64", u64::MAX - 5)],
            clients: Some(2),
            invitations: Some(1),
            forwards: Some(0),
            ..Setup::default()
        };
        let activity = Activity {
            sessions: Some(2),
            connected: Some(1),
            traffic: Some(Traffic::of((1, 1000), (2, 3 << 30))),
            drops: Some([("reach".to_owned(), 4), ("source".to_owned(), 0)].into()),
        };
        assert_eq!(
            render(RelayStatus { process, setup, activity }),
            "relay          home-relay 1.2.3, running as process 7, started 16 min ago\n\
             configuration  /etc/relay.toml, reloaded 10 s ago\n\
             device         home0 100.64.0.1/20\n\
             pool           100.64.0.0/20, 3 used, 4090 free\n\
             pool           fd00::/64, 3 used\n\
             clients        2, 1 invited, 2 sessions (1 connected)\n\
             forwards       0\n\
             traffic        1000 B from clients (1 packets), 3.0 GiB to clients (2 packets)\n\
             dropped        reach 4 (packets)\n\
             warn  reach: not set; what to do: set it\n"
        );
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        assert_eq!(
            render(RelayStatus::default()),
            "relay          not running\nconfiguration  /etc/relay.toml\nwarn  reach: not set; what to do: set it\n"
        );
    }
}
