//! The program; all of it is in the library, so that its reference can be generated.

fn main() -> std::process::ExitCode {
    // A program under test is kept by this program, started again. Before anything else: it must have one
    // thread.
    aha_reward::code::enter_if_asked();
    aha::main()
}
