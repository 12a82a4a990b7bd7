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

/// What another model predicts from: its activations and the weight of its head.
#[derive(Clone, Copy)]
pub struct Other<'a, T> {
    /// Activations `(T, D)`.
    pub hidden: &'a [T],
    /// Weight `(U, D)`.
    pub w: &'a [T],
    /// `D`.
    pub width: usize,
}

/// `divergence` of `hidden (T, C)` and `w (V, C)` from `other`.
pub fn divergence<T: Real>(
    divergence: &mut [T],
    other: Other<'_, T>,
    hidden: &[T],
    w: &[T],
    inv_temperature: T,
    width: usize,
) {
    for (t, divergence) in divergence.iter_mut().enumerate() {
        let of = &hidden[t * width..(t + 1) * width];
        *divergence = divergence_of(&both(t, other, of, w, inv_temperature, width));
    }
}

/// Adds the gradients of the divergence to `dhidden` and `dw`.
pub fn divergence_backward<T: Real>(
    dhidden: &mut [T],
    dw: &mut [T],
    ddivergence: &[T],
    other: Other<'_, T>,
    hidden: &[T],
    w: &[T],
    inv_temperature: T,
    width: usize,
) {
    for (t, &ddivergence) in ddivergence.iter().enumerate() {
        let of = t * width..(t + 1) * width;
        let [log_p, log_q] = both(t, other, &hidden[of.clone()], w, inv_temperature, width);
        let total = divergence_of(&[log_p.clone(), log_q.clone()]);
        for (j, (&log_p, &log_q)) in log_p.iter().zip(&log_q).enumerate() {
            let dl = inv_temperature * ddivergence * log_p.exp() * (log_p - log_q - total);
            for c in 0..width {
                let at = of.start + c;
                dhidden[at] = dl.mul_add(w[j * width + c], dhidden[at]);
                dw[j * width + c] = dl.mul_add(hidden[at], dw[j * width + c]);
            }
        }
    }
}

/// Log-probs here and there of the tokens that both heads have.
fn both<T: Real>(
    t: usize,
    other: Other<'_, T>,
    hidden: &[T],
    w: &[T],
    inv_temperature: T,
    width: usize,
) -> [Vec<T>; 2] {
    let size = (w.len() / width).min(other.w.len() / other.width);
    let own = log_probs(hidden, &w[..size * width], inv_temperature, width);
    let theirs = &other.hidden[t * other.width..(t + 1) * other.width];
    [own, log_probs(theirs, &other.w[..size * other.width], inv_temperature, other.width)]
}

fn divergence_of<T: Real>([log_p, log_q]: &[Vec<T>; 2]) -> T {
    let terms = log_p.iter().zip(log_q).map(|(&log_p, &log_q)| log_p.exp() * (log_p - log_q));
    terms.fold(T::of(0.0), |sum, term| sum + term)
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

    /// Goal: the gradient of the divergence is its derivative, with a smaller, an equal and a larger vocabulary beside.
    /// Method: as above.
    #[test]
    fn the_divergence_has_its_derivative_as_gradient() {
        let (t, width, vocab_size, inv_temperature) = (4, 7, 37, 1.7);
        let (hidden, w, ddivergence) =
            (noise(1, t * width), noise(2, vocab_size * width), noise(3, t));
        for others in [30, 37, 41] {
            let (their_hidden, their_w) = (noise(4, t * 5), noise(5, others * 5));
            let other = Other { hidden: &their_hidden, w: &their_w, width: 5 };
            let loss = |hidden: &[f64], w: &[f64]| {
                let mut found = vec![0.0; t];
                divergence(&mut found, other, hidden, w, inv_temperature, width);
                assert!(found.iter().all(|&found| found > 0.0));
                ddivergence.iter().zip(&found).map(|(a, b)| a * b).sum::<f64>()
            };
            let (mut dhidden, mut dw) = (vec![0.0; hidden.len()], vec![0.0; w.len()]);
            divergence_backward(
                &mut dhidden,
                &mut dw,
                &ddivergence,
                other,
                &hidden,
                &w,
                inv_temperature,
                width,
            );
            assert_grad("dhidden", &dhidden, &hidden, |hidden| loss(hidden, &w));
            assert_grad("dw", &dw, &w, |w| loss(&hidden, w));
        }
    }
}
