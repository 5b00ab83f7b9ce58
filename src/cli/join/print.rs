//! `--print`: the lines for machines whose configuration is made elsewhere. Pure.

use clap::ValueEnum;

use super::meet::Met;

/// Whose language is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// A module of `NixOS`.
    Nixos,
    /// A flake of `NixOS` that takes snowberry's module in.
    Flake,
    /// A module of nix-darwin.
    NixDarwin,
    /// A module of home-manager.
    HomeManager,
}

/// The lines. The CA goes into a file beside them, which is printed at the end.
pub(super) fn lines(kind: Kind, met: &Met, trust_key: bool, substituter: &str) -> String {
    match kind {
        Kind::Nixos | Kind::NixDarwin => module(met, trust_key, ""),
        Kind::Flake => flake(met, trust_key),
        Kind::HomeManager => settings(met, trust_key, substituter),
    }
}

fn keys(met: &Met, trust_key: bool) -> Vec<String> {
    let keys = met.keys.iter().filter(|_| trust_key);
    keys.map(|key| format!("\"{key}\"")).collect()
}

/// With `snowberry forward`, by snowberry's own module.
fn module(met: &Met, trust_key: bool, indent: &str) -> String {
    let mut lines =
        vec!["services.snowberry-forward = {".to_owned(), "  enable = true;".to_owned()];
    match &met.tls {
        Some(tls) => {
            let port = if tls.port == 443 { String::new() } else { format!(":{}", tls.port) };
            lines.push(format!("  cache = \"https://{}.local{port}\";", met.name));
            lines.push(format!("  # SHA-256 {}", tls.ca));
            lines.push(format!("  caFile = builtins.toFile \"{}-ca.pem\" ''", met.name));
            let pem = String::from_utf8_lossy(&tls.ca_pem);
            lines.extend(pem.lines().map(|line| format!("    {line}")));
            lines.push("  '';".to_owned());
        }
        None => {
            lines.push(format!("  cache = \"{}\";", plain_url(met)));
            lines.push("  settings.forward.plain = true;".to_owned());
        }
    }
    let keys = keys(met, trust_key);
    if !keys.is_empty() {
        lines.push(format!("  trustedPublicKeys = [ {} ];", keys.join(" ")));
    }
    lines.push("};".to_owned());
    lines.iter().fold(String::new(), |text, line| text + indent + line + "\n")
}

fn plain_url(met: &Met) -> String {
    let port = if met.port == 80 { String::new() } else { format!(":{}", met.port) };
    format!("http://{}.local{port}", met.name)
}

fn flake(met: &Met, trust_key: bool) -> String {
    format!(
        "{{\n  inputs.snowberry.url = \"...\"; # where you have snowberry from, its folder nix/\n  \
         outputs = {{ nixpkgs, snowberry, ... }}: {{\n    nixosConfigurations.HOST = \
         nixpkgs.lib.nixosSystem {{\n      modules = [\n        \
         snowberry.nixosModules.snowberry-forward\n        {{\n          nixpkgs.overlays = [ \
         snowberry.overlays.default ];\n{}        }}\n      ];\n    }};\n  }};\n}}\n",
        module(met, trust_key, "          ")
    )
}

/// Without a forwarder: what Nix alone can do.
fn settings(met: &Met, trust_key: bool, substituter: &str) -> String {
    let keys = keys(met, trust_key);
    let keys = if keys.is_empty() {
        String::new()
    } else {
        format!("  extra-trusted-public-keys = [ {} ];\n", keys.join(" "))
    };
    format!(
        "nix.settings = {{\n  extra-substituters = [ \"{substituter}\" ];\n{keys}  \
         narinfo-cache-negative-ttl = 60;\n}};\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::meet::MetTls;
    use super::*;
    use crate::pinned::CaFingerprint;

    #[test]
    fn every_language_has_the_cache_and_the_key_only_where_it_is_trusted() {
        let tls = MetTls { port: 443, ca_pem: "PEM\n".into(), ca: CaFingerprint([7; 32]) };
        let key = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        let met = Met {
            name: "snowberry".into(),
            host: "snowberry.local".into(),
            port: 80,
            addresses: vec!["192.168.1.7".parse().unwrap()],
            tls: Some(tls),
            keys: vec![crate::nix::PublicKey::parse(key).unwrap()],
        };
        for kind in [Kind::Nixos, Kind::Flake, Kind::NixDarwin, Kind::HomeManager] {
            let trusting = lines(kind, &met, true, "http://192.168.1.7");
            assert!(trusting.contains(key), "{trusting}");
            let text = lines(kind, &met, false, "http://192.168.1.7");
            assert!(!text.contains(key), "{text}");
            let opened = text.matches('{').count();
            assert_eq!(opened, text.matches('}').count(), "{text}");
            if kind == Kind::HomeManager {
                assert!(text.contains("\"http://192.168.1.7\""), "{text}");
            } else {
                assert!(text.contains("cache = \"https://snowberry.local\";"), "{text}");
                assert!(text.contains(&met.tls.as_ref().unwrap().ca.to_string()), "{text}");
            }
        }
        let plain = lines(Kind::Nixos, &Met { tls: None, ..met }, false, "http://192.168.1.7");
        assert!(plain.contains("forward.plain = true"), "{plain}");
    }
}
