//! Who may write: a token, sent as the password of HTTP Basic, which Nix sends unasked.

use std::net::IpAddr;
use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use tracing::{debug, warn};

use super::refusal::Refusal;
use crate::push::tokens::{Tokens, Verdict};

/// What decides who may write.
pub(super) struct Guard<'a> {
    /// Who may.
    pub(super) tokens: &'a Arc<Tokens>,
    /// Whether a token is taken over plain HTTP from other machines.
    pub(super) plain: bool,
    /// Whether it came over TLS.
    pub(super) is_tls: bool,
}

/// Whether who asks from `peer` with these headers may write.
pub(super) async fn check(
    guard: Guard<'_>,
    headers: &HeaderMap,
    peer: IpAddr,
) -> Result<(), Refusal> {
    if !guard.plain && !guard.is_tls && !is_this_machine(peer) {
        return Err(Refusal::Plain);
    }
    let password = password(headers);
    let sent_one = password.is_some();
    let tokens = Arc::clone(guard.tokens);
    // It may read a file.
    let verdict = tokio::task::spawn_blocking(move || {
        tokens.verdict(password.as_deref().unwrap_or_default())
    });
    match verdict.await {
        Ok(Ok(Verdict::Writer(name))) => {
            debug!(token = %name, "a writer");
            Ok(())
        }
        Ok(Ok(Verdict::NoneMade)) => Err(Refusal::NoWriter),
        Ok(Ok(Verdict::Unknown)) if sent_one => {
            warn!(%peer, "an upload with a wrong token was refused");
            Err(Refusal::WrongToken)
        }
        Ok(Ok(Verdict::Unknown)) => Err(Refusal::NoToken),
        // The log has heard why.
        Ok(Err(_)) => Err(Refusal::Tokens),
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "the tokens cannot be read");
            Err(Refusal::Tokens)
        }
    }
}

/// What comes over loopback was on no wire.
fn is_this_machine(peer: IpAddr) -> bool {
    peer.to_canonical().is_loopback()
}

/// The password of HTTP Basic; the user's name says nothing. A header that came twice is none.
fn password(headers: &HeaderMap) -> Option<String> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let (scheme, credentials) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let plain = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    plain.split_once(':').map(|(_, password)| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().expect("a value"));
        }
        password(&headers)
    }

    #[test]
    fn the_password_of_basic_is_the_token() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(of(&[&basic("any:token")]).as_deref(), Some("token"));
        assert_eq!(of(&[&basic(":to:ken")]).as_deref(), Some("to:ken"));
        assert_eq!(of(&[&basic("any:token").replace("Basic", "bASIC ")]).as_deref(), Some("token"));
        for wrong in ["", "Basic", "Basic ###", "Bearer token", &basic("token")] {
            assert_eq!(of(&[wrong]), None, "{wrong}");
        }
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[&basic("a:b"), &basic("a:b")]), None);
        assert_eq!(of(&[&format!("Basic {}", STANDARD.encode([b':', 0xff]))]), None);
    }

    #[test]
    fn only_loopback_is_this_machine() {
        for (peer, is) in [
            ("127.0.0.1", true),
            ("127.9.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("192.168.1.2", false),
            ("::ffff:192.168.1.2", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_this_machine(peer.parse().expect("an address")), is, "{peer}");
        }
    }
}
