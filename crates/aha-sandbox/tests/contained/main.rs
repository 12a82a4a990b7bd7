//! x
use aha_sandbox::*;
fn main() {
    enter_if_asked();
    let a: Vec<String> = std::env::args().skip(1).collect();
    let job = Job::new(a);
    match run(&job) { Ok(o) => { println!("{:?} {:?}", o.exit, o.wall); print!("{}", String::from_utf8_lossy(&o.stdout)); print!("{}", String::from_utf8_lossy(&o.stderr)); } Err(e) => println!("{e:?}") }
}
