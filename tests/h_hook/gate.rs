//! A wire to the cache that stops in the middle of the first NAR.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Passes everything on until a NAR is put, and then nothing more on that connection.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    seen: watch::Receiver<bool>,
    _tasks: JoinSet<()>,
}

impl Gate {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, seen) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, server, tell.clone()));
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    /// Waits until a NAR is on its way, and does not arrive.
    pub(crate) async fn has_one(&mut self) {
        self.seen.wait_for(|seen| *seen).await.unwrap();
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, tell: watch::Sender<bool>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(len @ 1..) = read else { return };
                if String::from_utf8_lossy(&up[..len]).contains("PUT /push/nar/") {
                    tell.send_replace(true);
                    return std::future::pending().await;
                }
                if server.write_all(&up[..len]).await.is_err() { return }
            }
            read = server.read(&mut down) => {
                let Ok(len @ 1..) = read else { return };
                if client.write_all(&down[..len]).await.is_err() { return }
            }
        }
    }
}
