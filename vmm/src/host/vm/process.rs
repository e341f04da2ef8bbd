//! Starts a VM's process, listens to it, and cleans up when it has ended.
//!
//! A child that is dropped is killed (`kill_on_drop`): no process outlives the task that waits for its end.

use super::handle::ProcessHandle;
use super::{AnyBackend, Life, Link, Vm, VmProcess, orphans};
use crate::host::Host;
use crate::host::claim::{self, CheckedStart, Untrue};
use crate::host::console::Console;
use crate::host::console_log::ConsoleLog;
use crate::host::error::HostError;
use crate::host::rate_limit::RateLimit;
use crate::host::runtime_dir::Place;
use crate::host::sharing::ScannedVmSpec;
use crate::host::swap_dir;
use crate::memory::areas::FileId;
use crate::memory::ram::{allocated_pages, punch_all};
use page::{PageCount, VmId};
use protocol::page_sharing::SharingSocket;
use protocol::{Channel, ChannelError, FromVm, Observation, Received, ToVm, UNASKED};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// How long a VM process may do nothing before its guest's first instruction,
const START_PATIENCE: Duration = Duration::from_secs(20);
/// and how long it may take: to load a kernel from a slow disk beside much other work.
const LONGEST_START: Duration = Duration::from_secs(300);
/// How long a process may take to end after it has hung up.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
/// Messages that a VM process may send unasked at once,
const MESSAGES_AT_ONCE: u32 = 16;
/// and the time after each further one in which it is not heard.
const MESSAGE_EACH: Duration = Duration::from_millis(100);
/// Bytes of a VM process's error output that are kept, to say why it died.
const KEPT_STDERR: usize = 4096;
/// The program itself, whatever happens to the file it was started from.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What is there once a VM's process runs.
#[derive(Debug)]
pub(in crate::host) struct Running {
    pub(in crate::host) pid: u32,
    /// Who runs it.
    pub(in crate::host) backend: AnyBackend,
    /// Since when its guest runs.
    pub(in crate::host) since: Instant,
    /// Ends it by force.
    pub(in crate::host) kill: Arc<Notify>,
    /// Dropped, as all of this, when nothing of the VM is left.
    pub(in crate::host) gone: watch::Sender<()>,
}

impl Running {
    /// Whether it has said how it is.
    pub(in crate::host) fn is_described(&self) -> bool {
        self.backend.is_described()
    }
}

/// A process that has been started and has not said yet that its guest runs.
struct Spawned {
    child: Child,
    link: Arc<Link>,
    sharing: SharingSocket,
    console: Console,
    stderr: ErrorOutput,
}

/// Starts the process of a VM that has its first grant; returns when its guest runs.
pub(super) async fn launch(host: &Host, id: VmId) -> Result<(), HostError> {
    let (mut config, swap) = {
        let mut state = host.lock();
        let swap = state.durable.swap.clone();
        (state.vm_mut(id)?.at_boot(), swap)
    };
    let name = config.name.clone();
    let size = config.settings.size;
    let console_log = config.console_log.clone().map(ConsoleLog::new);
    let failed = |why: String| HostError::DidNotStart {
        name: name.clone(),
        why,
    };
    let may_be_out = size.saturating_sub(config.settings.min);
    if swap.is_some() {
        host.lock().vm_mut(id)?.config.swap_file_for = Some(may_be_out);
    }
    let swap_file = match swap.filter(|_| may_be_out > PageCount::ZERO) {
        Some(folder) => {
            config.swap_file_for = Some(may_be_out);
            // To reserve some GiB takes its time on some file systems.
            let making = move || swap_dir::make_file(&folder, size, may_be_out);
            let made = tokio::task::spawn_blocking(making).await;
            let made = made.unwrap_or_else(|error| Err(error.to_string()));
            Some(made.map_err(failed)?)
        }
        None => None,
    };
    let boot = ToVm::Boot(Box::new(config));
    let door = {
        let agreed = host.lock().vm(id)?.agreed();
        host.shared.place.bundles().make(&agreed)
    };
    let door = door.map_err(|error| failed(format!("its socket cannot be made: {error}")))?;
    let (mut spawned, agent_socket) = spawn(name.as_str(), &host.shared.place, console_log)
        .map_err(|error| failed(crate::error_chain(&error)))?;
    let mut descriptors = vec![agent_socket.as_fd(), door.as_fd()];
    descriptors.extend(swap_file.as_ref().map(AsFd::as_fd));
    let sent = spawned.link.send_with(&boot, &descriptors);
    drop((agent_socket, door, swap_file));
    let started = match sent {
        Ok(()) => first_words(&spawned, size).await,
        Err(error) => Err(NotStarted::Silent(crate::error_chain(&error))),
    };
    match started {
        Ok((start, memory_file)) => {
            if let Err(error) = write_down(host, id, &memory_file) {
                drop(spawned.link.send(&ToVm::Stop));
                exit_status(&mut ProcessHandle::Child(spawned.child)).await;
                return Err(failed(crate::error_chain(&error)));
            }
            adopt(host, id, spawned, start, memory_file);
            Ok(())
        }
        Err(why) => {
            let mut process = ProcessHandle::Child(spawned.child);
            exit_status(&mut process).await;
            let said = spawned.stderr.last().await;
            Err(failed(why.with(&said)))
        }
    }
}

/// Its guest runs: a host that comes later is to know it by this.
fn write_down(host: &Host, id: VmId, memory_file: &File) -> Result<(), HostError> {
    let mut agreed = host.lock().vm(id)?.agreed();
    agreed.memory_file = FileId::of(memory_file).ok();
    host.write_agreed(&agreed)
}

/// Starts a process. Also returns the end of the scanner's socket that its agent is to have.
fn spawn(
    name: &str,
    place: &Place,
    console_log: Option<ConsoleLog>,
) -> std::io::Result<(Spawned, SharingSocket)> {
    let (sharing, agent_socket) = SharingSocket::pair().map_err(std::io::Error::other)?;
    let (ours, theirs) = Channel::pair().map_err(std::io::Error::other)?;
    let (our_console, their_console) = new_console()?;
    let mut child = Command::new(OWN_PROGRAM)
        .arg0("ballonet")
        .args(orphans::arguments(name, place))
        .args(orphans::own_tree())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(their_console))
        .stderr(Stdio::piped())
        // A terminal's Ctrl-C is for the host, which then ends its VMs in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let stderr = child
        .stderr
        .take()
        .ok_or_else(|| std::io::Error::other("the error output is piped"))?;
    let spawned = Spawned {
        child,
        link: Arc::new(Link::new(ours)?),
        sharing,
        console: console(our_console, console_log)?,
        stderr: ErrorOutput::of(stderr),
    };
    Ok((spawned, agent_socket))
}

/// Both ends of a socket for a console: neither blocks.
pub(super) fn new_console() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let ends = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(ends)
}

/// A console over the host's end of such a socket.
pub(super) fn console(socket: OwnedFd, log: Option<ConsoleLog>) -> std::io::Result<Console> {
    let socket = UnixStream::from_std(StdUnixStream::from(socket))?;
    Ok(Console::new(socket, log))
}

/// The newest part of what a VM process prints as errors.
pub(super) struct ErrorOutput {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl ErrorOutput {
    pub(super) fn of(mut pipe: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&kept);
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; 1024];
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                let mut all = lock(&all);
                all.extend_from_slice(&buffer[..count]);
                let surplus = all.len().saturating_sub(KEPT_STDERR);
                all.drain(..surplus);
            }
        });
        Self { kept, reader }
    }

    /// What was printed by a process that has ended. Its end of the pipe may live on in another process, which is
    /// not waited for.
    async fn last(&mut self) -> String {
        drop(tokio::time::timeout(EXIT_PATIENCE, &mut self.reader).await);
        self.reader.abort();
        String::from_utf8_lossy(&lock(&self.kept)).trim().to_owned()
    }
}

fn lock(kept: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a process's guest does not run.
enum NotStarted {
    /// The process said so itself.
    Said(String),
    /// It did not say; what it printed may tell.
    Silent(String),
}

impl NotStarted {
    /// The reason in words, where `printed` is what the process printed.
    fn with(self, printed: &str) -> String {
        match self {
            Self::Silent(why) if !printed.is_empty() => format!("{why}: {printed}"),
            Self::Said(why) | Self::Silent(why) => why,
        }
    }
}

impl From<&str> for NotStarted {
    fn from(why: &str) -> Self {
        Self::Silent(why.into())
    }
}

/// What a process says first: which file is its memory, and then that its guest runs, or why not.
async fn first_words(
    spawned: &Spawned,
    size: PageCount,
) -> Result<(CheckedStart, File), NotStarted> {
    let begin = Instant::now();
    let memory = first_word(spawned, begin).await?;
    let file = match memory.message {
        FromVm::Memory => claim::memory_file(memory.descriptors, size),
        _ => return Err("its process sent something else before its memory file".into()),
    };
    let file = file.map_err(|error| NotStarted::Silent(crate::error_chain(&error)))?;
    match first_word(spawned, begin).await?.message {
        FromVm::Started(description) => {
            let start = CheckedStart::new(*description, size);
            let start = start.map_err(|untrue| NotStarted::Silent(untrue.to_string()))?;
            Ok((start, file))
        }
        _ => Err("its process said something else first".into()),
    }
}

/// One of them; what says why the guest does not run is an error.
async fn first_word(spawned: &Spawned, begin: Instant) -> Result<Received<FromVm>, NotStarted> {
    match first_message(spawned, begin).await {
        Ok(Ok(Received {
            message: FromVm::Failed { error },
            ..
        })) => Err(NotStarted::Said(error)),
        Ok(Ok(said)) => Ok(said),
        Ok(Err(ChannelError::Closed)) => Err("its process died".into()),
        Ok(Err(error)) => Err(NotStarted::Silent(crate::error_chain(&error))),
        Err(Idle) => Err(NotStarted::Silent(format!(
            "its process was silent for {} s",
            begin.elapsed().as_secs()
        ))),
    }
}

/// A process does nothing, or has not come to an end for too long.
struct Idle;

/// Waits for a process' first message as long as it is at work.
async fn first_message(
    spawned: &Spawned,
    begin: Instant,
) -> Result<Result<Received<FromVm>, ChannelError>, Idle> {
    let pid = spawned.child.id();
    let mut before = pid.and_then(processor_time_ns);
    loop {
        let heard = tokio::time::timeout(START_PATIENCE, spawned.link.hear_first()).await;
        if let Ok(heard) = heard {
            return Ok(heard);
        }
        let now = pid.and_then(processor_time_ns);
        if now == before || begin.elapsed() > LONGEST_START {
            return Err(Idle);
        }
        before = now;
    }
}

/// What a process' first thread has had of processors.
fn processor_time_ns(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    text.split(' ').next()?.parse().ok()
}

fn adopt(host: &Host, id: VmId, spawned: Spawned, start: CheckedStart, memory_file: File) {
    // One descriptor for all who read it.
    let memory_file = Arc::new(memory_file);
    let Spawned {
        child,
        link,
        sharing,
        console,
        stderr,
    } = spawned;
    let mut state = host.lock();
    let kill = Arc::<Notify>::default();
    if state.stopping {
        kill.notify_one();
    }
    // A child that has ended and was waited for has no number any more.
    let (Some(vm), Some(pid)) = (state.durable.vms.get_mut(&id), child.id()) else {
        return;
    };
    let to_scan = ScannedVmSpec {
        id,
        name: vm.config.name.clone(),
        group: vm.config.trust_group.clone(),
        size: vm.config.settings.size,
        pid,
        ram_address: start.ram_address,
        memory_file: Arc::clone(&memory_file),
        socket: sharing,
        store: None,
    };
    vm.life = Life::Running(Running {
        pid,
        backend: AnyBackend::Process(VmProcess {
            pid,
            link,
            console,
            memory_file,
            start_us: start.start_us,
            userfault_pages: start.userfault_pages,
            jail: start.jail.clone(),
            coming: None,
        }),
        since: Instant::now(),
        kill,
        gone: watch::Sender::new(()),
    });
    // Its grant may have changed while it was being started.
    vm.tell(|backend| backend.inflate_to(vm.config.balloon_target));
    let name = vm.config.name.clone();
    state
        .events
        .add(Some(&name), format!("started as process {pid}"));
    state.tell_of_jail(&start.jail);
    // Others of its group may still be on their way from the host before.
    let group = to_scan.group.clone();
    let whole = state.arrivals.come(id, group, to_scan);
    drop(state);
    host.share_in(whole);
    let child = ProcessHandle::Child(child);
    tokio::spawn(attend(host.clone(), id, child, stderr));
}

/// Listens to a VM until its process has ended, then frees what it held.
pub(super) async fn attend(
    host: Host,
    id: VmId,
    mut process: ProcessHandle,
    mut stderr: ErrorOutput,
) {
    let shared = |vm: &Vm| {
        let running = vm.running()?;
        let process = running.backend.process()?;
        let (link, kill) = (Arc::clone(&process.link), Arc::clone(&running.kill));
        Some((link, kill, Arc::clone(&process.memory_file)))
    };
    let Some((link, kill, memory_file)) = host.lock().vm(id).ok().and_then(shared) else {
        return;
    };
    let (mut last_words, mut is_garbled) = (None, false);
    let mut unasked = RateLimit::new(MESSAGES_AT_ONCE, MESSAGE_EACH);
    let status = loop {
        tokio::select! {
            heard = next_message(&link, &unasked) => match heard {
                Ok(message) => if !hear(&host, id, message, &mut last_words) {
                    unasked.charge(1, Instant::now());
                },
                Err(ChannelError::Closed | ChannelError::Socket(_)) if obeys(&host, id) => {
                    break exit_status(&mut process).await;
                }
                // It does not listen, and that is no reason to end it.
                Err(ChannelError::Closed | ChannelError::Socket(_)) => {
                    break end_of_stranger(&mut process, &kill).await;
                }
                // It is not what was started any more, and there is no way past that message.
                Err(error @ ChannelError::Descriptors) => {
                    last_words = Some(format!("its process was ended, for it sent {error}"));
                    process.kill();
                    break exit_status(&mut process).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_garbled, true) {
                        tell_of_garbage(&host, id, &error);
                    }
                    unasked.charge(1, Instant::now());
                }
            },
            () = kill.notified() => process.kill(),
            // Its end of the channel may live on, and what it said in vain before its end is not waited for.
            status = process.wait() => {
                for _ in 0..MESSAGES_AT_ONCE {
                    let Ok(message) = link.hear_now() else { break };
                    hear(&host, id, message, &mut last_words);
                }
                break status;
            }
        }
    };
    // Only now: the process's mappings of the store are gone with it.
    host.shared.sharing.remove_vm(id);
    let whole = host.lock().arrivals.ended(id);
    host.share_in(whole);
    let freed = free_memory(memory_file).await;
    let said = stderr.last().await;
    let stopping = host
        .lock()
        .vm(id)
        .is_ok_and(|vm| matches!(vm.life, Life::Stopping(_)));
    // Its last observation came after the last round.
    host.lock().watch_devices();
    let what = reason_of_end(stopping, last_words, status, &said);
    host.remove(id, &format!("{what}; its {freed} are free again"));
}

/// Whether a VM has ever obeyed this host. One that was taken over may not.
fn obeys(host: &Host, id: VmId) -> bool {
    let mut state = host.lock();
    let Ok(vm) = state.vm(id) else { return true };
    if vm.running().is_none_or(Running::is_described) {
        return true;
    }
    let name = vm.config.name.clone();
    let what = "does not listen to this host: it has obeyed a later one, or its guest has taken its process over; it is counted, and `stop` ends it by force";
    state.events.warn(&name, what);
    false
}

/// Waits for the end of a process that does not listen.
async fn end_of_stranger(process: &mut ProcessHandle, kill: &Notify) -> Option<ExitStatus> {
    loop {
        tokio::select! {
            status = process.wait() => return status,
            () = kill.notified() => process.kill(),
        }
    }
}

/// What nobody asked for is heard at a bounded rate.
async fn next_message(link: &Link, unasked: &RateLimit) -> Result<FromVm, ChannelError> {
    tokio::time::sleep_until(unasked.next().into()).await;
    link.hear().await
}

/// Whether it was asked for.
fn hear(host: &Host, id: VmId, message: FromVm, last_words: &mut Option<String>) -> bool {
    match message {
        FromVm::Observation(observation) => return take_answer(host, id, *observation),
        FromVm::Ended {
            reason,
            is_switched_off,
        } => {
            if let Ok(vm) = host.lock().vm_mut(id) {
                vm.has_switched_off = is_switched_off;
            }
            *last_words = Some(claim::words(&reason));
        }
        FromVm::Failed { error } => *last_words = Some(claim::words(&error)),
        FromVm::Description(description) => return host.described(id, *description),
        FromVm::Memory | FromVm::Started(_) => {}
    }
    false
}

pub(in crate::host) fn take_answer(host: &Host, id: VmId, said: Observation) -> bool {
    let mut state = host.lock();
    let Some(vm) = state.durable.vms.get_mut(&id) else {
        return false;
    };
    let is_answer = vm.awaits(said.sequence);
    let observed = match (is_answer, said.sequence) {
        (true, _) => vm.observed(said),
        (false, UNASKED) => vm.observed_last(said),
        (false, _) => return false,
    };
    if let Err(untrue) = observed {
        let news = vm.doubt().then(|| vm.config.name.clone());
        state.state_sum_violations += u64::from(matches!(untrue, Untrue::States(_)));
        if let Some(name) = news {
            let what = format!(
                "says what cannot be: {untrue}; its last good figures stand. Either its guest has taken its process over, or this is a bug in ballonet: please report it then"
            );
            state.events.warn(&name, what);
        }
    }
    drop(state);
    host.shared.answered.notify_waiters();
    is_answer
}

/// Waits for the end of a process, and ends it if that takes too long.
async fn exit_status(process: &mut ProcessHandle) -> Option<ExitStatus> {
    match tokio::time::timeout(EXIT_PATIENCE, process.wait()).await {
        Ok(status) => status,
        Err(_) => {
            process.kill();
            process.wait().await
        }
    }
}

/// Gives back what the memory file of a VM holds whose process has ended. Returns how much that was.
///
/// The file is punched, not only closed: others have it open, the scanner for one, and close it when they
/// come to it. Until this returns the VM is there, and what it holds counts as used.
async fn free_memory(file: Arc<File>) -> PageCount {
    // Freeing some GiB takes a second, in which the host has other things to do.
    let freeing = tokio::task::spawn_blocking(move || {
        let held = allocated_pages(&file).unwrap_or_default();
        if let Err(error) = punch_all(&file) {
            tracing::error!("the memory of a VM that has ended is not freed yet: {error}");
        }
        held
    });
    freeing.await.unwrap_or_default()
}

/// Once is enough: it is not what was started any more.
fn tell_of_garbage(host: &Host, id: VmId, error: &ChannelError) {
    let mut state = host.lock();
    let Some(name) = state.durable.vms.get(&id).map(|vm| vm.config.name.clone()) else {
        return;
    };
    let what = format!(
        "sends what is no message ({}): stop it, for its process is not what was started any more",
        crate::error_chain(error)
    );
    state.events.warn(&name, what);
}

/// What is to be said about a VM that has ended.
fn reason_of_end(
    stopping: bool,
    last_words: Option<String>,
    status: Option<ExitStatus>,
    said: &str,
) -> String {
    let signal = status.and_then(|status| status.signal());
    match (last_words, signal) {
        (Some(words), _) => words,
        (None, Some(libc::SIGKILL)) if stopping => {
            "stopped by force, for its process did not end".into()
        }
        (None, Some(signal)) => format!("its process was killed by signal {signal}"),
        (None, None) if stopping => "stopped".into(),
        (None, None) if said.is_empty() => "its process died without a word".into(),
        (None, None) => format!("its process died: {said}"),
    }
}
