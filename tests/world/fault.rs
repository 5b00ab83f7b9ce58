//! What can be wrong with an upstream, one value for each kind.

/// How the scripted upstream answers instead of as it should.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// Takes the request and never answers.
    Silent,
    /// Closes the connection instead of answering.
    Closed,
    /// This status with a short text.
    Status(u16),
    /// This status with the XML body of S3 and this code in it.
    S3(u16, &'static str),
    /// Redirects to itself for ever.
    RedirectLoop,
    /// A page of HTML with status 200, as captive portals send it.
    Html,
    /// The right status and another body: what this makes of the right one.
    Altered(fn(&[u8]) -> Vec<u8>),
    /// Closes the connection after so many bytes of the body, short of its Content-Length.
    Cut(usize),
    /// Sends so many bytes of the body and then nothing, with the connection open.
    Stalled(usize),
    /// Sends so many bytes of the body and then one byte every 100 ms.
    Dripping(usize),
    /// Sends so many bytes of the body and the rest once it is released.
    Held(usize),
}

/// A narinfo that is no narinfo.
pub(crate) fn malformed(_: &[u8]) -> Vec<u8> {
    b"StorePath /nix/store\nURL\n".to_vec()
}

/// A narinfo far beyond any real one.
pub(crate) fn oversized(narinfo: &[u8]) -> Vec<u8> {
    let mut narinfo = narinfo.to_vec();
    narinfo.extend_from_slice(b"Deriver: ");
    narinfo.extend(std::iter::repeat_n(b'a', 64 << 20));
    narinfo.push(b'\n');
    narinfo
}

/// The same narinfo for another store path.
pub(crate) fn of_another_path(narinfo: &[u8]) -> Vec<u8> {
    edit(narinfo, |line| {
        line.strip_prefix("StorePath: ")
            .map(|_| "StorePath: /nix/store/00000000000000000000000000000000-another".to_owned())
    })
}

/// Without its signatures.
pub(crate) fn unsigned(narinfo: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(narinfo).unwrap();
    let kept = text.split_inclusive('\n').filter(|line| !line.starts_with("Sig: "));
    kept.collect::<String>().into_bytes()
}

/// With signatures by the right key name that sign something else.
pub(crate) fn wrongly_signed(narinfo: &[u8]) -> Vec<u8> {
    edit(narinfo, |line| {
        let (name, signature) = line.strip_prefix("Sig: ")?.split_once(':')?;
        let swapped: String = signature
            .chars()
            .map(|c| {
                if c == 'A' {
                    'B'
                } else if c == 'B' {
                    'A'
                } else {
                    c
                }
            })
            .collect();
        // A signature without either letter gets its first character exchanged.
        let changed = if swapped == signature { format!("Q{}", &signature[1..]) } else { swapped };
        Some(format!("Sig: {name}:{changed}"))
    })
}

/// The same length with a bit turned in the middle.
pub(crate) fn with_a_wrong_byte(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    let middle = body.len() / 2;
    body[middle] ^= 0x10;
    body
}

/// Half of the bytes, with a Content-Length that agrees.
pub(crate) fn half(body: &[u8]) -> Vec<u8> {
    body[..body.len() / 2].to_vec()
}

/// Nothing, with status 200.
pub(crate) fn empty(_: &[u8]) -> Vec<u8> {
    Vec::new()
}

/// A well-formed body in zstd where the narinfo says something else, of another NAR.
pub(crate) fn another_nar_in_zstd(_: &[u8]) -> Vec<u8> {
    zstd::encode_all(&b"this is no NAR of anybody"[..], 3).unwrap()
}

fn edit(narinfo: &[u8], change: impl Fn(&str) -> Option<String>) -> Vec<u8> {
    let text = std::str::from_utf8(narinfo).unwrap();
    let lines = text.lines().map(|line| change(line).unwrap_or_else(|| line.to_owned()) + "\n");
    lines.collect::<String>().into_bytes()
}
