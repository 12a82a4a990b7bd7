//! `aha daemon`: a queue of runs behind an HTTP API, until it is told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::task::Poll;
use std::time::Duration;

use aha_daemon::options::{self, Allowed, LISTEN, Options, QueryLimits};
use aha_daemon::{Listening, home};
use aha_flow::pipeline::{ByteSize, Device};
use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::commands::shared;
use crate::report::misuse;
use crate::screen::Screen;

/// The flags of `aha daemon`.
#[derive(clap::Args)]
#[command(after_help = "\
SIGTERM or Ctrl-C makes every run write a checkpoint and stop, then the daemon ends; a second one ends it at once. \
Either way, and after a kill, runs go on when it is started again, and end with the same tables and weights.

On a loopback address nobody needs a token, so everybody on this machine may ask. On any other address every request \
needs one: it is made at the first start and left in `token` of the home folder, or is what AHA_TOKEN holds. The \
daemon itself keeps its digest. There is no encryption: put a proxy with TLS before it where others can listen.")]
pub struct Args {
    /// Where it listens. With port 0 the system chooses one; clients find it by the home folder.
    #[arg(long, value_name = "ADDRESS", default_value = LISTEN)]
    listen: SocketAddr,
    /// The folder that it owns: the queue, and a directory for each run. By default `aha` in XDG's folder of data.
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Require the token on a loopback address too.
    #[arg(long)]
    require_token: bool,
    /// A name by which clients call it, beside `localhost` and addresses. Can be repeated.
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Runs at once, at most.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = shared::at_least_one())]
    runs: u32,
    /// Memory of all runs and loaded models together, such as 12GiB. A run starts when what `aha check` predicts for it
    /// is free. By default what the machine has free, less a reserve.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<ByteSize>,
    /// What is left free of the machine's memory: below it no run is started, and models that nobody asks are dropped.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = shared::size)]
    memory_reserve: ByteSize,
    /// What is left free on the disks of the home folder and of runs. Below it no run is taken or started, and those
    /// that run wait, and go on by themselves when there is room.
    #[arg(long, value_name = "SIZE", default_value = shared::DISK_RESERVE, value_parser = shared::size)]
    disk_reserve: ByteSize,
    /// A folder whose data and models pipelines may name, and to which they may export. Can be repeated. By default the
    /// one that the daemon is started in.
    #[arg(long = "allow", value_name = "DIR")]
    allow: Vec<PathBuf>,
    /// Let pipelines run commands: rewards of kind `command`, and code in a weak sandbox.
    #[arg(long)]
    allow_commands: bool,
    /// Let pipelines ask servers: rewards of kind `http`, judges with a `url`, stages with an `endpoint`.
    #[arg(long)]
    allow_network: bool,
    /// An environment variable of the daemon that pipelines may name as `api_key_env`, with --allow-network. Can be
    /// repeated. What is in the others is sent nowhere.
    #[arg(long = "allow-key", value_name = "NAME")]
    allow_key: Vec<String>,
    /// How often in a row a run is tried again that failed of something that may pass, or whose process was killed. A
    /// step in between begins the count anew.
    #[arg(long, value_name = "N", default_value_t = 3)]
    retries: u32,
    /// How long runs have to write a checkpoint when the daemon stops. Then they are killed, and make the steps since
    /// their last checkpoint again.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    drain_seconds: u64,
    /// Time of a SQL query.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    query_seconds: u64,
    /// Memory of a SQL query for sorts, joins and groups.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = query_memory)]
    query_memory: ByteSize,
    /// How long a model stays loaded that nobody asks.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    model_idle_seconds: u64,
    /// What models that are asked compute on: cpu, auto for the first CUDA device that works, or cuda:N. What a run
    /// computes on its pipeline says; runs on one device wait for each other, and take what room models leave there.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    device: Device,
}

/// Serves until a signal comes.
pub fn run(args: Args, screen: &Screen) -> anyhow::Result<()> {
    let options = args.options()?;
    let told = |listening: &Listening| tell(listening, screen);
    shared::runtime()?.block_on(async {
        let mut signals = [SignalKind::interrupt(), SignalKind::terminate()]
            .into_iter()
            .map(|kind| signal(kind).context("can't take signals"))
            .collect::<anyhow::Result<Vec<Signal>>>()?;
        let (stop, mut stopped) = watch::channel(false);
        let asked = async {
            any(&mut signals).await;
            screen.line("stopping: runs write a checkpoint first; a second signal leaves at once");
            let _ = stop.send(true);
            any(&mut signals).await;
        };
        let until_asked = async move {
            // The sender lives as long as this is waited for.
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        tokio::select! {
            outcome = aha_daemon::serve(options, until_asked, told) => Ok(outcome?),
            // The kernel ends the runs with us; they go on from their last checkpoints.
            () = asked => std::process::exit(1),
        }
    })
}

/// Waits for one of the signals.
async fn any(signals: &mut [Signal]) {
    std::future::poll_fn(|context| {
        let ready = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl Args {
    fn options(self) -> anyhow::Result<Options> {
        let home = self.home.or_else(home::default_root).ok_or_else(|| {
            misuse(
                "there is no home folder: neither HOME nor XDG_DATA_HOME is set",
                "give one with --home",
            )
        })?;
        Ok(Options {
            home,
            listen: self.listen,
            requires_token: self.require_token,
            token: std::env::var("AHA_TOKEN").ok().filter(|token| !token.is_empty()),
            hosts: self.hosts,
            runs_max: self.runs as usize,
            memory_bytes: self.memory.map(|size| size.0),
            memory_reserve_bytes: self.memory_reserve.0,
            disk_reserve_bytes: self.disk_reserve.0,
            allowed: Allowed {
                folders: self.allow,
                commands: self.allow_commands,
                network: self.allow_network,
                keys: self.allow_key,
            },
            retries_max: self.retries,
            drain: Duration::from_secs(self.drain_seconds),
            query: QueryLimits {
                time: Duration::from_secs(self.query_seconds),
                memory_bytes: self.query_memory.0,
                ..QueryLimits::default()
            },
            model_idle: Duration::from_secs(self.model_idle_seconds),
            device: self.device,
            program: options::this_program(),
        })
    }
}

fn tell(listening: &Listening, screen: &Screen) {
    let home = &listening.home;
    screen.line(&format!("listening on http://{}", listening.address));
    screen.line(&format!("home folder: {}", home.root().display()));
    if listening.requires_token && listening.is_token_given {
        screen.line(
            "every request needs the token that AHA_TOKEN holds; clients take it from there too",
        );
    } else if listening.requires_token {
        let token = home.token();
        let new = if listening.is_token_new { ", made now," } else { "" };
        screen.line(&format!(
            "every request needs the token{new} in {}; clients elsewhere take it from AHA_TOKEN",
            token.display()
        ));
    }
}

fn size(text: &str) -> Result<ByteSize, String> {
    let size = ByteSize::parse(text).filter(|size| size.0 > 0);
    size.ok_or_else(|| "write a size such as 12GiB".to_owned())
}

fn query_memory(text: &str) -> Result<ByteSize, String> {
    let size = ByteSize::parse(text).filter(|size| size.0 >= 64 << 20);
    size.ok_or_else(|| "write a size of at least 64MiB, such as 1GiB".to_owned())
}
