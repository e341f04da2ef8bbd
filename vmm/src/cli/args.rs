//! What can be typed.

use super::host_args::{HostArgs, typed_switch};
use super::token::Lifetime;
use crate::host::LibvirtUri;
use crate::host::runtime_dir::{SOCKET_VARIABLE, default_socket};
use api::{AdoptRequest, NetRequest, RestartPolicy, Role, TokenName};
use clap::{Parser, Subcommand, ValueHint};
use page::{InvalidSize, Size};
use policy::simulate::Rules;
use policy::{SharesSpec, TaxRate};
use protocol::{DiskSpec, VmName};
use sharing::TrustGroup;
use std::path::PathBuf;
use std::str::FromStr;

/// Runs many KVM guests in less memory than they were promised.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Examples:\n  ballonet demo                              four VMs, twice the memory there is\n  ballonet run --name a --memory 512M        start a VM (and a host, if none runs)\n  ballonet top                               watch who holds what\n  ballonet set a shares=high                 give it more weight\n  ballonet console a                         its console; Ctrl-] leaves it\n  ballonet stop a"
)]
pub(super) struct Args {
    /// The host's socket.
    #[arg(long, global = true, env = SOCKET_VARIABLE, default_value_os_t = default_socket(), hide_default_value = true, value_hint = ValueHint::FilePath)]
    pub(super) socket: PathBuf,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What to simulate.
#[derive(Debug, clap::Args)]
pub(super) struct SimulateArgs {
    /// A file, or the name of one that is built in; several are compared. A recording (`advise --record`, a host's
    /// decisions) is simulated as a load.
    #[arg(value_name = "SCENARIO", required_unless_present = "list", value_hint = ValueHint::FilePath)]
    pub(super) scenarios: Vec<String>,
    /// Whose rules decide: ours, mom, proxmox, none, or all to compare them. May be given several times.
    #[arg(long, value_name = "RULES", value_delimiter = ',')]
    pub(super) rules: Vec<RulesArg>,
    /// The host's memory, instead of what the scenario says.
    #[arg(long, value_name = "SIZE")]
    pub(super) memory: Option<Size>,
    /// List what is built in.
    #[arg(long, conflicts_with_all = ["scenarios", "rules", "csv", "show", "memory"])]
    pub(super) list: bool,
    /// Print the scenario instead of simulating it.
    #[arg(long, conflicts_with_all = ["rules", "csv", "json", "memory"])]
    pub(super) show: bool,
    /// Print every point of every VM as CSV.
    #[arg(long, conflicts_with = "json")]
    pub(super) csv: bool,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Rules as they are typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RulesArg {
    One(Rules),
    All,
}

impl FromStr for RulesArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let known = Rules::ALL.into_iter();
        let named = known.clone().find(|rules| rules.to_string() == text);
        let names: Vec<String> = known.map(|rules| rules.to_string()).collect();
        named
            .map(Self::One)
            .ok_or_else(|| format!("there are {}, and all", names.join(", ")))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Four VMs with twice the memory there is: a live view, then a summary.
    Demo(DemoArgs),
    /// The daemon that owns the memory and starts VMs; `run` starts one if none runs.
    #[command(
        after_help = "What a host keeps lies beside its socket, in a folder of the socket's name and .d: its decisions, the token of\n--http, the log of one that `run` started. The folder goes with a host that ends in order. What outlives a host lies in\nthe folder of --state: what `set host` changed, and VMs of `run --restart`, which it starts again.\n\nVMs run on when their host dies. The next host at that socket takes them over, and --replace takes the place of one that\nlives: `ballonet host --replace` is how a new version of ballonet goes on with what runs.\n\nSignals: SIGTERM, SIGINT (Ctrl-C), SIGQUIT and SIGHUP end a host and its VMs in order, as `stop` does; one that\n`run` started takes no notice of SIGHUP. What was ignored at its start, as by nohup, stays ignored. SIGUSR1,\nSIGUSR2 and others that are sent by habit do nothing; there is no log to be opened anew. The same signals to a\nVM's process end that VM.\n\nExamples:\n  ballonet host --memory 8G\n  ballonet host --memory 8G --replace        in the place of one that serves, with its VMs\n  ballonet host --config /etc/ballonet.toml --http 127.0.0.1:9000\n  nohup ballonet host --memory 8G 2>host.log &"
    )]
    Host(HostArgs),
    /// Start a VM. Without --kernel it boots the embedded guest.
    #[command(
        after_help = "Examples:\n  ballonet run --memory 512M\n  ballonet run --name db --memory 2G --min 1G --shares high\n  ballonet run --memory 256M --workload toucher:size=64M,write=50\n  ballonet run --memory 256M --disk scratch.img --workload dbench:files=400M\n  ballonet run --kernel vmlinuz --initrd initrd.img --disk root.img --disk tools.img,ro\n  ballonet run --kernel vmlinuz --initrd initrd.img --net tap=tap0\n  ballonet run --name db --console-log db.log    what it prints, from the first word on\n  ballonet run --name db --restart always        started again when it ends, and with the next host\n\nA network card needs a tap of the host, made before with\n  ip tuntap add tap0 mode tap; ip link set tap0 up\nand an address for it, or a bridge that it is put into. The host may use it as root, or with\n`user NAME` at the end of the first command.\n\nWorkloads of the embedded guest: idle, toucher, clone, verify, breaker, tile, and with a disk, which it\nwrites over, dbench; `help` on its console explains them."
    )]
    Run(RunArgs),
    /// List the VMs.
    #[command(
        after_help = "Examples:\n  ballonet ps\n  ballonet ps --all                          and those that are to come back and do not run"
    )]
    Ps {
        /// Also VMs of `run --restart` that do not run.
        #[arg(long, short)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Everything that is known, of one VM or of all and the host.
    Stats {
        /// Which VM; all and the host if none is given.
        name: Option<VmName>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Who holds what, again and again: esxtop's memory panel, with keys on a terminal.
    #[command(
        after_help = "On a terminal, h shows the keys and what each column means.\n\nExamples:\n  ballonet top\n  ballonet top --batch --interval 5 > memory.csv   until Ctrl-C\n  ballonet top --json --count 1"
    )]
    Top(TopArgs),
    /// Change a VM's claims on memory, or the host's memory and page sharing.
    #[command(
        after_help = "Examples:\n  ballonet set db shares=high min=1G\n  ballonet set db shares=4000 max=2G\n  ballonet set host memory=8G\n  ballonet set host sharing=off              bring home what is shared\n  ballonet set host large-pages=on\n  ballonet set host idle-tax=75 sample-period=30 rebalance-interval=15\n  ballonet set db idle-tax=0                 its idle memory is not taxed; idle-tax=host undoes that\n  ballonet set db large-pages=off            so that its equal pages are shared while memory is plentiful\n  ballonet set host scan-pass=60 scan-vm=20000 scan-host=50000 scan-core=50"
    )]
    Set {
        /// A VM's name, or `host`.
        #[arg(value_name = "NAME")]
        target: Target,
        /// For a VM min=SIZE, max=SIZE, shares=low|normal|high|N, idle-tax=PERCENT|host, large-pages=on|off; for the host
        /// memory=SIZE, sharing=on|off, large-pages=on|off, compression=on|off, idle-tax=PERCENT, sample-period=SECONDS, rebalance-interval=SECONDS,
        /// scan-pass=SECONDS, scan-vm=PAGES/S, scan-host=PAGES/S, scan-core=PERCENT, scan-priority=idle|normal.
        #[arg(required = true, value_name = "KEY=VALUE")]
        changes: Vec<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Fix what a VM's balloon takes from its guest; `auto` leaves it to the policy again.
    Balloon {
        /// Which VM.
        name: VmName,
        /// A size such as 128M, or `auto`.
        size: BalloonSize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say why a VM holds what it holds.
    #[command(
        after_help = "Examples:\n  ballonet explain db                        shares, use, price, limits\n  ballonet explain db --more 256M            and what would bring it 256 MiB more"
    )]
    Explain {
        /// Which VM.
        name: VmName,
        /// Also say what would bring it so much more.
        #[arg(long, value_name = "SIZE")]
        more: Option<Size>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make recorded decisions again, and compare.
    #[command(
        after_help = "A host records its decisions in its folder beside its socket. Exits with 1 if a decision would be another now.\n\nExamples:\n  ballonet replay /run/ballonet/host.sock.d/decisions"
    )]
    Replay {
        /// A recording.
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run the policy over a described load, on a model instead of guests, or others' rules over the same.
    #[command(
        after_help = "A scenario is a TOML file:\n  seconds = 600\n  record_every_s = 60\n  [host]\n  memory_mib = 2048\n  [[vms]]\n  name = \"db\"\n  size_mib = 1536\n  phases = [{ at_s = 0, working_set_mib = 900 }]\n  [[vms]]\n  name = \"idle\"\n  count = 3\n  size_mib = 1024\n\nOthers' rules are those that oVirt's MOM and Proxmox VE document; `none` lets the host swap. A comparison says how fast\nbusy guests were; how many wakes were answered, after how many seconds in the middle and at most; what was swapped of\nguests that had done nothing, what they waited for (MiB), and how fast they were; the most in swap, and what was used.\n\nExamples:\n  ballonet simulate load.toml                a table\n  ballonet simulate load.toml --csv          every point of every VM\n  ballonet simulate load.toml --rules all    what comes of it under each set of rules\n  ballonet simulate one-wakes in-turn --rules ours --rules mom"
    )]
    Simulate(SimulateArgs),
    /// Measure on real guests, by a recipe in a file or one of those that are built in.
    Experiment {
        /// What to do.
        #[command(subcommand)]
        command: ExperimentCommand,
    },
    /// Compare what the host believes of shared pages with the kernel's page tables.
    #[command(
        after_help = "Walks the memory maps of all VMs while no page is being shared. Exits with 1 if anything is not as the host believes."
    )]
    Audit {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// A VM's console. Ctrl-] leaves it; the VM runs on.
    #[command(
        after_help = "What comes from a file or a pipe is typed, and what is answered is printed, until nothing more comes. Where\nnothing is typed at all, it is followed until the VM ends.\n\nExamples:\n  ballonet console a\n  echo report | ballonet console a           ask the embedded guest\n  ballonet console a --replay 64K </dev/null >a.log"
    )]
    Console {
        /// Which VM.
        name: VmName,
        /// How much of what it printed before to show first.
        #[arg(long, default_value = "4K")]
        replay: ReplaySize,
        /// Print on until the VM ends, also when all that was to be typed has been.
        #[arg(long)]
        follow: bool,
    },
    /// Put a running QEMU under the host: its balloon follows the policy from then on.
    #[command(
        after_help = "QEMU needs a monitor that nobody else uses and a balloon:\n  -qmp unix:/run/web.qmp,server=on,wait=off -device virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on\n\nWhat is changed is that QEMU asks its guest for its figures every 2 s, and its balloon; `release` sets both back.\nIt stays as it is when its host dies, and the next host finds it again (not with --state none).\n\nExamples:\n  ballonet adopt --qmp /run/web.qmp\n  ballonet adopt --qmp /run/db.qmp --name db --min 1G --shares high\n  ballonet adopt --qmp /run/old.qmp --reclaim     its guest has no balloon driver; the kernel swaps it\n  ballonet adopt --domain web                     one of libvirt's\n  ballonet host --libvirt                         all of libvirt's, as they come and go\n  ballonet release db"
    )]
    Adopt(AdoptArgs),
    /// What a host would do to running QEMUs, which are looked at and not changed.
    #[command(
        after_help = "Of QEMU nothing is changed but, with --poll and where nobody else has, how often it asks its guest for its figures:\nthat is set back at the end (but not if this is killed by force). Without its guest's figures, what it needs is not\nknown, and nothing would be taken from it. Guests are supposed to give up what they say is available.\n\nNEEDS is what a guest cannot do without by its word; HOLDS what it would hold, SAVED what it would have given up of\nwhat it uses. SQUEEZED counts how often it would have come to hold less than it needs, FAULTS the pages that it faulted in or read from its disks.\n\nExamples:\n  ballonet advise --qmp /run/web.qmp --qmp /run/db.qmp,min=2G,shares=high --memory 8G\n  ballonet advise --qmp /run/web.qmp --memory 2G --poll --record hour --seconds 3600\n  ballonet advise --libvirt --memory 8G      libvirt's domains, as they come and go\n  ballonet replay hour                       what that hour would have saved\n  ballonet simulate hour --rules ours,none   the same load on the model"
    )]
    Advise(AdviseArgs),
    /// Let an adopted QEMU go, as it was.
    Release {
        /// Which VM.
        name: VmName,
        /// Let it go as it is, also if it does not answer.
        #[arg(long, short)]
        force: bool,
    },
    /// Stop VMs.
    #[command(
        after_help = "Presses the power button of a kernel first, and ends what does not listen by force. All that can be stopped\nare, also where others cannot. One of `run --restart always` comes back with the next host, others do not.\n\nExamples:\n  ballonet stop web db\n  ballonet stop --all"
    )]
    Stop {
        /// Which VMs.
        #[arg(required_unless_present = "all", value_name = "NAME")]
        names: Vec<VmName>,
        /// All of the host's.
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// Stop VMs and start them anew; start those of `run --restart` that do not run.
    #[command(
        after_help = "Each is started with all that was asked for when it was run and set since. A VM that was run without --restart\ncan be started anew as long as it runs.\n\nExamples:\n  ballonet restart web\n  ballonet stop db && ballonet restart db"
    )]
    Restart {
        /// Which VMs.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
    },
    /// Forget VMs of `run --restart`: they do not come back.
    #[command(
        after_help = "Their disks and logs stay.\n\nExamples:\n  ballonet stop web && ballonet rm web\n  ballonet rm --force web db                 stops them first"
    )]
    Rm {
        /// Which VMs.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
        /// Stop those that run first.
        #[arg(long, short)]
        force: bool,
    },
    /// Who may do what over TCP (`host --http`).
    #[command(
        after_help = "Roles, each of which includes those before it:\n  read      see everything\n  operate   set, balloon, stop and restart VMs that are there, their consoles, audit\n  admin     everything: run VMs, for which the host opens any file that is named; rm; set host; tokens\n\nThe host's socket needs no token. A host with --http makes a token `host` by itself, an admin that ends with it."
    )]
    Token {
        /// What to do.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Print what makes a shell complete commands.
    #[command(
        after_help = "Example:\n  ballonet completions bash > /etc/bash_completion.d/ballonet"
    )]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a folder.
    Man {
        /// Where; it is made if it is not there.
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// One VM's process; started by the host.
    #[command(hide = true)]
    Vm {
        /// Shown in lists of processes.
        #[arg(allow_hyphen_values = true)]
        name: String,
        /// The socket of its host.
        #[arg(allow_hyphen_values = true)]
        of: PathBuf,
        /// The file tree of its host.
        in_tree: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and print it: this once, for nobody keeps it but whoever is given it.
    #[command(
        after_help = "It is sent as `Authorization: Bearer TOKEN`. It outlives the host, but for a host with --state none.\n\nExamples:\n  ballonet token add grafana --role read\n  ballonet token add ci --role operate --expires 30d\n  curl -H \"Authorization: Bearer $(ballonet token add --role read --expires 1h)\" http://127.0.0.1:9000/v1/overview"
    )]
    Add {
        /// Its name; token-N if none is given.
        name: Option<TokenName>,
        /// What it allows: read, operate or admin.
        #[arg(long)]
        role: Role,
        /// How long it is worth anything, as in 30d, 12h, 90m or 45s; for ever if that is not given.
        #[arg(long, value_name = "DURATION")]
        expires: Option<Lifetime>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List tokens: what they allow, when they were made and used last.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Withdraw tokens: they are worth nothing at once, and what was opened with them ends.
    #[command(
        after_help = "Examples:\n  ballonet token rm ci\n  ballonet token rm host                     the one that the host made by itself"
    )]
    Rm {
        /// Which tokens.
        #[arg(required = true, value_name = "NAME", value_parser = token_name)]
        names: Vec<String>,
    },
}

/// The name of any token, also of the host's own.
fn token_name(text: &str) -> Result<String, String> {
    match text {
        "host" => Ok(text.into()),
        _ => text
            .parse::<TokenName>()
            .map(String::from)
            .map_err(|error| error.to_string()),
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// How long to run.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(8..=3600))]
    pub(super) seconds: u64,
    /// Machine memory for the four VMs; each is promised half of it.
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    pub(super) memory: Size,
    /// Print only a summary, as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ExperimentCommand {
    /// List the experiments that are built in.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print an experiment's file, to make others from.
    Show {
        /// One that is built in.
        name: String,
    },
    /// Run an experiment on a host of its own, and write a report, charts and all figures.
    #[command(
        after_help = "Examples:\n  ballonet experiment run idle-tax\n  ballonet experiment show idle-tax > mine.toml\n  ballonet experiment run mine.toml --out mine --check\n  ballonet experiment run density                 how many guests fit at full speed: us, QEMU, us without this or that\n  ballonet experiment run density --quick         the same in three minutes, of two sides\n  ballonet experiment run density --sides ballonet,qemu-ksm-zram"
    )]
    Run(ExperimentArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ExperimentArgs {
    /// One that is built in, or a file (TOML).
    #[arg(value_name = "NAME|FILE", value_hint = ValueHint::FilePath)]
    pub(super) scenario: String,
    /// Where to write; a folder experiment-NAME here if none is given.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) out: Option<PathBuf>,
    /// How often to run everything, instead of what the scenario says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) repetitions: Option<u32>,
    /// The seed, instead of the scenario's.
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// Of density: about three minutes, little memory, two sides.
    #[arg(long)]
    pub(super) quick: bool,
    /// Who runs the VMs: ballonet, qemu (QEMU's microvm, adopted by the run's host), or both. Of density: which sides to compare,
    /// in this order, as in ballonet,qemu; `show density` has them all.
    #[arg(long, visible_alias = "vmm", value_name = "A,B", value_delimiter = ',')]
    pub(super) sides: Vec<String>,
    /// Exit with 1 if a result is not what it should be.
    #[arg(long)]
    pub(super) check: bool,
    /// Print the results as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Its name; vm-N if none is given.
    #[arg(long)]
    pub(super) name: Option<VmName>,
    /// What it is promised.
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    pub(super) memory: Size,
    /// Processors, 1 to 8.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(super) vcpus: u8,
    /// What it can count on at any time; if none is given, 35 % of its memory, or 16 MiB where the host has --swap.
    #[arg(long, value_name = "SIZE")]
    pub(super) min: Option<Size>,
    /// What it may hold at most; all of its memory if none is given.
    #[arg(long, value_name = "SIZE")]
    pub(super) max: Option<Size>,
    /// Its weight when memory is short: low, normal, high (5, 10, 20 per MiB) or a number.
    #[arg(long, default_value = "normal")]
    pub(super) shares: SharesSpec,
    /// What its idle memory is taxed, below 100 %; as that of all VMs if none is given.
    #[arg(long, value_name = "PERCENT")]
    pub(super) idle_tax: Option<TaxRate>,
    /// Whether its memory is made large pages (2 MiB), where the host makes any: on, as without this, or off.
    #[arg(long, value_name = "on|off", value_parser = typed_switch)]
    pub(super) large_pages: Option<bool>,
    /// Wait until it can be admitted, for so many seconds or a day, instead of being refused.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "86400")]
    pub(super) wait: Option<u64>,
    /// VMs of one group may share equal pages.
    #[arg(long, value_name = "GROUP")]
    pub(super) trust_group: Option<TrustGroup>,
    /// A Linux kernel: a bzImage, or an ELF file with a PVH entry note.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk.
    #[arg(long, value_name = "FILE", requires = "kernel", value_hint = ValueHint::FilePath)]
    pub(super) initrd: Option<PathBuf>,
    /// A network card on a tap of the host: tap=NAME,mac=ADDRESS,rate=SIZE, of which only the tap is needed. May be given
    /// again.
    /// The rate is in bytes a second, each way. Example: --net tap=tap0,rate=10M
    #[arg(long = "net", value_name = "SPEC")]
    pub(super) nets: Vec<NetRequest>,
    /// A disk: a raw image or block device, with `,ro` only to be read, with `,direct` passing by
    /// the host's page cache. A file that is a qcow2 image, packed or the like is refused, with the
    /// command that converts it; `,raw` gives any file as it stands. Can be given several times.
    #[arg(long, value_name = "FILE[,ro][,direct][,raw]", value_hint = ValueHint::FilePath)]
    pub(super) disk: Vec<DiskSpec>,
    /// More for the kernel's command line.
    #[arg(long, value_name = "TEXT")]
    pub(super) cmdline: Option<String>,
    /// What the embedded guest does, such as toucher:size=64M.
    #[arg(long, value_name = "SPEC")]
    pub(super) workload: Option<String>,
    /// Keep what it prints in this file: up to a mebibyte, and the mebibyte before in FILE.old. What an earlier
    /// VM printed there is moved there; another file is never written over.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) console_log: Option<PathBuf>,
    /// When it is started again: no; on-failure, if it ends otherwise than by switching itself off or by `stop`; always,
    /// but after `stop` only with the next host. Those come back with the next host, also after a reboot of the machine.
    #[arg(
        long,
        value_name = "no|on-failure|always",
        default_value = "no",
        hide_default_value = true
    )]
    pub(super) restart: RestartPolicy,
    /// Go to its console at once.
    #[arg(long)]
    pub(super) console: bool,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct AdoptArgs {
    /// The Unix socket of its monitor.
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath, required_unless_present = "domain")]
    qmp: Option<PathBuf>,
    /// Its name or UUID in libvirt, instead: the libvirt of `host --libvirt`, or qemu:///system.
    #[arg(long, value_name = "DOMAIN", conflicts_with = "qmp")]
    domain: Option<String>,
    /// Its name; QEMU's own (-name) or libvirt's if none is given.
    #[arg(long)]
    name: Option<VmName>,
    /// What it can count on at any time; 35 % of its memory if none is given.
    #[arg(long, value_name = "SIZE")]
    min: Option<Size>,
    /// What it may hold at most; all of its memory if none is given.
    #[arg(long, value_name = "SIZE")]
    max: Option<Size>,
    /// Its weight when memory is short: low, normal, high (5, 10, 20 per MiB) or a number; normal if none is given.
    #[arg(long)]
    shares: Option<SharesSpec>,
    /// What its idle memory is taxed, below 100 %; as that of all VMs if none is given.
    #[arg(long, value_name = "PERCENT")]
    idle_tax: Option<TaxRate>,
    /// Let the kernel take pages of it into its own swap where its balloon does not follow, and protect its min. It must
    /// be alone in a cgroup of version 2.
    #[arg(long)]
    reclaim: bool,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl AdoptArgs {
    /// What to ask the host for, which may have another working folder.
    pub(super) fn request(self) -> std::io::Result<AdoptRequest> {
        Ok(AdoptRequest {
            socket: self.qmp.map(std::path::absolute).transpose()?,
            domain: self.domain,
            name: self.name,
            min_bytes: self.min.map(|size| size.0.bytes()),
            max_bytes: self.max.map(|size| size.0.bytes()),
            shares: self.shares,
            idle_tax_permille: self.idle_tax,
            reclaim: self.reclaim,
        })
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct AdviseArgs {
    /// The Unix socket of a QEMU's monitor, and what it would be promised:
    /// `SOCKET[,name=NAME][,min=SIZE][,max=SIZE][,shares=SHARES]`.
    /// May be given again.
    #[arg(long, required_unless_present_any = ["libvirt", "qmp_dir"], value_name = "SPEC", value_hint = ValueHint::FilePath)]
    pub(super) qmp: Vec<QmpSpec>,
    /// libvirt's running QEMU domains as they come and go, by virsh: qemu:///system, or the URI that is given. What they
    /// would be promised is in their descriptions.
    #[arg(long, value_name = "URI", num_args = 0..=1, require_equals = true, default_missing_value = LibvirtUri::SYSTEM)]
    pub(super) libvirt: Option<LibvirtUri>,
    /// QEMUs whose monitors' sockets are in this folder, as they come and go.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) qmp_dir: Option<PathBuf>,
    /// Machine memory that they would have together.
    #[arg(long, value_name = "SIZE")]
    pub(super) memory: Size,
    /// Have QEMU ask its guest for its figures every 2 s until the end, where it does not.
    #[arg(long)]
    pub(super) poll: bool,
    /// Record what would be decided in this file, which is made, for `replay` and `simulate`.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) record: Option<PathBuf>,
    /// Seconds between refreshes.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = seconds)]
    pub(super) interval: f64,
    /// End after so many seconds; with Ctrl-C if none are given.
    #[arg(long, value_name = "N")]
    pub(super) seconds: Option<u64>,
    /// Print one JSON object a line for each refresh, and one at the end.
    #[arg(long)]
    pub(super) json: bool,
}

/// A QEMU as it is named on one line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct QmpSpec(AdoptRequest);

impl QmpSpec {
    pub(super) fn request(&self) -> std::io::Result<AdoptRequest> {
        let socket = self.0.socket.as_deref().map(std::path::absolute);
        Ok(AdoptRequest {
            socket: socket.transpose()?,
            ..self.0.clone()
        })
    }
}

impl FromStr for QmpSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let socket = words.next().unwrap_or_default();
        if socket.is_empty() {
            return Err("begin with the path of its monitor's socket".into());
        }
        let mut request = AdoptRequest {
            socket: Some(socket.into()),
            ..AdoptRequest::default()
        };
        let size = |text: &str| text.parse::<Size>().map(|size| Some(size.0.bytes()));
        let mut said = Vec::new();
        for word in words {
            let wrong = |why: &dyn std::fmt::Display| format!("'{word}': {why}");
            let pair = word.split_once('=');
            let key = pair.map_or(word, |(key, _)| key);
            if said.contains(&key) {
                return Err(wrong(&"that was said before"));
            }
            said.push(key);
            match pair {
                Some(("name", name)) => {
                    request.name = Some(name.parse().map_err(|why| wrong(&why))?);
                }
                Some(("min", min)) => request.min_bytes = size(min).map_err(|why| wrong(&why))?,
                Some(("max", max)) => request.max_bytes = size(max).map_err(|why| wrong(&why))?,
                Some(("shares", shares)) => {
                    request.shares = Some(shares.parse().map_err(|why| wrong(&why))?);
                }
                _ => return Err(wrong(&"write name=, min=, max= or shares=")),
            }
        }
        Ok(Self(request))
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {
    /// Seconds between refreshes.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = seconds)]
    pub(super) interval: f64,
    /// Refresh so many times, then end.
    #[arg(long, value_name = "N")]
    pub(super) count: Option<u64>,
    /// Print all counters as CSV, a line for each refresh, in the format and under the names of esxtop's
    /// batch mode.
    #[arg(long, conflicts_with = "json")]
    pub(super) batch: bool,
    /// Print one JSON object a line for each refresh.
    #[arg(long)]
    pub(super) json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give 0.1 to 3600 seconds".into()),
    }
}

/// What `set` changes.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Host,
    Vm(VmName),
}

impl FromStr for Target {
    type Err = protocol::InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "host" {
            Ok(Self::Host)
        } else {
            text.parse().map(Self::Vm)
        }
    }
}

/// How large a balloon should be.
#[derive(Clone, Copy, Debug)]
pub(super) enum BalloonSize {
    Fixed(Size),
    Auto,
}

impl FromStr for BalloonSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        if text == "auto" {
            Ok(Self::Auto)
        } else {
            text.parse().map(Self::Fixed)
        }
    }
}

/// A number of bytes, not necessarily whole pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplaySize(pub(super) usize);

impl FromStr for ReplaySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(bytes) = text.parse() {
            return Ok(Self(bytes));
        }
        let size: Size = text
            .parse()
            .map_err(|error: InvalidSize| error.to_string())?;
        Ok(Self(usize::try_from(size.0.bytes()).unwrap_or(usize::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn a_qemu_is_named_on_one_line_and_what_is_wrong_in_it_is_said() {
        let QmpSpec(request) = "/run/q,name=db,min=1G,shares=high".parse().unwrap();
        assert_eq!(request.socket, Some(PathBuf::from("/run/q")));
        assert_eq!(request.min_bytes, Some(1 << 30));
        assert_eq!(request.shares, Some(SharesSpec::High));
        for (text, word) in [
            ("/run/q,min=much", "min=much"),
            ("/run/q,memory=1G", "memory=1G"),
            ("/run/q,name=/", "name=/"),
            ("/run/q,shares=0", "shares=0"),
            ("/run/q,min=1G,min=2G", "said before"),
            (",min=1G", "monitor's socket"),
        ] {
            let error = text.parse::<QmpSpec>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_commands_are_consistent() {
        Args::command().debug_assert();
    }
}
