//! The machine's peaks, with one thread and with all.

use aha_compute::{Device, measure};

use super::row::Row;
use super::{Bench, Kind};

/// A row for one thread, and one for all where there are more; one for a CUDA device, where arithmetic is that of a
/// large product.
pub fn rows(bench: &Bench<'_>) -> Vec<Row> {
    if bench.device().is_cuda() {
        return vec![row(bench, bench.device())];
    }
    let one = Device::cpu(1);
    let all = bench.device();
    let devices = if all.threads() > 1 { vec![&one, all] } else { vec![&one] };
    devices.into_iter().map(|device| row(bench, device)).collect()
}

fn row(bench: &Bench<'_>, device: &Device) -> Row {
    let name = bench.open.name().map_or_else(|| device.isa().to_string(), str::to_owned);
    bench.say(Kind::Peak, &format!("{name}, threads: {}", device.threads()));
    let mut row = Row::new(Kind::Peak, name, device.threads());
    let best = |figure: &dyn Fn() -> f64| {
        (0..bench.args.runs).map(|_| figure()).fold(f64::NEG_INFINITY, f64::max) / 1e9
    };
    row.add("f32_gflop_per_second", best(&|| measure::f32_flop_per_second(device)));
    // Not finite, and so left out, where the processor has no such instruction.
    let bf16 = || measure::bf16_flop_per_second(device).unwrap_or(f64::NEG_INFINITY);
    row.add("bf16_gflop_per_second", best(&bf16));
    row.add("read_gb_per_second", best(&|| measure::read_bytes_per_second(device)));
    row.add("copy_gb_per_second", best(&|| measure::copy_bytes_per_second(device)));
    row
}
