//! Counter-based random numbers: every draw is a function of a key and an address, and nothing is consumed.
//!
//! Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// A family of random numbers under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The family of `seed`.
    pub fn new(seed: u64) -> Philox {
        Philox { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// The key, as kernels take it.
    pub fn key(self) -> u64 {
        u64::from(self.key[0]) | u64::from(self.key[1]) << 32
    }

    /// The family of a purpose inside this one, such as a stage of a run.
    pub fn derive(self, purpose: &str) -> Philox {
        // FNV-1a spreads the name; Philox does the mixing.
        let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let block = self.block([hash as u32, (hash >> 32) as u32, purpose.len() as u32, 0x5eed]);
        Philox { key: [block[0], block[1]] }
    }

    /// 128 random bits at an address of up to two words: one block of the cipher.
    pub fn at(self, a: u64, b: u64) -> [u32; 4] {
        self.block([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32])
    }

    /// A draw in `[0, 1)` with 53 random bits, at an address of any number of words.
    pub fn uniform(self, address: &[u64]) -> f64 {
        let bits = self.bits(address);
        (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// 64 random bits at an address of any number of words.
    pub fn bits(self, address: &[u64]) -> u64 {
        // Long addresses walk down a tree of keys, so that no two addresses of one length share a draw
        // other than by chance.
        let mut philox = self;
        let mut rest = address;
        while let [a, b, tail @ ..] = rest
            && !tail.is_empty()
        {
            let block = philox.at(*a, *b);
            philox = Philox { key: [block[0], block[1]] };
            rest = tail;
        }
        let block =
            philox.at(rest.first().copied().unwrap_or(0), rest.get(1).copied().unwrap_or(u64::MAX));
        u64::from(block[0]) | u64::from(block[1]) << 32
    }

    /// A standard normal draw (Box and Muller 1958).
    pub fn normal(self, address: u64) -> f64 {
        let block = self.at(address, 1);
        let unit = |low: u32, high: u32| {
            ((u64::from(low) | u64::from(high) << 32) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
        };
        let (u, v) = (1.0 - unit(block[0], block[1]), unit(block[2], block[3]));
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// A permutation of `0..len` (Fisher and Yates), addressed by `address`.
    pub fn permutation(self, address: u64, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for i in (1..len).rev() {
            // 64 random bits times a length below 2^32: the bias is below 2^-32.
            let j = (u128::from(self.bits(&[address, i as u64])) * (i as u128 + 1)) >> 64;
            order.swap(i, j as usize);
        }
        order
    }

    fn block(self, mut counter: [u32; 4]) -> [u32; 4] {
        let mut key = self.key;
        for _ in 0..ROUNDS {
            let low = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
            let high = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
            counter = [
                (high >> 32) as u32 ^ counter[1] ^ key[0],
                high as u32,
                (low >> 32) as u32 ^ counter[3] ^ key[1],
                low as u32,
            ];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        counter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that Random123 publishes for philox4x32-10.
    #[test]
    fn blocks_are_the_published_known_answers() {
        let block = |key: [u32; 2], counter: [u32; 4]| Philox { key }.block(counter);
        assert_eq!(block([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            block([u32::MAX; 2], [u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            block([0xa409_3822, 0x299f_31d0], pi),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_draws_have_the_mean_and_spread_of_the_unit_interval() {
        let draws: Vec<f64> = (0..20_000).map(|i| Philox::new(3).uniform(&[1, i, 7])).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance =
            draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / draws.len() as f64;
        assert!(
            (mean - 0.5).abs() < 0.01 && (variance - 1.0 / 12.0).abs() < 0.003,
            "{mean} {variance}"
        );
        assert!(draws.iter().all(|x| (0.0..1.0).contains(x)));
    }

    #[test]
    fn normal_draws_have_mean_zero_and_variance_one() {
        let draws: Vec<f64> = (0..20_000).map(|i| Philox::new(5).normal(i)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance =
            draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
    }

    #[test]
    fn neighbouring_addresses_and_purposes_differ() {
        let a = Philox::new(1);
        assert_ne!(a.bits(&[1, 2, 3, 4]), a.bits(&[1, 2, 4, 3]));
        assert_ne!(a.bits(&[1, 2, 3, 4]), a.bits(&[1, 2, 3]));
        assert_ne!(a.bits(&[1]), a.bits(&[2]));
        assert_ne!(a.derive("zero"), a.derive("cold"));
        assert_ne!(a.derive("zero"), Philox::new(2).derive("zero"));
    }

    #[test]
    fn a_permutation_holds_every_index_once_and_depends_on_its_address() {
        let a = Philox::new(9).permutation(1, 100);
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(a, Philox::new(9).permutation(2, 100));
    }
}
