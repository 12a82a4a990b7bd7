//! Which texts may be alike: banded MinHash.
//!
//! The least value of a random hash over a set is the same for two sets with the chance of their Jaccard similarity
//! `s` (Broder 1997, "On the resemblance and containment of documents"). A band joins the least values of `r` hashes,
//! and two sets meet in one of `b` bands with the chance `1 - (1 - s^r)^b` (Leskovec, Rajaraman and Ullman, "Mining of
//! Massive Datasets", 3.4).

/// Chance with which two sets exactly as alike as the threshold may miss each other.
const MISSED_MAX: f64 = 0.02;
/// Most hashes of a set: they are most of the work on a row.
const HASHES_MAX: usize = 96;
/// Most least values that a band joins. More would keep apart what is less alike, at the cost of more hashes.
const BAND_HASHES_MAX: usize = 12;

/// The bands of a threshold.
#[derive(Clone, Debug)]
pub(super) struct Bands {
    /// Multiplier, which is odd, and summand of each hash.
    hashes: Vec<(u64, u64)>,
    /// Hashes of a band.
    rows_count: usize,
}

impl Bands {
    /// The bands with the most hashes each that find sets as alike as `threshold`, in (0, 1], but for
    /// [`MISSED_MAX`], with [`HASHES_MAX`] hashes in all.
    pub(super) fn of(threshold: f64) -> Bands {
        let bands_count = |rows_count: usize| {
            let met = threshold.powi(rows_count as i32);
            // Of a threshold of 1 it is 0: one band is enough.
            (MISSED_MAX.ln() / (-met).ln_1p()).ceil().max(1.0) as usize
        };
        let fits = |rows_count: &usize| bands_count(*rows_count) * rows_count <= HASHES_MAX;
        let rows_count = (1..=BAND_HASHES_MAX).rev().find(fits).unwrap_or(1);
        let mut state = 0;
        let hashes = (0..bands_count(rows_count) * rows_count)
            .map(|_| (next_random(&mut state) | 1, next_random(&mut state)));
        Bands { hashes: hashes.collect(), rows_count }
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        self.hashes.len() / self.rows_count
    }

    /// Calls `visit` with a key for each band; sets that meet in a band have the same. None for an empty set.
    pub(super) fn keys(&self, set: &[u64], mut visit: impl FnMut(u64)) {
        if set.is_empty() {
            return;
        }
        for (idx, band) in self.hashes.chunks_exact(self.rows_count).enumerate() {
            let key = band.iter().fold(idx as u64, |key, (factor, summand)| {
                // The upper half of a product is the well-mixed one.
                let hashes =
                    set.iter().map(|e| e.wrapping_mul(*factor).wrapping_add(*summand) >> 32);
                mixed(key.rotate_left(32) ^ hashes.min().unwrap_or(u64::MAX))
            });
            visit(key);
        }
    }
}

/// SplitMix64 of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed(*state)
}

fn mixed(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: std::ops::Range<u64>) -> Vec<u64> {
        numbers.map(|number| mixed(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
    }

    fn keys(bands: &Bands, set: &[u64]) -> Vec<u64> {
        let mut keys = Vec::new();
        bands.keys(set, |key| keys.push(key));
        keys
    }

    #[test]
    fn bands_miss_at_most_the_promised_share() {
        for threshold in [0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0] {
            let bands = Bands::of(threshold);
            let met = threshold.powi(bands.rows_count as i32);
            let missed = (1.0 - met).powi(bands.count() as i32);
            assert!(missed <= MISSED_MAX, "{threshold}: {missed}");
            assert!(bands.hashes.len() <= HASHES_MAX, "{threshold}: {}", bands.hashes.len());
        }
    }

    /// Goal: sets meet as often as the formula says. Method: 2,000 pairs of 60 elements that have 40 in common, so
    /// that they are alike by 40 / 80; the bound is five standard deviations.
    #[test]
    fn sets_meet_as_often_as_the_formula_says() {
        let bands = Bands::of(0.8);
        let met = 1.0 - (1.0 - 0.5_f64.powi(bands.rows_count as i32)).powi(bands.count() as i32);
        let pairs_count = 2_000;
        let meet = |pair: &u64| {
            let start = pair * 1_000;
            let (a, b) = (set(start..start + 60), set(start + 20..start + 80));
            keys(&bands, &a).iter().zip(keys(&bands, &b)).any(|(a, b)| *a == b)
        };
        let found = (0..pairs_count).filter(meet).count() as f64 / pairs_count as f64;
        let deviation = (met * (1.0 - met) / pairs_count as f64).sqrt();
        assert!((found - met).abs() < 5.0 * deviation, "{found} of {met}");
    }

    #[test]
    fn a_set_has_a_key_for_each_band_in_any_order() {
        let bands = Bands::of(0.8);
        let mut elements = set(0..30);
        let forwards = keys(&bands, &elements);
        elements.reverse();
        assert_eq!(forwards, keys(&bands, &elements));
        assert_eq!(forwards.len(), bands.count());
        assert!(keys(&bands, &[]).is_empty());
    }
}
