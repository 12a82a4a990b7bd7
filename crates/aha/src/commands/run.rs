//! `aha run`: a pipeline, stage by stage, shown while it goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use aha_flow::devices;
use aha_flow::pipeline::ByteSize;
use aha_flow::progress::Watcher;
use aha_flow::run::{self, Failure, Options};
use aha_flow::rundir::RunDir;
use aha_flow::stop::Stop;
use anyhow::Context;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::shared::RunOn;
use super::{check, shared};
use crate::logging::Log;
use crate::report::failed;
use crate::screen::{self, Screen};
use crate::text;
use crate::view::View;

/// The flags of `aha run`.
#[derive(clap::Args)]
#[command(after_help = "\
Ctrl-C, SIGTERM or a closed terminal makes it write a checkpoint and leave; a second one leaves at once. Under \
nohup it stays when the terminal is closed. Either way, and after a \
kill, --resume goes on and ends with the same tables and weights. A run that is finished is not run \
again: its printed tables are shown once more.

Example:
  aha run pipelines/quickstart.toml --set run.seed=2 --dir runs/second")]
pub struct Args {
    /// The pipeline file.
    pipeline: PathBuf,
    /// The run directory; by default `runs/` and the pipeline's name.
    #[arg(long, value_name = "RUN_DIR")]
    dir: Option<PathBuf>,
    /// Override a key of the pipeline, such as `stage.zero.steps=10`. Can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    #[command(flatten)]
    on: RunOn,
    /// Go on with an unfinished run, from its last checkpoint.
    #[arg(long)]
    resume: bool,
    /// What is left free on the disk of the run directory. Below it, and where the disk is full, the run waits, and
    /// goes on by itself when there is room.
    #[arg(long, value_name = "SIZE", default_value = shared::DISK_RESERVE, value_parser = shared::size)]
    disk_reserve: ByteSize,
    /// Print what happens to stdout as JSON lines. The last one says how the run ended.
    #[arg(long)]
    json: bool,
}

/// Runs the pipeline. Ctrl-C, SIGTERM and SIGHUP stop it after a checkpoint, a second one at once.
pub fn run(args: Args, screen: &Screen, log: &Log) -> anyhow::Result<()> {
    check::require_pipeline(&args.pipeline)?;
    let began = Instant::now();
    let stop = Stop::default();
    stop_on_signals(stop.clone(), screen.clone())?;
    let view = Arc::new(View::new(screen, args.json));
    let watcher: Watcher = {
        let view = Arc::clone(&view);
        Arc::new(move |event| view.watch(event))
    };
    let options = Options {
        pipeline: args.pipeline.clone(),
        sets: args.on.sets(&args.sets),
        dir: args.dir.clone(),
        resume: args.resume,
        watcher,
        stop,
        faults: aha_flow::rl::fault::Faults::default(),
        devices: devices::of_machine(),
        disk_reserve_bytes: args.disk_reserve.0,
    };
    let outcome = shared::runtime()?.block_on(run::run(options, |dir, plan| {
        view.plan(plan.pipeline.stages.iter().map(|stage| stage.name.clone()).collect());
        if let Some(warning) = shared::memory_warning(plan) {
            screen.line(&warning);
        }
        for reason in &plan.device.reasons {
            screen.line(reason);
        }
        let peak = plan.device_peak_text().map(|text| format!("; {text}")).unwrap_or_default();
        screen.line(&format!("device: {}{peak}", plan.device_text()));
        screen.line(&format!("run directory: {}", dir.root().display()));
        if let Err(error) = log.open(&dir.log()) {
            screen
                .line(&format!("warning: no log: can't write `{}`: {error}", dir.log().display()));
        }
    }));
    view.finish()?;
    if args.json {
        screen::print_json(&ended(&outcome))?;
    }
    match outcome {
        Ok(dir) => {
            let took = text::duration(began.elapsed());
            screen.line(&format!("done in {took}; results are in {}", dir.root().display()));
            Ok(())
        }
        Err(Failure::Run(aha_flow::Error::Interrupted)) => {
            Err(failed("the run was stopped on request", format!("go on with: {}", resume(&args))))
        }
        Err(Failure::Run(error)) => {
            // With a hint among its fields it goes to the log alone: the report is what people see.
            tracing::error!(%error, hint = error.hint(), "The run failed.");
            Err(Failure::Run(error).into())
        }
        Err(problems) => Err(problems.into()),
    }
}

/// How the run ended, as the last line of JSON.
fn ended(outcome: &Result<RunDir, Failure>) -> Value {
    let (name, message, hint, may_pass) = match outcome {
        Ok(_) => ("done", None, None, false),
        Err(Failure::Run(aha_flow::Error::Interrupted)) => ("stopped", None, None, true),
        Err(Failure::Run(error)) => {
            let may_pass = may_pass(error);
            ("failed", Some(error.to_string()), error.hint().map(str::to_owned), may_pass)
        }
        Err(Failure::Problems(problems)) => {
            let first = problems.iter().next();
            let hint = first.and_then(|problem| problem.hint.clone());
            ("refused", first.map(|problem| problem.message.clone()), hint, false)
        }
    };
    json!({
        "event": "ended", "outcome": name, "message": message, "hint": hint, "may_pass": may_pass,
    })
}

/// Whether the same again may help.
fn may_pass(error: &aha_flow::Error) -> bool {
    use aha_flow::Error as E;
    match error {
        E::Environment { .. } | E::Full { .. } | E::Held { .. } => true,
        E::Device { is_full, .. } => !is_full,
        _ => false,
    }
}

/// The command that goes on with the run.
fn resume(args: &Args) -> String {
    let mut words = vec!["aha run".to_owned(), quoted(&args.pipeline.to_string_lossy())];
    let dir = args.dir.as_deref().map(Path::to_string_lossy);
    words.extend(dir.map(|dir| format!("--dir {}", quoted(&dir))));
    words.extend(args.sets.iter().map(|set| format!("--set {}", quoted(set))));
    words.extend(args.on.device.iter().map(|device| format!("--device {device}")));
    words.push("--resume".to_owned());
    words.join(" ")
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:+,@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Turns the first signal into a request to stop, and leaves at once on the second. Signals have a thread
/// and a runtime of their own: the run's may be busy.
pub(super) fn stop_on_signals(stop: Stop, screen: Screen) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("can't start a runtime for signals")?;
    let mut signals = {
        let _entered = runtime.enter();
        let hangup = (!ignores_hangup()).then(SignalKind::hangup);
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()].into_iter().chain(hangup);
        let taken = kinds.map(|kind| signal(kind).context("can't take signals"));
        taken.collect::<anyhow::Result<Vec<Signal>>>()?
    };
    let wait = async move {
        any(&mut signals).await;
        screen.line("stopping after a checkpoint; a second signal leaves at once");
        stop.request();
        any(&mut signals).await;
        // A run is resumed exactly, wherever it is left.
        std::process::exit(1);
    };
    let thread = std::thread::Builder::new().name("aha-signals".to_owned());
    thread.spawn(move || runtime.block_on(wait)).context("can't start a thread")?;
    Ok(())
}

/// Whether whoever started the process had it ignore SIGHUP, as `nohup` does.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 != 0)
}

/// Waits for one of the signals.
async fn any(signals: &mut [Signal]) {
    std::future::poll_fn(|context| {
        let ready = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use aha_flow::pipeline::Device;

    #[test]
    fn the_last_line_says_how_the_run_ended() {
        let io = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = aha_flow::Error::io("write", Path::new("x"))(io);
        let wrong = aha_flow::Error::input_with("no such table", "look again");
        for (outcome, name, may_pass) in [
            (Ok(RunDir::new("a")), "done", false),
            (Err(aha_flow::Error::Interrupted.into()), "stopped", true),
            (Err(full.into()), "failed", true),
            (Err(wrong.into()), "failed", false),
        ] {
            let line = ended(&outcome);
            assert_eq!(
                (line["outcome"].as_str(), line["may_pass"].as_bool()),
                (Some(name), Some(may_pass))
            );
            assert_eq!(line["event"], "ended");
        }
    }

    #[test]
    fn the_command_that_goes_on_can_be_pasted() {
        let args = Args {
            pipeline: "my pipe.toml".into(),
            dir: Some("runs/a".into()),
            sets: vec!["run.seed=2".into(), "a='b'".into()],
            on: RunOn { device: Some(Device::Cuda(vec![1])) },
            resume: false,
            disk_reserve: ByteSize(0),
            json: false,
        };
        let expected = r"aha run 'my pipe.toml' --dir runs/a --set run.seed=2 --set 'a='\''b'\''' --device cuda:1 --resume";
        assert_eq!(resume(&args), expected);
    }
}
