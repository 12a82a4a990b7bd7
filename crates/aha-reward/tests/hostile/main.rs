//! Hostile
fn main() {}
