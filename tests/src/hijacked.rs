//! A VM's process in the hands of its guest, as its host meets it: the process is held, and its sockets speak
//! as a test wants.

use crate::process::{self, Signal};
use crate::wait::{wait_for, wait_until};
use crate::{TestHost, Value, json, number};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, socket_acceptconn, socket_type};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, recv, send,
    sendmsg,
};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, kill_process, pidfd_getfd, pidfd_open, pidfd_send_signal,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

const PAGE_SIZE: u64 = 4096;
/// As many as the kernel sends at once (`SCM_MAX_FD`).
const MOST_DESCRIPTORS: usize = 253;
/// Room for whatever a host says.
const LARGEST: usize = 64 << 10;

/// A VM whose process is held. It goes on when this is dropped, if it is still there.
#[derive(Debug)]
pub struct Hijacked {
    pid: u32,
    size: u64,
    /// To the host.
    pub channel: OwnedFd,
    /// To the host's scanner.
    pub scanner: OwnedFd,
    /// What the guest prints.
    pub console: OwnedFd,
}

impl Hijacked {
    /// Takes a VM over, as its host shows it.
    ///
    /// # Panics
    /// If it has no such sockets.
    #[must_use]
    pub fn take(vm: &Value) -> Self {
        Self::try_take(vm).expect("a VM process has three sockets")
    }

    /// The same; none if its process has ended, or has closed one of them.
    #[must_use]
    pub fn try_take(vm: &Value) -> Option<Self> {
        let pid = u32::try_from(vm["pid"].as_u64()?).ok()?;
        let raw = Pid::from_raw(pid.cast_signed())?;
        let process = pidfd_open(raw, PidfdFlags::empty()).ok()?;
        pidfd_send_signal(&process, Signal::STOP).ok()?;
        let take = |number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty());
        let sockets = sockets(pid)?.into_iter().map(take);
        let sockets: Vec<OwnedFd> = sockets.collect::<Result<_, _>>().ok()?;
        // At one it listens for other hosts.
        let listens = |socket: &OwnedFd| socket_acceptconn(socket) == Ok(true);
        let sockets: Vec<OwnedFd> = sockets
            .into_iter()
            .filter(|socket| !listens(socket))
            .collect();
        let kinds: Vec<_> = sockets.iter().map(socket_type).collect();
        let packets = Ok(SocketType::SEQPACKET);
        if kinds != [packets, Ok(SocketType::STREAM), packets] {
            return None;
        }
        let [channel, console, scanner] = <[OwnedFd; 3]>::try_from(sockets).ok()?;
        Some(Self {
            pid,
            size: number(vm, "/size_bytes") / PAGE_SIZE,
            channel,
            scanner,
            console,
        })
    }

    /// Says something to the host. Whether it was taken.
    pub fn say(&self, message: &Value) -> bool {
        let packet = json!({ "version": 3, "message": message }).to_string();
        send(&self.channel, packet.as_bytes(), SendFlags::DONTWAIT).is_ok()
    }

    /// Sends a packet as it stands. Whether it was taken.
    pub fn send(&self, socket: impl AsFd, bytes: &[u8]) -> bool {
        send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok()
    }

    /// The number of the host's last question how things stand, if it has asked since the last look.
    #[must_use]
    pub fn asked(&self) -> Option<u64> {
        let mut bytes = vec![0; LARGEST];
        let mut last = None;
        while let Ok((_, length @ 1..)) = recv(&self.channel, &mut bytes[..], RecvFlags::DONTWAIT) {
            let asked = serde_json::from_slice::<Value>(&bytes[..length]);
            let asked = asked
                .ok()
                .and_then(|asked| asked.pointer("/message/observe/sequence")?.as_u64());
            last = asked.or(last);
        }
        last
    }

    /// What it would say if it were honest, as an answer to that question.
    #[must_use]
    pub fn observation(&self, sequence: u64) -> Value {
        honest_observation(self.size, sequence)
    }

    /// Waits until the host asks how things stand, and gives it an answer that can be true but for one change.
    ///
    /// # Panics
    /// If the host does not ask.
    pub fn answer(&self, change: impl FnOnce(&mut Value)) {
        let sequence = wait_for("the host asks", || {
            let mut bytes = vec![0; LARGEST];
            let (_, length) = recv(&self.channel, &mut bytes[..], RecvFlags::DONTWAIT).ok()?;
            let asked: Value = serde_json::from_slice(&bytes[..length]).expect("hosts say JSON");
            asked.pointer("/message/observe/sequence")?.as_u64()
        });
        let mut observation = honest_observation(self.size, sequence);
        change(&mut observation);
        assert!(self.say(&json!({ "observation": observation })));
    }
}

/// A process's sockets, each by the first of its descriptors, in their order. None if it has ended.
fn sockets(pid: u32) -> Option<BTreeSet<i32>> {
    let mut first_of = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()? {
        let entry = entry.ok()?;
        let to = fs::read_link(entry.path()).ok()?;
        let number: i32 = entry.file_name().to_string_lossy().parse().ok()?;
        if to.to_string_lossy().starts_with("socket:") {
            let first = first_of.entry(to).or_insert(number);
            *first = number.min(*first);
        }
    }
    Some(first_of.into_values().collect())
}

impl Drop for Hijacked {
    fn drop(&mut self) {
        let raw = Pid::from_raw(self.pid.cast_signed()).expect("no process is 0");
        if let Err(error) = kill_process(raw, Signal::CONT) {
            assert_eq!(error, Errno::SRCH, "it can only have gone");
        }
    }
}

/// What a VM says whose guest has touched all of its memory and nothing else.
fn honest_observation(size: u64, sequence: u64) -> Value {
    json!({
        "sequence": sequence,
        "states": {
            "empty": 0, "private": size, "shared": 0, "broken": 0, "ballooned": 0, "compressed": 0, "swapped": 0,
        },
        "balloon": {
            "has_driver": true, "target": 0, "held": 0, "claimed": 0,
            "counters": {
                "inflated": 0, "deflated": 0, "reported": 0, "popped": 0, "outside": 0, "repeated": 0,
                "malformed": 0, "broken_queues": 0,
            },
        },
        "statistics": null,
        "counters": {
            "given_back": 0, "refused": 0, "write_protect_faults": 0,
            "sharing": {
                "mapped": 0, "shared": 0, "zeroed": 0, "dropped": 0, "copied": 0, "rehomed": 0, "mappings": 0,
                "differed": 0, "no_areas": 0, "no_memory": 0, "stale": 0,
            },
            "register_violations": 0, "console_lost_bytes": 0,
        },
        "nets": [], "disks": [],
    })
}

/// Sends a packet with descriptors. Whether it was taken.
pub fn send_with(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        && sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        )
        .is_ok()
}

/// A descriptor that takes ten minutes to close for whoever has it last: a connection that lingers over what
/// nobody reads.
#[derive(Debug)]
pub struct Lingering {
    /// When this is closed, the wait is over: so it is the first to be dropped.
    _far: TcpStream,
    /// Sent, and closed here before it is read.
    near: Option<TcpStream>,
}

impl Lingering {
    /// A new one.
    ///
    /// # Panics
    /// If the machine has no network with itself.
    #[must_use]
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut near = TcpStream::connect(address).expect("it listens");
        let (far, _) = listener.accept().expect("somebody has connected");
        near.set_nonblocking(true).expect("a socket can be so");
        while near.write(&[0; 64 << 10]).is_ok() {}
        near.set_nonblocking(false).expect("a socket can be so");
        set_socket_linger(&near, Some(Duration::from_secs(600))).expect("a socket can linger");
        Self {
            near: Some(near),
            _far: far,
        }
    }

    /// Sends it with some bytes. The host is held meanwhile, so that it is the only one to have it then: whoever
    /// closes it last waits.
    ///
    /// # Panics
    /// If it was sent before.
    pub fn send(&mut self, host: &TestHost, socket: BorrowedFd<'_>, bytes: &[u8]) {
        let near = self.near.take().expect("it is sent once");
        process::signal(host.host_pid(), Signal::STOP);
        wait_until("the host is held", || {
            process::state(host.host_pid()) == Some('T')
        });
        assert!(
            send_with(socket, bytes, &[near.as_fd()]),
            "the host has room"
        );
        drop(near);
        process::signal(host.host_pid(), Signal::CONT);
    }
}

impl Default for Lingering {
    fn default() -> Self {
        Self::new()
    }
}
