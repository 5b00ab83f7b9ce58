//! The sockets of a cache: those that were handed over, and those that are bound here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use tokio::net::TcpListener;

use crate::config;

/// The sockets that were handed over and the configured addresses; the default one when there is
/// neither. An address that was handed over is not bound again.
pub(super) async fn listen(
    configured: Option<&[SocketAddr]>,
    handed: Vec<std::net::TcpListener>,
) -> anyhow::Result<(Vec<TcpListener>, Vec<SocketAddr>)> {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for socket in handed {
        socket.set_nonblocking(true).context("take over an inherited socket")?;
        let listener = TcpListener::from_std(socket).context("take over an inherited socket")?;
        addresses.push(listener.local_addr().context("name an inherited socket")?);
        listeners.push(listener);
    }
    let default = [config::DEFAULT_LISTEN.parse().expect("a constant that is an address")];
    let wanted = match configured {
        Some(configured) => configured,
        None if listeners.is_empty() => default.as_slice(),
        None => &[],
    };
    for address in wanted {
        if address.port() != 0 && addresses.contains(address) {
            continue;
        }
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "listen on {address} (is another server there? choose one: \
                 --set 'listen=[\"127.0.0.1:8501\"]')"
            )
        })?;
        addresses.push(listener.local_addr().context("name a socket")?);
        listeners.push(listener);
    }
    Ok((listeners, addresses))
}

/// Where a socket that listens there is asked from this machine: one of all addresses on loopback.
pub fn near(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    let ip: IpAddr =
        if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(ip, address.port())
}
