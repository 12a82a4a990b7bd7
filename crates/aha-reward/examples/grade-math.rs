//! Grades JSON lines `{"id", "gold", "pred"}` of bare answers or completions from standard input, as
//! `aha grade --reward math` does, and says on standard error how long the verdicts took: for
//! `ops/compare-math-verify.py`.

use std::io::{self, BufReader};
use std::time::Instant;

use aha_reward::backend::NoBackends;
use aha_reward::{Kind, Spec, grade};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec = Spec::new(Kind::Math);
    let verifier = spec.for_grading().resolve(&NoBackends).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    })?;
    let mut input = BufReader::new(io::stdin().lock());
    let start = Instant::now();
    let progress = grade::grade(verifier.as_ref(), &mut input, &mut io::stdout().lock(), |_| {})?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{} lines in {seconds:.3} s", progress.line_count);
    Ok(())
}
