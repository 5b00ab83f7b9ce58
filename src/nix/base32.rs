//! nix32, Nix's own base 32 (alphabet without e, o, u, t; little-endian groups).

/// Why a text is not nix32.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Base32Error {
    /// A character outside the alphabet.
    #[error("character {0:?} is not nix32")]
    Character(char),
    /// The text has not the length of so many bytes.
    #[error("{found} characters instead of {expected}")]
    Length {
        /// Characters that the wanted number of bytes has.
        expected: usize,
        /// Characters found.
        found: usize,
    },
    /// The last character carries bits that no byte has room for.
    #[error("surplus bits are set")]
    Surplus,
}

/// The nix32 text of `bytes`: `(8n - 1) / 5 + 1` characters.
pub fn encode(_bytes: &[u8]) -> String {
    todo!()
}

/// The `N` bytes that `text` stands for.
pub fn decode<const N: usize>(_text: &str) -> Result<[u8; N], Base32Error> {
    todo!()
}
