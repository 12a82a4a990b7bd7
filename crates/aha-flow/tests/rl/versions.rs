//! Runs that were begun with another version of the program.

use std::path::Path;
use std::sync::Arc;

use aha_flow::pipeline::{Text, parse};
use aha_flow::progress::Event;
use aha_flow::rundir::{RunDir, aside};
use aha_flow::stop::Stop;
use aha_rollout::schema;
use aha_rollout::table::{SCHEMA_PART, TableWriter};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::world::{How, World, assert_same_run};

/// Keys that the older version doesn't know.
const NEW: [&str; 2] = ["overlong_filter", "resample_rounds"];

/// Makes the run in `dir` one that a version without the keys [`NEW`] began: in what the directory says of it.
fn make_older(dir: &RunDir) {
    let text = fs_err::read_to_string(dir.pipeline()).unwrap();
    let pipeline = parse(Text { path: "pipeline.toml", text: &text, sets: &[] }).unwrap();
    let is_new = |key: &str| NEW.iter().any(|new| key.ends_with(new));
    let settings: String = pipeline
        .settings()
        .into_iter()
        .filter(|(path, _)| !is_new(path))
        .map(|(path, value)| format!("{path} = {value}\n"))
        .collect();
    let digest = Sha256::digest(settings);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let older = text.lines().filter(|line| !is_new(line.split(" = ").next().unwrap()));
    let older = older.collect::<Vec<_>>().join("\n");
    assert!(older.len() + 20 < text.len(), "{text}");
    fs_err::write(dir.pipeline(), older).unwrap();
    let mut state: Json = serde_json::from_slice(&fs_err::read(dir.state()).unwrap()).unwrap();
    state["version"] = "0.0.7".into();
    assert_ne!(state["identity"]["settings_sha256"], Json::from(digest.clone()));
    state["identity"]["settings_sha256"] = digest.into();
    fs_err::write(dir.state(), state.to_string()).unwrap();
}

async fn stopped_at_step_3(world: &World, name: &str) {
    let stop = Stop::default();
    let request = stop.clone();
    let watcher = Arc::new(move |event: Event| {
        if matches!(event, Event::Step { step: 3, .. }) {
            request.request();
        }
    });
    let how = How { stop, watcher: Some(watcher), ..How::default() };
    assert!(world.run(name, how).await.result.is_err());
}

/// What a refused resume says: its error and its hint.
async fn refused(world: &World, sets: &[&str]) -> (String, String) {
    let outcome = world.run("older", How { sets, resume: true, ..How::default() }).await;
    let error = outcome.error();
    (error.to_string(), error.hint().unwrap_or_default().to_owned())
}

/// Goal: a run goes on with a version that has more keys, unless one of them is set, and ends with the bits that it
/// would have had; with a version that writes other columns it doesn't. Method: a run's directory is made to look as an
/// older version would have left it, and what a newer one writes first fails once, then what it writes next.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_an_older_version_goes_on_with_its_settings_and_its_columns_or_not_at_all() {
    let world = World::new();
    world.finish("whole", &[]).await;
    stopped_at_step_3(&world, "older").await;
    let dir = world.dir("older");
    make_older(&dir);

    let (message, hint) = refused(&world, &["stage.zero.overlong_filter=true"]).await;
    let want = "`stage.zero.overlong_filter` was false by default, as the run began without that key, and is true";
    assert!(message.contains("version 0.0.7") && message.contains(want), "{message}");
    assert!(hint.contains("go on with version 0.0.7"), "{hint}");

    let rollouts = dir.table("zero").join(SCHEMA_PART);
    for (part, name) in [(&rollouts, "zero"), (&dir.metrics().join(SCHEMA_PART), "metrics")] {
        let now = fs_err::read(part).unwrap();
        write_other_columns(part);
        let (message, hint) = refused(&world, &[]).await;
        let want =
            format!("its table `{name}` has other columns than this version writes: only there ");
        assert!(message.contains("version 0.0.7") && message.contains(&want), "{message}");
        assert!(
            message.contains("failures_count Int64") && message.contains("; only here "),
            "{message}"
        );
        assert!(hint.contains("go on with version 0.0.7"), "{hint}");
        fs_err::write(part, now).unwrap();
    }

    // A write that fails half-way leaves what can be gone on with.
    for file in [dir.state(), dir.pipeline()] {
        let in_the_way = aside(&file);
        fs_err::create_dir(&in_the_way).unwrap();
        let outcome = world.run("older", How { resume: true, ..How::default() }).await;
        let message = outcome.error().to_string();
        assert!(message.contains(&in_the_way.display().to_string()), "{message}");
        fs_err::remove_dir(&in_the_way).unwrap();
    }

    world.run("older", How { resume: true, ..How::default() }).await.result.unwrap();
    assert_same_run(&world.dir("whole"), &dir);
}

/// Replaces the part without rows by that of another table.
fn write_other_columns(part: &Path) {
    let other = tempfile::tempdir().unwrap();
    TableWriter::open(other.path(), schema::set_aside()).unwrap();
    fs_err::copy(other.path().join(SCHEMA_PART), part).unwrap();
}
