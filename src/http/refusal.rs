//! Why something is refused, in sentences that say what to do.

use crate::push;

/// Why something is refused. What a PUT is refused for is always for good: what Nix tries again it
/// may send with an empty body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The Host is none of ours.
    Host,
    /// A PUT, and nobody may write.
    NoWriter,
    /// A PUT without a token.
    NoToken,
    /// A PUT with something that is no token, or not any more.
    WrongToken,
    /// A PUT from another machine over plain HTTP.
    Plain,
    /// The tokens cannot be read.
    Tokens,
    /// A PUT to where nothing is taken.
    Nowhere,
    /// A PUT without `Content-Length`.
    NoLength,
    /// A PUT of a NAR with a `Content-Encoding`.
    EncodedNar,
    /// The body stopped coming.
    Stalled,
    /// The body ended before its time.
    Cut,
    /// The write side does not take it.
    Upload(push::Refusal),
}

/// Bytes of a sentence at most: Nix shows 1024 of what a refusal says.
const SENTENCE_LEN_MAX: usize = 1000;

impl Refusal {
    /// For people, with a final newline.
    pub(super) fn sentence(&self) -> String {
        let fixed = match self {
            Self::Upload(why) => return sentence(&format!("snowberry: {why}.")),
            Self::Host => {
                "This address does not answer under that name. Use its IP address, localhost, a \
                 name that ends in .local, or add the name to `names` in snowberry.toml."
            }
            Self::NoWriter => {
                "Nobody may write to this cache yet: run `snowberry token add NAME` on it and put \
                 the token into netrc as the password (`--option netrc-file FILE`)."
            }
            Self::NoToken => {
                "Uploads need a token of this cache: put it into netrc as the password (`--option \
                 netrc-file FILE`). `snowberry token add NAME` on the cache makes one."
            }
            Self::WrongToken => {
                "This is no token of this cache, or it was removed: `snowberry token list` on the \
                 cache shows those that count, `snowberry token add NAME` makes one."
            }
            Self::Plain => {
                "Over plain http a token is taken from the cache's own machine only. Push by https \
                 (the cache's CA is at /ca.pem), or through `snowberry forward` on this machine: \
                 http://127.0.0.1:8501/push. If everybody on this network may read the token, \
                 `push.plain = true` in snowberry.toml of the cache allows it."
            }
            Self::Tokens => {
                "The tokens of this cache cannot be read: its log says why, mend that first."
            }
            Self::Nowhere => {
                "Nothing is taken here: Nix caches have nix-cache-info, narinfos, nar/<SHA-256 of \
                 the file>.nar[.ending], .ls, log/, realisations/, build-trace-v2/ and debuginfo/, \
                 below / or /push/."
            }
            Self::NoLength => "An upload must say its Content-Length.",
            Self::EncodedNar => {
                "A NAR is taken without Content-Encoding: choose its compression by \
                 ?compression=zstd."
            }
            Self::Stalled => "The upload stopped coming, nothing was kept: upload again.",
            Self::Cut => "The upload ended before its time, nothing was kept: upload again.",
        };
        sentence(fixed)
    }
}

/// One line that a client can show whole.
fn sentence(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(SENTENCE_LEN_MAX));
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_fit_what_nix_shows() {
        let long = push::Refusal::NotANar("\u{e4}\r\n".repeat(1000));
        for refusal in [
            Refusal::Host,
            Refusal::NoWriter,
            Refusal::NoToken,
            Refusal::WrongToken,
            Refusal::Plain,
            Refusal::Nowhere,
            Refusal::Upload(push::Refusal::Ending),
            Refusal::Upload(long),
        ] {
            let sentence = refusal.sentence();
            assert!(sentence.len() < 1024);
            assert_eq!(sentence.find(char::is_control), Some(sentence.len() - 1));
        }
    }
}
