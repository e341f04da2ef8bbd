//! Takes over the VMs of a host that has gone.
//!
//! What is agreed about a VM is read from its bundle, what it holds is the kernel's word: which process it is, which file is
//! its memory, which frames it has mapped. So a process that hangs holds nobody up: it is a VM that does not answer, and is
//! counted like the others. What its process says, once it does, is what the host before has told it.

use super::handle::ProcessHandle;
use super::orphans::{self, Orphan};
use super::process::{self, ErrorOutput, new_console};
use super::{AnyBackend, Life, Link, Running, Vm, VmProcess};
use crate::host::Host;
use crate::host::bundles::Agreed;
use crate::host::claim::CheckedStart;
use crate::host::console_log::ConsoleLog;
use crate::host::kernel::started_ticks;
use crate::host::open_files;
use crate::host::runtime_dir::Place;
use crate::host::sharing::ScannedVmSpec;
use crate::memory::areas::{Area, FileId};
use crate::memory::ram::check_memory;
use page::{PageCount, VmId};
use protocol::page_sharing::SharingSocket;
use protocol::{Channel, Description, ToVm, VERSION, VmName};
use rustix::fd::OwnedFd;
use sharing::{Frame, FrameRange};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// How long the first round waits for VMs to say how they are.
const DESCRIBING_PATIENCE: Duration = Duration::from_millis(500);
/// How long a process that is about to end may take for that.
const ENDING_PATIENCE: Duration = Duration::from_secs(10);
const ENDED_ALONE: &str = "ended while there was no host";
const HALF_STARTED: &str = "was being started when its host ended, and was ended";
const POLL: Duration = Duration::from_millis(5);
/// In which the kernel tells since when a process runs: USER_HZ of x86.
const TICKS_PER_S: u64 = 100;

/// A VM of the host before, and the way to its scanner's agent, until it says where its memory is.
#[derive(Debug)]
pub(in crate::host) struct Coming {
    socket: SharingSocket,
    store: Option<FileId>,
}

/// Takes over all VMs that the host before has left at a place, as the host of that number. Returns those that cannot be.
pub(in crate::host) async fn all(
    host: &Host,
    place: &Place,
    epoch: u64,
) -> io::Result<Vec<Orphan>> {
    let orphans = orphans::find(place);
    let mut processes: BTreeMap<String, Orphan> = orphans
        .into_iter()
        .map(|orphan| (orphan.name.clone(), orphan))
        .collect();
    let mut left = Vec::new();
    for (name, agreed) in place.bundles().all()? {
        let Some(orphan) = processes.remove(name.as_str()) else {
            match who_listens(place, &name).await {
                Some(pid) => left.push(Orphan {
                    name: name.to_string(),
                    pid,
                }),
                None => forget(host, &name, ENDED_ALONE),
            }
            continue;
        };
        match agreed {
            // Whoever wanted it was never told that it runs.
            Ok(agreed) if agreed.memory_file.is_none() => {
                ProcessHandle::of(orphan.pid)
                    .into_iter()
                    .for_each(|mut process| process.kill());
                match has_ended(orphan.pid).await {
                    true => forget(host, &name, HALF_STARTED),
                    false => left.push(orphan),
                }
            }
            agreed => {
                let taken = agreed.and_then(|agreed| one(host, &orphan, agreed, epoch));
                let Err(error) = taken else { continue };
                if has_ended(orphan.pid).await {
                    forget(host, &name, ENDED_ALONE);
                    continue;
                }
                tracing::warn!("{name} is not taken over: {error}");
                left.push(orphan);
            }
        }
    }
    left.extend(processes.into_values());
    if left.is_empty() {
        let begin = Instant::now();
        while begin.elapsed() < DESCRIBING_PATIENCE && host.lock().has_undescribed() {
            tokio::time::sleep(POLL).await;
        }
        host.taken_over();
    }
    Ok(left)
}

/// A process that has ended leaves nothing else.
fn forget(host: &Host, name: &VmName, why: &str) {
    host.lock().events.add(Some(name), why);
    host.remove_bundle(name);
}

/// Whether a process has ended, or does so now.
async fn has_ended(pid: u32) -> bool {
    match ProcessHandle::of(pid) {
        Ok(mut process) => timeout(ENDING_PATIENCE, process.wait()).await.is_ok(),
        // There is none of that number, as far as this host sees.
        Err(error) => error.raw_os_error() == Some(libc::ESRCH),
    }
}

/// A VM's process that this host does not find: it may be where this host cannot see it, or is about to end.
async fn who_listens(place: &Place, name: &VmName) -> Option<u32> {
    let socket = place.bundles().connect(name).ok()?;
    let pid = listener(&socket).unwrap_or_default();
    (!has_ended(pid).await).then_some(pid)
}

/// The process that listens at the other end of a socket; 0 where it is not seen from here.
#[expect(
    unsafe_code,
    reason = "rustix takes the number of a process that is not seen for none"
)]
fn listener(socket: &OwnedFd) -> io::Result<u32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let length = libc::socklen_t::try_from(size_of_val(&peer));
    let mut length = length.map_err(io::Error::other)?;
    // SAFETY: SO_PEERCRED writes a `ucred` of that length (unix(7)), and both live through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(peer.pid.cast_unsigned()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn one(host: &Host, orphan: &Orphan, agreed: Agreed, epoch: u64) -> io::Result<()> {
    let place = &host.shared.place;
    let handle = ProcessHandle::of(orphan.pid)?;
    if !orphans::is_vm_at(orphan.pid, &orphan.name, place) {
        return Err(io::Error::other("its process has just ended"));
    }
    let name = agreed.config.name.clone();
    if host.lock().vm(agreed.config.id).is_ok() {
        return Err(io::Error::other("another VM has its number"));
    }
    let socket = place.bundles().connect(&name)?;
    if listener(&socket)? != orphan.pid {
        return Err(io::Error::other("another process listens in its place"));
    }
    let is_memory = |id| Some(id) == agreed.memory_file;
    let memory_file = open_own(orphan.pid, is_memory, Access::Write)?;
    let memory_file = memory_file.ok_or_else(|| io::Error::other("it has not its memory open"))?;
    let checked = check_memory(&memory_file, agreed.config.settings.size.bytes());
    checked.map_err(|error| io::Error::other(format!("its memory is not what it was: {error}")))?;
    let store = store_of(host, orphan.pid)?;

    let (scanner, agent) = SharingSocket::pair().map_err(io::Error::other)?;
    let (our_console, their_console) = new_console()?;
    let (our_errors, their_errors) = std::io::pipe()?;
    let link = Link::new(Channel::to_a_stranger(socket))?;
    let message = ToVm::TakeOver {
        epoch,
        speaks: VERSION,
    };
    let brought = [agent.as_fd(), their_console.as_fd(), their_errors.as_fd()];
    link.send_with(&message, &brought)
        .map_err(io::Error::other)?;
    let log = agreed.config.console_log.clone().map(ConsoleLog::new);
    let running = Running {
        pid: orphan.pid,
        backend: AnyBackend::Process(VmProcess {
            pid: orphan.pid,
            link: Arc::new(link),
            console: process::console(our_console, log)?,
            memory_file: Arc::new(memory_file),
            start_us: 0,
            userfault_pages: PageCount::ZERO,
            jail: protocol::JailReport::default(),
            coming: Some(Coming {
                socket: scanner,
                store,
            }),
        }),
        since: Instant::now(),
        kill: Arc::<Notify>::default(),
        gone: watch::Sender::new(()),
    };
    let age = age(orphan.pid)?;
    let errors = ErrorOutput::of(tokio::net::unix::pipe::Receiver::from_owned_fd(
        our_errors.into(),
    )?);
    let mut state = host.lock();
    let (id, group) = (agreed.config.id, agreed.config.trust_group.clone());
    state.durable.next_id = state.durable.next_id.max(id.0.saturating_add(1));
    let vm = Vm::taken_over(agreed, running, age);
    state.durable.vms.insert(id, vm);
    state.arrivals.expect(id, group);
    state
        .events
        .add(Some(&name), format!("taken over as process {}", orphan.pid));
    drop(state);
    tokio::spawn(process::attend(host.clone(), id, handle, errors));
    Ok(())
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// Opens a file that a process has open, known by its numbers.
fn open_own(
    pid: u32,
    is_wanted: impl Fn(FileId) -> bool,
    access: Access,
) -> io::Result<Option<File>> {
    let mut options = File::options();
    options.read(true).write(access == Access::Write);
    let path = open_files::find(pid, is_wanted)?;
    path.map(|path| options.open(path)).transpose()
}

/// The store that a process was given, and shows frames of by the kernel's word. It is expected to be shared in from here on.
fn store_of(host: &Host, pid: u32) -> io::Result<Option<FileId>> {
    let notes = host.shared.place.store_notes();
    let file = open_own(pid, |id| notes.has(id), Access::Read)?;
    let own = file.as_ref().map(FileId::of).transpose()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut known = BTreeMap::new();
    let mut frames = Vec::new();
    for area in maps.lines().filter_map(Area::parse) {
        let is_store = *known
            .entry(area.file)
            .or_insert_with(|| notes.has(area.file));
        match is_store {
            true if own != Some(area.file) => {
                return Err(io::Error::other(
                    "it shows frames of a store that it has not open",
                ));
            }
            true => frames.extend(frames_in(&area)),
            false => {}
        }
    }
    let Some(file) = file else { return Ok(None) };
    let store = host.shared.sharing.expect(&file, frames);
    store.map(Some).map_err(io::Error::other)
}

fn frames_in(area: &Area) -> Option<FrameRange> {
    let pages = area.file_pages();
    Some(FrameRange {
        start: Frame(u32::try_from(pages.start).ok()?),
        count: u32::try_from(pages.end - pages.start).ok()?,
    })
}

/// How long a process has been running.
fn age(pid: u32) -> io::Result<Duration> {
    let started = Duration::from_millis(started_ticks(pid)? * 1000 / TICKS_PER_S);
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime = uptime.split(' ').next().and_then(|text| text.parse().ok());
    let uptime = Duration::from_secs_f64(uptime.unwrap_or_default());
    // By ticks it may have started a little later than it did.
    Ok(uptime.saturating_sub(started) + Duration::from_secs(1))
}

impl Host {
    /// A VM that was taken over says how it is. Whether that was expected.
    pub(super) fn described(&self, id: VmId, said: Description) -> bool {
        let mut state = self.lock();
        let Some(vm) = state.durable.vms.get_mut(&id) else {
            return false;
        };
        let size = vm.config.settings.size;
        let (Life::Running(running) | Life::Stopping(running)) = &mut vm.life else {
            return false;
        };
        let Some(process) = running.backend.process_mut() else {
            return false;
        };
        if process.coming.is_none() {
            return false;
        }
        let config = said.config.clone();
        let start = match CheckedStart::new(said, size) {
            Ok(start) => start,
            Err(untrue) => {
                let name = vm.config.name.clone();
                state
                    .events
                    .warn(&name, format!("says what cannot be: {untrue}"));
                return true;
            }
        };
        let coming = process.coming.take();
        process.start_us = start.start_us;
        process.userfault_pages = start.userfault_pages;
        process.jail = start.jail;
        let (pid, memory_file) = (process.pid, Arc::clone(&process.memory_file));
        vm.take_described(&config);
        let (name, group) = (vm.config.name.clone(), vm.config.trust_group.clone());
        let Some(coming) = coming else { return true };
        let to_scan = ScannedVmSpec {
            id,
            name,
            group: group.clone(),
            size,
            pid,
            ram_address: start.ram_address,
            memory_file,
            socket: coming.socket,
            store: coming.store,
        };
        let whole = state.arrivals.come(id, group, to_scan);
        drop(state);
        self.share_in(whole);
        true
    }

    /// These can share from now on: all of one group.
    pub(super) fn share_in(&self, vms: Vec<ScannedVmSpec>) {
        let sharing = &self.shared.sharing;
        match vms.iter().any(|vm| vm.store.is_some()) {
            true => sharing.take_over(vms),
            false => vms.into_iter().for_each(|vm| sharing.add_vm(vm)),
        }
        if self.lock().arrivals.end() {
            sharing.all_have_come();
        }
    }

    /// All that could be taken over were.
    fn taken_over(&self) {
        let mut state = self.lock();
        let count = state.count();
        if count > 0 {
            let what = format!("{count} VMs of the host before were taken over");
            state.events.add(None, what);
        }
        state.publish_change();
        self.shared.count.send_replace(count);
        drop(state);
        self.shared.round_wanted.notify_one();
    }

    pub(super) fn remove_bundle(&self, name: &VmName) {
        if let Err(error) = self.shared.place.bundles().remove(name) {
            tracing::warn!("what is left of {name} is not removed: {error}");
        }
    }
}
