//! The cryptography of TLS, the same for the server, its clients and what is asked upstream: ring,
//! with the suite first that this CPU is quickest at. Knows nothing of certificates.

use rustls::CipherSuite;
use rustls::crypto::{CryptoProvider, ring};

/// ring's suites for this CPU.
pub fn provider() -> CryptoProvider {
    ordered(has_aes())
}

/// Whether the CPU has instructions for AES; a Pi 4 and older have none.
pub fn has_aes() -> bool {
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
    {
        false
    }
}

/// Without AES in the CPU `ChaCha20` first: it is half again as fast there.
fn ordered(has_aes: bool) -> CryptoProvider {
    let mut provider = ring::default_provider();
    if !has_aes {
        provider.cipher_suites.sort_by_key(|suite| {
            !matches!(
                suite.suite(),
                CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
                    | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
                    | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
            )
        });
    }
    provider
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_aes_chacha_comes_first_in_each_version() {
        let first = |has_aes: bool, tls13: bool| {
            let suites = ordered(has_aes).cipher_suites;
            let suite = suites.iter().find(|suite| suite.tls13().is_some() == tls13).unwrap();
            format!("{:?}", suite.suite())
        };
        assert!(first(false, true).contains("CHACHA20"));
        assert!(first(false, false).contains("CHACHA20"));
        assert!(first(true, true).contains("AES"));
        assert_eq!(ordered(false).cipher_suites.len(), ordered(true).cipher_suites.len());
    }
}
