//! `quorate`: runs servers, attaches to them, looks at them, and shows them survive.
//!
//! Each command is a file. Results go to stdout (with `--json`, one object a line), everything else to stderr. The library half of
//! this package never uses the client; this binary is where the two meet.

#![deny(unsafe_code)]

mod admin;
mod allocator;
mod attach;
mod backup;
mod bench;
mod closed_loop;
mod demo;
mod fleet;
mod http;
mod kv;
mod load;
mod output;
mod progress;
mod propose;
mod recover;
mod restore;
mod serve;
mod status;
mod verify;
mod watch;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::output::Failure;

const AFTER_HELP: &str = "\
Start here:
  quorate demo --faults failover            three servers, twenty clients, and trouble
  quorate serve                             three voters in this process, on 127.0.0.1:7400
  quorate kv put greeting hello             ... and in another terminal
  quorate watch

Exit codes:
  0    done
  1    failed, or the answer is no (no such key, a comparison did not hold, the demo found a fault)
  2    the command line is wrong; verify, recover: the directory cannot be read
  3    no server could be reached, or none answered in time; nothing was applied
  4    the outcome is unknown: a command may or may not have been applied
  130  interrupted before it was done";

/// A few servers hold one replicated log; any number of clients attach, follow it live, and change it exactly once.
#[derive(Parser)]
#[command(name = "quorate", version, after_help = AFTER_HELP)]
struct Cli {
    /// Say more on stderr: -v, -vv or -vvv; RUST_LOG, where set, decides instead
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Serve),
    Demo(demo::Demo),
    Status(status::Status),
    Propose(propose::Propose),
    Watch(watch::Watch),
    Kv(kv::Kv),
    Load(load::Load),
    Bench(bench::Bench),
    Member(admin::Member),
    Transfer(admin::Transfer),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Verify(verify::Verify),
    Recover(recover::Recover),
}

impl Command {
    async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Serve(command) => command.run().await,
            Self::Demo(command) => command.run().await,
            Self::Status(command) => command.run().await,
            Self::Propose(command) => command.run().await,
            Self::Watch(command) => command.run().await,
            Self::Kv(command) => command.run().await,
            Self::Load(command) => command.run().await,
            Self::Bench(command) => command.run().await,
            Self::Member(command) => command.run().await,
            Self::Transfer(command) => command.run().await,
            Self::Backup(command) => command.run().await,
            Self::Restore(command) => command.run().await,
            Self::Verify(command) => command.run().await,
            Self::Recover(command) => command.run().await,
        }
    }
}

fn main() -> ExitCode {
    allocator::set_up();
    let cli = Cli::parse();
    log_to_stderr(cli.verbose, matches!(cli.command, Command::Serve(_)));
    // One thread: servers bring their own, and a client's work is a fraction of a server's.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("cannot start: {error}")).report(),
    };
    let result = runtime.block_on(cli.command.run());
    // Whoever still reads stdin would keep us.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn log_to_stderr(verbose: u8, server: bool) {
    let level = match (verbose, server) {
        (0, false) => "error",
        (0, true) => "info",
        (1, false) => "info",
        (1, true) | (2, false) => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
