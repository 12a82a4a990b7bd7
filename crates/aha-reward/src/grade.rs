//! JSON lines in, verdicts out: what `aha grade` does.
//!
//! A line in: `{"id", "gold", "pred"}`, optionally `prompt`, `completion_len_tokens` and `is_truncated`; for
//! kinds that read tests, `gold` is the object of tests. A line out: `{"id", "score", "reason"}`, score null
//! where it could not be scored. Lines are read and scored in batches of bounded size, on every thread.

use std::io::{BufRead, Read, Write};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::verifier::{Sample, Verdict, Verifier};

/// Longest line that is read.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// Lines that are scored together, at most; and their text, but for the last of them. Where verdicts take
/// time, batches are of a few lines for each that is under way, so that they are written as they come.
const BATCH_LINES_MAX: usize = 512;
const SLOW_LINES_PER_CALL: usize = 2;
const BATCH_BYTES_MAX: usize = 16 << 20;

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    gold: Value,
    pred: Value,
    #[serde(default)]
    prompt: String,
    completion_len_tokens: Option<usize>,
    #[serde(default)]
    is_truncated: bool,
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

/// A line that can't be read: its id, as far as that can be, and why.
struct Bad {
    id: Value,
    reason: String,
}

impl Bad {
    fn new(reason: impl Into<String>) -> Self {
        Self { id: Value::Null, reason: reason.into() }
    }
}

#[derive(Deserialize)]
struct Id {
    #[serde(default)]
    id: Value,
}

/// A line that could be read, as its verifier takes it.
struct Asked {
    id: Value,
    prompt: String,
    pred: String,
    gold: Option<String>,
    completion_len_tokens: Option<usize>,
    is_truncated: bool,
}

/// Grades every line of `input`, in order. A bad line gives a line with a null score and a reason that names
/// its number, and the next one follows. `on_progress` is called after each batch of lines.
pub fn grade(
    verifier: &dyn Verifier,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
    mut on_progress: impl FnMut(&Progress),
) -> Result<Progress, Error> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let mut progress = Progress::default();
    let lines_max = match verifier.kind().waits() {
        true => SLOW_LINES_PER_CALL * threads.max(verifier.parallel_count()),
        false => BATCH_LINES_MAX,
    };
    let reads_tests = verifier.kind().needs_tests();
    loop {
        let (batch, is_last) = read_batch(input, lines_max, reads_tests, &mut progress)?;
        let verdicts = score_on(threads, verifier, &batch);
        for (asked, verdict) in batch.iter().zip(verdicts) {
            let (id, verdict) = match asked {
                Ok(asked) => {
                    progress.scored_count += u64::from(verdict.score.is_some());
                    progress.unscored_count += u64::from(verdict.score.is_none());
                    progress.score_sum += f64::from(verdict.score.unwrap_or(0.0));
                    (&asked.id, verdict)
                }
                Err(bad) => {
                    progress.bad_count += 1;
                    (&bad.id, Verdict::unscored(bad.reason.as_str()))
                }
            };
            write_line(output, &Graded { id, score: verdict.score, reason: &verdict.reason })?;
        }
        flushed(output)?;
        on_progress(&progress);
        if is_last {
            break;
        }
    }
    Ok(progress)
}

fn flushed(output: &mut dyn Write) -> Result<(), Error> {
    output.flush().map_err(|source| Error::Environment { action: "writing a verdict", source })
}

fn write_line(output: &mut dyn Write, graded: &Graded<'_>) -> Result<(), Error> {
    let mut json = serde_json::to_vec(graded)
        .map_err(|error| Error::Input(format!("a verdict that is no JSON: {error}")))?;
    json.push(b'\n');
    output
        .write_all(&json)
        .map_err(|source| Error::Environment { action: "writing a verdict", source })
}

/// Reads the next lines, each as what it asks or why it can't be read; and says whether it was the last.
fn read_batch(
    input: &mut dyn BufRead,
    lines_max: usize,
    reads_tests: bool,
    progress: &mut Progress,
) -> Result<(Vec<Result<Asked, Bad>>, bool), Error> {
    let (mut batch, mut batch_bytes) = (Vec::new(), 0);
    let mut bytes = Vec::new();
    while batch.len() < lines_max && batch_bytes < BATCH_BYTES_MAX {
        let Some(is_whole) = read_line(input, &mut bytes)? else { return Ok((batch, true)) };
        progress.line_count += 1;
        batch_bytes += bytes.len();
        let text = if is_whole {
            std::str::from_utf8(&bytes).map_err(|_| Bad::new("not UTF-8"))
        } else {
            Err(Bad::new(format!("longer than {LINE_BYTES_MAX} bytes")))
        };
        // Some programs put a byte order mark at the start of a file.
        let text = text.map(|line| line.strip_prefix('\u{feff}').unwrap_or(line));
        if text.as_ref().is_ok_and(|line| line.trim().is_empty()) {
            continue;
        }
        let line = progress.line_count;
        let told = |bad: Bad| Bad { reason: format!("line {line}: {}", bad.reason), ..bad };
        batch.push(text.and_then(|line| asked(line, reads_tests)).map_err(told));
    }
    Ok((batch, false))
}

/// What a line asks.
fn asked(json_line: &str, reads_tests: bool) -> Result<Asked, Bad> {
    // An array would be read by the order of the fields.
    if !json_line.trim_start().starts_with('{') {
        return Err(Bad::new("expected {\"id\", \"gold\", \"pred\"}: not a JSON object"));
    }
    let line: Line = serde_json::from_str(json_line).map_err(|error| Bad {
        id: serde_json::from_str(json_line).map_or(Value::Null, |Id { id }| id),
        reason: format!("expected {{\"id\", \"gold\", \"pred\"}}: {error}"),
    })?;
    let Line { id, gold, pred, prompt, completion_len_tokens, is_truncated } = line;
    let parts = [("id", &id), ("gold", &gold), ("pred", &pred)];
    let lost = parts.into_iter().find(|(_, value)| has_lost_digits(value)).map(|(name, _)| name);
    if let Some(name) = lost {
        let reason =
            format!("`{name}` is a number of more digits than are kept: write it as a string");
        return Err(Bad { id: if name == "id" { Value::Null } else { id }, reason });
    }
    if !reads_tests && matches!(gold, Value::Array(_) | Value::Object(_) | Value::Bool(_)) {
        let reason = "`gold` must be a string or a number".to_owned();
        return Err(Bad { id, reason });
    }
    let Some(pred) = text_of(pred) else {
        let reason = "`pred` must be a string or a number, not null".to_owned();
        return Err(Bad { id, reason });
    };
    Ok(Asked { id, prompt, pred, gold: text_of(gold), completion_len_tokens, is_truncated })
}

/// Whether a number may have been a whole one of more digits than its type has.
fn has_lost_digits(value: &Value) -> bool {
    /// From here on not every whole number is a double.
    const EXACT_MAX: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
    match value {
        Value::Number(number) if number.is_f64() => {
            number.as_f64().is_some_and(|value| value.abs() >= EXACT_MAX)
        }
        _ => false,
    }
}

/// A string as it is, null as none, anything else as its JSON.
fn text_of(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

/// A verdict for each line of a batch, in order; those that can't be read have one that says nothing.
fn score_on(threads: usize, verifier: &dyn Verifier, batch: &[Result<Asked, Bad>]) -> Vec<Verdict> {
    let share = batch.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let jobs: Vec<_> = batch
            .chunks(share)
            .map(|lines| scope.spawn(move || score_lines(verifier, lines)))
            .collect();
        let each = jobs.into_iter().zip(batch.chunks(share));
        let verdicts = each.map(|(job, lines)| {
            // A panic has its verdicts already; this is for one outside of the verifier.
            job.join().unwrap_or_else(|_| panicked(lines.len()))
        });
        verdicts.flatten().collect()
    })
}

fn score_lines(verifier: &dyn Verifier, lines: &[Result<Asked, Bad>]) -> Vec<Verdict> {
    let reads_tests = verifier.kind().needs_tests();
    let can_score =
        |asked: &Asked| asked.completion_len_tokens.is_some() || !verifier.kind().needs_tokens();
    let asked = || lines.iter().filter_map(|line| line.as_ref().ok());
    let samples: Vec<Sample<'_>> = asked()
        .filter(|asked| can_score(asked))
        .map(|asked| sample_of(asked, reads_tests))
        .collect();
    let scored = catch_unwind(AssertUnwindSafe(|| verifier.score_all(&samples)));
    let mut scored = scored.unwrap_or_else(|_| panicked(samples.len())).into_iter();
    let mut verdict = |line: &Result<Asked, Bad>| match line {
        Ok(asked) if can_score(asked) => scored.next().expect("a verdict for each sample"),
        Ok(_) => Verdict::unscored("the line has no `completion_len_tokens`"),
        Err(_) => Verdict::unscored(""),
    };
    lines.iter().map(&mut verdict).collect()
}

fn sample_of(asked: &Asked, reads_tests: bool) -> Sample<'_> {
    let gold = asked.gold.as_deref();
    Sample {
        prompt: &asked.prompt,
        completion: &asked.pred,
        answer: gold.filter(|_| !reads_tests),
        tests: gold.filter(|_| reads_tests),
        source: None,
        completion_len_tokens: asked.completion_len_tokens.unwrap_or(0),
        is_truncated: asked.is_truncated,
    }
}

fn panicked(count: usize) -> Vec<Verdict> {
    vec![Verdict::unscored("the verifier panicked, which is a bug in aha"); count]
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
    use crate::backend::NoBackends;
    use crate::spec::Spec;
    use crate::verifier::Kind;

    fn run_with(spec: Spec, input: &[u8]) -> (Vec<String>, Progress) {
        let verifier = spec.for_grading().resolve(&NoBackends).ok().unwrap();
        let mut output = Vec::new();
        let mut shown = Progress::default();
        let progress =
            grade(verifier.as_ref(), &mut &*input, &mut output, |now| shown = *now).unwrap();
        assert_eq!(shown, progress);
        let lines = String::from_utf8(output).unwrap().lines().map(str::to_owned).collect();
        (lines, progress)
    }

    fn run(input: &[u8]) -> (Vec<String>, Progress) {
        run_with(Spec::new(Kind::Math), input)
    }

    #[test]
    fn many_lines_are_scored_in_order() {
        let count = 3 * BATCH_LINES_MAX + 7;
        let line = |i| format!(r#"{{"id":{i},"gold":"{}","pred":"{i}"}}"#, i / 2 * 2);
        let input: Vec<String> = (0..count).map(line).collect();
        let (lines, progress) = run(input.join("\n").as_bytes());
        assert_eq!(progress.scored_count, count as u64);
        for (i, line) in lines.iter().enumerate() {
            let want = format!(r#"{{"id":{i},"score":{:.1},"#, f64::from(u8::from(i % 2 == 0)));
            assert!(line.starts_with(&want), "{line}");
        }
    }

    #[test]
    fn a_kind_that_counts_tokens_needs_them_in_the_line() {
        let spec = serde_json::from_str(r#"{"kind":"length","max_tokens":5}"#).unwrap();
        let (lines, _) = run_with(
            spec,
            b"{\"id\":1,\"pred\":\"a\"}\n{\"id\":2,\"pred\":\"a\",\"completion_len_tokens\":5}",
        );
        assert!(lines[0].contains("no `completion_len_tokens`"), "{}", lines[0]);
        assert!(lines[1].starts_with(r#"{"id":2,"score":1.0"#), "{}", lines[1]);
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
        let want = r#"{"id":5,"score":null,"reason":"line 6: expected"#;
        assert!(lines[4].starts_with(want), "{}", lines[4]);
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
    fn numbers_that_lose_digits_are_bad_lines() {
        let big = "123456789012345678901234567890";
        let input = format!(
            "{{\"id\":1,\"gold\":{big},\"pred\":\"{big}\"}}\n\
             {{\"id\":{big},\"gold\":5,\"pred\":5}}\n\
             {{\"id\":3,\"gold\":\"{big}\",\"pred\":\"{big}\"}}\n\
             {{\"id\":18446744073709551615,\"gold\":2.5,\"pred\":5e-1}}\n"
        );
        let (lines, progress) = run(input.as_bytes());
        assert_eq!((progress.bad_count, progress.scored_count), (2, 2));
        assert!(lines[0].starts_with(r#"{"id":1,"score":null,"reason":"line 1: `gold` is a"#));
        assert!(lines[1].starts_with(r#"{"id":null,"score":null,"reason":"line 2: `id` is a"#));
        assert_eq!(lines[2], r#"{"id":3,"score":1.0,"reason":"equal"}"#);
        assert!(lines[3].starts_with(r#"{"id":18446744073709551615,"score":0.0"#), "{}", lines[3]);
    }

    #[test]
    fn what_is_no_object_of_texts_is_a_bad_line() {
        let (lines, progress) = run(br#"[null,"5","5","p",3,false]
{"id":2,"gold":["5"],"pred":"5"}
{"id":3,"gold":true,"pred":"5"}"#);
        assert_eq!((progress.bad_count, progress.scored_count), (3, 0));
        assert!(lines[0].contains("line 1: expected"), "{}", lines[0]);
        assert!(lines[1].contains("line 2: `gold` must be a string or a number"), "{}", lines[1]);
        assert!(lines[2].starts_with(r#"{"id":3,"score":null"#), "{}", lines[2]);
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
