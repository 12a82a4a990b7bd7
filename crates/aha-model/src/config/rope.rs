//! RoPE's inverse frequencies, computed step by step as transformers' `modeling_rope_utils` does.

use std::f64::consts::PI;

use crate::error::{Error, Result};

/// Rotary position embedding: its base and how it is stretched to longer texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric sequence of wavelengths.
    pub theta: f64,
    /// The stretching.
    pub scaling: RopeScaling,
}

/// The ways of stretching that are supported, with the names that `rope_type` has in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// `default`: none.
    Default,
    /// `linear`: every position divided by `factor`.
    Linear {
        /// How much longer texts become.
        factor: f64,
    },
    /// `llama3`: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// How much longer texts become.
        factor: f64,
        /// Wavelengths over `original_max_position_embeddings / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths under `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Text length of the first training.
        original_max_position_embeddings: f64,
    },
    /// `yarn`: Peng et al. 2023.
    Yarn {
        /// How much longer texts become.
        factor: f64,
        /// Text length of the first training.
        original_max_position_embeddings: f64,
        /// Factor on cos and sin; derived from `factor` (and `mscale`s) if absent.
        attention_factor: Option<f64>,
        /// Turns over the first length above which a frequency is kept. 32 if absent in the file.
        beta_fast: f64,
        /// Turns below which it is stretched. 1 if absent in the file.
        beta_slow: f64,
        /// Numerator's coefficient of the derived attention factor.
        mscale: Option<f64>,
        /// Denominator's coefficient of the derived attention factor.
        mscale_all_dim: Option<f64>,
        /// Round the ramp's ends to whole dimensions. True if absent in the file.
        truncate: bool,
    },
}

impl Rope {
    /// RoPE without stretching.
    pub fn plain(theta: f64) -> Self {
        Rope { theta, scaling: RopeScaling::Default }
    }

    /// The inverse frequencies for heads of `head_dim`, and the factor on cos and sin.
    pub fn inv_freq(&self, head_dim: usize) -> (Vec<f32>, f32) {
        let pos_freqs: Vec<f32> = (0..head_dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / head_dim as f32;
                self.theta.powf(f64::from(exponent)) as f32
            })
            .collect();
        let plain = || pos_freqs.iter().map(|freq| 1.0 / freq);
        match &self.scaling {
            RopeScaling::Default => (plain().collect(), 1.0),
            RopeScaling::Linear { factor } => {
                (plain().map(|inv| inv / *factor as f32).collect(), 1.0)
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => (plain().map(|inv| llama3(inv, *factor, *low, *high, *original)).collect(), 1.0),
            RopeScaling::Yarn { .. } => (self.yarn(head_dim, &pos_freqs), self.yarn_attention()),
        }
    }

    fn yarn(&self, head_dim: usize, pos_freqs: &[f32]) -> Vec<f32> {
        let RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } = &self.scaling
        else {
            unreachable!("only called for YaRN");
        };
        // The dimension whose frequency makes that many turns over the first length.
        let correction = |turns: f64| {
            head_dim as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (correction(*beta_fast), correction(*beta_slow));
        if *truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        low = low.max(0.0);
        high = high.min(head_dim as f64 - 1.0);
        if low == high {
            high += 0.001;
        }
        pos_freqs
            .iter()
            .enumerate()
            .map(|(i, freq)| {
                let ramp = (i as f32 - low as f32) / (high - low) as f32;
                let extrapolated_share = 1.0 - ramp.clamp(0.0, 1.0);
                let (extrapolated, interpolated) = (1.0 / freq, 1.0 / (*factor as f32 * freq));
                interpolated * (1.0 - extrapolated_share) + extrapolated * extrapolated_share
            })
            .collect()
    }

    fn yarn_attention(&self) -> f32 {
        let RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } =
            &self.scaling
        else {
            return 1.0;
        };
        let scale = |m: f64| if *factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let given = |m: &Option<f64>| m.filter(|m| *m != 0.0);
        let derived = || match (given(mscale), given(mscale_all_dim)) {
            (Some(m), Some(all)) => scale(m) / scale(all),
            _ => scale(1.0),
        };
        attention_factor.unwrap_or_else(derived) as f32
    }

    /// Checks that every number is finite and in a range in which the formulas make sense.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, value: f64, min: f64, max: f64| {
            // Written so that NaN fails.
            if min <= value && value <= max {
                return Ok(());
            }
            Err(Error::input(format!("RoPE's `{name}` is {value}: expected from {min} to {max}")))
        };
        check("rope_theta", self.theta, 1.001, 1e15)?;
        match &self.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => check("factor", *factor, 1e-3, 1e6),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                check("factor", *factor, 1e-3, 1e6)?;
                check("low_freq_factor", *low_freq_factor, 1e-3, 1e6)?;
                check("high_freq_factor", *high_freq_factor, low_freq_factor + 1e-6, 1e6)?;
                let original = *original_max_position_embeddings;
                check("original_max_position_embeddings", original, 1.0, 1e9)
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                ..
            } => {
                check("factor", *factor, 1e-3, 1e6)?;
                let original = *original_max_position_embeddings;
                check("original_max_position_embeddings", original, 1.0, 1e9)?;
                check("attention_factor", attention_factor.unwrap_or(1.0), 1e-3, 1e3)?;
                check("beta_slow", *beta_slow, 1e-3, 1e6)?;
                check("beta_fast", *beta_fast, *beta_slow, 1e6)?;
                check("mscale", mscale.unwrap_or(1.0), 0.0, 1e3)?;
                check("mscale_all_dim", mscale_all_dim.unwrap_or(1.0), 0.0, 1e3)
            }
        }
    }
}

fn llama3(inv: f32, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    let wavelength = (2.0 * PI) as f32 / inv;
    let (low_wavelength, high_wavelength) = ((original / low) as f32, (original / high) as f32);
    if wavelength > low_wavelength {
        return inv / factor as f32;
    }
    if wavelength < high_wavelength {
        return inv;
    }
    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * inv / factor as f32 + smooth * inv
}

/// Finds the `llama3` scaling behind the divisors that a GGUF carries as `rope_freqs.weight`.
///
/// A GGUF states the divisors but not the four numbers they came from. All Llama 3.x models use
/// the same three of them, so the fourth, `factor`, is the largest divisor; the result is
/// returned only if it gives back every divisor.
pub fn infer_llama3(divisors: &[f32], theta: f64) -> Option<RopeScaling> {
    let factor = divisors.iter().copied().fold(0.0, f32::max);
    let scaling = RopeScaling::Llama3 {
        factor: f64::from(factor),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    let head_dim = divisors.len() * 2;
    let (plain, _) = Rope::plain(theta).inv_freq(head_dim);
    let (scaled, _) = Rope { theta, scaling: scaling.clone() }.inv_freq(head_dim);
    let agrees = |((plain, scaled), divisor): ((&f32, &f32), &f32)| {
        (plain / scaled / divisor - 1.0).abs() < 1e-4
    };
    plain.iter().zip(&scaled).zip(divisors).all(agrees).then_some(scaling)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            // A few roundings of f32, relative.
            assert!((a / b - 1.0).abs() < 1e-6, "{a} is not {b}");
        }
    }

    #[test]
    fn plain_frequencies_are_a_geometric_sequence() {
        let (inv, attention) = Rope::plain(10000.0).inv_freq(8);
        close(&inv, &[1.0, 0.1, 0.01, 0.001]);
        assert_eq!(attention, 1.0);
    }

    // Expected values: `ROPE_INIT_FUNCTIONS` of transformers 5.23, restated in f64.
    #[test]
    fn yarn_matches_transformers() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 32768.0,
            attention_factor: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        };
        let (inv, attention) = Rope { theta: 1e6, scaling }.inv_freq(16);
        let ramp = |i: f64| ((i - 2.0) / 3.0).clamp(0.0, 1.0);
        let expected: Vec<f32> = (0..8)
            .map(|i| {
                let inv = 1e6f64.powf(-f64::from(i) / 8.0);
                let share = ramp(f64::from(i));
                (inv * (1.0 - share) + inv / 4.0 * share) as f32
            })
            .collect();
        close(&inv, &expected);
        assert!((attention - 1.138_629_4).abs() < 1e-6);
    }

    #[test]
    fn llama3_is_found_again_from_its_divisors() {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let (plain, _) = Rope::plain(5e5).inv_freq(64);
        let (scaled, _) = Rope { theta: 5e5, scaling: scaling.clone() }.inv_freq(64);
        let mut divisors: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
        assert_eq!(infer_llama3(&divisors, 5e5), Some(scaling));
        divisors[20] *= 1.5;
        assert_eq!(infer_llama3(&divisors, 5e5), None);
    }

    #[test]
    fn nan_is_refused() {
        assert!(Rope::plain(f64::NAN).validate().is_err());
        let scaling = RopeScaling::Linear { factor: f64::NAN };
        assert!(Rope { theta: 1e4, scaling }.validate().is_err());
    }
}
