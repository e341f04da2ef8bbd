//! The commands: what was typed, and the one call that each becomes.

mod advise;
mod args;
mod batch;
mod client;
mod console;
mod counters;
mod demo;
mod experiment;
mod guest_report;
mod host;
mod host_args;
mod http;
mod private_host;
mod replay;
mod run;
mod savings;
mod scenarios;
mod screen;
mod simulate;
mod stop;
mod table;
mod terminal;
mod token;
mod top;

use crate::cli::client::Client;
use anyhow::{Context, Result, anyhow};
use api::{BalloonRequest, ExplanationView, parse_host_change, parse_vm_change};
use args::{Args, BalloonSize, Command, Target};
use clap::{CommandFactory, Parser};
use private_host::Interrupted;
use protocol::Channel;
use rustix::fd::OwnedFd;
use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;

/// Runs the command that was typed. Errors are printed with their causes and end with status 1;
/// wrong usage ends with status 2.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(said) => return explain_usage(&said),
    };
    let result = match args.command {
        Command::Vm { .. } => vm(),
        Command::Completions { shell } => completions(shell),
        Command::Man { folder } => man(&folder),
        command => with_runtime(command, &args.socket),
    };
    result.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

/// Prints a help that was asked for, or what is wrong with what was typed.
fn explain_usage(said: &clap::Error) -> ExitCode {
    let printed = said.print().and_then(|()| io::stdout().flush());
    match printed {
        // Where it cannot be told, the status still tells.
        _ if said.use_stderr() => ExitCode::from(2),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&Unwritten(error).into()),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let unwritten = error.chain().find_map(|cause| cause.downcast_ref());
    if let Some(Unwritten(error)) = unwritten
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        // Whoever read our output has gone (`ballonet ps | head -1`): nothing is wrong.
        return ExitCode::SUCCESS;
    }
    let text = crate::error_chain(error.as_ref());
    tell(&format!("ballonet: {}\n", printable(&text)));
    match error.downcast_ref() {
        Some(&Interrupted(signal)) => {
            u8::try_from(128 + signal).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        None => ExitCode::FAILURE,
    }
}

/// The output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
struct Unwritten(#[source] io::Error);

fn with_runtime(command: Command, socket: &std::path::Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(dispatch(command, socket))
}

async fn dispatch(command: Command, socket: &std::path::Path) -> Result<()> {
    let client = Client::new(socket);
    match command {
        Command::Vm { .. } | Command::Completions { .. } | Command::Man { .. } => {
            unreachable!("handled before there is a runtime")
        }
        Command::Advise(args) => advise::advise(args).await,
        Command::Demo(args) => demo::demo(args).await,
        Command::Experiment { command } => experiment::experiment(command).await,
        Command::Host(args) => host::host(args, socket).await,
        Command::Run(args) => run::run(args, &client, socket).await,
        Command::Ps { all, json } => show(json, &client.overview().await?, |overview| {
            table::processes(overview, all)
        }),
        Command::Stats {
            name: Some(name),
            json,
        } => show(json, &client.vm(&name).await?, table::vm),
        Command::Stats { name: None, json } => {
            show(json, &client.overview().await?, table::overview)
        }
        Command::Top(args) => top::top(args, &client).await,
        Command::Set {
            target: Target::Host,
            changes,
            json,
        } => {
            let change = parse_host_change(&changes).map_err(|why| anyhow!(why))?;
            show(json, &client.change_host(&change).await?, table::host)
        }
        Command::Set {
            target: Target::Vm(name),
            changes,
            json,
        } => {
            let change = parse_vm_change(&changes).map_err(|why| anyhow!(why))?;
            show(json, &client.change_vm(&name, &change).await?, table::vm)
        }
        Command::Balloon { name, size, json } => {
            let balloon_bytes = match size {
                BalloonSize::Fixed(size) => Some(size.0.bytes()),
                BalloonSize::Auto => None,
            };
            let request = BalloonRequest { balloon_bytes };
            show(json, &client.balloon(&name, &request).await?, table::vm)
        }
        Command::Explain { name, more, json } => {
            let more = more.map(|more| more.0.bytes());
            let view = client.explanation(&name, more).await?;
            let sentence = |view: &ExplanationView| {
                format!("{name} is VM {}. {}\n", view.explanation.id, view.text)
            };
            show(json, &view, sentence)
        }
        Command::Replay { file, json } => replay::replay(&file, json),
        Command::Simulate(args) => simulate::simulate(&args),
        Command::Audit { json } => audit(&client, json).await,
        Command::Console {
            name,
            replay,
            follow,
        } => console::console(&client, &name, replay.0, follow).await,
        Command::Adopt(args) => {
            let (json, request) = (args.json, args.request()?);
            show(json, &client.adopt(&request).await?, |vm| {
                format!("{}\n", vm.name)
            })
        }
        Command::Release { name, force } => Ok(client.release(&name, force).await?),
        Command::Stop { names, .. } => stop::stop(&client, names).await,
        Command::Restart { names } => stop::restart(&client, names).await,
        Command::Token { command } => token::token(command, &client).await,
        Command::Rm { names, force } => stop::forget(&client, names, force).await,
    }
}

async fn audit(client: &Client, json: bool) -> Result<()> {
    let audit = client.audit().await?;
    show(json, &audit, table::audit)?;
    match audit.disagreements {
        0 => Ok(()),
        count => Err(anyhow!(
            "{count} pages or counts are not as the host believes: this is a bug in ballonet, please report it"
        )),
    }
}

/// A VM process: its host has put the connection at standard input and the console at standard
/// output, so no descriptor numbers have to be passed.
fn vm() -> Result<()> {
    crate::vm::close_inherited();
    let owned = |fd: rustix::fd::BorrowedFd<'static>| -> Result<OwnedFd> {
        fd.try_clone_to_owned()
            .context("cannot take the host's descriptors")
    };
    let channel = Channel::from(owned(rustix::stdio::stdin())?);
    let console = owned(rustix::stdio::stdout())?;
    let connected = rustix::net::getpeername(&channel).is_ok();
    if !connected {
        return Err(anyhow!(
            "`ballonet vm` is started by a host: use `ballonet run`"
        ));
    }
    crate::vm::main(channel, console).map_err(Into::into)
}

fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "ballonet", &mut script);
    print_bytes(&script)
}

/// A page for the program and one for each command.
fn man(folder: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Args::command(), folder))
        .with_context(|| {
            format!(
                "cannot write manual pages to {}: name a folder that you may write to",
                folder.display()
            )
        })
}

fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// The only way to standard output.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|error| Unwritten(error).into())
}

/// Says something beside the output. Where that cannot be written, nobody can be told.
fn tell(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

/// A text as a terminal may get it: names of files, which can be anything, would speak to it else.
fn printable(text: &str) -> String {
    crate::escaped(text, |c| c == '\n' || c == '\t' || !c.is_control())
}

/// As JSON, for programs, or as a text.
fn show<T: Serialize>(json: bool, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    print(&match json {
        true => serde_json::to_string_pretty(value)? + "\n",
        false => printable(&text(value)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_speak_to_the_terminal() {
        let told = printable("'a\u{1b}[2J\u{9b}1m\r.img'\tis\nü");
        assert_eq!(told, "'a\\u{1b}[2J\\u{9b}1m\\r.img'\tis\nü");
    }
}
