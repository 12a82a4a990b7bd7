//! Programs in the sandbox: what they can do, what they can't, and what is left afterwards.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use aha_sandbox::*;
fn main() {
    enter_if_asked();
    for l in probe() {
        println!("{:?}", l);
    }
    let mut job = Job::new(["/usr/bin/python3", "-S", "-c", "print(input())"]);
    job.stdin = Stdin::Bytes(b"hi\n".to_vec());
    println!(
        "{:?}",
        run(&job).map(|o| (
            o.exit,
            String::from_utf8(o.stdout).unwrap(),
            String::from_utf8(o.stderr).unwrap(),
            o.cpu,
            o.wall
        ))
    );
    let t = std::time::Instant::now();
    for _ in 0..50 {
        run(&job).unwrap();
    }
    println!("{:?} each", t.elapsed() / 50);
}
