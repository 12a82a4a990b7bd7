//! Time by op, and how far each op is from what the machine allows.

use aha_compute::profile::{Op, Profile};
use serde::{Deserialize, Serialize};

use super::limits::Limits;
use crate::text;

/// Where the time of one run went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Times {
    /// Time of the run.
    pub seconds: f64,
    /// Time that no op accounts for.
    pub rest_seconds: f64,
    /// The ops, the one that took longest first.
    pub ops: Vec<OpTime>,
}

/// What all calls of one op took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpTime {
    /// The op.
    pub op: String,
    /// Calls.
    pub count: u64,
    /// Time, without that of ops inside of it.
    pub seconds: f64,
    /// Of the run's time.
    pub time_share: f64,
    /// Multiplications and additions of sums of products.
    pub flop: f64,
    /// Bytes of its tensors.
    pub bytes: f64,
    /// What the machine would need for these FLOPs or these bytes, whichever takes longer, over the time
    /// that it took. More than 1 where the tensors were still in a cache.
    pub limit_share: Option<f64>,
}

impl Times {
    /// Of a recorded run.
    pub fn new(profile: &Profile) -> Times {
        let of = |op: &Op| OpTime {
            op: op.name.to_owned(),
            count: op.count,
            seconds: op.seconds,
            time_share: op.seconds / profile.seconds,
            flop: op.work.flop,
            bytes: op.work.bytes,
            limit_share: None,
        };
        let ops = profile.ops.iter().map(of).collect();
        Times { seconds: profile.seconds, rest_seconds: profile.rest_seconds(), ops }
    }

    /// Compares each op with the machine.
    pub fn judge(&mut self, limits: &Limits) {
        for op in &mut self.ops {
            let seconds =
                (op.flop / limits.flop_per_second).max(op.bytes / limits.read_bytes_per_second);
            op.limit_share = Some(seconds / op.seconds).filter(|x| x.is_finite() && *x > 0.0);
        }
    }

    /// The cells of its table, with what no op accounts for last.
    pub fn cells(&self) -> Vec<Vec<String>> {
        let rate = |amount: f64, seconds: f64| match amount > 0.0 && seconds > 0.0 {
            true => text::measure(amount / seconds / 1e9),
            false => String::new(),
        };
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let ops = self.ops.iter().map(|op| {
            vec![
                op.op.clone(),
                op.count.to_string(),
                text::measure(op.seconds),
                percent(op.time_share),
                rate(op.flop, op.seconds),
                rate(op.bytes, op.seconds),
                op.limit_share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
            ]
        });
        let none = String::new;
        let (seconds, share) = (self.rest_seconds, self.rest_seconds / self.seconds);
        let rest = vec![
            "in no op".to_owned(),
            none(),
            text::measure(seconds),
            percent(share),
            none(),
            none(),
            none(),
        ];
        ops.chain([rest]).collect()
    }
}

impl OpTime {
    /// The head of the table.
    pub const HEAD: [&'static str; 7] =
        ["op", "calls", "seconds", "time", "GFLOP/s", "GB/s", "of limit"];
}

#[cfg(test)]
mod tests {
    use aha_compute::profile::Work;

    use super::*;

    #[test]
    fn an_op_is_compared_with_whichever_limit_binds_it() {
        let op =
            |name, flop, bytes| Op { name, count: 1, seconds: 2.0, work: Work { flop, bytes } };
        let ops = vec![op("product", 1e11, 1e9), op("copy", 0.0, 1e10), op("nothing", 0.0, 0.0)];
        let mut times = Times::new(&Profile { ops, seconds: 8.0 });
        times.judge(&Limits { flop_per_second: 1e11, read_bytes_per_second: 2e10 });
        let shares: Vec<_> = times.ops.iter().map(|op| op.limit_share).collect();
        assert_eq!(shares, [Some(0.5), Some(0.25), None]);
        let cells = times.cells();
        assert_eq!(cells[0], ["product", "1", "2.000", "25.0 %", "50.0", "0.500", "50 %"]);
        assert_eq!(cells[3], ["in no op", "", "2.000", "25.0 %", "", "", ""]);
    }
}
