//! The loss of direct preference optimization on pairs of completions, of which one was preferred (Rafailov et al.
//! 2023, arXiv:2305.18290, eq. 7), with its relatives as options.
//!
//! `c_i` and `r_i` are log-probs of the chosen and the rejected completion of pair `i` under the policy, `cref_i` and
//! `rref_i` under the reference, which is never trained: sums over a completion's trained tokens, or, with
//! `is_length_normalised`, their means (Tülu 3, arXiv:2411.15124; TRL has means with `ipo`). `m_i` is by how much the
//! chosen completion ought to be ahead (Amini et al. 2024, arXiv:2402.10571), 0 where the data has none.
//!
//! ```text
//! h_i = (c_i - cref_i) - (r_i - rref_i)     d_i = beta h_i - m_i
//! sigmoid: L_i = (1 - s) log(1 + e^-d_i) + s log(1 + e^d_i)      dL/dd = s - 1/(1 + e^d_i)
//! hinge:   L_i = max(0, 1 - d_i)                                  dL/dd = -1 where d_i < 1, else 0
//! ipo:     L_i = (d_i/beta - 1/(2 beta))^2                        dL/dd = 2 (d_i/beta - 1/(2 beta)) / beta
//! loss = 1/N sum_i [L_i - nll_coef 1/n_i sum_t c_it]              N: pairs of the whole minibatch
//! dloss/dc_it = 1/N [beta dL/dd w_i - nll_coef/n_i]               w_i: 1, or 1/n_i where `is_length_normalised`
//! dloss/dr_it = -1/N beta dL/dd w_i                               with the length of the rejected one
//! ```
//!
//! `s` is `label_smoothing` (Mitchell 2023, "A note on DPO with noisy preferences"), `hinge` is of Liu et al. 2023
//! (arXiv:2309.06657), `ipo` of Azar et al. 2023 (arXiv:2310.12036, eq. 17); the term of `nll_coef` is that of
//! Pang et al. 2024 (arXiv:2404.19733, eq. 1: their alpha, TRL's `rpo_alpha`), with `n_i` the chosen completion's
//! length. Sums run in f64, tokens and pairs in order.

/// How far ahead the chosen completion has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LossKind {
    /// The log-loss of DPO.
    #[default]
    Sigmoid,
    /// A hinge with the margin 1.
    Hinge,
    /// The square loss of IPO.
    Ipo,
}

/// Every constant of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Which loss of a pair.
    pub kind: LossKind,
    /// How much the policy is held to the reference. Above 0.
    pub beta: f64,
    /// The probability that a pair is the wrong way round; of the sigmoid loss only.
    pub label_smoothing: f64,
    /// Log-probs of completions are means over tokens.
    pub is_length_normalised: bool,
    /// Factor of the negative log-prob of the chosen completion's tokens.
    pub nll_coef: f64,
}

/// A completion's log-probs, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Completion {
    /// Under the policy.
    pub logp: f64,
    /// That less the same under the reference.
    pub ahead: f64,
    /// Tokens that are trained on.
    pub len_tokens: usize,
}

impl Completion {
    /// From the log-probs of all tokens under policy and reference, and which of them are trained on.
    pub fn of(logps: &[f32], ref_logps: &[f32], mask: &[bool]) -> Self {
        let len = logps.len();
        assert_eq!(ref_logps.len(), len, "`ref_logps` has one value per log-prob");
        assert_eq!(mask.len(), len, "`mask` has one value per log-prob");
        let mut found = Self::default();
        for (idx, (&logp, &of)) in logps.iter().zip(ref_logps).enumerate() {
            if mask[idx] {
                found.logp += f64::from(logp);
                found.ahead += f64::from(logp) - f64::from(of);
                found.len_tokens += 1;
            }
        }
        found
    }

    fn share_of_token(&self) -> f64 {
        1.0 / self.len_tokens.max(1) as f64
    }

    fn weight(&self, objective: &Objective) -> f64 {
        if objective.is_length_normalised { self.share_of_token() } else { 1.0 }
    }
}

/// Two completions of a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The one that was preferred.
    pub chosen: Completion,
    /// The other.
    pub rejected: Completion,
    /// By how much the first ought to be ahead, in the unit of rewards.
    pub margin: f32,
}

/// What a pair adds to the loss of its minibatch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// Its part of the loss.
    pub loss: f64,
    /// Gradient of the log-prob of each trained token of the chosen completion.
    pub dchosen: f32,
    /// The same of the rejected completion.
    pub drejected: f32,
    /// The implicit reward of the chosen completion: `beta (c - cref)`.
    pub reward_chosen: f64,
    /// That of the rejected completion.
    pub reward_rejected: f64,
    /// Mean negative log-prob of the chosen completion's tokens.
    pub nll: f64,
}

/// The loss of one pair out of the `pair_count` of its minibatch.
pub fn loss(pair: &Pair, objective: &Objective, pair_count: usize) -> PairLoss {
    let Pair { chosen, rejected, margin } = pair;
    let (beta, margin) = (objective.beta, f64::from(*margin));
    let weight = 1.0 / pair_count.max(1) as f64;
    let weights = [chosen, rejected].map(|completion| completion.weight(objective));
    let reward_chosen = beta * weights[0] * chosen.ahead;
    let reward_rejected = beta * weights[1] * rejected.ahead;
    let (value, slope) = value_and_slope(objective, reward_chosen - reward_rejected - margin);
    let nll = -chosen.logp * chosen.share_of_token();
    let dnll = objective.nll_coef * chosen.share_of_token();
    PairLoss {
        loss: weight * (value + objective.nll_coef * nll),
        dchosen: (weight * (beta * slope * weights[0] - dnll)) as f32,
        drejected: (weight * -(beta * slope * weights[1])) as f32,
        reward_chosen,
        reward_rejected,
        nll,
    }
}

/// The loss of a pair that is `ahead`, and its derivative.
fn value_and_slope(objective: &Objective, ahead: f64) -> (f64, f64) {
    match objective.kind {
        LossKind::Sigmoid => {
            let smoothing = objective.label_smoothing;
            // log(1 + e^-d) without overflow on either side.
            let right = (-ahead).max(0.0) + (-ahead.abs()).exp().ln_1p();
            // log(1 + e^d) is as much more as d; 0 times infinity would not be 0.
            let value = if smoothing == 0.0 { right } else { right + smoothing * ahead };
            (value, smoothing - 1.0 / (1.0 + ahead.exp()))
        }
        LossKind::Hinge if 1.0 <= ahead => (0.0, 0.0),
        LossKind::Hinge => (1.0 - ahead, -1.0),
        LossKind::Ipo => {
            let off = (ahead - 0.5) / objective.beta;
            (off * off, 2.0 * off / objective.beta)
        }
    }
}

/// Sums over pairs, for the means that are reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// The loss.
    pub loss: f64,
    /// Pairs.
    pub pair_count: usize,
    /// Pairs whose chosen completion has the higher implicit reward.
    pub right_count: usize,
    /// Sum of the implicit rewards of chosen completions.
    pub reward_chosen: f64,
    /// Sum of those of rejected ones.
    pub reward_rejected: f64,
    /// Sum of the log-probs of chosen completions, sums over tokens, under the policy.
    pub logp_chosen: f64,
    /// The same of rejected ones.
    pub logp_rejected: f64,
    /// Sum of the chosen completions' mean negative log-probs.
    pub nll: f64,
}

impl Totals {
    /// Adds a pair with what it gave.
    pub fn add(&mut self, pair: &Pair, out: &PairLoss) {
        self.loss += out.loss;
        self.pair_count += 1;
        self.right_count += usize::from(out.reward_chosen > out.reward_rejected);
        self.reward_chosen += out.reward_chosen;
        self.reward_rejected += out.reward_rejected;
        self.logp_chosen += pair.chosen.logp;
        self.logp_rejected += pair.rejected.logp;
        self.nll += out.nll;
    }

    /// Adds the sums over other pairs.
    pub fn merge(&mut self, other: &Totals) {
        self.loss += other.loss;
        self.pair_count += other.pair_count;
        self.right_count += other.right_count;
        self.reward_chosen += other.reward_chosen;
        self.reward_rejected += other.reward_rejected;
        self.logp_chosen += other.logp_chosen;
        self.logp_rejected += other.logp_rejected;
        self.nll += other.nll;
    }

    /// Share of pairs whose chosen completion has the higher implicit reward; a tie counts as wrong.
    pub fn accuracy(&self) -> f64 {
        self.mean(self.right_count as f64)
    }

    /// Mean of how far the implicit rewards of chosen completions are ahead.
    pub fn margin_mean(&self) -> f64 {
        self.mean(self.reward_chosen - self.reward_rejected)
    }

    /// The mean over pairs of one of the sums.
    pub fn mean(&self, sum: f64) -> f64 {
        sum / self.pair_count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Objective = Objective {
        kind: LossKind::Sigmoid,
        beta: 0.3,
        label_smoothing: 0.0,
        is_length_normalised: false,
        nll_coef: 0.0,
    };

    /// Every option, alone and with others.
    fn objectives() -> Vec<Objective> {
        let mut all = Vec::new();
        for kind in [LossKind::Sigmoid, LossKind::Hinge, LossKind::Ipo] {
            let plain = Objective { kind, ..PLAIN };
            all.extend([
                plain,
                Objective { beta: 0.7, ..plain },
                Objective { is_length_normalised: true, ..plain },
                Objective { nll_coef: 0.4, ..plain },
                Objective { is_length_normalised: true, nll_coef: 1.0, beta: 2.0, ..plain },
            ]);
        }
        all.extend([0.1, 0.45].map(|label_smoothing| Objective { label_smoothing, ..PLAIN }));
        all
    }

    /// Log-probs of the tokens of two completions under policy and reference, and their masks.
    struct Case {
        logps: [Vec<f64>; 2],
        refs: [Vec<f64>; 2],
        masks: [Vec<bool>; 2],
        margin: f64,
    }

    fn cases() -> Vec<Case> {
        let noise = |k: f64, len: usize| (0..len).map(|t| (k + 1.7 * t as f64).sin()).collect();
        let case = |(i, (chosen, rejected, margin)): (usize, (usize, usize, f64))| {
            let of = |k: f64, len: usize| -> Vec<f64> {
                let noise: Vec<f64> = noise(i as f64 + k, len);
                noise.iter().map(|x| f64::from((2.0 * x - 2.5) as f32)).collect()
            };
            let mask = |len: usize| (0..len).map(|t| t % 4 != 3).collect();
            Case {
                logps: [of(0.0, chosen), of(10.0, rejected)],
                refs: [of(20.0, chosen), of(30.0, rejected)],
                masks: [mask(chosen), mask(rejected)],
                margin,
            }
        };
        let shapes = [(5, 3, 0.0), (2, 9, 0.25), (1, 1, -0.5), (12, 7, 1.0), (4, 4, 0.0)];
        shapes.into_iter().enumerate().map(case).collect()
    }

    impl Case {
        fn pair(&self) -> Pair {
            let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
            let of = |i: usize| {
                Completion::of(&narrow(&self.logps[i]), &narrow(&self.refs[i]), &self.masks[i])
            };
            Pair { chosen: of(0), rejected: of(1), margin: self.margin as f32 }
        }

        /// The loss as the papers write it, in f64.
        fn plain(&self, o: &Objective, logps: &[Vec<f64>; 2]) -> f64 {
            let score = |values: &[f64], mask: &[bool]| {
                let kept: Vec<f64> =
                    values.iter().zip(mask).filter(|(_, m)| **m).map(|(x, _)| *x).collect();
                let sum = kept.iter().sum::<f64>();
                (sum, kept.len() as f64)
            };
            let log_ratio = |i: usize| {
                let (sum, len) = score(&logps[i], &self.masks[i]);
                let of = score(&self.refs[i], &self.masks[i]).0;
                if o.is_length_normalised { sum / len - of / len } else { sum - of }
            };
            let h = log_ratio(0) - log_ratio(1);
            let d = o.beta * h - self.margin;
            let log_sigmoid = |x: f64| (1.0 / (1.0 + (-x).exp())).ln();
            let s = o.label_smoothing;
            let ranking = match o.kind {
                LossKind::Sigmoid => -(1.0 - s) * log_sigmoid(d) - s * log_sigmoid(-d),
                LossKind::Hinge => (1.0 - d).max(0.0),
                LossKind::Ipo => (h - self.margin / o.beta - 1.0 / (2.0 * o.beta)).powi(2),
            };
            let (sum, len) = score(&logps[0], &self.masks[0]);
            ranking - o.nll_coef * sum / len
        }
    }

    #[test]
    fn losses_and_gradients_are_those_of_the_papers_for_every_option() {
        let h = 1e-5;
        for objective in objectives() {
            for (i, case) in cases().iter().enumerate() {
                let out = loss(&case.pair(), &objective, 4);
                let of = |logps: &[Vec<f64>; 2]| case.plain(&objective, logps) / 4.0;
                let expected = of(&case.logps);
                assert!(
                    (out.loss - expected).abs() < 1e-12 * expected.abs().max(1.0),
                    "{objective:?} {i}"
                );
                for (completion, gradient) in [(0, out.dchosen), (1, out.drejected)] {
                    for t in 0..case.logps[completion].len() {
                        let moved = |by: f64| {
                            let mut logps = case.logps.clone();
                            logps[completion][t] += by;
                            of(&logps)
                        };
                        let slope = (moved(h) - moved(-h)) / (2.0 * h);
                        let found =
                            if case.masks[completion][t] { f64::from(gradient) } else { 0.0 };
                        // The gradient is rounded to f32.
                        assert!(
                            (found - slope).abs() < 1e-7 * slope.abs().max(1.0),
                            "{objective:?} {i} {completion} {t}: {found} {slope}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_option_moves_the_loss() {
        let losses = |objective: &Objective| -> Vec<u64> {
            let loss_of = |case: &Case| loss(&case.pair(), objective, 1).loss.to_bits();
            cases().iter().map(loss_of).collect()
        };
        let all = objectives();
        for (i, one) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|other| losses(one) != losses(other)), "{one:?}");
        }
    }

    #[test]
    fn policy_and_reference_alike_give_the_log_of_two_and_no_reward() {
        let completion = Completion { logp: -7.0, ahead: 0.0, len_tokens: 3 };
        let pair = Pair { chosen: completion, rejected: completion, margin: 0.0 };
        let out = loss(&pair, &PLAIN, 2);
        assert!((out.loss - 2.0_f64.ln() / 2.0).abs() < 1e-15);
        assert_eq!((out.reward_chosen, out.reward_rejected), (0.0, 0.0));
        assert!((f64::from(out.dchosen) + 0.3 / 4.0).abs() < 1e-8);
        assert_eq!(out.drejected, -out.dchosen);
    }

    #[test]
    fn far_apart_pairs_neither_overflow_nor_vanish() {
        let of = |ahead: f64| Completion { logp: -1.0, ahead, len_tokens: 1 };
        let pair = |a: f64, b: f64| Pair { chosen: of(a), rejected: of(b), margin: 0.0 };
        let plain = Objective { beta: 1.0, ..PLAIN };
        let right = loss(&pair(1e4, -1e4), &plain, 1);
        assert_eq!((right.loss, right.dchosen, right.drejected.abs()), (0.0, 0.0, 0.0));
        let wrong = loss(&pair(-1e4, 1e4), &plain, 1);
        assert_eq!((wrong.loss, wrong.dchosen, wrong.drejected), (2e4, -1.0, 1.0));
        for objective in objectives() {
            assert!(loss(&pair(f64::NAN, 0.0), &objective, 1).loss.is_nan(), "{objective:?}");
        }
    }

    #[test]
    fn totals_are_means_over_pairs() {
        let mut totals = Totals::default();
        let of = |logp: f64, ahead: f64| Completion { logp, ahead, len_tokens: 2 };
        for (chosen, rejected) in [(1.0, 0.0), (0.5, 0.5), (0.0, 2.0)] {
            let pair = Pair { chosen: of(-4.0, chosen), rejected: of(-6.0, rejected), margin: 9.0 };
            totals.add(&pair, &loss(&pair, &PLAIN, 3));
        }
        assert_eq!(totals.accuracy(), 1.0 / 3.0);
        assert!((totals.mean(totals.reward_chosen) - 0.3 * 0.5).abs() < 1e-15);
        assert!((totals.margin_mean() + 0.3 / 3.0).abs() < 1e-15);
        assert_eq!(
            (totals.mean(totals.logp_chosen), totals.mean(totals.logp_rejected)),
            (-4.0, -6.0)
        );
        assert_eq!(totals.mean(totals.nll), 2.0);
    }

    #[test]
    #[should_panic(expected = "`mask` has one value per log-prob")]
    fn a_mask_of_the_wrong_length_panics_with_its_name() {
        Completion::of(&[-1.0], &[-1.0], &[]);
    }
}
