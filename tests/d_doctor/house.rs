//! In a house with multicast DNS and TLS: a laptop that has joined the Pi, and what goes wrong later.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use snowberry::pinned::CaFingerprint;
use tempfile::TempDir;

use crate::Told;
use crate::world::{Client, House, Machine, Settings, Snowberry, parts};

/// Nobody: the joined cache of a user who is not root is in that user's folder.
const USER: &str = "65534";

async fn serve(machine: &Machine) -> Snowberry {
    let settings = Settings::new().on(machine).set(r#"tls.listen=["[::]:443"]"#);
    let snowberry = settings.start().await;
    snowberry.log_line(&["announced in the house"], Duration::from_secs(30)).await;
    snowberry
}

/// A user's laptop with its configuration folder.
struct Laptop {
    machine: Machine,
    home: TempDir,
}

impl Laptop {
    fn new(machine: Machine) -> Self {
        let home = TempDir::new().unwrap();
        let laptop = Self { machine, home };
        fs::create_dir_all(laptop.path("config/snowberry")).unwrap();
        fs::create_dir_all(laptop.path("conf")).unwrap();
        fs::create_dir_all(laptop.path("bin")).unwrap();
        for program in ["getent", "id"] {
            let from = Path::new("/usr/bin").join(program);
            std::os::unix::fs::symlink(from, laptop.path("bin").join(program)).unwrap();
        }
        // The user must get in, and its Nix needs a home.
        open_to_all(laptop.home.path());
        laptop
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// What `join` writes, with the CA that the Pi shows now.
    fn join(&self, address: &str) -> CaFingerprint {
        let at = SocketAddr::new(address.parse().unwrap(), 80);
        let pem = self.machine.inside(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(Client(at).get("/ca.pem"))
        });
        let fingerprint = CaFingerprint::of_pem(&pem.body).unwrap();
        let ca = self.path("config/snowberry/ca.pem");
        fs::write(&ca, &pem.body).unwrap();
        let joined = format!(
            "name = \"snowberry\"\nhost = \"snowberry.local\"\nport = 80\ntls-port = 443\n\
             ca-file = \"{}\"\nca-sha256 = \"{}\"\naddresses = [\"{address}\"]\n",
            ca.display(),
            fingerprint.to_hex()
        );
        fs::write(self.path("config/snowberry/joined.toml"), joined).unwrap();
        open_to_all(self.home.path());
        fingerprint
    }

    fn nix_conf(&self, text: &str) {
        fs::write(self.path("conf/nix.conf"), text).unwrap();
        open_to_all(self.home.path());
    }

    fn examine(&self) -> Told {
        // Where anybody may run it from.
        let program = self.path("snowberry");
        // By another process: what this one has open for writing, a child that another test starts just
        // then has too, and a program that somebody may write to is not run.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_snowberry")).arg(&program).status();
        assert!(copied.unwrap().success());
        let mut command = self.machine.command("setpriv");
        command.args(["--reuid", USER, "--clear-groups", "env"]);
        // No Nix of the machine that runs the tests: its files are read as Nix would.
        command.arg(format!("PATH={}", self.path("bin").display()));
        command.arg(program).args(["doctor", "--json"]);
        command.env("HOME", self.home.path()).env("XDG_CONFIG_HOME", self.path("config"));
        command.env("XDG_CACHE_HOME", self.path("cache")).env("SNOWBERRY_CONFIG", "/dev/null");
        command.env("NIX_CONF_DIR", self.path("conf")).env("NIX_USER_CONF_FILES", "");
        let told = command.stdin(Stdio::null()).output().unwrap();
        let stdout = String::from_utf8_lossy(&told.stdout);
        assert!(!stdout.is_empty(), "{}", String::from_utf8_lossy(&told.stderr));
        Told::parse(&stdout)
    }
}

fn open_to_all(folder: &Path) {
    let told = std::process::Command::new("chmod").args(["-R", "a+rwX"]).arg(folder).status();
    assert!(told.unwrap().success());
}

#[tokio::test]
async fn a_laptop_that_joined_is_told_that_tls_is_pinned() {
    let Some(house) = House::build() else { return };
    let Some(_) = parts::program("setpriv") else { return };
    let (pi, laptop) = (house.machine(2), Laptop::new(house.machine(3)));
    let _snowberry = serve(&pi).await;
    let fingerprint = laptop.join("10.77.0.2");
    laptop
        .nix_conf("extra-substituters = http://snowberry.local\nnarinfo-cache-negative-ttl = 60\n");
    let told = laptop.examine();
    told.expect("joined", true, "snowberry (snowberry.local)");
    told.expect("house", true, "heard is snowberry.local");
    told.expect("name", true, "snowberry.local is heard");
    told.expect("port", true, "10.77.0.2:80");
    told.expect("TLS", true, &fingerprint.to_string());
    told.expect("settings of Nix", true, "as its files say");
    told.expect("substituter", false, "never multicast DNS");
    told.expect("nix-cache-info", true, "/nix/store");
}

#[tokio::test]
async fn another_ca_is_told_with_both_fingerprints() {
    let Some(house) = House::build() else { return };
    let Some(_) = parts::program("setpriv") else { return };
    let (pi, laptop) = (house.machine(2), Laptop::new(house.machine(3)));
    let mut snowberry = serve(&pi).await;
    let old = laptop.join("10.77.0.2");
    // The card was flashed again: another key, another CA, the same name.
    snowberry.stop().await;
    let again = serve(&pi).await;
    let told = laptop.examine();
    told.expect("TLS", false, &old.to_string());
    let other =
        CaFingerprint::of_pem(&fs::read(again.state().join("tls/ca.pem")).unwrap()).unwrap();
    assert_ne!(other, old);
    told.expect("TLS", false, &other.to_string());
    // By plain HTTP it is looked at all the same.
    told.expect("nix-cache-info", true, "/nix/store");
}

#[tokio::test]
async fn a_cache_that_is_off_and_none_that_was_joined_are_told() {
    let Some(house) = House::build() else { return };
    let Some(_) = parts::program("setpriv") else { return };
    let (pi, laptop) = (house.machine(2), Laptop::new(house.machine(3)));
    let told = laptop.examine();
    told.expect("joined", false, "snowberry join");
    told.expect("cache", false, "none is heard");
    let snowberry = serve(&pi).await;
    laptop.join("10.77.0.2");
    drop(snowberry);
    pi.port("down");
    let told = laptop.examine();
    told.expect("house", true, "no cache is heard");
    told.expect("name", false, "is the cache on");
    told.expect("port", false, "10.77.0.2:80");
}
