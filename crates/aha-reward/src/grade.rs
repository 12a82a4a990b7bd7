//! JSON lines in, verdicts out: what `aha grade` does.
//!
//! A line in: `{"id", "gold", "pred"}`, optionally `prompt`. A line out: `{"id", "score", "reason"}`,
//! score null where it could not be scored. One line is held at a time.

use std::io::{BufRead, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::verifier::{Kind, Sample, Verdict, Verifier};

/// Longest line that is read.
pub const LINE_BYTES_MAX: usize = 16 << 20;

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    gold: Value,
    pred: Value,
    #[serde(default)]
    prompt: String,
}

#[derive(Serialize)]
struct Graded<'a> {
    id: &'a Value,
    score: Option<f32>,
    reason: &'a str,
}

/// What [`grade`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Lines read, blank ones included.
    pub line_count: u64,
    /// Lines with a score.
    pub scored_count: u64,
    /// Lines that could not be scored.
    pub unscored_count: u64,
    /// Lines that could not be read.
    pub bad_count: u64,
    /// Sum of the scores.
    pub score_sum: f64,
}

fn graded(verifier: &dyn Verifier, json_line: &str) -> Result<(String, Option<f32>), Error> {
    let line: Line = serde_json::from_str(json_line).map_err(|error| {
        Error::Input(format!("expected {{\"id\", \"gold\", \"pred\"}}: {error}"))
    })?;
    let gold = text_of(line.gold);
    let Some(pred) = text_of(line.pred) else {
        return Err(Error::Input("`pred` must be a string or a number, not null".to_owned()));
    };
    let is_tests = verifier.kind() == Kind::Code;
    let sample = Sample {
        prompt: &line.prompt,
        completion: &pred,
        answer: gold.as_deref().filter(|_| !is_tests),
        tests: gold.as_deref().filter(|_| is_tests),
        ..Sample::default()
    };
    let verdict = match verifier.kind() {
        Kind::Length | Kind::Overlong => Verdict::unscored("a line doesn't say how many tokens"),
        _ => verifier.score(&sample),
    };
    let graded = Graded { id: &line.id, score: verdict.score, reason: &verdict.reason };
    let json = serde_json::to_string(&graded)
        .map_err(|error| Error::Input(format!("a verdict that is no JSON: {error}")))?;
    Ok((json, verdict.score))
}

/// A string as it is, null as none, anything else as its JSON.
fn text_of(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

/// Grades every line of `input`, in order. A bad line gives a line with a null score and a reason
/// that names its number, and the next one follows. `on_progress` is called after each line.
pub fn grade(
    verifier: &dyn Verifier,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
    mut on_progress: impl FnMut(&Progress),
) -> Result<Progress, Error> {
    let mut progress = Progress::default();
    let mut bytes = Vec::new();
    while let Some(is_whole) = read_line(input, &mut bytes)? {
        progress.line_count += 1;
        let result = if is_whole {
            std::str::from_utf8(&bytes).map_err(|_| Error::Input("not UTF-8".to_owned()))
        } else {
            Err(Error::Input(format!("longer than {LINE_BYTES_MAX} bytes")))
        };
        if result.as_ref().is_ok_and(|line| line.trim().is_empty()) {
            continue;
        }
        let json = match result.and_then(|line| graded(verifier, line)) {
            Ok((json, score)) => {
                progress.scored_count += u64::from(score.is_some());
                progress.unscored_count += u64::from(score.is_none());
                progress.score_sum += f64::from(score.unwrap_or(0.0));
                json
            }
            Err(error) => {
                progress.bad_count += 1;
                let reason = format!("line {}: {error}", progress.line_count);
                serde_json::json!({ "id": null, "score": null, "reason": reason }).to_string()
            }
        };
        let written = output.write_all(json.as_bytes()).and_then(|()| output.write_all(b"\n"));
        written.map_err(|source| Error::Environment { action: "writing a verdict", source })?;
        on_progress(&progress);
    }
    output.flush().map_err(|source| Error::Environment { action: "writing a verdict", source })?;
    Ok(progress)
}

/// Reads a line into `bytes`; false where it is longer than the limit and its rest was skipped.
fn read_line(input: &mut dyn BufRead, bytes: &mut Vec<u8>) -> Result<Option<bool>, Error> {
    let fail = |source| Error::Environment { action: "reading a line", source };
    bytes.clear();
    let len_max = LINE_BYTES_MAX as u64 + 1;
    let read = Read::take(&mut *input, len_max).read_until(b'\n', bytes).map_err(fail)?;
    if read == 0 {
        return Ok(None);
    }
    if bytes.ends_with(b"\n") {
        bytes.pop();
        return Ok(Some(true));
    }
    if (read as u64) < len_max {
        return Ok(Some(true));
    }
    loop {
        let chunk = input.fill_buf().map_err(fail)?;
        if chunk.is_empty() {
            return Ok(Some(false));
        }
        match chunk.iter().position(|b| *b == b'\n') {
            Some(at) => {
                input.consume(at + 1);
                return Ok(Some(false));
            }
            None => {
                let len = chunk.len();
                input.consume(len);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;

    fn run(input: &[u8]) -> (Vec<String>, Progress) {
        let verifier = Spec::for_grading(Kind::Math).resolve().unwrap();
        let mut output = Vec::new();
        let mut call_count = 0;
        let progress =
            grade(verifier.as_ref(), &mut &*input, &mut output, |_| call_count += 1).unwrap();
        let lines: Vec<_> = String::from_utf8(output).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), call_count);
        (lines, progress)
    }

    #[test]
    fn a_line_gives_a_line_and_a_bad_one_its_number() {
        let input = br#"{"id":1,"gold":"1/2","pred":"The answer is 0.5."}
{"id":"b","gold":"5","pred":"\\boxed{6}"}

not json
{"id":4,"pred":"5"}
{"id":5,"gold":"5"}
{"id":6,"gold":5,"pred":5}
"#;
        let (lines, progress) = run(input);
        assert_eq!(lines[0], r#"{"id":1,"score":1.0,"reason":"equal"}"#);
        assert_eq!(lines[1], r#"{"id":"b","score":0.0,"reason":"6 is not 5"}"#);
        assert!(lines[2].starts_with(r#"{"id":null,"score":null,"reason":"line 4: expected"#));
        assert_eq!(lines[3], r#"{"id":4,"score":null,"reason":"the sample has no answer"}"#);
        assert!(lines[4].contains("line 6: expected"), "{}", lines[4]);
        assert_eq!(lines[5], r#"{"id":6,"score":1.0,"reason":"equal"}"#);
        let want = Progress {
            line_count: 7,
            scored_count: 3,
            unscored_count: 1,
            bad_count: 2,
            score_sum: 2.0,
        };
        assert_eq!(progress, want);
    }

    #[test]
    fn bytes_that_are_no_text_and_endless_lines_are_bad_lines() {
        let mut input = b"\xff\xfe\n".to_vec();
        input.extend(vec![b'x'; LINE_BYTES_MAX + 10]);
        input.extend(b"\n{\"id\":3,\"gold\":\"5\",\"pred\":\"5\"}");
        let (lines, progress) = run(&input);
        assert_eq!((progress.bad_count, progress.scored_count), (2, 1));
        assert!(lines[0].contains("line 1: not UTF-8"));
        assert!(lines[1].contains("line 2: longer than"));
        assert!(lines[2].contains("equal"));
    }
}
