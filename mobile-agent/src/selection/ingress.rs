//! The ingress filter as an eBPF classifier on every device except `lo` and the host virtual
//! device, for hosts where nftables does not work.
//!
//! The links are pinned, so the classifier stays when the agent ends. A device that appears while
//! no agent runs has no classifier until the next agent starts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context as _;
use aya::maps::{HashMap, MapData, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{LinkOrder, SchedClassifier, TcAttach, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use mobile_ebpf_common::{Address, map, program};

use super::addresses::packed;
use super::pins;

/// The object file built from mobile-ebpf's `ingress.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mobile-ingress"));

/// The prefix of the names of directories in `[bpf] pin_dir` that pin the classifier, one directory
/// for each start of an agent.
const PREFIX: &str = "ingress-";

/// The eBPF map that counts packets dropped by the ingress filter, with one value for each CPU.
pub(crate) type Counter = PerCpuArray<MapData, u64>;

/// The ingress filter's eBPF classifier, loaded into the kernel.
pub(crate) struct Classifier {
    ebpf: Ebpf,
    guarded: HashMap<MapData, Address, u8>,
    dir: PathBuf,
    /// The BPF links that attach the classifier, one for each device; the key is the interface
    /// index.
    links: BTreeMap<u32, PinnedLink>,
}

impl Classifier {
    /// Loads the classifier and its counter of dropped packets, without attaching the classifier.
    pub(crate) fn load(pin_dir: &Path) -> anyhow::Result<(Self, Counter)> {
        pins::ensure_dir(pin_dir)?;
        let last = generations(pin_dir)?.last().map_or(0, |(number, _)| *number);
        let dir = pin_dir.join(format!("{PREFIX}{}", last + 1));
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("cannot load the ingress classifier")?;
        let guarded = ebpf.take_map(map::GUARDED).context("the ingress object has no map of addresses")?;
        let counter = ebpf.take_map(map::INGRESS_DROPPED).context("the ingress object has no counter")?;
        let (guarded, counter) = (HashMap::try_from(guarded)?, PerCpuArray::try_from(counter)?);
        classifier(&mut ebpf)?.load().context("cannot load the ingress classifier")?;
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok((Self { ebpf, guarded, dir, links: BTreeMap::new() }, counter))
    }

    /// Makes the classifier drop packets to `addresses` that arrive on `devices` (interface
    /// indexes), and no others. Removes the pins of devices that no longer exist.
    pub(crate) fn ensure(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        devices: &BTreeSet<u32>,
    ) -> anyhow::Result<()> {
        let wanted: Vec<Address> = addresses.iter().copied().map(packed).collect();
        for address in &wanted {
            self.guarded.insert(address, &1, 0).context("cannot add an address to the ingress filter")?;
        }
        let present: Vec<Address> = self.guarded.keys().collect::<Result<_, _>>()?;
        for address in present.iter().filter(|address| !wanted.contains(address)) {
            self.guarded.remove(address).context("cannot remove an address from the ingress filter")?;
        }
        let gone: Vec<u32> = self.links.keys().copied().filter(|device| !devices.contains(device)).collect();
        for link in gone.iter().filter_map(|device| self.links.remove(device)) {
            // The kernel removed the link with its device; this removes the pin.
            link.unpin().context("cannot remove the pin of a device that no longer exists")?;
        }
        for &device in devices {
            if !self.links.contains_key(&device) {
                let link = self.attach(device).with_context(|| {
                    format!("cannot attach the ingress classifier to device {device} (tcx, Linux 6.6)")
                })?;
                self.links.insert(device, link);
            }
        }
        self.remove_older()
    }

    fn attach(&mut self, device: u32) -> anyhow::Result<PinnedLink> {
        let program = classifier(&mut self.ebpf)?;
        // Attach before other classifiers, so that they do not see forged packets either.
        let attach = TcAttach::Tcx { attach_type: TcAttachType::Ingress, order: LinkOrder::first() };
        let id = program.attach(device, attach)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        Ok(link.pin(self.dir.join(format!("link-{device}")))?)
    }

    /// Removes the classifiers of earlier agents. Called once those of this agent are attached.
    fn remove_older(&self) -> anyhow::Result<()> {
        let Some(pin_dir) = self.dir.parent() else { return Ok(()) };
        for (_, dir) in generations(pin_dir)?.iter().filter(|(_, dir)| *dir != self.dir) {
            pins::remove(dir)?;
        }
        Ok(())
    }
}

/// Removes every classifier whose links are pinned in `pin_dir`.
pub(crate) fn remove(pin_dir: &Path) -> anyhow::Result<()> {
    let found = generations(pin_dir)?;
    for (_, dir) in &found {
        pins::remove(dir)?;
    }
    if !found.is_empty() {
        // A start that failed before it loaded the other programs leaves an empty directory.
        // Otherwise their pins are still in it, and this fails.
        let _ = fs::remove_dir(pin_dir);
    }
    Ok(())
}

/// Returns the sum of `counter` over all CPUs.
pub(crate) fn sum(counter: &Counter) -> u64 {
    counter.get(&0, 0).map_or(0, |values| values.iter().sum())
}

fn classifier(ebpf: &mut Ebpf) -> anyhow::Result<&mut SchedClassifier> {
    let program = ebpf.program_mut(program::INGRESS).context("the ingress object has no classifier")?;
    Ok(program.try_into()?)
}

/// Returns the directories in `pin_dir` in which agents pinned their classifiers, each after the
/// number in its name. The directories are in ascending order of the numbers, so the oldest is
/// first.
fn generations(pin_dir: &Path) -> anyhow::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(pin_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", pin_dir.display())),
    };
    let number = |path: PathBuf| {
        let number = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
        Some((number, path))
    };
    let mut generations: Vec<(u64, PathBuf)> =
        entries.flatten().filter_map(|entry| number(entry.path())).collect();
    generations.sort_unstable();
    Ok(generations)
}
