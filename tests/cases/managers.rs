//! The agent beside a real systemd and real network managers, installed from its package.

use anyhow::{Context, ensure};
use mobile_tests::{BootedMachine, Lab, Relay, UplinkName, addr, until};

use crate::packages::{VERSION, configure_for_lab, install, packages, warned_only_of};
use crate::{Outcome, ip_of, urls};

/// The lab's mobile host as a machine with systemd, on which the agent is installed from its
/// package and connected.
pub(crate) struct Laptop {
    pub(crate) machine: BootedMachine,
    relay: Relay,
    pub(crate) lab: Lab,
}

impl Laptop {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let mut relay = Relay::install(&lab)?;
        relay.start()?;
        let machine = BootedMachine::boot(&lab, &lab.host)?;
        configure_for_lab(&lab, &machine)?;
        let [_, package] = packages(VERSION)?;
        install(&machine, &package)?;
        let invitation = relay.invite("laptop", &[])?;
        machine.run(&format!("mobile enroll '{}' && systemctl start mobile", invitation.trim()))?;
        let laptop = Self { machine, relay, lab };
        laptop.connected(UplinkName::Eth)?;
        Ok(laptop)
    }

    pub(crate) fn connected(&self, uplink: UplinkName) -> Outcome {
        until(&format!("the tunnel on {}", uplink.device()), || {
            self.machine.run("mobile status").is_ok_and(|status| status.contains(uplink.device()))
        })
    }

    /// Returns the kernel's rules, routes and addresses of the MOBILE route, which leads mobile
    /// processes through the host virtual device `mobile0`.
    fn route(&self) -> anyhow::Result<String> {
        self.machine.run(
            "for family in -4 -6; do ip $family rule | grep 7700; ip $family route show table 7700; \
             ip -br $family addr show dev mobile0; done",
        )
    }

    /// Checks that the server sees the relay's address on a mobile process's connection, and
    /// another address on an ordinary one's.
    fn works(&self, when: &str) -> Outcome {
        let [four, _] = urls("/ip");
        let fetch = format!("curl -s -m 10 {four}");
        let [mobile, ordinary] =
            [format!("mobile run -- {fetch}"), fetch].map(|fetch| self.machine.run(&fetch));
        ensure!(ip_of(&mobile?) == addr::RELAY4, "{when}: a mobile process goes beside the tunnel");
        ensure!(ip_of(&ordinary?) != addr::RELAY4, "{when}: an ordinary process is in the tunnel");
        Ok(())
    }

    /// Ends the case. Checks that neither program has logged a warning, as the agent would for any
    /// kernel state that it had to restore.
    pub(crate) fn finish(self) -> Outcome {
        warned_only_of(&self.machine, "mobile", &[])?;
        self.finish_off()
    }

    /// Ends a case whose laptop is switched off and whose journal is lost: stops the relay and
    /// checks its log only.
    pub(crate) fn finish_off(mut self) -> Outcome {
        self.relay.stop()?;
        self.relay.cli(&["cleanup"])?.ok()?;
        let log = self.relay.log();
        ensure!(!log.contains("WARN ") && !log.contains("ERROR "), "the relay warned:\n{log}");
        self.lab.passed();
        Ok(())
    }
}

#[test]
fn what_a_real_systemd_runs_in_mobile_slice_is_mobile_whenever_agent_and_slice_come_and_go() -> Outcome {
    let laptop = Laptop::new()?;
    let machine = &laptop.machine;
    let [four, _] = urls("/ip");
    // The agent needs a moment to notice a slice that was created again.
    machine.run(&format!(
        "cd /etc/systemd/system; printf '[Service]\nType=oneshot\nSlice=mobile.slice\nStandardOutput=truncate:/run/seen\n\
         ExecStartPre=/bin/sleep 0.1\nExecStart=/usr/bin/curl -s -m 10 {four}\n' >fetch.service\n\
         sed /Slice=/d fetch.service >plain.service; systemctl daemon-reload"
    ))?;
    let service = |name: &str| machine.run(&format!("systemctl start {name} && cat /run/seen"));
    let run = format!(
        "systemd-run --quiet --wait --pipe --collect --slice=mobile.slice sh -c 'sleep 0.1; exec curl -s -m 10 {four}'"
    );
    let all = |when: &str| -> Outcome {
        for seen in [machine.run(&run)?, service("fetch")?] {
            ensure!(ip_of(&seen) == addr::RELAY4, "{when}: a service in the slice was seen as {seen}");
        }
        let seen = service("plain")?;
        ensure!(ip_of(&seen) != addr::RELAY4, "{when}: a service outside of the slice was seen as {seen}");
        Ok(())
    };
    all("at first")?;
    let pid = || machine.run("systemctl show -P MainPID mobile");
    let before = pid()?;
    machine.run("systemctl restart mobile")?;
    laptop.connected(UplinkName::Eth)?;
    ensure!(pid()? != before, "not restarted");
    all("after a restart of the agent")?;
    let cgroup = format!("/sys/fs/cgroup/{}/mobile.slice", machine.cgroup.display());
    for _ in 0..2 {
        machine.run("systemctl stop mobile.slice")?;
        ensure!(machine.try_run(&format!("test -e {cgroup}"))?.code() == 1, "the slice is still there");
        all("with the slice made anew")?;
    }
    laptop.finish()
}

#[test]
fn systemd_networkd_that_takes_over_an_uplink_leaves_the_agents_objects() -> Outcome {
    let laptop = Laptop::new()?;
    let before = laptop.route()?;
    let (machine, eth) = (&laptop.machine, laptop.lab.eth());
    // As in a container: no udev reports which links are ready.
    machine.run(&format!(
        "mount -o remount,ro,bind /sys\nmkdir -p /etc/systemd/network\nprintf '[Match]\nName=eth0\n[Network]\n\
         KeepConfiguration=yes\nLinkLocalAddressing=no\n[Route]\nGateway={}\nMetric=50\n' \
         >/etc/systemd/network/eth0.network\nunits=/lib/systemd/system\n\
         ln -s $units/systemd-networkd.service /etc/systemd/system/dbus-org.freedesktop.network1.service\n\
         systemctl daemon-reload",
        eth.gateway4()
    ))?;
    for action in [
        "systemctl start systemd-networkd",
        "networkctl reload; networkctl reconfigure eth0",
        "systemctl restart systemd-networkd",
    ] {
        machine.run(action)?;
        until("networkd to have configured eth0", || {
            machine
                .run("networkctl --no-pager --no-legend list eth0")
                .is_ok_and(|said| said.contains("configured"))
        })?;
        let main = machine.run("ip route show dev eth0 metric 50")?;
        ensure!(main.contains("default"), "{action}: networkd has not set its route: {main}");
        laptop.works(action)?;
        ensure!(laptop.route()? == before, "{action}: {}\nbefore: {before}", laptop.route()?);
    }
    laptop.finish()
}

#[test]
fn network_manager_that_takes_over_an_uplink_leaves_the_agents_objects() -> Outcome {
    let laptop = Laptop::new()?;
    let before = laptop.route()?;
    let (machine, eth) = (&laptop.machine, laptop.lab.eth());
    let device = || machine.run("nmcli -t -f DEVICE,STATE device");
    // As in a container, without udev. The lab's links are TAP devices, which NetworkManager treats
    // as tun connections.
    machine.run(
        "mount -o remount,ro,bind /sys\nmkdir -p /etc/NetworkManager/conf.d\n\
         printf '[main]\ndns=none\nplugins=keyfile\nno-auto-default=*\n' >/etc/NetworkManager/conf.d/lab.conf\n\
         systemctl start NetworkManager",
    )?;
    until("NetworkManager to see the tunnel's device", || {
        device().is_ok_and(|said| said.contains("mobile0:"))
    })?;
    laptop.works("NetworkManager started")?;
    machine.run(&format!(
        "nmcli connection add type tun ifname eth0 tun.mode tap tun.vnet-hdr yes con-name office ipv4.method manual \
         ipv4.addresses {}/24 ipv4.gateway {} ipv4.route-metric 50 ipv6.method disabled",
        eth.address4(),
        eth.gateway4()
    ))?;
    for action in
        ["nmcli connection up office", "nmcli connection reload", "systemctl restart NetworkManager"]
    {
        machine.run(action)?;
        until("NetworkManager to have connected eth0", || {
            device().is_ok_and(|said| said.lines().any(|line| line == "eth0:connected"))
        })
        .with_context(|| format!("{action}: {}", device().unwrap_or_default()))?;
        let main = machine.run("ip route show dev eth0 metric 50")?;
        ensure!(main.contains("default"), "{action}: NetworkManager has not set its route: {main}");
        laptop.connected(UplinkName::Eth)?;
        laptop.works(action)?;
        ensure!(laptop.route()? == before, "{action}: {}\nbefore: {before}", laptop.route()?);
    }
    laptop.finish()
}
