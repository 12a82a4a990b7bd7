//! Kills at random moments, over a daemon and the processes of its runs: the queue loses nothing that it acknowledged,
//! every run ends, and its tables and weights are those of a run that was left alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use aha_compute::random::Philox;

use super::surviving::files;
use super::*;

/// Kills of the test; `AHA_KILLS` has another number, such as 200 for the figures in `ops/bench/RESULTS.md`.
const KILLS: u64 = 20;
/// Runs that are in the queue at once, at least, while kills are to come.
const OPEN_MIN: usize = 2;
/// Runs differ by their seeds, of which there are so many.
const SEEDS: u64 = 3;
/// Longest time between two kills, in seconds.
const PAUSE_MAX: f64 = 1.2;
/// Every how many steps the runs write a checkpoint.
const SET: &str = "stage.zero.checkpoint_every=7";

/// The draws of a test, by what they are for.
#[derive(Clone, Copy)]
enum Draw {
    Pause,
    Victim,
    Submits,
}

/// A number of the environment.
fn variable(name: &str, default: u64) -> u64 {
    let found = std::env::var(name).ok();
    found.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// What was done to the daemon and its runs.
#[derive(Debug, Default)]
struct Counts {
    daemon_kills: u64,
    run_kills: u64,
    /// Submissions that a kill of the daemon left without an answer.
    unanswered: u64,
}

struct Trial<'a> {
    dir: &'a Path,
    daemon: Option<Daemon>,
    random: Philox,
    /// The seeds of runs by their numbers, as far as their submission was acknowledged.
    acknowledged: BTreeMap<u64, u64>,
    counts: Counts,
}

fn submit(dir: &Path, seed: u64) -> Option<u64> {
    let seed = format!("run.seed={seed}");
    let args = ["submit", "tiny.toml", "--json", "--home", "home", "--set", SET, "--set", &seed];
    let submitted = aha(dir, &args);
    serde_json::from_str::<Value>(&submitted.stdout).ok()?["id"].as_u64()
}

impl Trial<'_> {
    fn draw(&self, what: Draw, kill: u64) -> f64 {
        self.random.uniform(&[what as u64, kill])
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn runs(&self) -> Vec<Value> {
        let (status, runs) = self.daemon().get("/api/v1/runs?limit=1000");
        assert_eq!(status, 200, "{runs}");
        runs["runs"].as_array().unwrap().clone()
    }

    /// One kill after a random pause; meanwhile the queue is kept from running dry, and now and then a submission meets
    /// the kill of the daemon.
    fn kill(&mut self, kill: u64) {
        let is_open = |run: &&Value| run["status"] == "queued" || run["status"] == "running";
        while self.runs().iter().filter(is_open).count() < OPEN_MIN {
            let seed = self.acknowledged.len() as u64 % SEEDS;
            let id = submit(self.dir, seed).expect("nobody kills the daemon now");
            self.acknowledged.insert(id, seed);
        }
        let submitting = (self.draw(Draw::Submits, kill) < 0.3).then(|| {
            let dir = self.dir.to_owned();
            let pause = Duration::from_secs_f64(self.draw(Draw::Pause, kill) * PAUSE_MAX * 0.9);
            std::thread::spawn(move || {
                std::thread::sleep(pause);
                submit(&dir, kill % SEEDS)
            })
        });
        std::thread::sleep(Duration::from_secs_f64(self.draw(Draw::Pause, kill) * PAUSE_MAX));
        let running: Vec<u64> =
            self.runs().iter().filter_map(|run| run["process"]["pid"].as_u64()).collect();
        let victim = self.draw(Draw::Victim, kill) * 2.0;
        if victim < 1.0 && !running.is_empty() {
            let pid = running[(victim * running.len() as f64) as usize];
            // It may have ended in this moment.
            Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .stderr(Stdio::null())
                .status()
                .unwrap();
            self.counts.run_kills += 1;
        } else {
            let mut daemon = self.daemon.take().unwrap();
            daemon.signal("-KILL");
            daemon.child.wait().unwrap();
            self.daemon = Some(start(self.dir));
            self.counts.daemon_kills += 1;
        }
        match submitting.map(|thread| thread.join().unwrap()) {
            Some(Some(id)) => drop(self.acknowledged.insert(id, kill % SEEDS)),
            Some(None) => self.counts.unanswered += 1,
            None => {}
        }
    }

    /// What was acknowledged is there, and has ended with the bits of the runs that were left alone.
    fn check(&self) {
        let until = Instant::now() + PATIENCE;
        for id in self.acknowledged.keys() {
            self.daemon().until_is(*id, "finished");
            assert!(Instant::now() < until);
        }
        let starts: u64 = self.runs().iter().map(|run| run["starts"].as_u64().unwrap()).sum();
        let alone: Vec<_> =
            (0..SEEDS).map(|seed| files(&self.dir.join(format!("alone-{seed}")))).collect();
        for (id, seed) in &self.acknowledged {
            let (alone, under) =
                (&alone[*seed as usize], files(&self.dir.join(format!("home/runs/{id}"))));
            let names = |of: &BTreeMap<PathBuf, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(alone), names(&under), "run {id}");
            for (path, bytes) in alone {
                assert!(under[path] == *bytes, "{} of run {id} differs", path.display());
            }
        }
        println!(
            "{:?}: {} submissions acknowledged, {starts} starts, all runs ended with the same bits",
            self.counts,
            self.acknowledged.len()
        );
        assert!(starts > self.acknowledged.len() as u64, "some runs were killed and went on");
    }
}

fn start(dir: &Path) -> Daemon {
    Daemon::start(dir, &["--runs", "2"])
}

#[test]
fn a_daemon_and_runs_that_are_killed_at_random_lose_nothing_and_end_with_the_same_bits() {
    let (kills, seed) = (variable("AHA_KILLS", KILLS), variable("AHA_KILLS_SEED", 1));
    println!("AHA_KILLS={kills} AHA_KILLS_SEED={seed}");
    let temp = write_pipeline(150);
    let dir = temp.path();
    for seed in 0..SEEDS {
        let (to, seed) = (format!("alone-{seed}"), format!("run.seed={seed}"));
        let mut alone =
            command(dir, &["run", "tiny.toml", "--dir", &to, "--set", SET, "--set", &seed]);
        assert!(alone.env("SOURCE_DATE_EPOCH", "1700000000").status().unwrap().success());
    }
    let mut trial = Trial {
        dir,
        daemon: Some(start(dir)),
        random: Philox::new(seed),
        acknowledged: BTreeMap::new(),
        counts: Counts::default(),
    };
    let began = Instant::now();
    for kill in 0..kills {
        trial.kill(kill);
    }
    trial.check();
    println!("{:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(trial.counts.daemon_kills + trial.counts.run_kills, kills);
    assert!(trial.counts.daemon_kills > 0 && trial.counts.run_kills > 0, "{:?}", trial.counts);
}
