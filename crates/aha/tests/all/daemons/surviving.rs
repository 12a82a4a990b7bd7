//! Runs that outlive their daemon, and daemons that outlive their runs.

use std::collections::BTreeMap;

use super::*;

/// The bytes of all files below a run's tables and models.
pub(super) fn files(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = ["models", "tables", "metrics"].map(|dir| run.join(dir)).into();
    while let Some(dir) = open.pop() {
        for entry in fs_err::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => drop(found.insert(
                    path.strip_prefix(run).unwrap().to_owned(),
                    fs_err::read(&path).unwrap(),
                )),
            }
        }
    }
    found
}

/// Goal: a kill of the daemon, and one of a run, loses nothing. Method: the same pipeline by `aha run` alone, and under
/// a daemon that is killed in the middle of it, started again, and whose run is killed then.
#[test]
fn a_run_whose_daemon_is_killed_ends_with_the_bits_of_one_that_was_left_alone() {
    let temp = write_pipeline(300);
    let sets = ["--set", "stage.zero.checkpoint_every=7"];
    let mut alone =
        command(temp.path(), &[&["run", "tiny.toml", "--dir", "alone"], &sets[..]].concat());
    assert!(alone.env("SOURCE_DATE_EPOCH", "1700000000").status().unwrap().success());

    let mut daemon = Daemon::start(temp.path(), &["--runs", "2"]);
    let id = daemon.submit(&sets);
    let waits = daemon.submit(&["--set", "run.seed=4"]);
    let (status, _) = daemon.post(&format!("/api/v1/runs/{waits}/pause"), &Value::Null);
    assert_eq!(status, 200);
    let pid = daemon.until_step(id, "zero", 40)["process"]["pid"].as_u64().unwrap();
    daemon.signal("-KILL");
    daemon.child.wait().unwrap();
    let until = Instant::now() + PATIENCE;
    while is_alive(pid) {
        assert!(Instant::now() < until, "the run outlived its daemon");
        std::thread::sleep(Duration::from_millis(5));
    }

    let daemon = Daemon::start(temp.path(), &["--runs", "2"]);
    let run = daemon.until_step(id, "zero", 120);
    assert_eq!(run["starts"], 2);
    assert!(["paused", "pausing"].contains(&daemon.run(waits)["status"].as_str().unwrap()));
    let pid = run["process"]["pid"].to_string();
    assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    let run = daemon.until_is(id, "finished");
    assert_eq!(run["starts"], 3, "{run}");
    let (alone, under) =
        (files(&temp.path().join("alone")), files(&temp.path().join("home/runs/1")));
    assert_eq!(alone.keys().collect::<Vec<_>>(), under.keys().collect::<Vec<_>>());
    assert!(alone.len() > 20);
    for (path, bytes) in &alone {
        assert!(under[path] == *bytes, "{} differs", path.display());
    }
}

fn is_alive(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_daemon_that_is_told_to_stop_drains_and_its_runs_go_on_when_it_is_back() {
    let temp = write_pipeline(1_000_000);
    let mut daemon = Daemon::start(temp.path(), &[]);
    let id = daemon.submit(&["--set", "stage.zero.checkpoint_every=1000000"]);
    let queued = daemon.submit(&[]);
    daemon.until_step(id, "zero", 5);
    daemon.signal("-TERM");
    let status = daemon.child.wait().unwrap();
    assert!(status.success(), "{status:?}: {}", daemon.log());
    let checkpoints = temp.path().join("home/runs/1/checkpoints/zero");
    assert_eq!(fs_err::read_dir(checkpoints).unwrap().count(), 1, "it wrote one when it stopped");
    assert!(!temp.path().join("home/daemon.json").exists());
    let refused = daemon.aha(&["runs"]);
    assert_eq!((refused.code, refused.stderr.contains("no daemon works in")), (Some(1), true));

    let daemon = Daemon::start(temp.path(), &[]);
    let run = daemon.until_step(id, "zero", 8);
    assert_eq!((&run["starts"], &run["failures"]), (&json!(2), &json!(0)));
    assert_eq!(daemon.run(queued)["status"], "queued");
    let paused = daemon.aha(&["pause", &id.to_string()]);
    assert_eq!(paused.code, Some(0), "{paused:?}");
    let run = daemon.until_is(id, "paused");
    let step = step_of(&run, "zero");
    daemon.until_is(queued, "running");
    let cancelled = daemon.aha(&["cancel", &queued.to_string()]);
    assert_eq!(cancelled.code, Some(0), "{cancelled:?}");
    daemon.until_is(queued, "cancelled");
    assert_eq!(daemon.aha(&["resume", &id.to_string(), "--json"]).json()["status"], "queued");
    daemon.until_step(id, "zero", step + 1);
    let again = daemon.aha(&["resume", &queued.to_string()]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.stderr.contains("a run that is cancelled can't be resumed"), "{again:?}");
    let model = json!({ "model": format!("{id}/zero"), "prompt": "1 + 1 =", "max_tokens": 3 });
    let (status, answer) = daemon.post("/v1/completions", &model);
    assert_eq!(status, 200, "a model is asked while it is trained: {answer}");
    let (status, problem) = daemon.ask("DELETE", &format!("/api/v1/runs/{id}"), None);
    assert_eq!(status, 409, "{}", String::from_utf8_lossy(&problem));
}

#[test]
fn a_pipeline_that_is_wrong_is_refused_with_every_problem() {
    let temp = write_pipeline(3);
    let daemon = Daemon::start(temp.path(), &[]);
    let text = fs_err::read_to_string(temp.path().join("tiny.toml")).unwrap();
    let broken =
        text.replace("group_size = 2", "group_sise = 2").replace("epochs = 2", "epochs = -1");
    fs_err::write(temp.path().join("broken.toml"), &broken).unwrap();
    let refused = daemon.aha(&["submit", "broken.toml"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("the pipeline has 2 problems"), "{refused:?}");
    assert!(refused.stderr.contains("group_sise"), "{refused:?}");
    let (status, problem) = daemon.post("/api/v1/runs", &json!({ "pipeline": broken }));
    assert_eq!((status, problem["problems"].as_array().unwrap().len()), (400, 2), "{problem}");
    assert_eq!(daemon.get("/api/v1/runs").1, json!({ "runs": [] }));
    let large = daemon.aha(&["submit", "tiny.toml", "--set", "run.query_memory=999TiB"]);
    assert_eq!(large.code, Some(2), "{large:?}");
}
