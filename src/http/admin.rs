//! Commands on the local socket only: whoever may open it may command, so its mode is the rule. No
//! route of the network leads here.
//!
//! `GET /queue`, `POST /retry`, `POST /forget?target=URL[&lost=true]`, `POST /keys/reload`, and what
//! `admin_waiting.rs`, `admin_pins.rs` and `admin_evict.rs` answer. Answers are JSON; what cannot be done is an object with an `error`.

use std::convert::Infallible;
use std::error::Error;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::reply::{Media, Reply};
use super::{admin_evict, admin_pins, admin_waiting};
use crate::cache::Cache;
use crate::metrics::Counter;
use crate::nix::PublicKey;
use crate::push::{Push, TargetState, TargetStatus};

/// Owner and group may open it, others may not.
const SOCKET_MODE: u32 = 0o660;

/// A folder that is made for it: whoever is in the socket's group must come through.
const FOLDER_MODE: u32 = 0o755;

/// Commands at once: people and their scripts.
const CONNECTIONS_MAX: usize = 16;

/// How long a command's head may take to come, on the same machine.
const HEAD_WAIT: Duration = Duration::from_secs(10);

/// How long a command may take: the slowest strikes some 100 000 rows off on a slow card.
const COMMAND_WAIT: Duration = Duration::from_mins(5);

/// How long one may take that says how far it is: a terabyte over the slowest line that anybody
/// would fetch it by. Whoever gave it up has closed its connection long before.
const LONG_COMMAND_WAIT: Duration = Duration::from_hours(30 * 24);

/// What comes with a command: as many keys of paths as the largest closures have.
const SENT_LEN_MAX: usize = 8 << 20;

/// How long commands under way get at the end. One that is cut can be given again.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How long after a failed accept it is tried again: out of files, which others give back soon.
const ACCEPT_WAIT: Duration = Duration::from_secs(1);

/// What a backup asks, in a file of its own.
const WAITING: &str = "/waiting/";

/// What the commands work on.
pub struct Admin {
    /// The read side, which has the store.
    pub cache: Cache,
    /// The write side.
    pub push: Push,
    /// Reads the cache's own keys again, on a blocking thread: the keys that hold from then on, or
    /// why it stays as it was, in a sentence.
    pub reload_keys: Box<dyn Fn() -> Result<Vec<PublicKey>, String> + Send + Sync>,
}

/// The socket; its name goes with it.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the name, so that nobody else's is removed.
    made: (u64, u64),
}

impl AdminSocket {
    /// Listens at `path`, where nothing is, or what a server left that was killed.
    pub fn bind(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        }
        match path.symlink_metadata() {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is no socket"));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(&path).is_ok() => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server answers"));
            }
            Ok(_) | Err(_) => {}
        }
        // Under another name until its mode is right: nobody comes in before.
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        std::fs::rename(&new, &path)?;
        let made = identity(&path)?;
        Ok(Self { listener, path, made })
    }

    /// Answers until stopped; then commands under way end, and the name is removed.
    pub async fn serve(self, admin: Arc<Admin>, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let is_full = connections.len() >= CONNECTIONS_MAX;
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept(), if !is_full => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(talk(stream, Arc::clone(&admin)));
                }
                Err(failed) => {
                    warn!(error = &failed as &dyn Error, "accept on the admin socket failed");
                    stop.run_until_cancelled(tokio::time::sleep(ACCEPT_WAIT)).await;
                }
            }
        }
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_MAX, ended).await.is_err() {
            warn!(commands = connections.len(), "commands cut at the end");
            connections.shutdown().await;
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let is_ours = identity(&self.path).is_ok_and(|there| there == self.made);
        if is_ours && let Err(error) = std::fs::remove_file(&self.path) {
            warn!(error = &error as &dyn Error, "the admin socket's name stays");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = path.symlink_metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// One command a connection: they are rare, and then none is held open.
async fn talk(stream: UnixStream, admin: Arc<Admin>) {
    let is_long = AtomicBool::new(false);
    let service = service_fn(|request| {
        let (admin, is_long) = (Arc::clone(&admin), &is_long);
        async move {
            let reply = answer(&admin, request).await;
            is_long.store(matches!(reply, Reply::Told(_)), Ordering::Relaxed);
            // Not one of the figures of the network.
            Ok::<_, Infallible>(reply.into_response(Counter::default()))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // Whoever left is not told, and has its answer in the state of the cache.
    let ended = tokio::time::timeout(COMMAND_WAIT, &mut connection).await.is_ok();
    if !ended && is_long.load(Ordering::Relaxed) {
        drop(tokio::time::timeout(LONG_COMMAND_WAIT, connection).await);
    }
}

/// What came with a command, as text; or what to answer.
pub(super) async fn sent(body: Incoming) -> Result<String, Reply> {
    let Ok(sent) = Limited::new(body, SENT_LEN_MAX).collect().await else {
        return Err(failed("more came than the largest closure has"));
    };
    String::from_utf8(sent.to_bytes().into()).map_err(|_| failed("what came is no text"))
}

async fn answer(admin: &Arc<Admin>, request: Request<Incoming>) -> Reply {
    let query = request.uri().query().unwrap_or_default().to_owned();
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/queue") => done(&queue(&admin.push.status())),
        (&Method::POST, "/retry") => {
            admin.push.retry();
            info!("told to try every push target again");
            done(&json!({"retried": true}))
        }
        (&Method::POST, "/forget") => forget(&admin.push, &query).await,
        (&Method::POST, "/keys/reload") => reload_keys(admin).await,
        (&Method::GET, "/pins") => admin_pins::pins(&admin.cache).await,
        (&Method::POST, "/pin") => admin_pins::pin(&admin.cache, &query, request.into_body()).await,
        (&Method::POST, "/unpin") => admin_pins::unpin(&admin.cache, &query).await,
        (&Method::POST, "/prefetch") => {
            admin_pins::prefetch(&admin.cache, &query, request.into_body()).await
        }
        (&Method::GET, "/next-out") => admin_evict::next_out(&admin.cache, &query).await,
        (&Method::POST, "/evict") => {
            admin_evict::evict(&admin.cache, &query, request.into_body()).await
        }
        (&Method::GET, path) if path.starts_with(WAITING) => {
            let path = path.strip_prefix(WAITING).unwrap_or_default();
            admin_waiting::answer(&admin.push.waiting(), path, &query).await
        }
        _ => Reply::Absent,
    }
}

pub(super) fn done(value: &Value) -> Reply {
    Reply::Shown(Media::Json, value.to_string().into())
}

pub(super) fn failed(sentence: &str) -> Reply {
    Reply::Undone(json!({"error": sentence}).to_string().into())
}

fn queue(targets: &[TargetStatus]) -> Value {
    let targets: Vec<Value> = targets
        .iter()
        .map(|target| {
            json!({
                "target": target.target,
                "state": match target.state {
                    TargetState::Idle => "idle",
                    TargetState::Sending => "sending",
                    TargetState::Waiting => "waiting",
                    TargetState::Stopped => "stopped",
                    TargetState::Gone => "gone",
                },
                "waiting": target.waiting,
                "waiting_bytes": target.waiting_bytes,
                "oldest_s": target.oldest_s,
                "parked": target.parked,
                "lost": target.lost,
                "pushed": target.pushed,
                "pushed_bytes": target.pushed_bytes,
                "sending": target.sending,
                "last_error": target.last_error,
                "retry_in_s": target.retry_in_s,
                "differs": target.differs,
            })
        })
        .collect();
    json!({"targets": targets})
}

async fn forget(push: &Push, query: &str) -> Reply {
    let (mut target, mut only_lost) = (None, false);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "target" => target = Some(value),
            "lost" => only_lost = value == "true",
            _ => return failed("only target and lost are understood"),
        }
    }
    let Some(target) = target else { return failed("no target is named") };
    if !push.status().iter().any(|known| known.target == target) {
        return failed("there is no such target: `snowberry push --status` shows them");
    }
    match push.forget(&target, only_lost).await {
        Ok(forgotten) => {
            info!(%target, only_lost, forgotten, "forgot what waited for a push target");
            done(&json!({"forgotten": forgotten}))
        }
        Err(error) => {
            warn!(%target, error = &error as &dyn Error, "cannot forget a push target");
            failed("the store cannot be changed now, its log says why")
        }
    }
}

async fn reload_keys(admin: &Arc<Admin>) -> Reply {
    let asked = Arc::clone(admin);
    let read = tokio::task::spawn_blocking(move || (asked.reload_keys)()).await;
    match read.unwrap_or_else(|_| Err("the keys could not be read".to_owned())) {
        Ok(keys) => {
            let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
            info!(key = keys.first().map(String::as_str), "read the keys of this cache again");
            done(&json!({"public_keys": keys}))
        }
        Err(sentence) => {
            warn!(error = sentence, "the keys of this cache stay as they were");
            failed(&sentence)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_one_that_answers_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/admin.sock");
        let first = AdminSocket::bind(path.clone()).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        let second = AdminSocket::bind(path.clone());
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // What a killed server leaves: a name whose socket is closed.
        let other = folder.path().join("other.sock");
        drop(std::os::unix::net::UnixListener::bind(&other).unwrap());
        let taken = AdminSocket::bind(other.clone()).unwrap();
        assert!(std::os::unix::net::UnixStream::connect(&other).is_ok());
        drop((first, taken));
        assert!(!path.exists() && !other.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone_and_so_is_the_next_servers_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        std::fs::write(&path, "mine").unwrap();
        assert!(AdminSocket::bind(path.clone()).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        std::fs::remove_file(&path).unwrap();
        let first = AdminSocket::bind(path.clone()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let next = AdminSocket::bind(path.clone()).unwrap();
        drop(first);
        assert!(path.exists());
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn the_queue_is_told_by_names_that_scripts_rely_on() {
        let target = TargetStatus {
            target: "s3://nix-cache?endpoint=minio.lan".into(),
            state: TargetState::Stopped,
            waiting: 3,
            waiting_bytes: 4096,
            oldest_s: Some(60),
            parked: 1,
            lost: 0,
            pushed: 9,
            pushed_bytes: 1,
            sending: vec!["a.narinfo".into()],
            last_error: Some("refused".into()),
            retry_in_s: None,
            differs: vec!["b".into()],
        };
        let wanted = json!({"targets": [{
            "target": "s3://nix-cache?endpoint=minio.lan", "state": "stopped", "waiting": 3,
            "waiting_bytes": 4096, "oldest_s": 60, "parked": 1, "lost": 0, "pushed": 9,
            "pushed_bytes": 1, "sending": ["a.narinfo"], "last_error": "refused",
            "retry_in_s": null, "differs": ["b"],
        }]});
        assert_eq!(queue(&[target]), wanted);
    }
}
