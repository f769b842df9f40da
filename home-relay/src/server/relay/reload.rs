//! Reloads the configuration and the key files while sessions continue. If the file is invalid, or
//! the kernel refuses the nftables rules, the reload fails and changes nothing. A setting that
//! cannot change at run time keeps its value and is reported. The metric `homerelay_reloads_total`
//! counts successful and failed reloads.

use std::sync::PoisonError;

use anyhow::Context as _;
use mobile_host::config::changed_keys;
use tracing::{info, warn};

use super::{AppliedState, Relay, rotation};
use crate::admin::Reloaded;
use crate::check;
use crate::config::Config;
use crate::network::ReconcileScope;
use crate::network::ruleset::Ruleset;
use crate::server::registry::Settings;
use crate::store;

/// The sections of the configuration that can change at run time; sessions, sockets and the device
/// depend on the other sections.
const RELOADABLE_SECTIONS: [&str; 4] = ["limits", "clients", "dns", "nat"];

impl Relay {
    /// Reloads the configuration file; an error leaves everything unchanged.
    pub(in crate::server) async fn reload(&self) -> anyhow::Result<Reloaded> {
        let done = self.try_reload().await;
        match &done {
            Ok(Reloaded { changed, kept }) => {
                self.metrics.reloads.inc();
                info!(changed = changed.join(", "), "configuration reloaded");
                if !kept.is_empty() {
                    warn!("these settings changed but need a restart: {}", kept.join(", "));
                }
            }
            Err(error) => {
                self.metrics.reloads_refused.inc();
                warn!("cannot reload the configuration, the old one stays in force: {error:#}");
            }
        }
        done
    }

    async fn try_reload(&self) -> anyhow::Result<Reloaded> {
        let mut applied = self.applied.lock().await;
        let wanted = Config::load(&self.path)?;
        check::before_reload(&wanted, &applied.config.tunnel.device).await?;
        let keys = rotation::load_keys(&applied.config.identity)?;
        let (next, reloaded) = plan(&applied.config, &wanted)?;
        // Steps that can fail come first and are undone when a later step fails. A reload may be a
        // repair, so everything is applied again, changed or not.
        let rules = self.required_rules(&next).await?;
        let inbound_datagrams = rules.accepts_inbound_datagrams();
        let former = self.required_rules(&applied.config).await?;
        applied.network.change(rules).await?;
        if let Err(error) = self.reconcile(&mut applied, ReconcileScope::WithoutRules).await {
            return Err(roll_back(&mut applied, former, error.into()).await);
        }
        self.registry.set_inbound_datagrams(inbound_datagrams);
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner).set_limits(next.limits.clone());
        self.registry.set_settings(Settings::of(&next)).await;
        applied.reloaded = Some(store::now());
        if let Err(error) = self.apply_keys(keys).await {
            warn!("cannot announce the relay's next key: {error:#}");
        }
        let former = std::mem::replace(&mut applied.config, next);
        let next = &applied.config;
        // The new configuration is in force by here: failing to end old connections is no failure
        // to reload.
        if (next.clients.reach() != former.clients.reach() || next.dns.servers != former.dns.servers)
            && let Err(error) = self.end_unreachable_connections(next).await
        {
            warn!("cannot end connections to destinations outside the clients' reach: {error:#}");
        }
        Ok(reloaded)
    }
}

/// Restores the former nftables rules after a reload that failed half-way. Returns the reload's
/// error, with what could not be undone.
async fn roll_back(applied: &mut AppliedState, former: Ruleset, error: anyhow::Error) -> anyhow::Error {
    match applied.network.change(former.clone()).await {
        Ok(()) => error,
        Err(second) => {
            applied.network.schedule_rules(former);
            error.context(format!(
                "the nftables rules of the new configuration are in force: cannot restore the former \
                 ones, retrying ({second:#})"
            ))
        }
    }
}

/// Returns the configuration that results from reloading `wanted` over `current`, and the keys that
/// differ.
fn plan(current: &Config, wanted: &Config) -> anyhow::Result<(Config, Reloaded)> {
    let mut reloaded = Reloaded::default();
    for (section, key) in changed_keys(current, wanted).context("cannot compare configurations")? {
        let live = RELOADABLE_SECTIONS.contains(&section.as_str());
        let list = if live { &mut reloaded.changed } else { &mut reloaded.kept };
        list.push(format!("[{section}] {key}"));
    }
    let Config { limits, clients, dns, nat, .. } = wanted.clone();
    Ok((Config { limits, clients, dns, nat, ..current.clone() }, reloaded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rest: &str) -> Config {
        let path = std::path::Path::new("/etc/home-relay/relay.toml");
        let text = format!(
            "[listen]\naddress = \"[::]:443\"\n[identity]\nprivate_key_file = \"/relay.key\"\n[pool]\nipv4 = \
             \"10.1.0.0/24\"\n{rest}"
        );
        let loaded = mobile_host::config::parse(path, &text, "TEST", std::iter::empty(), &[]).unwrap();
        Config::complete(loaded, path).unwrap()
    }

    #[test]
    fn a_configuration_does_not_differ_from_itself() {
        let (_, reloaded) = plan(&config(""), &config("[nat]\nmasquerade = true\n")).unwrap();
        assert_eq!(reloaded, Reloaded::default());
    }

    #[test]
    fn reloadable_settings_change_and_the_others_are_reported_and_stay() {
        let wanted = config(
            "[limits]\nhalf_open = 7\n[dns]\nservers = [\"192.0.2.1\"]\n[tunnel]\nmtu = 1400\n\
             [admin]\ngroup = \"wheel\"\n[nat]\ninterface = \"eth0\"\n[clients]\nisolate = false\n",
        );
        let (next, reloaded) = plan(&config(""), &wanted).unwrap();
        assert_eq!(
            reloaded.changed,
            ["[clients] isolate", "[dns] servers", "[limits] half_open", "[nat] interface"]
        );
        assert_eq!(reloaded.kept, ["[admin] group", "[tunnel] mtu"]);
        assert_eq!((next.limits.half_open, next.clients.isolate), (7, false));
        assert_eq!((next.tunnel.mtu, next.admin.group), (1500, None));
        assert_eq!(next.dns.servers.len(), 1);
        assert_eq!(next.nat.interface.as_deref(), Some("eth0"));
    }
}
