//! The definition of the LM head as scalar loops over [`Real`].

use crate::ops::Real;

/// `logp` and `entropy` of `hidden (T, C)` and `w (V, C)`.
pub fn forward<T: Real>(
    logp: &mut [T],
    entropy: &mut [T],
    hidden: &[T],
    w: &[T],
    targets: &[u32],
    inv_temperature: T,
    width: usize,
) {
    for (t, hidden) in hidden.chunks_exact(width).enumerate() {
        let log_p = log_probs(hidden, w, inv_temperature, width);
        logp[t] = log_p[targets[t] as usize];
        entropy[t] = entropy_of(&log_p);
    }
}

/// `dhidden (=)` and `dw (+=)`; `dentropy` may be all zeros.
pub fn backward<T: Real>(
    dhidden: &mut [T],
    dw: &mut [T],
    dlogp: &[T],
    dentropy: &[T],
    hidden: &[T],
    w: &[T],
    targets: &[u32],
    inv_temperature: T,
    width: usize,
) {
    dhidden.fill(T::of(0.0));
    for (t, hidden) in hidden.chunks_exact(width).enumerate() {
        let dhidden = &mut dhidden[t * width..(t + 1) * width];
        let log_p = log_probs(hidden, w, inv_temperature, width);
        let h = entropy_of(&log_p);
        for (j, &log_p) in log_p.iter().enumerate() {
            let p = log_p.exp();
            let hit = T::of(if j == targets[t] as usize { 1.0 } else { 0.0 });
            let dl = inv_temperature * (dlogp[t] * (hit - p) - dentropy[t] * p * (log_p + h));
            for c in 0..width {
                dhidden[c] = dl.mul_add(w[j * width + c], dhidden[c]);
                dw[j * width + c] = dl.mul_add(hidden[c], dw[j * width + c]);
            }
        }
    }
}

/// Log-probs of all tokens.
fn log_probs<T: Real>(hidden: &[T], w: &[T], inv_temperature: T, width: usize) -> Vec<T> {
    let dot = |w: &[T]| hidden.iter().zip(w).fold(T::of(0.0), |sum, (&h, &w)| h.mul_add(w, sum));
    let logits: Vec<T> = w.chunks_exact(width).map(|w| dot(w) * inv_temperature).collect();
    let max = logits.iter().fold(logits[0], |m, &l| if l > m { l } else { m });
    let sum = logits.iter().fold(T::of(0.0), |sum, &l| sum + (l - max).exp());
    logits.iter().map(|&l| (l - max) - sum.ln()).collect()
}

fn entropy_of<T: Real>(log_p: &[T]) -> T {
    log_p.iter().fold(T::of(0.0), |h, &log_p| h - log_p.exp() * log_p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_grad, noise};

    /// Goal: backward is the derivative of forward. Method: f64 central differences of `<dlogp, logp>`, of
    /// `<dentropy, entropy>` and of both. Both error terms of a difference are near 1e-10.
    #[test]
    fn backward_is_the_derivative_of_forward() {
        let (t, width, vocab_size, inv_temperature) = (5, 7, 37, 1.7);
        let targets = [3, 36, 0, 3, 20];
        let (hidden, w) = (noise(1, t * width), noise(2, vocab_size * width));
        let none = vec![0.0; t];
        for [dlogp, dentropy] in
            [[noise(3, t), none.clone()], [none, noise(4, t)], [noise(5, t), noise(6, t)]]
        {
            let loss = |hidden: &[f64], w: &[f64]| {
                let (mut logp, mut entropy) = (vec![0.0; t], vec![0.0; t]);
                forward(&mut logp, &mut entropy, hidden, w, &targets, inv_temperature, width);
                let of_logp: f64 = dlogp.iter().zip(&logp).map(|(a, b)| a * b).sum();
                of_logp + dentropy.iter().zip(&entropy).map(|(a, b)| a * b).sum::<f64>()
            };
            let (mut dhidden, mut dw) = (vec![0.0; hidden.len()], vec![0.0; w.len()]);
            backward(
                &mut dhidden,
                &mut dw,
                &dlogp,
                &dentropy,
                &hidden,
                &w,
                &targets,
                inv_temperature,
                width,
            );
            assert_grad("dhidden", &dhidden, &hidden, |hidden| loss(hidden, &w));
            assert_grad("dw", &dw, &w, |w| loss(&hidden, w));
        }
    }
}
