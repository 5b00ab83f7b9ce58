//! nix32, Nix's own base 32 (alphabet without e, o, u, t; little-endian groups).

/// The digits, by value.
const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

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
    /// The first character carries bits that no byte has room for.
    #[error("surplus bits are set")]
    Surplus,
}

/// Characters that `len_bytes` bytes take.
pub const fn encoded_len(len_bytes: usize) -> usize {
    (len_bytes * 8).div_ceil(5)
}

/// The nix32 text of `bytes`: `(8n - 1) / 5 + 1` characters.
pub fn encode(bytes: &[u8]) -> String {
    (0..encoded_len(bytes.len())).rev().map(|group| char::from(digit(bytes, group))).collect()
}

/// The `N` bytes that `text` stands for.
pub fn decode<const N: usize>(text: &str) -> Result<[u8; N], Base32Error> {
    let (expected, found) = (encoded_len(N), text.chars().count());
    if found != expected {
        return Err(Base32Error::Length { expected, found });
    }
    let mut bytes = [0; N];
    for (group, character) in text.chars().rev().enumerate() {
        let [low, high] = (value(character)? << (group * 5 % 8)).to_le_bytes();
        let index = group * 5 / 8;
        if let Some(byte) = bytes.get_mut(index) {
            *byte |= low;
        }
        match bytes.get_mut(index + 1) {
            Some(byte) => *byte |= high,
            None if high != 0 => return Err(Base32Error::Surplus),
            None => {}
        }
    }
    Ok(bytes)
}

/// The digit of the five bits at bit `5 * group`, little-endian over `bytes`.
fn digit(bytes: &[u8], group: usize) -> u8 {
    let byte = |index| bytes.get(index).copied().unwrap_or(0);
    let index = group * 5 / 8;
    let window = u16::from_le_bytes([byte(index), byte(index + 1)]);
    let value = usize::from((window >> (group * 5 % 8)) & 31);
    *ALPHABET.get(value).expect("five bits are below 32")
}

fn value(character: char) -> Result<u16, Base32Error> {
    (0..)
        .zip(ALPHABET)
        .find_map(|(value, digit)| (char::from(*digit) == character).then_some(value))
        .ok_or(Base32Error::Character(character))
}

#[cfg(test)]
#[allow(clippy::string_slice, reason = "the samples are ASCII")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_answers_of_sha256_are_met_both_ways() {
        // SHA-256 of nothing, and of the sample NAR.
        check(
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
        );
        check(
            "d99c6f175310cf3acc703fe178d30e8633046a9cc6ef8a9febbc85702442499f",
            "17s988j711dwxfgqmvy6kim08cw61v9piq9zf363mkqhacbnz76r",
        );
    }

    #[test]
    fn what_is_not_nix32_is_refused() {
        assert_eq!(decode::<1>("0e"), Err(Base32Error::Character('e')));
        assert_eq!(decode::<1>("0E"), Err(Base32Error::Character('E')));
        assert_eq!(decode::<1>("\u{e9}0"), Err(Base32Error::Character('\u{e9}')));
        assert_eq!(decode::<1>("0"), Err(Base32Error::Length { expected: 2, found: 1 }));
        assert_eq!(decode::<0>(""), Ok([]));
    }

    #[test]
    fn surplus_bits_are_refused() {
        assert_eq!(decode::<1>("7z"), Ok([255]));
        assert_eq!(decode::<1>("8z"), Err(Base32Error::Surplus));
        let hash_with_surplus = format!("2{}", "0".repeat(51));
        assert_eq!(decode::<32>(&hash_with_surplus), Err(Base32Error::Surplus));
    }

    proptest! {
        #[test]
        fn round_trip(hash in any::<[u8; 32]>(), key in any::<[u8; 20]>(), odd in any::<[u8; 7]>()) {
            prop_assert_eq!(decode(&encode(&hash)), Ok(hash));
            prop_assert_eq!(decode(&encode(&key)), Ok(key));
            prop_assert_eq!(decode(&encode(&odd)), Ok(odd));
        }

        #[test]
        fn one_value_has_one_text(text in "[01][0-9a-df-np-sv-z]{51}") {
            prop_assert_eq!(encode(&decode::<32>(&text).unwrap()), text);
        }
    }

    fn check(hex: &str, nix32: &str) {
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(encode(&bytes), nix32);
        assert_eq!(decode::<32>(nix32).unwrap().as_slice(), bytes);
    }
}
