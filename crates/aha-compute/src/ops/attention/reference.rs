//! The definition of attention as scalar loops over [`Real`].

use super::{Dims, Layout};
use crate::ops::Real;

/// `o` and `lse` of packed segments.
pub fn forward<T: Real>(
    o: &mut [T],
    lse: &mut [T],
    [q, k, v]: [&[T]; 3],
    layout: &Layout,
    dims: Dims,
    scale: T,
) {
    let d = dims.head_dim;
    layout.check(q.len() / dims.q_cols());
    for pair in pairs(layout, dims) {
        let scores = scores(&pair, q, k, dims, scale);
        let max = scores.iter().fold(scores[0], |m, &s| if s > m { s } else { m });
        let e: Vec<T> = scores.iter().map(|&s| (s - max).exp()).collect();
        let sum = e.iter().fold(T::of(0.0), |sum, &e| sum + e);
        lse[pair.i * dims.heads + pair.head] = max + sum.ln();
        for c in 0..d {
            let mut mixed = T::of(0.0);
            for (&j, &e) in pair.keys.iter().zip(&e) {
                mixed += e * v[pair.kv_at(j, dims) + c];
            }
            o[pair.q_at(dims) + c] = mixed / sum;
        }
    }
}

/// `dq`, `dk` and `dv` of packed segments.
pub fn backward<T: Real>(
    [dq, dk, dv]: [&mut [T]; 3],
    do_: &[T],
    [q, k, v]: [&[T]; 3],
    o: &[T],
    lse: &[T],
    layout: &Layout,
    dims: Dims,
    scale: T,
) {
    let d = dims.head_dim;
    for gradient in [&mut *dq, &mut *dk, &mut *dv] {
        gradient.fill(T::of(0.0));
    }
    for pair in pairs(layout, dims) {
        let at = pair.q_at(dims);
        let delta = dot(&do_[at..at + d], &o[at..at + d]);
        let scores = scores(&pair, q, k, dims, scale);
        for (&j, s) in pair.keys.iter().zip(scores) {
            let to = pair.kv_at(j, dims);
            let p = (s - lse[pair.i * dims.heads + pair.head]).exp();
            let ds = scale * p * (dot(&do_[at..at + d], &v[to..to + d]) - delta);
            for c in 0..d {
                dq[at + c] += ds * k[to + c];
                dk[to + c] += ds * q[at + c];
                dv[to + c] += p * do_[at + c];
            }
        }
    }
}

/// A query and its head.
struct Pair {
    /// Row of the query.
    i: usize,
    head: usize,
    /// Rows of the keys that it sees, by position.
    keys: Vec<usize>,
}

impl Pair {
    fn q_at(&self, dims: Dims) -> usize {
        (self.i * dims.heads + self.head) * dims.head_dim
    }

    fn kv_at(&self, j: usize, dims: Dims) -> usize {
        (j * dims.kv_heads + self.head / dims.group()) * dims.head_dim
    }
}

fn pairs(layout: &Layout, dims: Dims) -> impl Iterator<Item = Pair> {
    let queries =
        layout.segments().iter().enumerate().flat_map(|(segment, s)| {
            (s.position..s.end()).map(move |position| (segment, position))
        });
    queries.flat_map(move |(segment, position)| {
        let keys: Vec<usize> = (0..=position).map(|j| layout.row_at(segment, j)).collect();
        (0..dims.heads).map(move |head| Pair { i: keys[position], head, keys: keys.clone() })
    })
}

/// Scaled products of a query with its keys.
fn scores<T: Real>(pair: &Pair, q: &[T], k: &[T], dims: Dims, scale: T) -> Vec<T> {
    let (at, d) = (pair.q_at(dims), dims.head_dim);
    let score = |&j: &usize| {
        let to = pair.kv_at(j, dims);
        dot(&q[at..at + d], &k[to..to + d]) * scale
    };
    pair.keys.iter().map(score).collect()
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::of(0.0), |sum, (&a, &b)| a.mul_add(b, sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_grad, noise};

    /// Goal: backward is the derivative of forward. Method: f64 central differences of <do, o> on sequences
    /// of odd lengths, one of which two others go on from, with shared heads. Both error terms of a
    /// difference are near 1e-10.
    #[test]
    fn backward_is_the_derivative_of_forward() {
        for (heads, kv_heads) in [(4, 2), (3, 1)] {
            let dims = Dims { heads, kv_heads, head_dim: 16 };
            let layout =
                Layout::new([(2, None), (1, Some(2)), (2, Some(4)), (3, Some(4)), (5, None)]);
            let t = layout.row_count();
            let scale = 0.7;
            let q = noise(1, t * dims.q_cols());
            let k = noise(2, t * dims.kv_cols());
            let v = noise(3, t * dims.kv_cols());
            let do_ = noise(4, q.len());
            let run = |q: &[f64], k: &[f64], v: &[f64]| {
                let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; t * heads]);
                forward(&mut o, &mut lse, [q, k, v], &layout, dims, scale);
                (o, lse)
            };
            let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&run(q, k, v).0, &do_);
            let (o, lse) = run(&q, &k, &v);
            let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| vec![0.0; x.len()]);
            backward(
                [&mut dq, &mut dk, &mut dv],
                &do_,
                [&q, &k, &v],
                &o,
                &lse,
                &layout,
                dims,
                scale,
            );
            assert_grad("dq", &dq, &q, |q| loss(q, &k, &v));
            assert_grad("dk", &dk, &k, |k| loss(&q, k, &v));
            assert_grad("dv", &dv, &v, |v| loss(&q, &k, v));
        }
    }
}
