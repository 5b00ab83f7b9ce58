//! A wire between a client and a server that can be cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Passes bytes on, and cuts the first answer that grows too long.
pub(crate) struct Wire {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    cuts_left: usize,
    cuts: usize,
    requests: String,
}

impl Wire {
    /// Cuts the connection `cuts` times, each when one answer (what comes between two requests)
    /// has brought `answer_len_max` bytes.
    pub(crate) async fn to(server: SocketAddr, answer_len_max: usize, cuts: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen { cuts_left: cuts, ..Seen::default() }));
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, server, answer_len_max, Arc::clone(&shared)));
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often it was cut.
    pub(crate) fn cuts(&self) -> usize {
        self.seen.lock().unwrap().cuts
    }

    /// What the clients sent, as text.
    pub(crate) fn requests(&self) -> String {
        self.seen.lock().unwrap().requests.clone()
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, limit: usize, seen: Arc<Mutex<Seen>>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 16 * 1024]);
    let mut answer_len = 0;
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(len @ 1..) = read else { return };
                answer_len = 0;
                seen.lock().unwrap().requests += &String::from_utf8_lossy(&up[..len]);
                if server.write_all(&up[..len]).await.is_err() { return }
            }
            read = server.read(&mut down) => {
                let Ok(len @ 1..) = read else { return };
                answer_len += len;
                if client.write_all(&down[..len]).await.is_err() { return }
                if answer_len > limit && cut_now(&seen) { return }
            }
        }
    }
}

fn cut_now(seen: &Mutex<Seen>) -> bool {
    let mut seen = seen.lock().unwrap();
    if seen.cuts_left == 0 {
        return false;
    }
    seen.cuts_left -= 1;
    seen.cuts += 1;
    true
}
