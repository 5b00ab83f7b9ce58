//! Real S3 servers with the real `mc`, set up by the steps of the public guides for a Nix cache on
//! `MinIO`: a bucket, a user with a policy, anonymous reading, expiry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::pki::Pki;
use super::{free_port, parts, until};

const ADMIN: (&str, &str) = ("ADMINKEY", "adminsecret0123456789");
/// The user that the guides make for the machine that writes.
const BUILDER: (&str, &str) = ("nixbuilder", "nixbuildersecret0123456789");
/// From the start of a server to its first answer.
const START_LIMIT: Duration = Duration::from_mins(1);

/// The guides' policy for that user, word for word.
const WRITE_POLICY: &str = r#"{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Action": [
        "s3:AbortMultipartUpload",
        "s3:GetBucketLocation",
        "s3:GetObject",
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:ListMultipartUploadParts",
        "s3:PutObject"
      ],
      "Resource": ["arn:aws:s3:::nix-cache", "arn:aws:s3:::nix-cache/*"]
    }
  ]
}"#;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Minio,
    SeaweedFs,
    JuiceFs,
}

/// A running server with a private CA and a bucket `nix-cache` that anybody may read. Dropping it
/// kills it.
pub(crate) struct S3Server {
    kind: Kind,
    folder: TempDir,
    mc: PathBuf,
    command: Command,
    child: Child,
    port: u16,
    /// PEM file of the CA that signed its certificate.
    pub(crate) ca: PathBuf,
}

impl S3Server {
    /// None: the test was noted as skipped and must return.
    pub(crate) async fn start(kind: Kind) -> Option<Self> {
        let mc = parts::part("minio/mc")?;
        let program = parts::part(match kind {
            Kind::Minio => "minio/minio",
            Kind::SeaweedFs => "s3-servers/weed",
            Kind::JuiceFs => "s3-servers/juicefs",
        })?;
        let folder = TempDir::new().unwrap();
        let certificates = folder.path().join(".minio/certs");
        let trusted = folder.path().join(".mc/certs/CAs");
        for each in [&certificates, &trusted] {
            fs::create_dir_all(each).unwrap();
        }
        let pki = Pki::make(&certificates);
        fs::copy(&pki.ca, trusted.join("ca.pem")).unwrap();
        let port = free_port();
        let mut command = match kind {
            Kind::Minio => minio(&program, folder.path(), port),
            Kind::SeaweedFs => seaweedfs(&program, folder.path(), port, &pki),
            Kind::JuiceFs => juicefs(&program, folder.path(), port),
        };
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command.env("HOME", folder.path()).env("MINIO_ROOT_USER", ADMIN.0);
        command.env("MINIO_ROOT_PASSWORD", ADMIN.1).env("MINIO_BROWSER", "off");
        command.env("MINIO_UPDATE", "off").env("GOMEMLIMIT", "512MiB");
        command.current_dir(folder.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let server = Self { kind, folder, mc, command, child, port, ca: pki.ca };
        server.make_the_bucket().await;
        Some(server)
    }

    /// As Nix writes it; `profile` is empty for anonymous reading.
    pub(crate) fn url(&self, profile: &str) -> String {
        let profile =
            if profile.is_empty() { String::new() } else { format!("profile={profile}&") };
        format!("s3://nix-cache?{profile}endpoint=https://localhost:{}", self.port)
    }

    /// More keys of the upstream's table: the private CA, and for a profile a file with the
    /// profiles `nixbuilder` (right), `wrong` (the same user with another secret) and `admin`.
    pub(crate) fn table(&self, profile: &str) -> String {
        let ca = format!("ca-file={:?}", self.ca.display().to_string());
        if profile.is_empty() {
            return ca;
        }
        let credentials = self.folder.path().join("credentials");
        let (name, secret) = self.builder();
        let text = format!(
            "[nixbuilder]\naws_access_key_id = {name}\naws_secret_access_key = {secret}\n\n\
             [wrong]\naws_access_key_id = {name}\naws_secret_access_key = not{secret}\n\n\
             [admin]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            ADMIN.0, ADMIN.1
        );
        fs::write(&credentials, text).unwrap();
        format!("{ca}, credentials-file={:?}", credentials.display().to_string())
    }

    /// Writes the right secret under the profile `wrong`, into the file that `table` names.
    pub(crate) fn mend_the_wrong_profile(&self) {
        let credentials = self.folder.path().join("credentials");
        let text = fs::read_to_string(&credentials).unwrap();
        fs::write(&credentials, text.replace("= not", "= ")).unwrap();
    }

    /// Ends the server at once.
    pub(crate) fn kill(&mut self) {
        drop(self.child.kill());
        self.child.wait().unwrap();
    }

    /// Starts it again as it was, and waits for its first answer.
    pub(crate) async fn start_again(&mut self) {
        self.child = self.command.spawn().unwrap();
        until("the S3 server's return", START_LIMIT, || async {
            self.try_mc(&["ls", "s3/nix-cache/nix-cache-info"]).status.success().then_some(())
        })
        .await;
    }

    /// Uploads a folder into the bucket.
    pub(crate) fn upload(&self, folder: &Path) {
        let folder = folder.display().to_string();
        self.mc(&["mirror", "--exclude", "nix-cache-info", &folder, "s3/nix-cache"]);
    }

    /// Uploads one object with a Content-Encoding.
    pub(crate) fn upload_encoded(&self, name: &str, encoding: &str, body: &[u8]) {
        let file = self.folder.path().join("object");
        fs::write(&file, body).unwrap();
        let attribute = format!("Content-Encoding={encoding}");
        let object = format!("s3/nix-cache/{name}");
        self.mc(&["cp", "--attr", &attribute, &file.display().to_string(), &object]);
    }

    /// Runs `mc` with the alias `s3` and expects success.
    pub(crate) fn mc(&self, arguments: &[&str]) -> String {
        let output = self.try_mc(arguments);
        assert!(output.status.success(), "mc {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn try_mc(&self, arguments: &[&str]) -> Output {
        let mut mc = Command::new("timeout");
        mc.args(["-s", "KILL", "120"]).arg(&self.mc).arg("--quiet").args(arguments);
        mc.env("HOME", self.folder.path()).output().unwrap()
    }

    fn builder(&self) -> (&'static str, &'static str) {
        // The gateway's admin API is years older than mc, so it has only its first user.
        if self.kind == Kind::JuiceFs { ADMIN } else { BUILDER }
    }

    async fn make_the_bucket(&self) {
        let endpoint = format!("https://localhost:{}", self.port);
        until("the S3 server's first answer", START_LIMIT, || async {
            let alias = self.try_mc(&["alias", "set", "s3", &endpoint, ADMIN.0, ADMIN.1]);
            alias.status.success().then_some(())
        })
        .await;
        until("the bucket", START_LIMIT, || async {
            let made = self.try_mc(&["mb", "--ignore-existing", "s3/nix-cache"]);
            made.status.success().then_some(())
        })
        .await;
        if self.kind == Kind::Minio {
            let policy = self.folder.path().join("write.json");
            fs::write(&policy, WRITE_POLICY).unwrap();
            let policy = policy.display().to_string();
            self.mc(&["admin", "user", "add", "s3", BUILDER.0, BUILDER.1]);
            self.mc(&["admin", "policy", "create", "s3", "nix-cache-write", &policy]);
            self.mc(&["admin", "policy", "attach", "s3", "nix-cache-write", "--user", BUILDER.0]);
            self.mc(&["ilm", "rule", "add", "s3/nix-cache", "--expire-days", "30"]);
        }
        self.mc(&["anonymous", "set", "download", "s3/nix-cache"]);
        let cache_info = self.folder.path().join("nix-cache-info");
        fs::write(&cache_info, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n").unwrap();
        let cache_info = cache_info.display().to_string();
        self.mc(&["cp", &cache_info, "s3/nix-cache/nix-cache-info"]);
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn minio(program: &Path, folder: &Path, port: u16) -> Command {
    let mut minio = Command::new(program);
    minio.arg("server").arg("--address").arg(format!("127.0.0.1:{port}"));
    minio.arg("--certs-dir").arg(folder.join(".minio/certs")).arg(folder.join("data"));
    minio
}

fn seaweedfs(program: &Path, folder: &Path, port: u16, pki: &Pki) -> Command {
    let policy = serde_json::to_string(WRITE_POLICY).unwrap();
    let identities = format!(
        r#"{{"identities": [
  {{"name": "admin", "credentials": [{{"accessKey": "{}", "secretKey": "{}"}}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"]}},
  {{"name": "nixbuilder", "credentials": [{{"accessKey": "{}", "secretKey": "{}"}}],
    "policyNames": ["nixbuilder"]}}],
 "policies": [{{"name": "nixbuilder", "content": {policy}}}]}}"#,
        ADMIN.0, ADMIN.1, BUILDER.0, BUILDER.1
    );
    fs::write(folder.join("s3.json"), identities).unwrap();
    fs::create_dir_all(folder.join("weed")).unwrap();
    let mut weed = Command::new(program);
    weed.args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=nix-cache"]);
    weed.args(["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
    for service in ["master", "volume", "filer", "admin", "s3"] {
        weed.arg(format!("-{service}.port={}", free_port()));
    }
    weed.arg(format!("-s3.port.https={port}"));
    weed.arg(format!("-s3.cert.file={}", pki.certificate.display()));
    weed.arg(format!("-s3.key.file={}", pki.key.display()));
    weed.arg(format!("-s3.config={}", folder.join("s3.json").display()));
    weed.arg(format!("-dir={}", folder.join("weed").display()));
    weed
}

fn juicefs(program: &Path, folder: &Path, port: u16) -> Command {
    let database = format!("sqlite3://{}", folder.join("jfs.db").display());
    let bucket = format!("{}/", folder.join("jfs").display());
    let mut format = Command::new(program);
    format.args(["format", "--storage", "file", "--bucket", &bucket, "--trash-days", "0"]);
    format.args([&database, "test"]).env("HOME", folder);
    let formatted = format.output().unwrap();
    assert!(formatted.status.success(), "juicefs format: {formatted:?}");
    let mut gateway = Command::new(program);
    gateway.args(["gateway", "--multi-buckets", "--keep-etag", "--object-meta"]);
    gateway.args(["--no-usage-report", "--no-banner", "--metrics", "127.0.0.1:0"]);
    gateway.args(["--cache-size", "64", "--buffer-size", "64M", "--backup-meta", "0"]);
    gateway.arg("--log").arg(folder.join("gateway.log"));
    gateway.arg("--cache-dir").arg(folder.join("jcache"));
    gateway.arg(&database).arg(format!("127.0.0.1:{port}"));
    gateway
}
