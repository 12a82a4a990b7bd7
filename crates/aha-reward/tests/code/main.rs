//! Verdicts on programs: each form of tests, each language, right and wrong.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

fn main() {
    aha_sandbox::enter_if_asked();
    let path = std::env::args().nth(1).unwrap();
    let spec: aha_reward::Spec = serde_json::from_str(&std::env::args().nth(2).unwrap_or(r#"{"kind":"code"}"#.into())).unwrap();
    let verifier = match spec.resolve(&aha_reward::NoBackends) { Ok(v) => v, Err(p) => { for p in p { eprintln!("{p}"); } std::process::exit(1) } };
    let mut input = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let t = std::time::Instant::now();
    let p = aha_reward::grade::grade(verifier.as_ref(), &mut input, &mut std::io::stdout(), |_| ()).unwrap();
    eprintln!("{p:?} {:?} {:.1}/s", t.elapsed(), p.line_count as f64 / t.elapsed().as_secs_f64());
}
