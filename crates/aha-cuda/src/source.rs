//! The sources of kernels.
//!
//! Kernels include `aha.cuh` and nothing else: neither CUDA's headers nor those of a C++ library have to be there
//! when they are compiled, only the compiler.

use sha2::{Digest, Sha256};

/// What every kernel includes, by its name.
pub const HEADERS: [(&str, &str); 1] = [("aha.cuh", include_str!("aha.cuh"))];

/// A `.cu` file, which is part of the program.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, for messages and as a key: no two sources have the same.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl Source {
    /// A digest of the text, all headers, and what else the result depends on, in hexadecimal digits.
    pub fn digest(&self, others: &[&str]) -> String {
        let mut hash = Sha256::new();
        let headers = HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
        for part in headers.chain([self.name, self.text]).chain(others.iter().copied()) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_the_text_and_of_what_else_counts() {
        let (a, b) = (Source { name: "a", text: "x" }, Source { name: "a", text: "y" });
        assert_eq!(a.digest(&["sm_80"]), a.digest(&["sm_80"]));
        let all = [
            a.digest(&["sm_80"]),
            a.digest(&["sm_90"]),
            b.digest(&["sm_80"]),
            a.digest(&["sm_", "80"]),
        ];
        for (i, digest) in all.iter().enumerate() {
            assert_eq!(digest.len(), 64);
            assert!(!all[..i].contains(digest));
        }
    }
}
