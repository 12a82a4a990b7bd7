//! `aha grade`.

use crate::support::{aha, aha_with};

const LINES: &str = r#"{"id":1,"gold":"1/2","pred":"The answer is 0.5."}
{"id":"b","gold":"5","pred":"\\boxed{6}"}
{"id":3,"pred":"5"}
"#;

#[test]
fn lines_are_graded_from_stdin_and_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let piped = aha_with(dir.path(), &["grade", "--reward", "math"], LINES);
    let expected = r#"{"id":1,"score":1.0,"reason":"equal"}
{"id":"b","score":0.0,"reason":"6 is not 5"}
{"id":3,"score":null,"reason":"the sample has no answer"}
"#;
    assert_eq!((piped.code, piped.stdout.as_str()), (Some(0), expected), "{piped:?}");
    fs_err::write(dir.path().join("x.jsonl"), LINES).unwrap();
    let read = aha(dir.path(), &["grade", "--reward", "math", "x.jsonl"]);
    assert_eq!(read.stdout, expected);
}

#[test]
fn a_bad_line_is_named_and_the_others_are_graded() {
    let dir = tempfile::tempdir().unwrap();
    let lines = format!("not json\n{LINES}");
    let outcome = aha_with(dir.path(), &["grade", "--reward", "exact"], &lines);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.contains("line 1:"), "{outcome:?}");
    assert_eq!(outcome.stdout.lines().count(), 4);
    assert!(outcome.stderr.contains("1 of 4 lines could not be read"), "{outcome:?}");
}

#[test]
fn a_reward_that_is_unknown_or_needs_settings_is_misuse() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, said) in [("maths", "math"), ("judge", "judge"), ("regex", "pattern")] {
        let outcome = aha(dir.path(), &["grade", "--reward", kind]);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(said), "{outcome:?}");
    }
}

#[test]
fn programs_are_run_and_graded() {
    let dir = tempfile::tempdir().unwrap();
    let line = |id: u32, pred: &str| {
        let tests = r#"{"kind":"asserts","tests":["assert double(2) == 4"]}"#;
        format!("{{\"id\":{id},\"gold\":{tests},\"pred\":{pred:?}}}\n")
    };
    let lines = line(1, "```python\ndef double(x):\n    return x + x\n```")
        + &line(2, "def double(x):\n    return 5")
        + &line(3, "import os\nos._exit(0)");
    let graded = aha_with(dir.path(), &["grade", "--reward", "code"], &lines);
    let expected = r#"{"id":1,"score":1.0,"reason":"passes the test"}
{"id":2,"score":0.0,"reason":"test 1 of 1 fails"}
{"id":3,"score":0.0,"reason":"the program ends while it is loaded"}
"#;
    assert_eq!((graded.code, graded.stdout.as_str()), (Some(0), expected), "{graded:?}");
}
