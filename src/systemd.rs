//! What systemd hands to a service and wants to hear from it: sockets, readiness, signs of life.
//! Without systemd every call is a quiet no.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tracing::warn;

/// The TCP listeners that were handed over, none without socket activation. Takes the variables
/// that name them out of the environment, so it must be called before threads run.
pub fn inherited_sockets() -> io::Result<Vec<TcpListener>> {
    Ok(inherited_by_name()?.into_iter().map(|(_, socket)| socket).collect())
}

/// The same, each with the name that its unit gives it (`FileDescriptorName=`), empty without one.
pub fn inherited_by_name() -> io::Result<Vec<(String, TcpListener)>> {
    // Before `from_env`, which takes them out.
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut handed = ListenFd::from_env();
    let mut names = names.split(':');
    let mut sockets = Vec::new();
    for index in 0..handed.len() {
        let name = names.next().unwrap_or_default().to_owned();
        // A descriptor that is no TCP listener is an error of the unit and refused here.
        sockets.extend(handed.take_tcp_listener(index)?.map(|socket| (name, socket)));
    }
    Ok(sockets)
}

/// The service answers.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// The service ends.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// The service lives: to be told again within [`watchdog_interval`].
pub fn alive() {
    tell(NotifyState::Watchdog);
}

/// After how long without [`alive`] the service is started again (`WatchdogSec=`). `None` when
/// nobody watches.
pub fn watchdog_allowed() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|allowed| !allowed.is_zero())
}

/// How often [`alive`] is wanted: half of that, as `sd_watchdog_enabled(3)` advises.
pub fn watchdog_interval() -> Option<Duration> {
    watchdog_allowed().map(|allowed| allowed / 2).filter(|half| !half.is_zero())
}

/// A supervisor that does not listen must not end the service.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(error = &error as &dyn std::error::Error, "cannot tell systemd");
    }
}
