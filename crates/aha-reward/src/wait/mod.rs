//! What verifiers share that wait for others: servers, programs.
//!
//! - [`cancel`]: the request to stop that ends every wait. [`pool`]: threads that wait.
//! - [`retry`]: when to try again, and after how long. [`answers`]: what was answered, kept in a file.
//! - [`desk`]: joins them: requests in, answers out, each asked once. Start here.
//! - [`client`]: HTTP, with bounds on everything.

pub mod answers;
pub mod cancel;
pub mod client;
pub mod desk;
pub mod pool;
pub mod retry;

use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use answers::Answers;
pub use cancel::Cancel;

/// What whoever runs verifiers lends to those that wait.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    /// Raised when nobody wants verdicts any more.
    pub cancel: Cancel,
    /// Where answers are kept, so that a run that goes on gets those that it had; none: nowhere.
    pub answers: Option<Arc<Answers>>,
    /// Whether failures are kept as well, so that a run that goes on has the nulls that it had. Not where a
    /// null stops the run, which would then never get past it: [`Composite`](crate::Composite) decides it for
    /// each of its rewards.
    pub keeps_failures: bool,
}

/// The identity of a request.
pub type Key = [u8; 32];

/// The key of a request to a service, from everything that its answer depends on.
pub fn key(parts: &[&str]) -> Key {
    let mut hasher = Sha256::new();
    for part in parts {
        // With its length, so that no two lists of parts run together.
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_other_parts_are_others() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["a"]), key(&["a", ""]));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
    }
}
