//! The cache's identity on the boot partition, in the words of `snowberry join`, so that the two can
//! be compared.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::boot::Boot;
use super::mount::Mount;

/// Its file there.
pub const IDENTITY_FILE: &str = "snowberry-identity.txt";

const TO_STRING: &str = "writing to a String cannot fail";

/// What a cache is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its host name, without `.local`.
    pub name: String,
    /// Its public keys, the one that signs first.
    pub keys: Vec<String>,
    /// The SHA-256 of its CA, where it has one.
    pub ca: Option<String>,
}

impl Identity {
    fn text(&self) -> String {
        let Self { name, keys, ca } = self;
        let mut text = format!(
            "This snowberry, as `snowberry join` shows it on a machine that wants to use it.\n\
             Compare the two: they must be the same.\n\nname {name} ({name}.local)\n"
        );
        for (index, key) in keys.iter().enumerate() {
            let what = if index == 0 { "key  " } else { "old  " };
            writeln!(text, "{what}{key}").expect(TO_STRING);
        }
        match ca {
            Some(ca) => writeln!(text, "CA   {ca}").expect(TO_STRING),
            None => text.push_str("CA   none of its own\n"),
        }
        write!(
            text,
            "\nThe page:        http://{name}.local/\nOn a machine:    snowberry join {name}.local\n"
        )
        .expect(TO_STRING);
        text
    }
}

/// Writes it, unless it is there.
pub fn write_identity(boot: &Path, identity: &Identity, mount: &dyn Mount) -> io::Result<()> {
    let mut boot = Boot::new(boot, mount);
    let written = boot.write(IDENTITY_FILE, identity.text().as_bytes());
    boot.close().and(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_join_shows() {
        let identity = Identity {
            name: "attic".into(),
            keys: vec!["attic-1:AAAA".into(), "attic-0:BBBB".into()],
            ca: Some("ab:cd".into()),
        };
        let text = identity.text();
        assert!(text.contains("\nkey  attic-1:AAAA\nold  attic-0:BBBB\nCA   ab:cd\n"), "{text}");
        let bare = Identity { ca: None, ..identity };
        assert!(bare.text().contains("CA   none of its own\n"));
    }
}
