//! Reads a process and its connections from `/proc`, for `mobile ps` and `mobile attach`.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::Path,
    rc::Rc,
};

use serde::{Deserialize, Serialize};

/// A process that is running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// The ID of the process.
    pub(crate) pid: i32,
    /// The user ID that the process runs as.
    pub(crate) uid: u32,
    /// The user IDs whose rights the process has.
    pub(crate) owners: Owners,
    /// The short name of the command.
    pub(crate) comm: String,
    /// The command line; empty for a process that has cleared it.
    pub(crate) cmdline: Vec<String>,
    /// The start time in clock ticks since boot, which tells the process from a later one with the
    /// same ID.
    pub(crate) start_time: u64,
    /// The TCP connections and connected UDP sockets of the process.
    pub(crate) connections: Vec<Connection>,
}

/// The identity of a process: its ID and its start time in nanoseconds of CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessIdentity {
    /// The ID of the process.
    pub(crate) pid: i32,
    /// The start time in nanoseconds of CLOCK_BOOTTIME. A traffic account that is older belongs to
    /// a former process with the same ID.
    pub(crate) started: u64,
}

/// The user IDs of a process: real, effective, saved.
pub(crate) type Owners = [u32; 3];

/// The transport of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    /// A TCP connection that is open or being opened.
    Tcp,
    /// A connected UDP socket.
    Udp,
}

impl Transport {
    /// Returns the name of the protocol that `mobile ps` and `mobile attach` print.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A connected socket, whose route is therefore fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connection {
    /// The protocol of the connection.
    pub(crate) transport: Transport,
    /// The local address; an IPv4-mapped address is shown as the IPv4 one.
    pub(crate) local: SocketAddr,
    /// The address of the peer.
    pub(crate) remote: SocketAddr,
}

impl Connection {
    /// Returns whether the connection goes through the tunnel: its local address is then a
    /// persistent one, which the route chosen at connect() gave it.
    pub(crate) fn is_mobile(&self, persistent: &[IpAddr]) -> bool {
        persistent.contains(&self.local.ip())
    }
}

impl Process {
    /// Returns the process's identity in the traffic accounts. The start time is rounded down, so
    /// that no connection of the process is older than it.
    pub(crate) fn identity(&self) -> ProcessIdentity {
        identity_since(self.pid, self.start_time)
    }
}

/// Returns the identity of a process in the traffic accounts; an error if it has ended.
pub(super) fn identity(pid: i32) -> io::Result<ProcessIdentity> {
    let (_, start_time) = stat(Path::new(&format!("/proc/{pid}")))?;
    Ok(identity_since(pid, start_time))
}

fn identity_since(pid: i32, start_time: u64) -> ProcessIdentity {
    /// The duration of a clock tick: USER_HZ is 100 on every architecture as Linux presents it to
    /// programs.
    const TICK_NS: u64 = 1_000_000_000 / 100;
    ProcessIdentity { pid, started: start_time.saturating_mul(TICK_NS) }
}

/// Reads a process; an error if it has ended.
pub(crate) fn read(pid: i32) -> io::Result<Process> {
    Reader::default().process(pid)
}

/// Returns the IDs of all processes of the command `name`: its short name, or the file name of its
/// first word. This process is not among them.
pub(crate) fn of_command(name: &str) -> io::Result<Vec<i32>> {
    let own = i32::try_from(std::process::id()).ok();
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_named = |pid: &i32| {
        let proc = format!("/proc/{pid}");
        let word = || {
            let cmdline = fs::read(Path::new(&proc).join("cmdline")).ok()?;
            let word = String::from_utf8_lossy(cmdline.split(|&byte| byte == 0).next()?).into_owned();
            Some(word.rsplit('/').next()? == name)
        };
        stat(Path::new(&proc)).is_ok_and(|(comm, _)| comm == name || word() == Some(true))
    };
    Ok(pids.filter(|pid| Some(*pid) != own).filter(is_named).collect())
}

/// Shortens a command line, which may be megabytes long: its beginning is enough to recognise a
/// process.
pub(crate) fn shortened(mut command: String) -> String {
    const LONGEST: usize = 256;
    if command.len() > LONGEST {
        command.truncate(command.floor_char_boundary(LONGEST));
        command.push('…');
    }
    command
}

type Sockets = HashMap<u64, Connection>;

/// Reads processes from `/proc`. Caches the socket tables of each network namespace, because a
/// table lists the sockets of all processes there, and there may be a thousand processes to read.
#[derive(Default)]
pub(crate) struct Reader {
    tables: HashMap<u64, Rc<Sockets>>,
}

impl Reader {
    /// Reads the processes in the order of `pids`, without those that have ended.
    pub(crate) fn processes(&mut self, pids: &[i32]) -> Vec<Process> {
        pids.iter().filter_map(|&pid| self.process(pid).ok()).collect()
    }

    /// Reads a process; an error if it has ended.
    pub(crate) fn process(&mut self, pid: i32) -> io::Result<Process> {
        let proc = format!("/proc/{pid}");
        let proc = Path::new(&proc);
        let uid = fs::metadata(proc)?.uid();
        let (comm, start_time) = stat(proc)?;
        // The process name in this file may have any encoding.
        let status = fs::read(proc.join("status"))?;
        let owners = parse_owners(&String::from_utf8_lossy(&status)).ok_or(io::ErrorKind::InvalidData)?;
        let cmdline = fs::read(proc.join("cmdline"))?;
        let words = cmdline.split(|&byte| byte == 0).filter(|word| !word.is_empty());
        let cmdline = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        Ok(Process { pid, uid, owners, comm, cmdline, start_time, connections: self.connections(proc) })
    }

    /// Returns the connections of a process; none if it has ended or may not be inspected.
    fn connections(&mut self, proc: &Path) -> Vec<Connection> {
        let inodes = socket_inodes(proc);
        if inodes.is_empty() {
            return Vec::new();
        }
        let Ok(namespace) = fs::metadata(proc.join("ns/net")) else { return Vec::new() };
        let table = self.tables.entry(namespace.ino()).or_insert_with(|| Rc::new(read_tables(proc)));
        let mut connections: Vec<_> = inodes.iter().filter_map(|inode| table.get(inode).copied()).collect();
        connections.sort_unstable_by_key(|connection| (connection.local, connection.remote));
        connections
    }
}

/// Returns the inodes of the sockets that a process holds. Several descriptors of one socket count
/// once.
pub(super) fn socket_inodes(proc: &Path) -> HashSet<u64> {
    let Ok(fds) = fs::read_dir(proc.join("fd")) else { return HashSet::new() };
    let targets = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    targets
        .filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect()
}

/// Reads every connected TCP and UDP socket in the network namespace of a process.
fn read_tables(proc: &Path) -> Sockets {
    let mut sockets = Sockets::new();
    for (file, transport) in
        [("tcp", Transport::Tcp), ("tcp6", Transport::Tcp), ("udp", Transport::Udp), ("udp6", Transport::Udp)]
    {
        // A host without IPv6 has no file `tcp6`.
        let Ok(text) = fs::read_to_string(proc.join("net").join(file)) else { continue };
        sockets.extend(text.lines().filter_map(|line| parse_socket(line, transport)));
    }
    sockets
}

/// Parses a line of `/proc/net/tcp` or a similar file into the socket's inode and its addresses:
/// `0: 0100007F:1F90 0200007F:0016 01 00000000:00000000 00:00000000 00000000 1000 0 4711 …`.
fn parse_socket(line: &str, transport: Transport) -> Option<(u64, Connection)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let local = parse_address(fields.get(1)?)?;
    let remote = parse_address(fields.get(2)?)?;
    // Listening and unconnected sockets have no peer; sockets in TIME_WAIT belong to no process
    // (inode 0).
    if remote.ip().is_unspecified() && remote.port() == 0 {
        return None;
    }
    let inode = fields.get(9)?.parse().ok().filter(|&inode| inode != 0)?;
    Some((inode, Connection { transport, local, remote }))
}

/// Parses an address of `/proc/net/tcp` such as `0100007F:1F90`, in hexadecimal: the address in
/// 32-bit words, in the byte order of this machine, then the port.
fn parse_address(field: &str) -> Option<SocketAddr> {
    let (address, port) = field.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => IpAddr::V4(Ipv4Addr::from(bytes)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

fn stat(proc: &Path) -> io::Result<(String, u64)> {
    let stat = fs::read(proc.join("stat"))?;
    Ok(parse_stat(&String::from_utf8_lossy(&stat)).ok_or(io::ErrorKind::InvalidData)?)
}

/// Reads the `Uid:` line of `/proc/PID/status`: real, effective, saved and file system user ID. The
/// process name above it cannot imitate that line, because the kernel escapes line ends in it.
pub(crate) fn parse_owners(status: &str) -> Option<Owners> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut uids = line.split_ascii_whitespace().map(str::parse);
    Some([uids.next()?.ok()?, uids.next()?.ok()?, uids.next()?.ok()?])
}

/// Parses the command name and the start time of `/proc/PID/stat`. The name is in parentheses and
/// may itself contain parentheses and spaces.
fn parse_stat(stat: &str) -> Option<(String, u64)> {
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, comm) = before.split_once('(')?;
    // The fields are numbered from 1 (proc(5)); `after` begins with field 3, and the start time is
    // field 22.
    let start_time = after.split(' ').nth(22 - 3)?.parse().ok()?;
    Some((comm.into(), start_time))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::selection::sandbox::Probe;

    #[test]
    fn a_process_is_shown_with_the_connections_it_holds() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        udp.connect(udp.local_addr().unwrap()).unwrap();
        let unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();

        let pid = i32::try_from(std::process::id()).unwrap();
        let this = read(pid).unwrap();
        assert_eq!(this.pid, pid);
        assert_eq!(this.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(this.owners, [this.uid; 3]);
        assert_eq!(this.cmdline, std::env::args().collect::<Vec<_>>());
        let expected = |transport, local, remote| Connection { transport, local, remote };
        let tcp = expected(Transport::Tcp, tcp.local_addr().unwrap(), tcp.peer_addr().unwrap());
        let udp = expected(Transport::Udp, udp.local_addr().unwrap(), udp.peer_addr().unwrap());
        assert!(this.connections.contains(&tcp), "{:?}", this.connections);
        assert!(this.connections.contains(&udp), "{:?}", this.connections);
        let others = [listener.local_addr().unwrap(), unconnected.local_addr().unwrap()];
        // The listener's address is also the local address of the connection that is not accepted
        // yet.
        assert!(!this.connections.iter().any(|c| others.contains(&c.local)), "{:?}", this.connections);

        assert!(tcp.is_mobile(&["127.0.0.1".parse().unwrap()]));
        assert!(!tcp.is_mobile(&["10.77.0.2".parse().unwrap()]));
    }

    #[test]
    fn a_process_with_a_name_in_an_invalid_encoding_is_listed() {
        use std::os::unix::ffi::OsStrExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(std::ffi::OsStr::from_bytes(b"a\xffb\nUid:"));
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program).arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // The parent of a vfork may run before the child's command line is visible.
        let mut attempts = std::iter::repeat_with(|| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            read(pid).unwrap()
        });
        let process = attempts.by_ref().take(5000).find(|process| !process.cmdline.is_empty()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process.comm, "a\u{fffd}b\nUid:");
        assert!(process.cmdline[0].ends_with("a\u{fffd}b\nUid:"), "{:?}", process.cmdline);
        assert_eq!(process.owners, [nix::unistd::geteuid().as_raw(); 3]);
    }

    #[test]
    fn processes_that_have_ended_are_left_out() {
        let probe = Probe::start();
        let (pid, own) = (probe.pid(), i32::try_from(std::process::id()).unwrap());
        let list = |pids: &[i32]| Reader::default().processes(pids);
        let started = list(&[pid, own]).iter().map(|p| (p.pid, p.start_time)).collect::<Vec<_>>();
        assert_eq!(started.iter().map(|s| s.0).collect::<Vec<_>>(), [pid, own]);
        assert!(started[0].1 >= started[1].1);
        probe.kill();
        assert_eq!(list(&[pid, own]).len(), 1);
        assert!(read(pid).is_err());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let line = "  3: 0100007F:1F90 0200007F:0016 01 00000000:00000000 00:00000000 00000000  1000        0 4711 1";
        let (inode, connection) = parse_socket(line, Transport::Tcp).unwrap();
        assert_eq!(inode, 4711);
        assert_eq!(connection.local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(connection.remote, "127.0.0.2:22".parse().unwrap());
        let v6 = parse_address("B80D0120000000000000000001000000:01BB").unwrap();
        assert_eq!(v6, "[2001:db8::1]:443".parse().unwrap());
        let mapped = parse_address("0000000000000000FFFF00000100007F:0050").unwrap();
        assert_eq!(mapped, "127.0.0.1:80".parse().unwrap());
        for bad in ["", "0100007F", "0100007:50", "zz00007F:50", "0100007F0100007F:50", "0100007F:zz"] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert!(parse_socket(header, Transport::Tcp).is_none());
    }

    #[test]
    fn owners_are_read_from_status() {
        assert_eq!(parse_owners("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\n"), Some([1, 2, 3]));
        assert_eq!(parse_owners("Name:\tx\n"), None);
        assert_eq!(parse_owners("Uid:\t1\t2\n"), None);
    }

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 10 20";
        assert_eq!(parse_stat(stat), Some(("a) b (c".into(), 4242)));
        assert_eq!(parse_stat("7 (short) S 1"), None);
    }

    #[test]
    fn a_command_line_of_megabytes_is_shortened_at_a_character() {
        assert_eq!(shortened("ssh host".into()), "ssh host");
        let short = shortened(format!("x{}", "é".repeat(1 << 20)));
        assert!(short.ends_with("é…") && short.len() <= 260, "{}", short.len());
    }
}
