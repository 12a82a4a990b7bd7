//! The bearer token: made here, kept as a digest, compared in constant time.

use std::io::Read;

use aha_flow::rundir::hex;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::{Error, Result};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// Fewest characters of a token that is given from outside.
pub const TOKEN_LEN_MIN: usize = 16;

/// The digest of a token: all that the daemon keeps. A token is random, so no salt and no slow digest is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of `token`.
    pub fn of(token: &str) -> TokenDigest {
        TokenDigest(Sha256::digest(token.as_bytes()).into())
    }

    /// From the bytes that were stored.
    pub fn from_bytes(bytes: &[u8]) -> Option<TokenDigest> {
        bytes.try_into().ok().map(TokenDigest)
    }

    /// For the store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether `token` is the one, in a time that says nothing of how near it is.
    pub fn is_of(&self, token: &str) -> bool {
        self.0.ct_eq(&TokenDigest::of(token).0).into()
    }
}

/// A new token, of the system's random numbers.
pub fn fresh() -> Result<String> {
    Ok(format!("aha_{}", hex(&random::<TOKEN_BYTES>()?)))
}

/// Random bytes of the system's.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let path = std::path::Path::new("/dev/urandom");
    let mut file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    file.read_exact(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_fits_its_digest() {
        let token = fresh().unwrap();
        assert_ne!(token, fresh().unwrap());
        assert!(token.len() > TOKEN_LEN_MIN);
        let digest = TokenDigest::of(&token);
        assert!(digest.is_of(&token));
        assert!(!digest.is_of(&token[1..]) && !digest.is_of("") && !digest.is_of("aha_"));
        assert_eq!(TokenDigest::from_bytes(digest.as_bytes()), Some(digest));
        assert_eq!(TokenDigest::from_bytes(b"short"), None);
    }
}
