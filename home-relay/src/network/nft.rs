//! Our nftables table: masquerading what clients send to the world. The host's own tables are never
//! touched; ours is replaced as a whole in one transaction, so there is no moment with half a table.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use ipnet::IpNet;

/// Every rule of ours lives in this table, so that one deletion removes them all.
pub(crate) const TABLE: &str = "home_relay";

/// What the ruleset depends on.
#[derive(Debug, Clone)]
pub(crate) struct Ruleset {
    /// The home virtual device.
    pub(crate) device: String,
    /// The pools whose addresses are hidden behind the relay's.
    pub(crate) pools: Vec<IpNet>,
    /// Masquerade only what leaves here; any interface but the device otherwise.
    pub(crate) interface: Option<String>,
}

impl Ruleset {
    /// The text for `nft -f -`: creates the table if it is missing, then replaces it, atomically.
    pub(crate) fn text(&self) -> String {
        let device = &self.device;
        let out = match &self.interface {
            Some(interface) => format!("oifname \"{interface}\""),
            None => format!("oifname != \"{device}\""),
        };
        let masquerade: String = self
            .pools
            .iter()
            .map(|pool| {
                let family = if matches!(pool, IpNet::V4(_)) { "ip" } else { "ip6" };
                format!("        {family} saddr {pool} {out} masquerade\n")
            })
            .collect();
        format!(
            "table inet {TABLE}\n\
             delete table inet {TABLE}\n\
             table inet {TABLE} {{\n    \
                 chain postrouting {{\n        \
                     type nat hook postrouting priority srcnat; policy accept;\n\
             {masquerade}    \
                 }}\n    \
                 chain forward {{\n        \
                     type filter hook forward priority filter; policy accept;\n        \
                     iifname \"{device}\" oifname \"{device}\" drop\n    \
                 }}\n\
             }}\n"
        )
    }

    /// Puts the ruleset into the kernel.
    pub(crate) fn apply(&self) -> anyhow::Result<()> {
        nft(&["-f", "-"], &self.text()).context(HINT)
    }

    /// Asks whether the kernel would take it; nothing is changed.
    pub(crate) fn try_out(&self) -> anyhow::Result<()> {
        nft(&["-c", "-f", "-"], &self.text())
    }
}

/// What to do when nftables does not work on this host.
pub(crate) const HINT: &str =
    "cannot install the masquerade rules; without NAT on this host set [nat] masquerade = false";

/// Removes the table; says whether there was one. A host without nft has none.
pub(crate) fn remove() -> anyhow::Result<bool> {
    if !exists()? {
        return Ok(false);
    }
    nft(&["-f", "-"], &format!("delete table inet {TABLE}\n"))
        .with_context(|| format!("cannot delete table inet {TABLE}"))?;
    Ok(true)
}

/// Is our table in the kernel? Without `nft` it cannot be.
pub(crate) fn exists() -> anyhow::Result<bool> {
    let output = match Command::new("nft").args(["list", "tables", "inet"]).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).context("cannot run nft"),
    };
    if !output.status.success() {
        bail!("nft list tables: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let wanted = format!("table inet {TABLE}");
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.trim() == wanted))
}

/// Every chain of every table, as nft's JSON.
pub(crate) fn list_chains() -> anyhow::Result<serde_json::Value> {
    let output = Command::new("nft").args(["-j", "list", "chains"]).output().context("cannot run nft")?;
    if !output.status.success() {
        bail!("nft list chains: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("nft list chains: not the JSON it should be")
}

fn nft(arguments: &[&str], script: &str) -> anyhow::Result<()> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                anyhow::anyhow!("nft is not installed: install the nftables package")
            }
            _ => anyhow::Error::new(error).context("cannot run nft"),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that died early says why on its stderr, which is the better message than EPIPE.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().context("waiting for nft")?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(interface: Option<&str>) -> Ruleset {
        Ruleset {
            device: "home0".into(),
            pools: vec!["10.77.0.0/24".parse().unwrap(), "fd12::/64".parse().unwrap()],
            interface: interface.map(str::to_owned),
        }
    }

    #[test]
    fn both_families_are_masqueraded_out_of_anything_but_the_device() {
        let text = ruleset(None).text();
        assert!(text.contains("        ip saddr 10.77.0.0/24 oifname != \"home0\" masquerade\n"), "{text}");
        assert!(text.contains("        ip6 saddr fd12::/64 oifname != \"home0\" masquerade\n"), "{text}");
        assert!(text.contains("iifname \"home0\" oifname \"home0\" drop"), "{text}");
    }

    #[test]
    fn a_named_interface_is_the_only_way_out_that_is_masqueraded() {
        let text = ruleset(Some("eth0")).text();
        assert!(text.contains("ip saddr 10.77.0.0/24 oifname \"eth0\" masquerade"), "{text}");
        assert!(!text.contains("oifname !="), "{text}");
    }

    #[test]
    fn the_table_is_replaced_in_one_transaction() {
        let text = ruleset(None).text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..3],
            ["table inet home_relay", "delete table inet home_relay", "table inet home_relay {"]
        );
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
