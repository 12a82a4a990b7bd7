//! Goal: no damaged Parquet file makes our reader panic or allocate hugely.
//! Method: a thousand and more files, each a real one with bits flipped, cut off, spliced, or
//! with a footer that lies, read by the public functions under an allocator that counts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use aha_rollout::rows::{self, RolloutRow};
use aha_rollout::{read, schema, steps, table};

/// What a read of a file of some 10 kB may hold at once; a sound one takes under 1 MB.
const BYTES_MAX: usize = 32 << 20;

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

fn sound_file(dir: &Path) -> Vec<u8> {
    let ids: Vec<u32> = (0..40).collect();
    let logprobs: Vec<f32> = (0..40).map(|i| -0.01 * i as f32).collect();
    let row = |sample_idx: u32| RolloutRow {
        stage: "zero",
        step: 1,
        prompt_id: "p1",
        source: Some("made"),
        sample_idx,
        policy_version: 0,
        prompt: "What is 1+1?",
        completion: "<think>easy</think><answer>2</answer>",
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
    let names = vec!["math".to_owned()];
    let score = steps::Scores { parts: vec![Some(1.0)], reward: Some(1.0), error: None };
    let batch = steps::add_scores(&batch, &names, &vec![score; 40]).unwrap();
    let batch = steps::add_untrained(&batch, "sample_only").unwrap();
    let table =
        table::TableWriter::open(&dir.join("sound"), schema::rollouts(&names).unwrap()).unwrap();
    table.write(&table::part_name(1), &[batch]).unwrap();
    std::fs::read(table.dir().join(table::part_name(1))).unwrap()
}

fn mutate(sound: &[u8], case: usize) -> Vec<u8> {
    let mut draw = Draw(case as u64);
    let mut bytes = sound.to_vec();
    let len = bytes.len();
    let footer_len = u32::from_le_bytes(bytes[len - 8..len - 4].try_into().unwrap()) as usize;
    let footer = len - 8 - footer_len..len - 8;
    match case % 8 {
        0 => bytes.truncate(draw.below(len)),
        1 => {
            let at = draw.below(len);
            bytes[at] ^= 1 << draw.below(8);
        }
        2 => {
            for _ in 0..1 + draw.below(30) {
                let at = draw.below(len);
                bytes[at] = draw.below(256) as u8;
            }
        }
        // The footer's bytes decide what is allocated, so they get the most attention.
        3 | 4 => {
            for _ in 0..1 + draw.below(3) {
                let at = footer.start + draw.below(footer.len());
                bytes[at] = [0xff, 0x7f, 0x00, 0x80, 0xfc, 0x19, 0x1c][draw.below(7)];
            }
        }
        5 => {
            // A number of the footer grows to five bytes of varint: the largest a size can be.
            let at = footer.start + draw.below(footer.len());
            bytes.splice(at..at + 1, [0xfe, 0xff, 0xff, 0xff, 0x0f]);
            let end = bytes.len();
            bytes[end - 8..end - 4].copy_from_slice(&(footer_len as u32 + 4).to_le_bytes());
        }
        6 => {
            let claim = [0, 1, u32::MAX, i32::MAX as u32, len as u32, len as u32 - 8];
            bytes[len - 8..len - 4].copy_from_slice(&claim[draw.below(6)].to_le_bytes());
            let at = draw.below(len);
            bytes[at] ^= 0xff;
        }
        _ => {
            let (from, to, n) = (draw.below(len), draw.below(len), draw.below(64));
            let n = n.min(len - from).min(len - to);
            bytes.copy_within(from..from + n, to);
        }
    }
    bytes
}

#[test]
fn damaged_files_give_errors_and_neither_panics_nor_huge_allocations() {
    // What the Parquet reader panics with is contained; it need not fill the test's output.
    std::panic::set_hook(Box::new(|_| ()));
    let dir = tempfile::tempdir().unwrap();
    let sound = sound_file(dir.path());
    let table = dir.path().join("damaged");
    std::fs::create_dir(&table).unwrap();
    let (mut refused_count, mut escaped) = (0, Vec::new());
    let cases_count = 1600;
    for case in 0..cases_count {
        std::fs::write(table.join("step-000001.parquet"), mutate(&sound, case)).unwrap();
        PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
        let read = catch_unwind(|| {
            let rows_count = read::rows_count(&table);
            let schema = read::table_schema(&table);
            rows_count.is_err() | schema.is_err() | read::read_table(&table).is_err()
        });
        match read {
            Ok(is_refused) => refused_count += usize::from(is_refused),
            Err(_) => escaped.push(format!("case {case} panics")),
        }
        let peak = PEAK.load(Ordering::Relaxed);
        if peak > BYTES_MAX {
            escaped.push(format!("case {case} holds {peak} bytes"));
        }
    }
    let _ = std::panic::take_hook();
    assert_eq!(escaped, Vec::<String>::new());
    // The rest hit bytes that don't matter, such as a float's or a doc's.
    assert!(refused_count * 2 > cases_count, "only {refused_count} of {cases_count} were refused");
}
