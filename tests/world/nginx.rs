//! A real nginx that serves a folder over https with HTTP/2 and a private CA.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::pki::Pki;
use super::{free_port, parts, until};

/// Dropping it ends it.
pub(crate) struct Nginx {
    folder: TempDir,
    child: Child,
    pub(crate) port: u16,
    pub(crate) ca: PathBuf,
}

impl Nginx {
    /// None: the test was noted as skipped and must return.
    pub(crate) async fn serve(root: &Path) -> Option<Self> {
        let program = parts::program("nginx")?;
        let folder = TempDir::new().unwrap();
        let (here, port) = (folder.path().display(), free_port());
        let pki = Pki::make(folder.path());
        let config = format!(
            "daemon off; master_process off; pid {here}/pid; error_log {here}/error;\n\
             events {{}}\n\
             http {{\n\
               log_format protocol '$server_protocol $status $request_uri';\n\
               access_log {here}/access protocol;\n\
               client_body_temp_path {here}/1; proxy_temp_path {here}/2;\n\
               fastcgi_temp_path {here}/3; uwsgi_temp_path {here}/4; scgi_temp_path {here}/5;\n\
               server {{\n\
                 listen 127.0.0.1:{port} ssl http2; root {};\n\
                 ssl_certificate {}; ssl_certificate_key {};\n\
               }}\n\
             }}\n",
            root.display(),
            pki.certificate.display(),
            pki.key.display()
        );
        fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let mut nginx = Command::new(program);
        nginx.arg("-e").arg(folder.path().join("error"));
        nginx.arg("-c").arg(folder.path().join("nginx.conf")).stdin(Stdio::null());
        let child = nginx.spawn().unwrap();
        let nginx = Self { folder, child, port, ca: pki.ca };
        until("nginx", Duration::from_secs(20), || async {
            TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
        })
        .await;
        Some(nginx)
    }

    /// One line for each request: protocol, status, path.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("access")).unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
