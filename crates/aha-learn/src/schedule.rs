//! The learning rate of an optimizer step.
//!
//! With `W` warm-up steps, `T` total steps and steps counted from 0:
//!
//! ```text
//! s < W:   lr * (s + 1) / W                                     the first step already moves
//! s >= W:  p = min((s - W) / (T - W), 1)                        p = 0 on the first step after warm-up
//!   constant:  lr
//!   linear:    lr_min + (lr - lr_min) * (1 - p)
//!   cosine:    lr_min + (lr - lr_min) * (1 + cos(pi * p)) / 2
//! ```
//!
//! `lr_min` is reached at step `T`, one past the last, so that with `lr_min = 0` no step is wasted;
//! steps past the end stay there. With `W >= T` there is nothing to decay.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The shape after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Stays at `lr`.
    Constant,
    /// Falls to `lr_min` in a straight line.
    Linear,
    /// Falls to `lr_min` along half a cosine.
    Cosine,
}

/// The learning rate as a function of the step; [the module](self) has the formula.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The shape after warm-up.
    pub shape: Shape,
    /// The highest learning rate, reached on the last warm-up step.
    pub lr: f64,
    /// The learning rate after the last step; a constant schedule ignores it.
    pub lr_min: f64,
    /// Steps over which the learning rate rises to `lr`; 0 starts at `lr`.
    pub warmup_steps: u64,
    /// Steps of the whole stage, warm-up included.
    pub total_steps: u64,
}

impl Schedule {
    /// The learning rate of the step with this index, the first being 0.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * ((step + 1) as f64 / self.warmup_steps as f64);
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps);
        let progress = match decay_steps {
            0 => 0.0,
            _ => ((step - self.warmup_steps) as f64 / decay_steps as f64).min(1.0),
        };
        let share = match self.shape {
            Shape::Constant => return self.lr,
            Shape::Linear => 1.0 - progress,
            // At the end cos(pi) is -1 only up to rounding; `lr_min` is meant exactly.
            Shape::Cosine if progress == 1.0 => 0.0,
            Shape::Cosine => (1.0 + (PI * progress).cos()) / 2.0,
        };
        self.lr_min + (self.lr - self.lr_min) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: Shape, warmup_steps: u64, total_steps: u64) -> Schedule {
        Schedule { shape, lr: 8.0, lr_min: 2.0, warmup_steps, total_steps }
    }

    fn check(schedule: Schedule, expected: &[f64]) {
        for (step, expected) in expected.iter().enumerate() {
            let found = schedule.lr(step as u64);
            assert!((found - expected).abs() < 1e-12, "{schedule:?} step {step}: {found}");
        }
    }

    #[test]
    fn each_shape_by_hand() {
        check(schedule(Shape::Constant, 0, 3), &[8.0, 8.0, 8.0, 8.0, 8.0]);
        check(schedule(Shape::Linear, 0, 3), &[8.0, 6.0, 4.0, 2.0, 2.0, 2.0]);
        check(schedule(Shape::Cosine, 0, 3), &[8.0, 6.5, 3.5, 2.0, 2.0]);
    }

    #[test]
    fn warm_up_rises_to_the_peak_and_hands_over_there() {
        check(schedule(Shape::Constant, 4, 100), &[2.0, 4.0, 6.0, 8.0, 8.0]);
        check(schedule(Shape::Linear, 2, 5), &[4.0, 8.0, 8.0, 6.0, 4.0, 2.0, 2.0]);
        check(schedule(Shape::Cosine, 2, 4), &[4.0, 8.0, 8.0, 5.0, 2.0]);
    }

    #[test]
    fn edges() {
        for shape in [Shape::Constant, Shape::Linear, Shape::Cosine] {
            // One step in all, without and with warm-up: it runs at the peak.
            check(schedule(shape, 0, 1), &[8.0]);
            check(schedule(shape, 1, 1), &[8.0, 8.0]);
            // Warm-up longer than the stage, and a stage of no steps.
            check(schedule(shape, 4, 2), &[2.0, 4.0, 6.0, 8.0, 8.0]);
            check(schedule(shape, 0, 0), &[8.0, 8.0]);
        }
        for shape in [Shape::Linear, Shape::Cosine] {
            assert_eq!(schedule(shape, 3, 10).lr(10), 2.0);
            assert_eq!(schedule(shape, 3, 10).lr(u64::MAX), 2.0);
        }
    }
}
