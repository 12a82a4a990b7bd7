//! Throughput of the matrix products on the shapes of our models, beside the peak that the same machine
//! reaches at the same moment: others may share it.
//!
//! `cargo bench -p aha-compute --bench matmul -- [FILTER]`

use std::hint::black_box;
use std::time::{Duration, Instant};

use aha_compute::ops::matmul::{self, Packed};
use aha_compute::simd::{Isa, LANES};
use aha_compute::{Device, Dtype, Tensor};

/// Name, rows of activations, inputs, outputs.
const SHAPES: [(&str, usize, usize, usize); 17] = [
    ("attention_out", 2048, 576, 576),
    ("ffn_up", 2048, 576, 1536),
    ("ffn_down", 2048, 1536, 576),
    ("square", 2048, 2048, 2048),
    ("head", 2048, 576, 49152),
    ("head_chunk", 256, 576, 49152),
    ("quick_out", 512, 96, 96),
    ("quick_up", 512, 96, 288),
    ("quick_batch", 16000, 96, 288),
    ("ffn_up_64", 64, 576, 1536),
    ("ffn_up_8", 8, 576, 1536),
    ("ffn_up_4", 4, 576, 1536),
    ("ffn_up_1", 1, 576, 1536),
    ("head_64", 64, 576, 49152),
    ("head_8", 8, 576, 49152),
    ("head_1", 1, 576, 49152),
    ("quick_1", 1, 96, 288),
];
/// Rows up to which only the forward pass occurs: these are decode steps.
const DECODE_ROWS_MAX: usize = 64;
/// Time spent on each product.
const BUDGET: Duration = Duration::from_millis(700);

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    println!("| product | threads | GFLOP/s | of peak | weights GB/s |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for threads in [1, 2] {
        let device = Device::cpu(threads);
        println!("| fma peak ({}) | {threads} | {:.1} | | |", device.isa(), peak(&device));
        for (name, rows, inp, out) in SHAPES {
            for pass in passes(rows) {
                let id = format!("{pass}/{name} {rows}x{inp}->{out}");
                if id.contains(&filter) {
                    bench(&id, &device, pass, [rows, inp, out]);
                }
            }
        }
    }
}

fn passes(rows: usize) -> &'static [&'static str] {
    if rows <= DECODE_ROWS_MAX {
        &["forward"]
    } else {
        &["forward", "backward_input", "backward_weight"]
    }
}

fn bench(id: &str, device: &Device, pass: &str, [rows, inp, out]: [usize; 3]) {
    let values = |len: usize| (0..len).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect::<Vec<_>>();
    let tensor =
        |shape: &[usize]| Tensor::from_slice(device, shape, &values(shape.iter().product()));
    let (x, w) = (tensor(&[rows, inp]), tensor(&[out, inp]));
    let mut run: Box<dyn FnMut()> = match pass {
        "forward" => {
            let (packed, mut y) = (Packed::of_weight(&w, Dtype::F32), tensor(&[rows, out]));
            Box::new(move || matmul::forward(&mut y, &x, &packed, None))
        }
        "backward_input" => {
            let (dy, mut dx) = (tensor(&[rows, out]), tensor(&[rows, inp]));
            Box::new(move || matmul::backward_input(&mut dx, &dy, &w, false))
        }
        _ => {
            let (dy, mut dw) = (tensor(&[rows, out]), tensor(&[out, inp]));
            Box::new(move || matmul::backward_weight(&mut dw, &dy, &x))
        }
    };
    // The peak is taken between the repetitions, so that both meet the same neighbours.
    let flop = 2.0 * (rows * inp * out) as f64;
    let (mut best, mut top) = (f64::INFINITY, 0.0f64);
    let begun = Instant::now();
    while begun.elapsed() < BUDGET {
        top = top.max(peak(device));
        let turn = Instant::now();
        while turn.elapsed() < BUDGET / 8 {
            let start = Instant::now();
            run();
            best = best.min(start.elapsed().as_secs_f64());
        }
    }
    let (gflops, gigabytes) = (flop / best / 1e9, (inp * out * 4) as f64 / best / 1e9);
    let share = 100.0 * gflops / top;
    println!("| {id} | {} | {gflops:.1} | {share:.0} % | {gigabytes:.1} |", device.threads());
}

/// GFLOP/s of fused multiply-adds on registers alone; the best of a few short runs.
fn peak(device: &Device) -> f64 {
    const STEPS: usize = 100_000;
    let flop = (device.threads() * STEPS * CHAINS * 2 * 16) as f64;
    let times = (0..8).map(|_| {
        let start = Instant::now();
        device.run(device.threads(), |_| spin(device.isa(), STEPS));
        start.elapsed().as_secs_f64()
    });
    flop / times.fold(f64::INFINITY, f64::min) / 1e9
}

/// Independent chains of sixteen lanes, more than the latency of the instruction needs.
const CHAINS: usize = 6;

fn spin(isa: Isa, steps: usize) {
    match isa {
        // SAFETY: the device was made with an instruction set of this machine.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { spin_avx2(steps) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { spin_avx512(steps) },
        _ => spin_lanes(steps),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn spin_avx2(steps: usize) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
    let mut sums = [b; 2 * CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn spin_avx512(steps: usize) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
    // Half of the steps with twice the chains: one register has all lanes here.
    let mut sums = [b; 2 * CHAINS];
    for _ in 0..steps / 2 {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    black_box(sums);
}

fn spin_lanes(steps: usize) {
    let (a, b) = (black_box(0.5f32), black_box(0.25f32));
    let mut sums = [[b; LANES]; CHAINS];
    for _ in 0..steps {
        for sum in sums.as_flattened_mut() {
            *sum = sum.mul_add(a, b);
        }
    }
    black_box(sums);
}
