//! A host for one test.

use crate::console::GuestConsole;
use crate::place::Place;
use crate::process::{self, Signal};
use crate::program::program;
use crate::wait::{wait_for, wait_until, wait_until_at_least, wait_while_progress};
use crate::{Value, number, text, vms};
use std::cmp::Reverse;
use std::fs::File;
use std::ops::Deref;
use std::process::{Child, Command, ExitStatus, Stdio};

/// Rounds are short, so that tests are.
const INTERVAL_MS: &str = "200";

/// Makes two taps, up, and something that is none.
const MAKE_TAPS: &str = "for tap in tap0 tap1; do ip tuntap add $tap mode tap && \
     ip link set $tap up || exit; done; ip tuntap add tun0 mode tun";

/// A running host in a place of its own. Told to end when it is dropped.
#[derive(Debug)]
pub struct TestHost {
    child: Option<Child>,
    /// How it was started.
    command: Command,
    place: Place,
}

impl TestHost {
    /// A host with that budget, as in `512M`.
    #[must_use]
    pub fn start(budget: &str) -> Self {
        Self::start_in(Place::new(), budget)
    }

    /// A host in a place where perhaps another was before.
    #[must_use]
    pub fn start_in(place: Place, budget: &str) -> Self {
        let command = place.command(&["host", "--memory", budget, "--interval-ms", INTERVAL_MS]);
        Self::start_by(place, command)
    }

    /// A host whose VMs' pages may go to files in the folder `swap` of its place.
    ///
    /// # Panics
    /// If its path is no text.
    #[must_use]
    pub fn start_with_swap(budget: &str) -> Self {
        let place = Place::new();
        let folder = place.path().join("swap");
        let folder = folder.to_str().expect("its path is text");
        let words = ["host", "--memory", budget, "--interval-ms", INTERVAL_MS];
        let command = place.command(&[&words[..], &["--swap", folder]].concat());
        Self::start_by(place, command)
    }

    /// Removes that folder. No swap file has a name, so nothing lies there.
    ///
    /// # Panics
    /// If something does.
    pub fn remove_swap_folder(&self) {
        std::fs::remove_dir(self.path().join("swap")).expect("it is empty");
    }

    /// A host in a network of its own, in which there are `tap0` and `tap1`, and `tun0`, which is no tap.
    #[must_use]
    pub fn start_with_taps(budget: &str) -> Self {
        Self::start_after(MAKE_TAPS, budget, INTERVAL_MS)
    }

    /// A host with a network and mounts of its own, as a script leaves them; the script runs in the place's folder.
    #[must_use]
    pub fn start_after(script: &str, budget: &str, interval_ms: &str) -> Self {
        let place = Place::new();
        let script = format!("{{ {script}; }} && exec \"$@\"");
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--mount", "sh", "-c", &script, "sh"])
            .arg(program())
            .args(["host", "--memory", budget, "--interval-ms", interval_ms])
            .current_dir(place.path());
        place.adapt(&mut command);
        Self::start_by(place, command)
    }

    /// A host that a given command starts.
    ///
    /// # Panics
    /// If it does not serve.
    #[must_use]
    pub fn start_by(place: Place, command: Command) -> Self {
        let mut host = Self {
            child: None,
            command,
            place,
        };
        host.start_again();
        host
    }

    /// Starts it as before, once it has ended.
    ///
    /// # Panics
    /// If it does not serve.
    pub fn start_again(&mut self) {
        self.spawn();
        self.wait_until_it_serves();
    }

    fn spawn(&mut self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.place.path().join("host.log"))
            .expect("a file can be made");
        let command = self.command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(log).spawn().expect("the program can be run");
        self.child = Some(child);
    }

    fn wait_until_it_serves(&mut self) {
        wait_until("the host serves", || {
            let ended = self.child().try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the host ended: {ended:?}");
            self.place.run(&["ps"]).status == Some(0)
        });
    }

    /// Another one comes by these words and takes its place.
    ///
    /// # Panics
    /// If it goes on, or the other does not serve.
    pub fn is_replaced_by(&mut self, words: &[&str]) {
        self.command = self.place.command(words);
        self.is_replaced();
    }

    /// The same by the words that it was started by.
    ///
    /// # Panics
    /// As [`Self::is_replaced_by`].
    pub fn is_replaced(&mut self) {
        const REPLACE: &str = "--replace";
        if !self.command.get_args().any(|word| word == REPLACE) {
            self.command.arg(REPLACE);
        }
        let mut before = self.child.take().expect("it was not ended");
        self.spawn();
        wait_for_end(&mut before);
        self.wait_until_it_serves();
    }

    /// Starts it as before, and kills it once it serves.
    pub fn die_after_start(&mut self) {
        self.start_again();
        self.end_by(Signal::KILL);
    }

    /// Kills it, and starts another in its place.
    pub fn die_and_start_again(&mut self) {
        self.end_by(Signal::KILL);
        self.start_again();
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("only its end takes it")
    }

    /// Its process.
    ///
    /// # Panics
    /// If it was ended.
    #[must_use]
    pub fn host_pid(&self) -> u32 {
        self.child.as_ref().expect("it was not ended").id()
    }

    /// Starts a VM of that name with more arguments; what is known of it then.
    pub fn start_vm(&self, name: &str, words: &[&str]) -> Value {
        self.json(&[&["run", "--name", name], words].concat())
    }

    /// Starts a VM of 320 MiB whose guest takes no balloon, with more arguments.
    pub fn start_driverless_vm(&self, name: &str, words: &[&str]) -> Value {
        let driverless = ["--memory", "320M", "--cmdline", "balloon=off"];
        self.start_vm(name, &[&driverless, words].concat())
    }

    /// Starts a command that takes its time.
    ///
    /// # Panics
    /// If the program cannot be run.
    #[must_use]
    pub fn start_command(&self, words: &[&str]) -> Child {
        self.command(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be run")
    }

    /// Starts a VM and waits until its guest has its balloon driver ready.
    pub fn boot_vm(&self, name: &str, words: &[&str]) -> Value {
        self.start_vm(name, words);
        wait_until("the balloon driver is ready", || {
            self.vm(name).pointer("/balloon/has_driver") == Some(&Value::Bool(true))
        });
        self.vm(name)
    }

    /// Whether there is such a VM.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        vms(&self.overview())
            .iter()
            .any(|vm| text(vm, "/name") == name)
    }

    /// What a VM's guest has not given up, in bytes.
    #[must_use]
    pub fn held(&self, name: &str) -> u64 {
        let vm = self.vm(name);
        number(&vm, "/size_bytes") - number(&vm, "/balloon/held")
    }

    /// Whether that is so of a VM, as in `paused`.
    #[must_use]
    pub fn is(&self, name: &str, what: &str) -> bool {
        self.vm(name)[what] == Value::Bool(true)
    }

    /// What was told of a VM so far.
    ///
    /// # Panics
    /// If the host has no list of events.
    #[must_use]
    pub fn told(&self, name: &str) -> Vec<String> {
        let overview = self.overview();
        let events = overview["host"]["events"].as_array().expect("a list");
        let own = events.iter().filter(|event| event["vm"] == name);
        own.map(|event| text(event, "/what").to_owned()).collect()
    }

    /// Waits until something with these words is told of a VM.
    pub fn wait_until_told(&self, name: &str, words: &str) {
        wait_until(&format!("'{words}' is told"), || {
            self.told(name).iter().any(|what| what.contains(words))
        });
    }

    /// Stops all VMs but one, those that are still being started when they can be.
    ///
    /// # Panics
    /// If one does not end.
    pub fn stop_all_but(&self, kept: &str) {
        self.stop_all_but_these(&[kept]);
    }

    /// Stops all VMs but these.
    pub fn stop_all_but_these(&self, kept: &[&str]) {
        for vm in vms(&self.overview()) {
            let name = text(vm, "/name");
            if !kept.contains(&name) {
                wait_until("it is stopped or has gone by itself", || {
                    let is_there = |vm: &Value| text(vm, "/name") == name;
                    self.run(&["stop", name]).status == Some(0)
                        || !vms(&self.overview()).iter().any(is_there)
                });
            }
        }
    }

    /// The console of a VM.
    #[must_use]
    pub fn console(&self, name: &str) -> GuestConsole {
        GuestConsole::attach(&self.place, name)
    }

    /// A guest's report.
    #[must_use]
    pub fn report(&self, name: &str) -> Value {
        self.console(name).report()
    }

    /// Waits until the balloon of a VM has the size that it should have, and nothing moves.
    pub fn wait_for_balloon(&self, name: &str, held_bytes: u64) {
        wait_while_progress("the balloon has its size", || {
            let vm = self.vm(name);
            let missing = |figure| number(&vm, figure).abs_diff(held_bytes);
            match missing("/balloon/held") + missing("/balloon/target") {
                0 => Ok(()),
                missing => Err(Reverse(missing)),
            }
        });
    }

    /// Waits until a figure of a VM is as large, as long as it rises.
    pub fn wait_for_figure(&self, name: &str, pointer: &str, least: u64) {
        let what = format!("{pointer} of {name} rises to {least}");
        wait_until_at_least(&what, least, || number(&self.vm(name), pointer));
    }

    /// Waits until so much of a VM's memory is backed.
    pub fn wait_until_backed(&self, name: &str, bytes: u64) {
        self.wait_for_figure(name, "/memory_file_bytes", bytes);
    }

    /// Sends the host a signal and waits for its end; the place stays.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end_by(&mut self, signal: Signal) -> ExitStatus {
        let mut child = self.child.take().expect("it is ended once");
        process::signal(child.id(), signal);
        wait_for_end(&mut child)
    }

    /// Gives up the place after the host's end.
    ///
    /// # Panics
    /// If the host runs.
    #[must_use]
    pub fn into_place(mut self) -> Place {
        assert!(self.child.is_none(), "the host runs");
        std::mem::take(&mut self.place)
    }
}

/// One that does not end is killed by its place.
fn wait_for_end(child: &mut Child) -> ExitStatus {
    wait_for("the host ends", || {
        child.try_wait().expect("a child can be waited for")
    })
}

impl Deref for TestHost {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if std::thread::panicking() {
            // The test has failed already; the place kills what is left.
            drop(child.kill());
            drop(child.wait());
            return;
        }
        process::signal(child.id(), Signal::TERM);
        let status = wait_for_end(&mut child);
        assert!(status.success(), "the host ended with {status}");
    }
}
