//! Matrix products in plain loops: an element is one chain of fused multiply-adds over `k`, in order, as the products
//! of tensor cores are emulated; or, as somebody's library might have it, something else.

use std::slice;

use aha_cuda::{Kind, Operand, Product, Ptr};
use half::bf16;

/// How products are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sums {
    /// One chain over all terms in order: what kernels on tensor cores have in emulation.
    #[default]
    InOrder,
    /// Two chains, over terms at even and at odd places, and then their sum: other bits.
    TwoChains,
    /// Two chains, over the first and the second half of the terms, and then their sum.
    TwoHalves,
    /// One chain, but of every product the element at this place has another last bit.
    Flipped(usize),
}

/// Multiplies.
///
/// # Safety
/// The operands have as many elements as they must.
pub unsafe fn product(product: &Product, how: Sums) {
    let Product { m, n, k, a, b, c, c_kind, c_stride, alpha, beta, bias } = *product;
    // SAFETY: the caller's promise.
    let (a, b) = unsafe { (rows(&a, [m, k]), rows(&b, [k, n])) };
    // SAFETY: as above.
    let bias = bias.map(|bias| unsafe { read(bias, c_kind, n) });
    let mut sums = vec![0.0f32; n];
    for i in 0..m {
        sum_up(&mut sums, &a[i * k..(i + 1) * k], &b, how);
        let at = c.plus(i * c_stride * c_kind.bytes());
        // SAFETY: as above.
        unsafe {
            let before = if beta == 0.0 { vec![0.0; n] } else { read(at, c_kind, n) };
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = alpha * *sum + beta * before[j] + bias.as_ref().map_or(0.0, |bias| bias[j]);
            }
            write(at, c_kind, &sums);
            if let Sums::Flipped(place) = how
                && (i * n..(i + 1) * n).contains(&place)
            {
                // The first byte has the last bits.
                *(at.plus((place - i * n) * c_kind.bytes()).0 as *mut u8) ^= 1;
            }
        }
    }
}

/// A row of sums, without gaps: `a (k) · b (k, n)`.
fn sum_up(sums: &mut [f32], a: &[f32], b: &[f32], how: Sums) {
    let (n, k) = (sums.len(), a.len());
    let chain = |sums: &mut [f32], terms: &mut dyn Iterator<Item = usize>| {
        sums.fill(0.0);
        for term in terms {
            let (a, b) = (a[term], &b[term * n..(term + 1) * n]);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = a.mul_add(*b, *sum);
            }
        }
    };
    let mut others = vec![0.0; n];
    match how {
        Sums::InOrder | Sums::Flipped(_) => return chain(sums, &mut (0..k)),
        Sums::TwoChains => {
            chain(sums, &mut (0..k).step_by(2));
            chain(&mut others, &mut (1..k).step_by(2));
        }
        Sums::TwoHalves => {
            chain(sums, &mut (0..k / 2));
            chain(&mut others, &mut (k / 2..k));
        }
    }
    sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
}

/// The factor's rows without gaps, not transposed.
///
/// # Safety
/// It has so many elements.
unsafe fn rows(operand: &Operand, [rows, cols]: [usize; 2]) -> Vec<f32> {
    let Operand { at, kind, is_transposed, row_stride } = *operand;
    let [stored_rows, stored_cols] = if is_transposed { [cols, rows] } else { [rows, cols] };
    let stored = |i: usize| {
        // SAFETY: the caller's promise.
        unsafe { read(at.plus(i * row_stride * kind.bytes()), kind, stored_cols) }
    };
    if !is_transposed {
        return (0..stored_rows).flat_map(stored).collect();
    }
    let mut out = vec![0.0; rows * cols];
    for col in 0..stored_rows {
        for (row, x) in stored(col).into_iter().enumerate() {
            out[row * cols + col] = x;
        }
    }
    out
}

/// # Safety
/// There are so many elements of this kind.
unsafe fn read(at: Ptr, kind: Kind, len: usize) -> Vec<f32> {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            Kind::F32 => slice::from_raw_parts(at.0 as *const f32, len).to_vec(),
            Kind::Bf16 => {
                let values = slice::from_raw_parts(at.0 as *const bf16, len);
                values.iter().map(|x| x.to_f32()).collect()
            }
            other => panic!("no products of {other}"),
        }
    }
}

/// # Safety
/// There are so many elements of this kind.
unsafe fn write(at: Ptr, kind: Kind, values: &[f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            Kind::F32 => {
                slice::from_raw_parts_mut(at.0 as *mut f32, values.len()).copy_from_slice(values);
            }
            Kind::Bf16 => {
                let to = slice::from_raw_parts_mut(at.0 as *mut bf16, values.len());
                to.iter_mut().zip(values).for_each(|(to, x)| *to = bf16::from_f32(*x));
            }
            other => panic!("no products of {other}"),
        }
    }
}
