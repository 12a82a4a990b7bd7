//! The program; all of it is in the library, so that its reference can be generated.

fn main() -> std::process::ExitCode {
    aha::main()
}
