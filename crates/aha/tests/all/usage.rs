//! Help, wrong arguments, and what the machine can do.

use std::path::Path;

use crate::support::aha;

const COMMANDS: [&str; 11] = [
    "run", "check", "query", "report", "eval", "generate", "logprobs", "grade", "export", "bench",
    "doctor",
];

#[test]
fn every_command_has_help() {
    let all = aha(Path::new("."), &["--help"]);
    assert_eq!(all.code, Some(0));
    for command in COMMANDS {
        assert!(all.stdout.contains(command), "{command}: {all:?}");
        let help = aha(Path::new("."), &[command, "--help"]);
        assert_eq!(help.code, Some(0), "{command}");
        assert!(help.stdout.contains(&format!("Usage: aha {command}")), "{help:?}");
    }
}

#[test]
fn wrong_arguments_are_misuse() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 15] = [
        &[],
        &["bench", "trian"],
        &["bench", "train", "--shape", "8"],
        &["bench", "train", "--model", "nowhere"],
        &["trian"],
        &["run"],
        &["run", "nowhere.toml"],
        &["check", "nowhere.toml"],
        &["query", "SELECT 1"],
        &["query", "SELECT 1", "--run", "nowhere"],
        &["report"],
        &["generate", "--model", "nowhere", "--prompt", "x"],
        &["generate", "--model", "nowhere", "--prompt", "x", "--temperature=-1"],
        &["eval", "--model", "nowhere", "--data", "nowhere.parquet"],
        &["eval", "--model", ".", "--data", ".", "--benchmark", "gsm9k"],
    ];
    for args in cases {
        let outcome = aha(dir.path(), args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        assert!(!outcome.stderr.is_empty(), "{args:?} says why");
        assert_eq!(outcome.stdout, "", "{args:?}");
    }
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0, "misuse leaves nothing behind");
}

#[test]
fn a_negative_number_is_a_value_and_not_a_flag() {
    let dir = tempfile::tempdir().unwrap();
    let eval = ["eval", "--model", "nowhere", "--data", "nowhere.parquet"];
    let generate = ["generate", "--model", "nowhere", "--prompt", "x"];
    let cases: [(&[&str], &str, &str); 8] = [
        (&eval, "--temperature", "temperature"),
        (&eval, "--top-p", "top_p"),
        (&eval, "--seed", "--seed"),
        (&eval, "--k", "--k"),
        (&eval, "--max-tokens", "--max-tokens"),
        (&eval, "--resamples", "--resamples"),
        (&generate, "--temperature", "temperature"),
        (&generate, "--seed", "--seed"),
    ];
    for (command, flag, said) in cases {
        let outcome = aha(dir.path(), &[command, &[flag, "-1"]].concat());
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(said) && outcome.stderr.contains("-1"), "{outcome:?}");
        assert!(!outcome.stderr.contains("unexpected argument"), "{outcome:?}");
    }
}

#[test]
fn an_error_has_its_remedy_on_a_line_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = aha(dir.path(), &["logprobs", "--model", "nowhere"]);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(lines[0], "error: there is no model at `nowhere`");
    assert!(lines[1].starts_with("hint: ") && lines.len() == 2, "{lines:?}");
}

#[test]
fn a_device_that_is_not_there_is_misuse() {
    let dir = tempfile::tempdir().unwrap();
    let calls: [&[&str]; 3] = [
        &["doctor", "--check", "cuda:63", "--parts", "ops,paths"],
        &["doctor", "--check", "gpu"],
        &["bench", "peak", "--device", "cuda:63"],
    ];
    for args in calls {
        let outcome = aha(dir.path(), args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        assert!(outcome.stderr.contains("CUDA device"), "{args:?}: {outcome:?}");
    }
    let outcome = aha(dir.path(), &["bench", "start", "--device", "cuda:0"]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.starts_with("error: start is measured on the processor only"),
        "{outcome:?}"
    );
}

#[test]
fn doctor_says_what_works_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let found = aha(dir.path(), &["doctor", "--json"]).json();
    let checks = found["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["processor", "memory", "cuda", "disk", "sandbox"]);
    let processor = &checks[0]["facts"];
    let used = &processor["instruction_set"];
    assert!(processor["instruction_sets"].as_array().unwrap().contains(used), "{processor}");
    for check in checks {
        // What doesn't work as well as it could comes with advice.
        assert!(check["status"] == "ok" || check["advice"].is_string(), "{check}");
    }
    let layers = checks[4]["facts"]["layers"].as_array().unwrap();
    assert!(layers.iter().any(|layer| layer["name"] == "network namespace"), "{layers:?}");
    // The program is its own keeper, wherever it is started from.
    assert_eq!(layers[0]["state"], "works", "{layers:?}");
    let text = aha(dir.path(), &["doctor"]);
    assert_eq!(text.code, Some(0));
    assert!(names.iter().all(|name| text.stdout.contains(name)), "{text:?}");
}
