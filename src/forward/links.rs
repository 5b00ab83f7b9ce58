//! Hears from the kernel that an address, a link or a route of this machine is another. Nothing is
//! looked at while nothing changes.

use std::io;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::UnixDatagram;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` of rtnetlink(7): links that come and
/// go, and addresses. Routes follow them.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// Changes come in bursts: a Wi-Fi that joins a network makes a dozen within this time.
const BURST: Duration = Duration::from_millis(200);

/// A message is not read, only thrown away: its beginning is enough.
const MESSAGE_LEN: usize = 64;

/// `ENOBUFS`: there were more changes than the kernel keeps for us.
const OVERRUN: i32 = rustix::io::Errno::NOBUFS.raw_os_error();

/// A socket that becomes readable when something changes. It is one of datagrams, and only ever
/// received from, which is the same call for every family.
pub(super) struct Links(UnixDatagram);

impl Links {
    /// Fails where the sandbox of the service allows no `AF_NETLINK`.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self(UnixDatagram::from_std(StdDatagram::from(socket))?))
    }

    /// Waits for a change and for the end of its burst.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        self.0.readable().await?;
        tokio::time::sleep(BURST).await;
        let mut message = [0; MESSAGE_LEN];
        loop {
            match self.0.try_recv(&mut message) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(OVERRUN) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
