//! The driver of a real device, on libraries that stand in for NVIDIA's: what it calls with which arguments, up to
//! a kernel's results, a captured graph's and a product's. Nothing else runs this code where there is no GPU.
//!
//! The libraries are found as NVIDIA's are, by `LD_LIBRARY_PATH`, so the test starts itself once more.

use std::path::Path;
use std::process::{Command, exit};
use std::sync::Arc;
use std::{env, fs, thread};

use aha_cuda::link::{self, Transfer};
use aha_cuda::nvidia::{self, Nvidia};
use aha_cuda::{
    Arg, Buffer, Context, Driver, Error, Kind, Pinned, Plan, Source, Workspace, doctor, nvrtc,
};
use aha_emulate::{Emulated, Order};
use half::bf16;

static SOURCE: Source = Source { name: "machine.cu", text: include_str!("../machine.cu") };

/// What the libraries compile kernels with.
const OPTIONS: &str =
    "-std=c++20 -O1 -ffp-contract=off -fno-strict-aliasing -fPIC -shared -w -DAHA_EMULATED";

fn main() {
    if env::var_os("AHA_ABI_DIR").is_none() {
        start();
        return;
    }
    look();
    let cx = Context::new(Arc::new(Nvidia::open(0).expect("the device is there")));
    kernels(&cx);
    graphs(&cx);
    memory(&cx);
    products(&cx);
    exchanges();
    println!("test the_driver_calls_its_libraries_as_they_must_be ... ok");
}

/// Builds the libraries and runs this program on them.
fn start() {
    let program = env::current_exe().expect("this program has a path");
    let dir = program.parent().expect("it is in a folder").join("abi");
    fs::create_dir_all(dir.join("lib")).expect("the target folder can be written to");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::copy(sources.join("src/emulate.h"), dir.join("emulate.h")).expect("the header is there");
    let library = dir.join("lib/libcuda.so");
    for (library, source) in
        [(&library, "libraries.cpp"), (&dir.join("lib/libnccl.so.2"), "nccl.cpp")]
    {
        let built = Command::new("g++")
            .args(["-std=c++20", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-o"])
            .arg(library)
            .arg(sources.join("tests/abi").join(source))
            .args(["-ldl", "-pthread"])
            .status();
        assert!(built.expect("g++ is there").success(), "g++ failed");
    }
    for name in ["libnvrtc.so", "libcublasLt.so"] {
        fs::copy(&library, dir.join("lib").join(name))
            .expect("the target folder can be written to");
    }
    let cache = dir.join("cache");
    let _ = fs::remove_dir_all(&cache);
    for round in ["compiled", "from the cache"] {
        let status = Command::new(&program)
            .env("LD_LIBRARY_PATH", dir.join("lib"))
            .envs([("AHA_ABI_DIR", dir.as_path()), ("AHA_CACHE", &cache)])
            .env("AHA_ABI_OPTIONS", OPTIONS)
            .status()
            .expect("this program can be started");
        if !status.success() {
            eprintln!("failed where kernels are {round}: {status}");
            exit(1);
        }
        let kept = fs::read_dir(cache.join("kernels")).expect("kernels are kept").count();
        assert_eq!(kept, 1, "one source is kept, {round}");
    }
}

fn look() {
    let found = doctor::look();
    assert_eq!((found.driver, found.compiler), (Ok("13.0".into()), Ok("13.0".into())));
    let info = found.devices[0].clone().expect("the device is described");
    assert_eq!((&*info.name, info.capability), ("Fake 9000", (9, 0)));
    assert_eq!((info.multiprocessor_count, info.limits.shared_bytes_max), (132, 227 << 10));
    let error = nvidia::describe(1).expect_err("there is one device");
    assert!(error.to_string().contains("no device `cuda:1`"), "{error}");
    let error = nvrtc::compile(&SOURCE, "sm_10").expect_err("there is no such architecture");
    assert!(matches!(error, Error::Compile { .. }), "{error}");
}

fn plan(kernel: &'static str, blocks: usize, threads: u32) -> Plan {
    Plan::new(&SOURCE, kernel, blocks, threads)
}

fn kernels(cx: &Context) {
    let from: Vec<u32> = (0..256).collect();
    let on_device = cx.upload(&from).expect("it fits");
    let mut to = cx.zeros(Kind::U32, 256).expect("it fits");
    let args = [Arg::from(&to.view_mut()), Arg::from(&on_device.view())];
    // SAFETY: the arguments are those of the kernel.
    unsafe { cx.launch(&plan("reverse_right", 4, 64), &args).expect("it runs") };
    let want: Vec<u32> = from.iter().rev().copied().collect();
    assert_eq!(cx.download::<u32>(to.view()).expect("it is there"), want);
    // SAFETY: nothing runs.
    let error = unsafe { cx.launch(&plan("nowhere", 4, 64), &args) }.expect_err("no such kernel");
    assert!(error.to_string().contains("no such kernel"), "{error}");
    // A thread of its own has no context yet.
    thread::scope(|scope| {
        let seen = scope.spawn(|| cx.download::<u32>(to.view()).expect("it is there"));
        assert_eq!(seen.join().expect("the thread ends"), want);
    });
}

fn graphs(cx: &Context) {
    let cx = cx.with_new_stream().expect("a stream");
    let mut from = Pinned::<u32>::new(&cx, 64).expect("it fits");
    let mut to = cx.zeros(Kind::U32, 64).expect("it fits");
    // SAFETY: the buffers live on, and `from` changes only when nothing is under way.
    let captured = unsafe {
        cx.capture(&Workspace::new(&cx), |cx| {
            let mut between = cx.buffer(Kind::U32, 64)?;
            from.write(&mut between.view_mut())?;
            let args = [Arg::from(&to.view_mut()), Arg::from(&between.view())];
            cx.launch(&plan("reverse_right", 1, 64), &args)
        })
    };
    let captured = captured.expect("it is captured");
    from.iter_mut().zip(0..).for_each(|(x, i)| *x = i);
    // SAFETY: as above.
    unsafe { captured.replay().expect("it runs") };
    let want: Vec<u32> = (0..64).rev().collect();
    assert_eq!(cx.download::<u32>(to.view()).expect("it is there"), want);
    let driver = cx.driver();
    let moment = || driver.record(cx.stream()).expect("a moment");
    assert_eq!(driver.elapsed_ms(moment(), moment()), Ok(1.5));
}

fn memory(cx: &Context) {
    let before = cx.driver().memory().expect("it is known");
    let error = cx.buffer(Kind::F32, 1 << 26).expect_err("it does not fit");
    assert!(
        matches!(error, Error::OutOfMemory { total_bytes, .. } if total_bytes == before.total_bytes)
    );
    let other = cx.with_new_stream().expect("a stream");
    other.after(cx).expect("it waits");
    drop(cx.zeros(Kind::F32, 1000).expect("it fits"));
    assert!(cx.stats().kept_bytes > 0);
    cx.trim();
    assert_eq!(cx.stats().kept_bytes, 0);
}

/// All ways in which factors are stored, both kinds, with and without a bias and what was there.
fn products(cx: &Context) {
    let emulated = Context::new(Emulated::new(Order::Forward, 1 << 24));
    let shape = [5, 7, 11];
    for kinds in [[Kind::F32; 2], [Kind::Bf16; 2], [Kind::Bf16, Kind::F32]] {
        for case in 0..16 {
            let [a, b, has_bias, accumulates] = [1, 2, 4, 8].map(|bit| case & bit != 0);
            let got = product(cx, shape, kinds, [a, b], has_bias, accumulates);
            let want = product(&emulated, shape, kinds, [a, b], has_bias, accumulates);
            assert_eq!(got, want, "{kinds:?}, case {case}");
        }
    }
}

/// The bits of a product's elements.
fn product(
    cx: &Context,
    shape: [usize; 3],
    [kind, c_kind]: [Kind; 2],
    [a_is_transposed, b_is_transposed]: [bool; 2],
    has_bias: bool,
    accumulates: bool,
) -> Vec<u32> {
    let [m, n, k] = shape;
    let values = |seed: usize, len: usize| -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + seed * 101) % 113) as f32 / 16.0 - 3.5).collect()
    };
    let upload = |values: Vec<f32>, kind| match kind {
        Kind::Bf16 => {
            let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
            cx.upload(&values).expect("it fits")
        }
        _ => cx.upload(&values).expect("it fits"),
    };
    let (a, b) = (upload(values(1, m * k), kind), upload(values(2, k * n), kind));
    let (bias, mut c) = (upload(values(3, n), c_kind), upload(values(4, m * n), c_kind));
    let factors = ((a.view(), a_is_transposed), (b.view(), b_is_transposed));
    let bias = has_bias.then(|| bias.view());
    let scales = (0.75, if accumulates { 1.0 } else { 0.0 });
    cx.product(&mut c.view_mut(), shape, factors.0, factors.1, bias, scales).expect("it runs");
    match c_kind {
        Kind::Bf16 => {
            let values: Vec<bf16> = cx.download(c.view()).expect("it is there");
            values.into_iter().map(|x| u32::from(x.to_bits())).collect()
        }
        _ => {
            let values: Vec<f32> = cx.download(c.view()).expect("it is there");
            values.into_iter().map(f32::to_bits).collect()
        }
    }
}

/// Three ranks, each of which is the one device there is, opened once more: every two swap what they have for each
/// other; then one leaves, and nobody waits for it.
fn exchanges() {
    assert_eq!(nvidia::ask_for_exchange(), Ok(()));
    let open = |_| -> Arc<dyn Driver> { Arc::new(Nvidia::open(0).expect("the device is there")) };
    let drivers: Vec<Arc<dyn Driver>> = (0..3).map(open).collect();
    let contexts: Vec<Context> = drivers.iter().cloned().map(Context::new).collect();
    let links = link::connect(&drivers).expect("they are connected");
    let from: Vec<Buffer> = (0..3u32)
        .map(|rank| contexts[rank as usize].upload(&[10 * rank, 10 * rank + 1, 10 * rank + 2]))
        .collect::<Result<_, _>>()
        .expect("it fits");
    let to: Vec<Buffer> = contexts
        .iter()
        .map(|cx| cx.zeros(Kind::U32, 3))
        .collect::<Result<_, _>>()
        .expect("it fits");
    let exchange = |rank: usize| {
        let word = |buffer: &Buffer, at: usize| buffer.view().slice(at..at + 1).at();
        let (from, to) = (&from[rank], &to[rank]);
        let transfers = (0..3).filter(|other| *other != rank).flat_map(|other| {
            let sent = Transfer::Send { from: word(from, other), bytes: 4, to_rank: other };
            [sent, Transfer::Receive { to: word(to, other), bytes: 4, from_rank: other }]
        });
        let transfers: Vec<Transfer> = transfers.collect();
        // SAFETY: each address is of a word of its own.
        unsafe { links[rank].exchange(&transfers, contexts[rank].stream()) }
    };
    thread::scope(|scope| {
        let exchange = &exchange;
        let ranks = [0, 1, 2].map(|rank| scope.spawn(move || exchange(rank)));
        for rank in ranks {
            rank.join().expect("it ends").expect("it is done");
        }
    });
    for (rank, (cx, to)) in contexts.iter().zip(&to).enumerate() {
        let mut want = [rank as u32, 10 + rank as u32, 20 + rank as u32];
        want[rank] = 0;
        assert_eq!(cx.download::<u32>(to.view()).expect("it is there"), want);
    }
    let error = thread::scope(|scope| {
        let waiting = scope.spawn(|| exchange(0));
        links[2].abort();
        waiting.join().expect("it ends").expect_err("nobody answers")
    });
    assert!(matches!(&error, Error::Failed { call, .. } if call.starts_with("nccl")), "{error}");
    let after = exchange(1).expect_err("nothing can be exchanged any more").to_string();
    assert!(after.contains("aborted"), "{after}");
    let mixed = [Arc::clone(&drivers[0]), Emulated::new(Order::Forward, 1 << 20)];
    assert!(link::connect(&mixed).is_err(), "devices of two kinds");
}
