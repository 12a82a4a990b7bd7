use super::*;
use crate::pipeline::parse;
use crate::state::Machine;

const PIPELINE: &str = r#"
[models]
base = "model"

[tables]
problems = "tables/*.jsonl"

[[stage]]
name = "zero"
kind = "rl"
model = "base"
prompts = "SELECT * FROM problems"
rewards = [{ kind = "math" }]
"#;

/// A folder with a model and a table of two files.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for dir in ["model", "tables"] {
        fs_err::create_dir(folder.path().join(dir)).unwrap();
    }
    for file in ["model/config.json", "model/README.md", "tables/a.jsonl", "tables/b.jsonl"] {
        fs_err::write(folder.path().join(file), file).unwrap();
    }
    folder
}

fn pipeline(sets: &[&str]) -> Pipeline {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    parse(Text { path: "p.toml", text: PIPELINE, sets: &sets }).unwrap()
}

fn identity(folder: &Path, sets: &[&str], known: Option<&Identity>) -> Identity {
    let places = Places { base_dir: folder.to_owned(), hf_cache: None };
    Identity::of(&pipeline(sets), &places, known).unwrap()
}

/// What the run directory says of a run of the pipeline.
fn began(text: &str) -> Began {
    let text = Text { path: "pipeline.toml", text, sets: &[] };
    Began {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pipeline: Ok(Written::read(text).unwrap()),
    }
}

fn message(began_as: &Identity, now: &Identity, sets: &[&str]) -> Option<String> {
    let began = began(&pipeline(&[]).to_toml());
    began_as.difference(&began, now, &pipeline(sets).settings()).map(|found| found.message)
}

/// The pipeline as a program wrote it that knows no `overlong_filter`, no schedule of an optimizer and no `weight` of a
/// reward; with the identity of its run.
fn older(folder: &Path) -> (String, Identity) {
    let text = pipeline(&[]).to_toml();
    let lines = text.lines().filter(|line| {
        !["overlong_filter = ", "schedule = "].iter().any(|key| line.starts_with(key))
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let older = text.replacen("weight = 1.0, ", "", 1);
    assert_ne!(older, text, "{text}");
    // The settings as they would have been: those of today without what it doesn't know.
    let settings = pipeline(&[]).settings().into_iter().filter_map(|(path, value)| match path {
        path if path.contains("overlong_filter") || path.contains("optimizer.schedule") => None,
        path => Some(format!("{path} = {}\n", value.replacen("weight = 1.0, ", "", 1))),
    });
    let settings: String = settings.collect();
    let settings_sha256 = hex(&Sha256::digest(settings));
    (older, Identity { settings_sha256, ..identity(folder, &[], None) })
}

/// Goal: a run may go on with a program that has more keys, as long as they are left out or have their defaults, and
/// with no other value of any key.
#[test]
fn keys_that_the_run_does_not_know_make_no_difference_by_default() {
    let folder = folder();
    let (text, identity_then) = older(folder.path());
    let message = |text: &str, sets: &[&str]| {
        let (now, settings) = (identity(folder.path(), sets, None), pipeline(sets).settings());
        assert_ne!(identity_then.settings_sha256, now.settings_sha256);
        identity_then.difference(&began(text), &now, &settings).map(|found| found.message)
    };
    assert_eq!(message(&text, &[]), None);
    assert_eq!(message(&text, &["stage.zero.overlong_filter=false"]), None);
    let found = message(&text, &["stage.zero.overlong_filter=true"]).unwrap();
    let want = "`stage.zero.overlong_filter` was false by default, as the run began without that key, and is true";
    assert!(found.ends_with(want), "{found}");
    let found = message(&text, &["stage.zero.steps=7"]).unwrap();
    assert!(found.ends_with("`stage.zero.steps` was 100 and is 7"), "{found}");
    let found = message(&text, &["stage.zero.rewards=[{ kind = 'math', weight = 2.0 }]"]).unwrap();
    assert!(found.contains("`stage.zero.rewards` was [{ kind = "), "{found}");
    // What the run directory says was changed behind the run's back, and the pipeline with it.
    let changed = text.replacen("steps = 100", "steps = 7", 1);
    let found = message(&changed, &["stage.zero.steps=7"]).unwrap();
    assert!(found.ends_with("its `pipeline.toml` is not the one that it began with"), "{found}");
}

#[test]
fn what_a_run_began_with_is_named_where_it_can_not_go_on() {
    let folder = folder();
    let (_, identity_then) = older(folder.path());
    let (now, settings) = (identity(folder.path(), &[], None), pipeline(&[]).settings());
    let dir = RunDir::new(folder.path().join("run"));
    fs_err::create_dir(dir.root()).unwrap();
    let difference = |version: &str, text: &str| {
        fs_err::write(dir.pipeline(), text).unwrap();
        let state = RunState::begin(
            &pipeline(&[]),
            identity_then.clone(),
            Machine {
                platform: String::new(),
                device: "cpu".to_owned(),
                device_name: None,
                instruction_set: String::new(),
                threads: 1,
            },
        );
        let began = Began::read(&dir, &RunState { version: version.to_owned(), ..state });
        identity_then.difference(&began, &now, &settings).unwrap()
    };
    let gone = pipeline(&[]).to_toml().replacen("[run]\n", "[run]\nhaste = 3\n", 1);
    let found = difference("0.0.7", &gone);
    let want = "the run directory holds a run of another pipeline, which began with version 0.0.7 of the program, and \
                this is ";
    assert!(found.message.starts_with(want), "{}", found.message);
    let want = "its `pipeline.toml` can't be read: unknown key `run.haste`";
    assert!(found.message.ends_with(want), "{}", found.message);
    assert!(found.hint.contains("go on with version 0.0.7"), "{}", found.hint);
    let same = difference(env!("CARGO_PKG_VERSION"), &gone);
    assert!(!same.message.contains("version") && !same.hint.contains("version"), "{same:?}");
}

#[test]
fn keys_that_change_no_result_may_change_and_all_others_may_not() {
    let folder = folder();
    let began = identity(folder.path(), &[], None);
    let neutral = [
        "run.threads=1",
        "run.memory='64GiB'",
        "run.kv_cache='2MiB'",
        "run.sequences_max=3",
        "run.checkpoint_keep=1",
        "stage.zero.description=again",
        "stage.zero.micro_batch_tokens=300",
        "stage.zero.checkpoint_every=1",
        "stage.zero.activation_checkpointing=true",
        "stage.zero.watchdogs.truncated='off'",
    ];
    assert_eq!(message(&began, &identity(folder.path(), &neutral, None), &neutral), None);
    for set in ["run.seed=2", "run.query_memory='1GiB'", "stage.zero.sampling.max_tokens=9"] {
        let now = identity(folder.path(), &[set], None);
        let found = message(&began, &now, &[set]).expect(set);
        let key = set.split('=').next().unwrap();
        assert!(
            found.contains("another pipeline") && found.contains(&format!("`{key}` was")),
            "{found}"
        );
    }
    let sets = ["stage.zero.steps=3", "run.seed=2"];
    let found = message(&began, &identity(folder.path(), &sets, None), &sets).unwrap();
    let expected = "`run.seed` was 1 and is 2, and `stage.zero.steps` differs too";
    assert!(found.ends_with(expected), "{found}");
    let sets = [
        "run.seed=2",
        "stage.zero.steps=3",
        "stage.zero.group_size=3",
        "stage.zero.shuffle=false",
        "stage.zero.grad_clip=3.0",
        "stage.zero.minibatches=2",
    ];
    let found = message(&began, &identity(folder.path(), &sets, None), &sets).unwrap();
    let expected = "`run.seed` was 1 and is 2, and `stage.zero.grad_clip`, `stage.zero.group_size`, \
                        `stage.zero.minibatches`, `stage.zero.shuffle` and 1 more differ too";
    assert!(found.ends_with(expected), "{found}");
}

#[test]
fn files_may_move_but_what_they_hold_may_not_change() {
    let began_in = folder();
    let began = identity(began_in.path(), &[], None);
    assert_eq!(began.inputs["tables.problems"].len(), 2);
    assert_eq!(began.inputs["models.base"].len(), 1, "only what is read");
    let now_in = folder();
    assert_eq!(message(&began, &identity(now_in.path(), &[], None), &[]), None);
    for (file, key) in [("tables/b.jsonl", "tables.problems"), ("model/config.json", "models.base")]
    {
        let path = now_in.path().join(file);
        let content = fs_err::read_to_string(&path).unwrap();
        fs_err::write(&path, content.to_uppercase()).unwrap();
        let found = message(&began, &identity(now_in.path(), &[], Some(&began)), &[]).unwrap();
        assert!(found.contains(key) && found.contains(file), "{found}");
        fs_err::write(&path, content).unwrap();
    }
    fs_err::remove_file(now_in.path().join("tables/a.jsonl")).unwrap();
    let found = message(&began, &identity(now_in.path(), &[], None), &[]).unwrap();
    assert!(found.contains("its files are others"), "{found}");
}

#[test]
fn a_large_file_is_read_again_when_it_was_touched() {
    let folder = folder();
    let path = folder.path().join("tables/c.jsonl");
    let file = fs_err::File::create(&path).unwrap();
    file.set_len(ALWAYS_READ_BYTES_MAX + 1).unwrap();
    let seen = InputFile {
        path: path.clone(),
        len_bytes: ALWAYS_READ_BYTES_MAX + 1,
        changed_at_ns: [0, 0],
        sha256: "known".to_owned(),
    };
    let read = InputFile::read(&path, Some(&&seen)).unwrap();
    assert_ne!(read.sha256, "known");
    let known = InputFile { sha256: "known".to_owned(), ..read };
    assert_eq!(InputFile::read(&path, Some(&&known)).unwrap().sha256, "known");
    drop(file);
}
