//! Which products of few rows of activations have the same bits by a kernel that is made for them as by the library's
//! kernel for many rows.
//!
//! The library doesn't say in which order its kernels add, so it is tried: once for each shape, and the answer is kept
//! as long as the device is open. Who tries, and how, is `aha-compute/src/ops/matmul/few_rows.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Kind;

/// A product of few rows of bf16 activations `(m, k)` with a weight `(n, k)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FewRows {
    /// Outputs.
    pub n: usize,
    /// Terms of an output's sum.
    pub k: usize,
    /// What outputs are stored as.
    pub c_kind: Kind,
    /// Whether a bias is added.
    pub has_bias: bool,
}

impl fmt::Display for FewRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FewRows { n, k, c_kind, has_bias } = self;
        let bias = if *has_bias { " with bias" } else { "" };
        write!(f, "{n} outputs of {k} inputs{bias}, as {c_kind}")
    }
}

/// How the two kernels compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// All bits are equal: few rows go through the kernel that is made for them.
    Equal,
    /// Some elements differ: the library multiplies few rows too.
    Differs {
        /// Elements with other bits.
        differing: usize,
        /// Elements that were compared.
        compared: usize,
    },
    /// There was no memory to try it: the library multiplies.
    NoRoom,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Agreement::Equal => f.write_str("equal bits"),
            Agreement::Differs { differing, compared } => {
                write!(f, "{differing} of {compared} elements differ")
            }
            Agreement::NoRoom => f.write_str("no memory to try it"),
        }
    }
}

/// Answers by shape.
#[derive(Debug, Default)]
pub struct Probes(Mutex<BTreeMap<FewRows, Agreement>>);

impl Probes {
    /// The answer, if it is known.
    pub fn get(&self, shape: FewRows) -> Option<Agreement> {
        self.answers().get(&shape).copied()
    }

    /// Keeps an answer; where there is one already, that. Returns what is kept.
    pub fn keep(&self, shape: FewRows, answer: Agreement) -> Agreement {
        *self.answers().entry(shape).or_insert(answer)
    }

    /// All answers, by shape.
    pub fn all(&self) -> Vec<(FewRows, Agreement)> {
        self.answers().iter().map(|(shape, answer)| (*shape, *answer)).collect()
    }

    fn answers(&self) -> MutexGuard<'_, BTreeMap<FewRows, Agreement>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_stays() {
        let (probes, differs) =
            (Probes::default(), Agreement::Differs { differing: 1, compared: 960 });
        let shape = FewRows { n: 1152, k: 896, c_kind: Kind::Bf16, has_bias: true };
        assert_eq!(probes.get(shape), None);
        assert_eq!(probes.keep(shape, differs), differs);
        assert_eq!(probes.keep(shape, Agreement::Equal), differs);
        assert_eq!(probes.all(), [(shape, differs)]);
        assert_eq!(shape.to_string(), "1152 outputs of 896 inputs with bias, as bf16");
        assert_eq!(differs.to_string(), "1 of 960 elements differ");
    }
}
