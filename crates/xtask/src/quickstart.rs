//! The quickstart's data: sums whose worked solution is a short chain of thought.
//!
//! A problem is a chain of additions and subtractions that never leaves 0 to 9, such as `7-6+4+4-4=`. The
//! corpus that the base model is made from is what a crawl might hold: some careful solutions, many sloppy
//! ones, guesses without work, and bare numbers. So the base model can work problems out, but seldom does.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use aha_compute::random::Philox;
use anyhow::Result;
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use crate::languages;

const SEED: u64 = 2025;
const TERM_COUNT: usize = 5;
const CORPUS_COUNT: usize = 10_000;
const TRAIN_COUNT: usize = 2_400;
const TEST_COUNT: usize = 200;
const COLD_START_COUNT: usize = 800;
const GENERAL_COUNT: usize = 300;

/// Draws, each at an address of its own.
pub struct Draws {
    random: Philox,
    next: u64,
}

impl Draws {
    pub fn new(purpose: &str) -> Draws {
        Draws { random: Philox::new(SEED).derive(purpose), next: 0 }
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next += 1;
        (self.random.uniform(&[self.next]) * bound as f64) as u64
    }

    pub fn chance(&mut self, share: f64) -> bool {
        self.next += 1;
        self.random.uniform(&[self.next]) < share
    }
}

/// A chain of sums.
pub struct Problem {
    /// The first term.
    pub first: i64,
    /// Signed addends.
    pub addends: Vec<i64>,
}

impl Problem {
    pub fn draw(draws: &mut Draws) -> Problem {
        loop {
            let first = draws.below(10) as i64;
            let mut addends = Vec::new();
            let mut sum = first;
            while addends.len() + 1 < TERM_COUNT {
                let size = 1 + draws.below(9) as i64;
                let addend = if draws.below(2) == 0 { size } else { -size };
                sum += addend;
                if !(0..10).contains(&sum) {
                    break;
                }
                addends.push(addend);
            }
            if addends.len() + 1 == TERM_COUNT {
                return Problem { first, addends };
            }
        }
    }

    pub fn prompt(&self) -> String {
        let addends: String = self.addends.iter().map(|a| format!("{a:+}")).collect();
        format!("{}{addends}=", self.first)
    }

    pub fn answer(&self) -> i64 {
        self.first + self.addends.iter().sum::<i64>()
    }

    /// What comes of a step, which is wrong with the chance `slip`.
    pub fn step(sum: i64, addend: i64, draws: &mut Draws, slip: f64) -> i64 {
        let next = (sum + addend).clamp(0, 9);
        if !draws.chance(slip) {
            return next;
        }
        let off = [-2, -1, 1, 2][draws.below(4) as usize];
        (next + off).clamp(0, 9)
    }

    /// The chain of thought and what it arrives at; each step is wrong with the chance `slip`.
    fn chain(&self, draws: &mut Draws, slip: f64) -> (String, i64) {
        let mut sum = self.first;
        let mut steps = Vec::new();
        for addend in &self.addends {
            let next = Problem::step(sum, *addend, draws, slip);
            steps.push(format!("{sum}{addend:+}={next}"));
            sum = next;
        }
        (steps.join(","), sum)
    }
}

/// Problems that never come twice, whatever they are for.
#[derive(Default)]
pub struct Fresh(HashSet<String>);

impl Fresh {
    pub fn draw(&mut self, draws: &mut Draws) -> Problem {
        loop {
            let problem = Problem::draw(draws);
            if self.0.insert(problem.prompt()) {
                return problem;
            }
        }
    }
}

pub fn worked(thought: &str, answer: i64) -> String {
    format!("<think>{thought}</think><answer>{answer}</answer>")
}

/// A text as a crawl might hold it.
fn crawled(problem: &Problem, draws: &mut Draws) -> String {
    let completion = match draws.below(100) {
        0..20 => {
            let (chain, sum) = problem.chain(draws, 0.02);
            worked(&chain, sum)
        }
        20..50 => {
            let (chain, sum) = problem.chain(draws, 0.35);
            worked(&format!("so {chain}"), sum)
        }
        50..80 => {
            let off = draws.below(9) as i64 - 4;
            worked("easy", (problem.answer() + off).clamp(0, 9))
        }
        _ => draws.below(10).to_string(),
    };
    format!("{}{completion}", problem.prompt())
}

/// A question that needs no thought, and its answer.
fn general(draws: &mut Draws) -> (String, String) {
    let digits: String = (0..4).map(|_| draws.below(10).to_string()).collect();
    let (word, answer) =
        if draws.below(2) == 0 { ("first", &digits[..1]) } else { ("last", &digits[3..]) };
    (format!("{word} {digits}="), answer.to_owned())
}

/// Columns of a table in the making.
pub struct Table {
    names: &'static [&'static str],
    /// Rows of texts.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(names: &'static [&'static str]) -> Table {
        Table { names, rows: Vec::new() }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let column = |i: usize| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(self.rows.iter().map(|row| &row[i])))
        };
        let columns = self.names.iter().enumerate().map(|(i, name)| (*name, column(i)));
        let batch = RecordBatch::try_from_iter(columns)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(Default::default()))
            .set_created_by("aha".to_owned())
            .build();
        let file = fs_err::File::create(path)?;
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties))?;
        writer.write(&batch)?;
        writer.close()?;
        Ok(())
    }
}

/// Writes the data sets of the miniatures into `folder`.
pub fn write(folder: &Path) -> Result<()> {
    fs_err::create_dir_all(folder)?;
    let mut fresh = Fresh::default();
    let problems = problems(&mut fresh);
    problems.write(&folder.join("quickstart-problems.parquet"))?;
    cold_start(&mut fresh).write(&folder.join("quickstart-cold-start.parquet"))?;
    corpus(&mut fresh).write(&folder.join("quickstart-corpus.parquet"))?;
    languages::corpus(&mut fresh).write(&folder.join("language-corpus.parquet"))
}

/// Sums to train and to test on, and general questions.
fn problems(fresh: &mut Fresh) -> Table {
    let mut table = Table::new(&["id", "prompt", "answer", "source", "split"]);
    let mut draws = Draws::new("problems");
    for i in 0..TEST_COUNT + TRAIN_COUNT {
        let problem = fresh.draw(&mut draws);
        let split = if i < TEST_COUNT { "test" } else { "train" };
        let row =
            [&format!("sum-{i}"), &problem.prompt(), &problem.answer().to_string(), "sums", split];
        table.rows.push(row.map(str::to_owned).to_vec());
    }
    let mut seen = HashSet::new();
    while seen.len() < GENERAL_COUNT {
        let (prompt, answer) = general(&mut draws);
        let id = format!("general-{}", seen.len());
        if seen.insert(prompt.clone()) {
            table.rows.push(
                [&id, &prompt, &answer, "general", "train"].map(|s: &str| s.to_owned()).to_vec(),
            );
        }
    }
    table
}

/// Long, readable chains of thought: every step, and a last look at the result.
fn cold_start(fresh: &mut Fresh) -> Table {
    let mut table = Table::new(&["id", "prompt", "completion"]);
    let mut draws = Draws::new("cold start");
    for i in 0..COLD_START_COUNT {
        let problem = fresh.draw(&mut draws);
        let (chain, sum) = problem.chain(&mut draws, 0.0);
        let completion = worked(&format!("{chain},so {sum}"), sum);
        table.rows.push(vec![format!("cold-{i}"), problem.prompt(), completion]);
    }
    table
}

/// What the base models are made from.
fn corpus(fresh: &mut Fresh) -> Table {
    let mut table = Table::new(&["id", "text"]);
    let mut draws = Draws::new("corpus");
    for i in 0..CORPUS_COUNT {
        let problem = fresh.draw(&mut draws);
        let text = if draws.below(20) == 0 {
            let (prompt, answer) = general(&mut draws);
            format!("{prompt}<think>easy</think><answer>{answer}</answer>")
        } else {
            crawled(&problem, &mut draws)
        };
        table.rows.push(vec![format!("text-{i}"), text]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = [
        "quickstart-problems.parquet",
        "quickstart-cold-start.parquet",
        "quickstart-corpus.parquet",
        "language-corpus.parquet",
    ];

    #[test]
    fn the_data_sets_that_ship_are_those_that_the_generator_writes() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let shipped = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"))
            .join("../../datasets");
        for name in NAMES {
            let (new, old) =
                (fs_err::read(folder.path().join(name)), fs_err::read(shipped.join(name)));
            assert!(
                new.unwrap() == old.unwrap(),
                "{name} differs: run `cargo run --release -p xtask -- datasets`"
            );
        }
    }

    #[test]
    fn no_problem_is_in_two_places() {
        let mut fresh = Fresh::default();
        let problems = problems(&mut fresh);
        let (texts, mixed) = (corpus(&mut fresh), languages::corpus(&mut fresh));
        let test: Vec<&String> =
            problems.rows.iter().filter(|row| row[4] == "test").map(|row| &row[1]).collect();
        assert_eq!(test.len(), TEST_COUNT);
        for row in texts.rows.iter().chain(&mixed.rows) {
            let prompt = row[1].split_inclusive('=').next().unwrap();
            assert!(!test.iter().any(|t| *t == prompt), "{prompt}");
        }
    }

    #[test]
    fn a_chain_without_slips_arrives_at_the_answer() {
        let mut draws = Draws::new("test");
        for _ in 0..200 {
            let problem = Problem::draw(&mut draws);
            assert_eq!(problem.chain(&mut draws, 0.0).1, problem.answer());
        }
    }
}
