//! Goal: a query over damaged Parquet files gives an answer or an error: never a panic, a hang or a huge
//! allocation.
//! Method: hundreds of files, each a real one with bits flipped, cut off, spliced, or with a footer that
//! lies, behind an input table and behind a run directory. A session registers them and answers queries
//! under an allocator that counts and a clock that runs out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use aha_data::{Result, Session, SessionOptions, TableSource};
use aha_rollout::rows::{self, RolloutRow};
use aha_rollout::table::{TableWriter, part_name};
use aha_rollout::{schema, steps};
use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};

/// What a session and its queries may hold at once over a file of some 10 kB. The guard before the reader
/// lets any page unfold to 16 MiB, whatever its file's size.
const BYTES_MAX: usize = 64 << 20;
/// A query over some 50 rows takes milliseconds, on a machine that is busy with other things too.
const QUERY_MAX: Duration = Duration::from_secs(60);
const CASE_COUNT: usize = 320;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A small generator, so that a failure can be replayed from its case number.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// The ways in which files break or are made to break.
fn mutate(sound: &[u8], case: usize) -> Vec<u8> {
    let mut draw = Draw(case as u64);
    let mut bytes = sound.to_vec();
    let len = bytes.len();
    let footer_len = u32::from_le_bytes(bytes[len - 8..len - 4].try_into().unwrap()) as usize;
    let footer_start = len - 8 - footer_len;
    let in_footer = |draw: &mut Draw| footer_start + draw.below(footer_len);
    match case % 8 {
        0 => bytes.truncate(draw.below(len)),
        1 => {
            let at = draw.below(len);
            bytes[at] ^= 1 << draw.below(8);
        }
        // Pages and their headers: what is read only when a query comes.
        2 | 3 => {
            for _ in 0..1 + draw.below(8) {
                let at = draw.below(footer_start);
                bytes[at] = [0xff, 0x7f, 0x00, 0x80, draw.below(256) as u8][draw.below(5)];
            }
        }
        4 | 5 => {
            for _ in 0..1 + draw.below(3) {
                let at = in_footer(&mut draw);
                bytes[at] = [0xff, 0x7f, 0x00, 0x80, 0xfc, 0x19, 0x1c][draw.below(7)];
            }
        }
        6 => {
            // A number of the footer grows to five bytes of varint: the largest a size can be.
            let at = in_footer(&mut draw);
            bytes.splice(at..at + 1, [0xfe, 0xff, 0xff, 0xff, 0x0f]);
            let end = bytes.len();
            bytes[end - 8..end - 4].copy_from_slice(&(footer_len as u32 + 4).to_le_bytes());
        }
        _ => {
            let (from, to, n) = (draw.below(len), draw.below(len), draw.below(64));
            let n = n.min(len - from).min(len - to);
            bytes.copy_within(from..from + n, to);
        }
    }
    bytes
}

/// Each list of structures, in the footer or in an index of pages, claims two thousand million elements.
fn lies_about_lists(sound: &[u8]) -> Vec<Vec<u8>> {
    let claim = [0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07];
    let is_list = |at: &usize| sound[*at] == 0x19 && sound[at + 1] & 15 == 12;
    let lists = (0..sound.len() - 8 - claim.len()).filter(is_list);
    lists
        .map(|at| {
            let mut bytes = sound.to_vec();
            bytes[at..at + claim.len()].copy_from_slice(&claim);
            bytes
        })
        .collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn session() -> Session {
    Session::new(&SessionOptions::default()).unwrap()
}

/// An input table of 50 rows, as a session writes it.
fn write_problems(path: &Path) {
    let numbers = 0..50;
    let texts = |text: fn(i64) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(numbers.clone().map(text)))
    };
    let columns: [(&str, ArrayRef); 4] = [
        ("id", texts(|i| format!("p{i}"))),
        ("prompt", texts(|i| format!("What is {i} + 1?"))),
        ("answer", Arc::new(Int64Array::from_iter_values(numbers.clone().map(|i| i + 1)))),
        (
            "score",
            Arc::new(Float64Array::from_iter(
                numbers.clone().map(|i| (i % 3 > 0).then_some(i as f64)),
            )),
        ),
    ];
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true))).unwrap();
    let session = session();
    session.register_batches("made", batch.schema(), vec![batch]).unwrap();
    runtime().block_on(session.write_parquet("SELECT * FROM made", path)).unwrap();
}

/// A run with two steps of one stage; returns the second step's part.
fn write_run(run: &Path) -> PathBuf {
    let ids: Vec<u32> = (0..40).collect();
    let logprobs: Vec<f32> = (0..40).map(|i| -0.01 * i as f32).collect();
    let names = vec!["math".to_owned()];
    let columns = schema::rollouts(&names).unwrap();
    let table = TableWriter::open(&run.join("tables/zero"), columns).unwrap();
    for step in 1..=2 {
        let row = |sample_idx: u32| RolloutRow {
            stage: "zero",
            step,
            prompt_id: "p1",
            source: Some("made"),
            sample_idx,
            policy_version: step - 1,
            prompt: "What is 1+1?",
            completion: r"<think>easy</think><answer>\boxed{2}</answer>",
            answer: Some("2"),
            tests: None,
            prompt_token_ids: &ids[..7],
            completion_token_ids: &ids[..sample_idx as usize],
            completion_logprobs: &logprobs[..sample_idx as usize],
            completion_forced_mask: None,
            completion_policy_versions: None,
            finish_reason: "stop",
            finished_at_us: 5,
        };
        let batch = rows::rollouts(&(0..40).map(row).collect::<Vec<_>>()).unwrap();
        let score = steps::Scores { parts: vec![Some(1.0)], reward: Some(1.0), error: None };
        let batch = steps::add_scores(&batch, &names, &vec![score; 40]).unwrap();
        let batch = steps::add_untrained(&batch, "sample_only").unwrap();
        table.write(&part_name(step), &[batch]).unwrap();
    }
    table.dir().join(part_name(2))
}

/// Registers the input table, sound or not, and asks it.
async fn ask_problems(file: PathBuf, bytes: Vec<u8>, is_known: bool) -> Result<()> {
    let session = session();
    let source = TableSource::new(&file.to_string_lossy(), Path::new("/"))?;
    if is_known {
        session.register("t", &source).await?;
    }
    std::fs::write(&file, bytes).unwrap();
    if !is_known {
        session.register("t", &source).await?;
    }
    for sql in [
        "SELECT * FROM t",
        "SELECT count(*) AS n, max(length(prompt)) AS l, avg(score) AS s FROM t WHERE answer > 10",
        "SELECT id, answer FROM t WHERE id <> 'p7' ORDER BY answer DESC LIMIT 5",
    ] {
        session.collect(sql).await?;
    }
    Ok(())
}

/// Asks a run one of whose parts is damaged, before or after the session came to know the run.
async fn ask_run(run: PathBuf, part: PathBuf, bytes: Vec<u8>, is_known: bool) -> Result<()> {
    let session = session();
    if is_known {
        session.register_run(&run)?;
    }
    std::fs::write(part, bytes).unwrap();
    if !is_known {
        session.register_run(&run)?;
    }
    for sql in [
        "SELECT step, avg(reward), avg(completion_len_tokens) FROM rollouts GROUP BY step ORDER BY step",
        "SELECT * FROM rollouts",
        "SELECT extract_boxed(completion) AS b, finished_at FROM zero WHERE sample_idx > 5",
    ] {
        session.collect(sql).await?;
    }
    Ok(())
}

/// What came of one case.
enum Outcome {
    Answered,
    Refused,
    Escaped(String),
}

/// Runs `ask` on a thread of its own, which is left behind if it never ends.
fn observe<F: Future<Output = Result<()>>>(ask: impl FnOnce() -> F + Send + 'static) -> Outcome {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let answer = catch_unwind(AssertUnwindSafe(|| runtime().block_on(ask()).is_ok()));
        let _ = sender.send(answer.map_err(drop));
    });
    let answer = receiver.recv_timeout(QUERY_MAX);
    let held = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    match answer {
        Ok(_) if held > BYTES_MAX => Outcome::Escaped(format!("holds {held} bytes")),
        Ok(Ok(true)) => Outcome::Answered,
        Ok(Ok(false)) => Outcome::Refused,
        Ok(Err(())) => Outcome::Escaped("panics".to_owned()),
        Err(RecvTimeoutError::Timeout) => Outcome::Escaped("hangs".to_owned()),
        Err(RecvTimeoutError::Disconnected) => Outcome::Escaped("ends its thread".to_owned()),
    }
}

/// Feeds mutations of `file` to `ask`, which gets the bytes and whether to register before they are there.
fn feed<F: Future<Output = Result<()>>>(
    what: &str,
    file: &Path,
    ask: impl Fn(Vec<u8>, bool) -> F + Clone + Send + 'static,
) -> Vec<String> {
    let sound = std::fs::read(file).unwrap();
    let mut escaped = Vec::new();
    let (mut answered_count, mut refused_count) = (0, 0);
    let random = (0..CASE_COUNT).map(|case| (mutate(&sound, case), case / 8 % 2 == 1));
    let lies = lies_about_lists(&sound);
    assert!(lies.len() >= 4, "{what}: only {} lists", lies.len());
    let lies = [false, true]
        .into_iter()
        .flat_map(|known| lies.iter().map(move |lie| (lie.clone(), known)));
    for (case, (bytes, is_known)) in random.chain(lies).enumerate() {
        // A table that a session knows already is read at the next query.
        std::fs::write(file, &sound).unwrap();
        let ask = ask.clone();
        match observe(move || ask(bytes, is_known)) {
            Outcome::Answered => answered_count += 1,
            Outcome::Refused => refused_count += 1,
            Outcome::Escaped(how) => escaped.push(format!("{what}, case {case}: {how}")),
        }
    }
    std::fs::write(file, &sound).unwrap();
    let (ask, bytes) = (ask.clone(), sound.clone());
    assert!(matches!(observe(move || ask(bytes, false)), Outcome::Answered), "{what}: sound");
    // Bytes that don't matter are a float's or a doc's.
    assert!(refused_count * 3 > CASE_COUNT, "{what}: only {refused_count} were refused");
    assert!(answered_count * 10 > CASE_COUNT, "{what}: only {answered_count} were answered");
    escaped
}

// One test, because the allocator counts for the whole process.
#[test]
fn damaged_files_give_answers_or_errors() {
    // What the Parquet reader panics with is contained; it need not fill the test's output.
    let test_thread = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == test_thread {
            eprintln!("{info}");
        }
    }));
    let dir = tempfile::tempdir().unwrap();
    let problems = dir.path().join("problems.parquet");
    write_problems(&problems);
    let file = problems.clone();
    let mut escaped = feed("input table", &problems, move |bytes, known| {
        ask_problems(file.clone(), bytes, known)
    });
    let run = dir.path().join("run");
    let part = write_run(&run);
    let file = part.clone();
    escaped.extend(feed("run", &part, move |bytes, is_known| {
        ask_run(run.clone(), file.clone(), bytes, is_known)
    }));
    assert_eq!(escaped, Vec::<String>::new());
}
