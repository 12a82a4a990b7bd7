//! Every kernel compiles for every architecture, but for those of FP8 where no device has that. This needs NVIDIA's
//! compiler but no device: `pip install -r ops/requirements-cuda.txt`, its folder in `LD_LIBRARY_PATH`, and
//! `cargo test --release -p aha-compute --test nvrtc -- --ignored`.

use aha_compute::cuda::{Error, Source, nvrtc};
use aha_compute::device::FP8_CAPABILITY_MIN;
use aha_compute::ops::cuda::sources;

/// Of A100, H100 and H200, B200.
const CAPABILITIES: [(u32, u32); 3] = [(8, 0), (9, 0), (10, 0)];

/// The names of a source's kernels, those of macros without what they are instantiated for.
fn kernels(source: &Source) -> usize {
    source.text.matches("KERNEL(").count()
}

#[test]
#[ignore = "needs libnvrtc, which ops/test installs"]
fn every_kernel_compiles_for_every_architecture() {
    std::thread::scope(|scope| {
        for capability in CAPABILITIES {
            scope.spawn(move || {
                for source in sources() {
                    let code = nvrtc::compile(source, &nvrtc::arch(capability));
                    if source.name == "fp8.cu" && capability < FP8_CAPABILITY_MIN {
                        let said = code.expect_err("no such device multiplies in FP8").to_string();
                        assert!(said.contains("need a device of compute capability 8.9"), "{said}");
                        continue;
                    }
                    let code = code.unwrap_or_else(|error| panic!("{error}"));
                    assert!(code.starts_with(b"\x7fELF"), "{} is no cubin", source.name);
                    assert!(kernels(source) > 0, "{} has no kernels", source.name);
                }
            });
        }
    });
}

#[test]
#[ignore = "needs libnvrtc, which ops/test installs"]
fn what_does_not_compile_says_where() {
    static BROKEN: Source = Source {
        name: "broken.cu",
        text: "#include \"aha.cuh\"\nKERNEL(32, broken, f32* x) { x[0] = nowhere; }\n",
    };
    let error = nvrtc::compile(&BROKEN, "sm_90a").unwrap_err();
    assert!(
        matches!(&error, Error::Compile { log, .. } if log.contains("broken.cu(2)")),
        "{error}"
    );
    let versions = nvrtc::dependencies().unwrap();
    assert!(versions.last().unwrap().starts_with("nvrtc "), "{versions:?}");
}
