//! The loss of a reward model on pairs of completions, of which one was preferred (Bradley and Terry 1952;
//! as a loss: Ouyang et al. 2022, "Training language models to follow instructions", eq. 1).
//!
//! With scores `c_i` of the chosen and `r_i` of the rejected completion of pair `i`, its margin `m_i` (Touvron
//! et al. 2023, "Llama 2", eq. 2; 0 where the data has none) and `k` for `centering` (Eisenstein et al. 2023,
//! "Helping or herding?", eq. 2), which keeps scores near 0 where pairs alone leave their mean free:
//!
//! ```text
//! d_i  = c_i - r_i - m_i
//! loss = 1/N * sum_i [ log(1 + e^-d_i) + k (c_i + r_i)^2 ]        N: pairs of the whole minibatch
//! dloss/dc_i = 1/N * [ -1/(1 + e^d_i) + 2 k (c_i + r_i) ]
//! dloss/dr_i = 1/N * [ +1/(1 + e^d_i) + 2 k (c_i + r_i) ]
//! ```
//!
//! Constants and their places are those of TRL's `RewardTrainer`. Sums run in f64, pairs in order.

/// The scores of a pair, and its margin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairScores {
    /// Of the completion that was preferred.
    pub chosen: f32,
    /// Of the other.
    pub rejected: f32,
    /// By how much the first ought to be ahead.
    pub margin: f32,
}

/// What a pair adds to the loss of its minibatch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// Its part of the loss.
    pub loss: f64,
    /// Gradient of the chosen completion's score.
    pub dchosen: f32,
    /// Gradient of the rejected completion's score.
    pub drejected: f32,
}

/// The loss of one pair out of the `pair_count` of its minibatch.
pub fn loss(scores: PairScores, centering: f64, pair_count: usize) -> PairLoss {
    let [chosen, rejected, margin] = [scores.chosen, scores.rejected, scores.margin].map(f64::from);
    let weight = 1.0 / pair_count.max(1) as f64;
    let ahead = chosen - rejected - margin;
    // log(1 + e^-d) without overflow on either side.
    let ranking = (-ahead).max(0.0) + (-ahead.abs()).exp().ln_1p();
    let wrong = 1.0 / (1.0 + ahead.exp());
    let sum = chosen + rejected;
    let dsum = 2.0 * centering * sum;
    PairLoss {
        loss: weight * (ranking + centering * sum * sum),
        dchosen: (weight * (dsum - wrong)) as f32,
        drejected: (weight * (dsum + wrong)) as f32,
    }
}

/// Sums over pairs, for the means that are reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// The loss.
    pub loss: f64,
    /// Pairs.
    pub pair_count: usize,
    /// Pairs whose chosen completion has the higher score.
    pub right_count: usize,
    /// Sum of how far the chosen completions are ahead, margins not taken off.
    pub ahead: f64,
    /// Sum of all scores.
    pub scores: f64,
    /// Sum of their squares.
    pub squares: f64,
}

impl Totals {
    /// Adds a pair with its part of the loss.
    pub fn add(&mut self, scores: PairScores, loss: f64) {
        let [chosen, rejected] = [scores.chosen, scores.rejected].map(f64::from);
        self.loss += loss;
        self.pair_count += 1;
        self.right_count += usize::from(chosen > rejected);
        self.ahead += chosen - rejected;
        self.scores += chosen + rejected;
        self.squares += chosen * chosen + rejected * rejected;
    }

    /// Adds the sums over other pairs.
    pub fn merge(&mut self, other: &Totals) {
        self.loss += other.loss;
        self.pair_count += other.pair_count;
        self.right_count += other.right_count;
        self.ahead += other.ahead;
        self.scores += other.scores;
        self.squares += other.squares;
    }

    /// Share of pairs whose chosen completion has the higher score; a tie counts as wrong.
    pub fn accuracy(&self) -> f64 {
        self.right_count as f64 / self.pair_count.max(1) as f64
    }

    /// Mean of how far the chosen completions are ahead.
    pub fn margin_mean(&self) -> f64 {
        self.ahead / self.pair_count.max(1) as f64
    }

    /// Mean of the scores.
    pub fn score_mean(&self) -> f64 {
        self.scores / (2 * self.pair_count.max(1)) as f64
    }

    /// Standard deviation of the scores.
    pub fn score_std(&self) -> f64 {
        let mean = self.score_mean();
        (self.squares / (2 * self.pair_count.max(1)) as f64 - mean * mean).max(0.0).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(chosen: f32, rejected: f32, margin: f32) -> PairScores {
        PairScores { chosen, rejected, margin }
    }

    /// The formula as it is written, in f64.
    fn plain(chosen: f64, rejected: f64, margin: f64, centering: f64) -> f64 {
        let sigmoid = 1.0 / (1.0 + (-(chosen - rejected - margin)).exp());
        -sigmoid.ln() + centering * (chosen + rejected).powi(2)
    }

    #[test]
    fn gradients_are_slopes_of_the_formula() {
        let h = 1e-5;
        for (chosen, rejected, margin, centering) in [
            (0.5, -1.25, 0.0, 0.0),
            (-2.0, 1.5, 0.75, 0.0),
            (1.5, 1.0, 0.25, 0.01),
            (3.0, 3.0, 0.0, 0.5),
        ] {
            let out = loss(scores(chosen, rejected, margin), centering, 4);
            let of = |c: f64, r: f64| plain(c, r, f64::from(margin), centering) / 4.0;
            let (c, r) = (f64::from(chosen), f64::from(rejected));
            assert!((out.loss - of(c, r)).abs() < 1e-12, "{out:?}");
            let dchosen = (of(c + h, r) - of(c - h, r)) / (2.0 * h);
            let drejected = (of(c, r + h) - of(c, r - h)) / (2.0 * h);
            // The gradients are rounded to f32.
            assert!((f64::from(out.dchosen) - dchosen).abs() < 1e-7, "{out:?} {dchosen}");
            assert!((f64::from(out.drejected) - drejected).abs() < 1e-7, "{out:?} {drejected}");
        }
    }

    #[test]
    fn far_apart_scores_neither_overflow_nor_vanish() {
        let right = loss(scores(1e4, -1e4, 0.0), 0.0, 1);
        assert_eq!((right.loss, right.dchosen, right.drejected), (0.0, 0.0, 0.0));
        let wrong = loss(scores(-1e4, 1e4, 0.0), 0.0, 1);
        assert_eq!((wrong.loss, wrong.dchosen, wrong.drejected), (2e4, -1.0, 1.0));
        assert!(loss(scores(f32::NAN, 0.0, 0.0), 0.0, 1).loss.is_nan());
    }

    #[test]
    fn totals_say_how_many_are_right_and_how_scores_lie() {
        let mut totals = Totals::default();
        for (chosen, rejected) in [(2.0, 0.0), (1.0, 1.0), (0.0, 4.0)] {
            totals.add(scores(chosen, rejected, 9.0), 0.25);
        }
        assert_eq!((totals.loss, totals.accuracy()), (0.75, 1.0 / 3.0));
        assert_eq!(totals.margin_mean(), -2.0 / 3.0);
        // Scores 2 0 1 1 0 4: mean 4/3, mean square 22/6.
        assert!((totals.score_mean() - 4.0 / 3.0).abs() < 1e-15);
        assert!((totals.score_std() - (22.0_f64 / 6.0 - 16.0 / 9.0).sqrt()).abs() < 1e-15);
    }
}
