//! Taps that a client opens and hands over.
#![expect(unsafe_code, reason = "the ioctl that makes a tap")]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

// <linux/if_tun.h>
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// `struct ifreq` of `<net/if.h>`, with the member that this ioctl reads.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Opens a new tap of one queue, as container run times do. It goes with its last descriptor. None on a host that says
/// that it has none (`CUMULET_WITHOUT_TAP=1`); the test then has to return.
///
/// # Panics
///
/// If none can be made on a host that does not say so.
#[must_use]
#[expect(clippy::print_stdout, reason = "the test report counts this line")]
pub fn open() -> Option<OwnedFd> {
    if std::env::var_os("CUMULET_WITHOUT_TAP").is_some_and(|value| value == "1") {
        println!("SKIPPED: CUMULET_WITHOUT_TAP is set");
        return None;
    }
    Some(make().unwrap_or_else(|error| panic!("no tap can be made: {error}")))
}

fn make() -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request =
        Request { name: *b"cmlclient%d\0\0\0\0\0", flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    // SAFETY: the kernel reads and writes one ifreq at the pointer, which is to one of that layout that lives until
    // the call returns.
    match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } {
        0 => Ok(file.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
