//! Makes the program smaller: equal functions are folded, and relocations packed.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu") {
        for arg in ["--icf=all", "-z,pack-relative-relocs", "-O2"] {
            println!("cargo:rustc-link-arg-bins=-Wl,{arg}");
        }
    }
}
