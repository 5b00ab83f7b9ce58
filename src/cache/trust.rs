//! Whose narinfos count, and what clients see of them.

use std::sync::Arc;

use crate::nix::{
    Compression, NarInfo, NarName, PublicKey, SecretKey, StoreDir, StorePathHash, TrustedKeys,
};
use crate::store::HeldNar;

/// Our own keys, as they are until they are rotated.
#[derive(Debug)]
pub(super) struct Own {
    /// Present and rotated: always trusted.
    pub(super) trusted: TrustedKeys,
    /// Signs what was fetched, where that is wanted.
    signer: Option<SecretKey>,
}

impl Own {
    pub(super) fn new(trusted: Vec<PublicKey>, signer: Option<SecretKey>) -> Arc<Self> {
        Arc::new(Self { trusted: TrustedKeys::new(trusted), signer })
    }

    /// Adds our signature to what was fetched, where one of `keys`, its upstream's, signed it. Never
    /// to what is believed without signature: ours would say more than we know.
    pub(super) fn sign_fetched(
        &self,
        narinfo: &mut NarInfo,
        keys: Option<&TrustedKeys>,
        store_dir: &StoreDir,
    ) {
        let Some((signer, keys)) = self.signer.as_ref().zip(keys) else { return };
        if keys.trust(narinfo, store_dir) {
            let signature = signer.sign(&narinfo.fingerprint(store_dir));
            // One under our name that comes from elsewhere is this one, or none.
            narinfo.signatures.retain(|other| other.key_name() != signature.key_name());
            narinfo.signatures.push(signature);
        }
    }
}

/// Why an upstream's narinfo is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Distrust {
    /// It does not parse.
    #[error("it is no valid narinfo: {0}")]
    Malformed(String),
    /// It is another path's.
    #[error("it is the narinfo of {0}")]
    OtherPath(StorePathHash),
    /// None of the keys that count signed it.
    #[error("no trusted key signed it")]
    Unsigned,
}

/// Parses an upstream's narinfo and checks that it is `key`'s and signed by one of the upstream's
/// keys or one of ours; `keys` is `None` for an upstream that is believed without signature.
pub(super) fn judge(
    text: &[u8],
    key: StorePathHash,
    keys: Option<&TrustedKeys>,
    own: &TrustedKeys,
    store_dir: &StoreDir,
) -> Result<NarInfo, Distrust> {
    let narinfo =
        NarInfo::parse(text, store_dir).map_err(|error| Distrust::Malformed(error.to_string()))?;
    let found = narinfo.store_path.hash();
    if found != key {
        return Err(Distrust::OtherPath(found));
    }
    let trusted = keys.is_none_or(|keys| keys.trust(&narinfo, store_dir));
    if !trusted && !own.trust(&narinfo, store_dir) {
        return Err(Distrust::Unsigned);
    }
    Ok(narinfo)
}

/// The narinfo as clients see it: our URL, our codec, the file's hash and size when the NAR is
/// held, else the upstream's size as an estimate for the progress bar.
pub(super) fn for_clients(narinfo: &NarInfo, held: Option<&HeldNar>) -> NarInfo {
    let name = NarName { nar_hash: narinfo.nar_hash, key: narinfo.store_path.hash() };
    NarInfo {
        url: name.to_string(),
        compression: Compression::Zstd,
        file_hash: held.map(HeldNar::file_hash),
        file_size: held.map_or(narinfo.file_size, |held| Some(held.file_size())),
        ..narinfo.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A narinfo that `theirs` signed.
    fn fetched(theirs: &SecretKey) -> NarInfo {
        let text = include_bytes!("../../tests/data/9d82wl65gr2phigksgzzimbdf176rx4c.narinfo");
        let mut narinfo = NarInfo::parse(text, &StoreDir::default()).unwrap();
        let fingerprint = narinfo.fingerprint(&StoreDir::default());
        narinfo.signatures = vec![theirs.sign(&fingerprint)];
        narinfo
    }

    #[test]
    fn what_its_upstream_signed_gets_our_signature_and_nothing_else_does() {
        let key = |name: &str, seed| SecretKey::from_seed(name, [seed; 32]).unwrap();
        let (ours, theirs, others) = (key("ours-1", 1), key("theirs-1", 2), key("ours-1", 3));
        let store_dir = StoreDir::default();
        let trusted = TrustedKeys::new(vec![theirs.public()]);
        let clients = TrustedKeys::new(vec![ours.public()]);
        let signed = |own: &Own, keys: Option<&TrustedKeys>, mut narinfo: NarInfo| {
            own.sign_fetched(&mut narinfo, keys, &store_dir);
            clients.trust(&narinfo, &store_dir)
        };
        let verified = Own::new(vec![ours.public()], Some(ours.clone()));
        assert!(signed(&verified, Some(&trusted), fetched(&theirs)));
        // An upstream that is believed without signature, one that signed with another key.
        assert!(!signed(&verified, None, fetched(&theirs)));
        assert!(!signed(&verified, Some(&trusted), fetched(&key("theirs-1", 4))));
        // Somebody else's signature under our name does not stand in the way.
        let mut usurped = fetched(&theirs);
        usurped.signatures.extend(fetched(&others).signatures);
        assert!(signed(&verified, Some(&trusted), usurped));
        let pushed_only = Own::new(vec![ours.public()], None);
        assert!(!signed(&pushed_only, Some(&trusted), fetched(&theirs)));
    }
}
