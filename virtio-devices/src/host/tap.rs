//! Tap interfaces (Linux `Documentation/networking/tuntap.rst`): made or opened by name, or taken over as
//! descriptors; and the addresses of their host end, which can be put back as they were.
#![expect(unsafe_code, reason = "ioctls of tap devices and network interfaces")]

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::Arc,
};

use rustix::{io::Errno, thread::CapabilitySet};
use thiserror::Error;

use crate::net::NetBackend;

/// Length in bytes of the header before each frame (virtio 1.3 section 5.1.6): that of version 1.
pub const HEADER: usize = 12;

const TUN: &str = "/dev/net/tun";
/// Name of taps that are not named: the kernel puts a number in.
const ANY_NAME: &str = "vmtap%d";

// <linux/if_tun.h>
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const IFF_TAP: u16 = 0x0002;
const IFF_NAPI: u16 = 0x0010;
const IFF_NAPI_FRAGS: u16 = 0x0020;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_UFO: libc::c_ulong = 0x10;

/// A tap cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// The name is empty, too long, or has characters that no interface name has.
    #[error("{name:?} is no name of a network interface")]
    Name {
        /// The name.
        name: String,
    },
    /// The kernel refuses.
    #[error("tap {name}: cannot {what}")]
    Host {
        /// The interface, or what was asked for.
        name: String,
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A descriptor is no tap, or one without what is needed.
    #[error("descriptor {fd} is no tap {lacks}")]
    Descriptor {
        /// The descriptor.
        fd: i32,
        /// What it lacks.
        lacks: &'static str,
    },
    /// The mask is none, or of another kind than the address.
    #[error("{mask} is no mask for {address}")]
    Mask {
        /// The address.
        address: IpAddr,
        /// The mask.
        mask: IpAddr,
    },
}

/// What the guest's end does by itself, so that the host need not: sent on unfinished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums.
    pub checksum: bool,
    /// Segmentation of TCP over IPv4.
    pub tso4: bool,
    /// Segmentation of TCP over IPv6.
    pub tso6: bool,
    /// Segmentation of TCP with ECN.
    pub ecn: bool,
    /// Fragmentation of UDP.
    pub ufo: bool,
}

/// The queues of one tap interface.
#[derive(Debug)]
pub struct Taps {
    name: String,
    multi_queue: bool,
    queues: Vec<Arc<File>>,
    /// Queues that the host sends frames to.
    enabled: parking_lot::Mutex<usize>,
}

impl Taps {
    /// Opens `queues` queues of the tap of that name, which is made if there is none; of a new one, if no
    /// name is given.
    ///
    /// # Errors
    /// The name is none, or the kernel refuses: no right, in use, not a tap, not for several queues.
    pub fn open(name: Option<&str>, queues: u16) -> Result<Self, TapError> {
        let mut wanted = name.unwrap_or(ANY_NAME).to_owned();
        let multi_queue = queues > 1;
        let mut flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if multi_queue {
            flags |= IFF_MULTI_QUEUE;
        }
        let mut opened = Vec::new();
        for _ in 0..queues.max(1) {
            let file = open_device(&wanted)?;
            wanted = attach(&file, &wanted, flags)?;
            set_header(&file).map_err(refused(&wanted, "set the size of its header"))?;
            opened.push(Arc::new(file));
        }
        let enabled = parking_lot::Mutex::new(opened.len());
        Ok(Self { name: wanted, multi_queue, queues: opened, enabled })
    }

    /// Takes over opened queues of one tap.
    ///
    /// # Errors
    /// One of them is no tap, or has no virtio header.
    pub fn from_descriptors(descriptors: Vec<OwnedFd>) -> Result<Self, TapError> {
        let mut name = String::new();
        let mut multi_queue = false;
        let mut queues = Vec::new();
        for descriptor in descriptors {
            let request = recognise(&descriptor)?;
            let file = File::from(descriptor);
            multi_queue = request.flags() & IFF_MULTI_QUEUE != 0;
            name = request.name();
            set_header(&file).map_err(refused(&name, "set the size of its header"))?;
            rustix::io::ioctl_fionbio(&file, true)
                .map_err(|error| refused(&name, "make it non-blocking")(error.into()))?;
            queues.push(Arc::new(file));
        }
        let enabled = parking_lot::Mutex::new(queues.len());
        Ok(Self { name, multi_queue, queues, enabled })
    }

    /// Whether `queues` queues of the tap of that name could be [opened](Self::open), or one made if there is none. None
    /// is made, and one that is there stays as it is: where only attaching to it shows whether somebody uses it, that is
    /// done and undone at once. A tap for several queues can be attached to beside others, who would lose frames by an
    /// attempt: there is none.
    ///
    /// # Errors
    /// Those that `open` would have, as far as they show so.
    pub fn check(name: Option<&str>, queues: u16) -> Result<(), TapError> {
        let wanted = name.unwrap_or(ANY_NAME);
        let file = open_device(wanted)?;
        let cannot_attach = |errno: Errno| refused(wanted, "attach to it")(errno.into());
        Request::named(wanted)?;
        if !Interface::named(wanted).is_there() {
            return if may_make() { Ok(()) } else { Err(cannot_attach(Errno::PERM)) };
        }
        let Some(flags) = flags_of(wanted).map_err(cannot_attach)? else { return Ok(()) };
        let multi_queue = flags & IFF_MULTI_QUEUE != 0;
        if flags & IFF_TAP == 0 || multi_queue != (queues > 1) {
            return Err(cannot_attach(Errno::INVAL));
        }
        if multi_queue {
            return Ok(());
        }
        // With the flags that it has: those of the last who attached are a persistent tap's from then on.
        attach(&file, wanted, flags & (IFF_TAP | IFF_NAPI | IFF_NAPI_FRAGS | IFF_NO_PI | IFF_VNET_HDR))
            .map(drop)
    }

    /// Whether opened queues could be [taken over](Self::from_descriptors). Nothing about them is changed.
    ///
    /// # Errors
    /// One of them could not.
    pub fn check_descriptors<D: AsFd>(descriptors: impl IntoIterator<Item = D>) -> Result<(), TapError> {
        descriptors.into_iter().try_for_each(|descriptor| recognise(&descriptor.as_fd()).map(drop))
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of queues.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }
}

/// An error that the kernel has answered with, about a tap.
fn refused(name: &str, what: &'static str) -> impl FnOnce(io::Error) -> TapError {
    let name = name.to_owned();
    move |source| TapError::Host { name, what, source }
}

/// Opens what a queue of a tap is attached to.
fn open_device(wanted: &str) -> Result<File, TapError> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    options.open(TUN).map_err(refused(wanted, "open /dev/net/tun"))
}

/// Makes an opened queue one of the tap of that name. Returns the name, which the kernel may have completed.
fn attach(file: &File, wanted: &str, flags: u16) -> Result<String, TapError> {
    let mut request = Request::named(wanted)?;
    request.set_flags(flags);
    request.control(file, TUNSETIFF).map_err(refused(wanted, "attach to it"))?;
    Ok(request.name())
}

/// The flags of a tap that is there, as the kernel shows them without attaching to it; none if it does not show
/// interfaces of this name space.
fn flags_of(name: &str) -> Result<Option<u16>, Errno> {
    let interface = format!("/sys/class/net/{name}");
    match std::fs::read_to_string(format!("{interface}/tun_flags")) {
        Ok(text) => {
            let digits = text.trim().trim_start_matches("0x");
            // Higher flags are the kernel's own.
            let all = u32::from_str_radix(digits, 16).map_err(|_| Errno::INVAL)?;
            Ok(Some(u16::try_from(all & 0xffff).unwrap_or_default()))
        }
        Err(_) if std::fs::metadata(&interface).is_ok() => Err(Errno::INVAL),
        Err(_) => Ok(None),
    }
}

/// Whether this process has what it takes to make a tap: without `CAP_NET_ADMIN` nobody has.
fn may_make() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// What the kernel says of a descriptor that is to be a queue of a tap, with the headers that are needed.
fn recognise(descriptor: &impl AsRawFd) -> Result<Request, TapError> {
    let lacks = |lacks| TapError::Descriptor { fd: descriptor.as_raw_fd(), lacks };
    let mut request = Request::empty();
    request.control(descriptor, TUNGETIFF).map_err(|_| lacks("at all"))?;
    let flags = request.flags();
    if flags & IFF_TAP == 0 {
        return Err(lacks("but a tun"));
    }
    if flags & IFF_VNET_HDR == 0 || flags & IFF_NO_PI == 0 {
        return Err(lacks("with a virtio header (IFF_VNET_HDR, IFF_NO_PI)"));
    }
    Ok(request)
}

fn set_header(file: &File) -> io::Result<()> {
    let size = libc::c_int::try_from(HEADER).unwrap_or(0);
    // SAFETY: the request reads an int.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl NetBackend for Taps {
    fn queue(&self, pair: u16) -> Option<&Arc<File>> {
        self.queues.get(usize::from(pair))
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let Offloads { checksum, tso4, tso6, ecn, ufo } = offloads;
        let bits = [
            (checksum, TUN_F_CSUM),
            (tso4, TUN_F_TSO4),
            (tso6, TUN_F_TSO6),
            (ecn, TUN_F_TSO_ECN),
            (ufo, TUN_F_UFO),
        ];
        let flags = bits.iter().filter(|(on, _)| *on).fold(0, |flags, (_, bit)| flags | bit);
        let Some(first) = self.queues.first() else { return Ok(()) };
        // SAFETY: the request takes its argument by value. It is for the interface, whatever the queue.
        let result = unsafe { libc::ioctl(first.as_raw_fd(), TUNSETOFFLOAD, flags) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn enable_queues(&self, pairs: u16) -> io::Result<()> {
        if !self.multi_queue {
            return Ok(());
        }
        let wanted = usize::from(pairs).min(self.queues.len());
        let mut enabled = self.enabled.lock();
        for (index, queue) in self.queues.iter().enumerate() {
            let (on, was) = (index < wanted, index < *enabled);
            if on != was {
                let mut request = Request::empty();
                request.set_flags(if on { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE });
                request.control(queue, TUNSETQUEUE)?;
            }
        }
        *enabled = wanted;
        Ok(())
    }
}

/// The host end of a network interface, by name.
#[derive(Clone, Debug)]
pub struct Interface {
    name: String,
}

/// What an address that an interface was given took the place of, for
/// [`put_address_back`](Interface::put_address_back).
#[derive(Debug)]
pub struct Replaced(Before);

#[derive(Debug)]
enum Before {
    /// That one was there.
    Same,
    /// This one, with its mask, or none.
    V4(Option<(Ipv4Addr, Ipv4Addr)>),
    /// Nothing: this one, with a prefix of that many bits, was added.
    V6(Ipv6Addr, u32),
}

impl Interface {
    /// The interface of that name.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.ask(libc::SIOCGIFINDEX, "ask for its index").is_ok()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets it carry frames. `false` if it did already.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_up(&self) -> Result<bool, TapError> {
        self.carry(true, "set it up")
    }

    /// Lets it carry frames no longer. `false` if it did not.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_down(&self) -> Result<bool, TapError> {
        self.carry(false, "set it down")
    }

    fn carry(&self, frames: bool, what: &'static str) -> Result<bool, TapError> {
        let mut request = self.ask(libc::SIOCGIFFLAGS, "ask for its state")?;
        let up = u16::try_from(libc::IFF_UP).unwrap_or(1);
        let changes = (request.flags() & up != 0) != frames;
        if changes {
            request.set_flags(request.flags() ^ up);
            self.change(request, libc::SIOCSIFFLAGS, what)?;
        }
        Ok(changes)
    }

    /// Its MAC address.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn mac(&self) -> Result<[u8; 6], TapError> {
        let request = self.ask(libc::SIOCGIFHWADDR, "ask for its MAC address")?;
        let mut mac = [0; 6];
        for (byte, value) in mac.iter_mut().zip(request.payload().iter().skip(2)) {
            *byte = *value;
        }
        Ok(mac)
    }

    /// Gives it a MAC address.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mac(&self, mac: [u8; 6]) -> Result<(), TapError> {
        let mut request = Request::named(&self.name)?;
        let (family, rest) = request.payload_mut().split_at_mut(2);
        family.copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        for (byte, value) in rest.iter_mut().zip(mac) {
            *byte = value;
        }
        self.change(request, libc::SIOCSIFHWADDR, "set its MAC address")
    }

    /// Its MTU in bytes.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn mtu(&self) -> Result<u32, TapError> {
        let request = self.ask(libc::SIOCGIFMTU, "ask for its MTU")?;
        let [a, b, c, d, ..] = *request.payload();
        Ok(u32::from_ne_bytes([a, b, c, d]))
    }

    /// Sets its MTU.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TapError> {
        let mut request = Request::named(&self.name)?;
        let (value, _) = request.payload_mut().split_at_mut(4);
        value.copy_from_slice(&u32::from(mtu).to_ne_bytes());
        self.change(request, libc::SIOCSIFMTU, "set its MTU")
    }

    /// Gives it an address: one of IPv6 beside those that it has, one of IPv4 in the place of its first. The kernel then
    /// drops others of IPv4 that depend on that one. An address that it has, its first or not, stays with all others.
    ///
    /// # Errors
    /// The mask is none, or the kernel refuses: it has the addresses that it had.
    pub fn set_address(&self, address: IpAddr, mask: IpAddr) -> Result<Replaced, TapError> {
        let wrong = || TapError::Mask { address, mask };
        match (address, mask) {
            (IpAddr::V4(address), IpAddr::V4(mask)) => {
                prefix(u128::from(u32::from(mask)) << 96, 32).ok_or_else(wrong)?;
                if self.v4_or_first(address)? == Some((address, mask)) {
                    return Ok(Replaced(Before::Same));
                }
                let replaced = Replaced(Before::V4(self.v4()?));
                match self.place_v4(address, mask) {
                    Ok(()) => Ok(replaced),
                    Err(error) => {
                        // Of the two errors, the first is the one to be told.
                        let _ = self.put_address_back(replaced);
                        Err(error)
                    }
                }
            }
            (IpAddr::V6(address), IpAddr::V6(mask)) => {
                let length = prefix(u128::from(mask), 128).ok_or_else(wrong)?;
                let added = self.change_v6(address, length, libc::SIOCSIFADDR, "set its address")?;
                Ok(Replaced(if added { Before::V6(address, length) } else { Before::Same }))
            }
            _ => Err(wrong()),
        }
    }

    /// Takes back what [`set_address`](Self::set_address) has done.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn put_address_back(&self, replaced: Replaced) -> Result<(), TapError> {
        match replaced.0 {
            Before::Same => Ok(()),
            Before::V4(Some((address, mask))) => self.place_v4(address, mask),
            // Of all addresses the kernel takes this one to mean none.
            Before::V4(None) => {
                self.set_v4(Ipv4Addr::UNSPECIFIED, libc::SIOCSIFADDR, "take its address away")
            }
            Before::V6(address, length) => {
                self.change_v6(address, length, libc::SIOCDIFADDR, "take its address away").map(drop)
            }
        }
    }

    /// Its first IPv4 address, and the mask of that.
    fn v4(&self) -> Result<Option<(Ipv4Addr, Ipv4Addr)>, TapError> {
        self.v4_or_first(Ipv4Addr::UNSPECIFIED)
    }

    /// This IPv4 address if it has it, and else its first; and the mask of that. An address in the request is what the
    /// kernel looks for before it takes the first.
    fn v4_or_first(&self, wanted: Ipv4Addr) -> Result<Option<(Ipv4Addr, Ipv4Addr)>, TapError> {
        let ask = |command, what| match self.exchange_v4(wanted, command, what) {
            Ok(request) => {
                // A sockaddr_in: family, port, address.
                let [_, _, _, _, a, b, c, d, ..] = *request.payload();
                Ok(Some(Ipv4Addr::new(a, b, c, d)))
            }
            Err(TapError::Host { source, .. }) if source.kind() == io::ErrorKind::AddrNotAvailable => {
                Ok(None)
            }
            Err(error) => Err(error),
        };
        let address = ask(libc::SIOCGIFADDR, "ask for its address")?;
        Ok(address.zip(ask(libc::SIOCGIFNETMASK, "ask for its mask")?))
    }

    fn place_v4(&self, address: Ipv4Addr, mask: Ipv4Addr) -> Result<(), TapError> {
        self.set_v4(address, libc::SIOCSIFADDR, "set its address")?;
        self.set_v4(mask, libc::SIOCSIFNETMASK, "set its mask")
    }

    fn set_v4(&self, address: Ipv4Addr, command: libc::c_ulong, what: &'static str) -> Result<(), TapError> {
        self.exchange_v4(address, command, what).map(drop)
    }

    /// Makes a request with an IPv4 address. Returns what the kernel has made of it.
    fn exchange_v4(
        &self,
        address: Ipv4Addr,
        command: libc::c_ulong,
        what: &'static str,
    ) -> Result<Request, TapError> {
        let mut request = Request::named(&self.name)?;
        // A sockaddr_in: family, port, address.
        let family = u16::try_from(libc::AF_INET).unwrap_or(0).to_ne_bytes();
        let bytes = family.into_iter().chain([0, 0]).chain(address.octets());
        for (old, new) in request.payload_mut().iter_mut().zip(bytes) {
            *old = new;
        }
        let socket = socket(libc::AF_INET).map_err(|source| self.error(what, source))?;
        request.control(&socket, command).map_err(|source| self.error(what, source))?;
        Ok(request)
    }

    /// Adds or removes an IPv6 address. `false` if it was there, or gone, already.
    fn change_v6(
        &self,
        address: Ipv6Addr,
        prefix_length: u32,
        command: libc::c_ulong,
        what: &'static str,
    ) -> Result<bool, TapError> {
        let index = self.ask(libc::SIOCGIFINDEX, "ask for its index")?;
        let [a, b, c, d, ..] = *index.payload();
        // <linux/ipv6.h>, in6_ifreq.
        #[repr(C)]
        struct In6IfReq {
            address: [u8; 16],
            prefix_length: u32,
            index: i32,
        }
        let index = i32::from_ne_bytes([a, b, c, d]);
        let request = In6IfReq { address: address.octets(), prefix_length, index };
        let socket = socket(libc::AF_INET6).map_err(|source| self.error(what, source))?;
        // SAFETY: on a socket of this family the request reads an in6_ifreq.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), command, &raw const request) };
        if result == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::AddrNotAvailable => Ok(false),
            _ => Err(self.error(what, error)),
        }
    }

    fn ask(&self, command: libc::c_ulong, what: &'static str) -> Result<Request, TapError> {
        let mut request = Request::named(&self.name)?;
        let socket = socket(libc::AF_INET).map_err(|source| self.error(what, source))?;
        request.control(&socket, command).map_err(|source| self.error(what, source))?;
        Ok(request)
    }

    fn change(
        &self,
        mut request: Request,
        command: libc::c_ulong,
        what: &'static str,
    ) -> Result<(), TapError> {
        let socket = socket(libc::AF_INET).map_err(|source| self.error(what, source))?;
        request.control(&socket, command).map_err(|source| self.error(what, source))
    }

    fn error(&self, what: &'static str, source: io::Error) -> TapError {
        TapError::Host { name: self.name.clone(), what, source }
    }
}

/// Number of leading ones, if only zeros follow; the mask is in the high bits of a number of `bits` bits.
fn prefix(mask: u128, bits: u32) -> Option<u32> {
    let length = mask.leading_ones();
    (mask.checked_shl(length).unwrap_or(0) == 0 && length <= bits).then_some(length)
}

fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A struct ifreq: a name and 24 bytes whose meaning depends on the request.
#[repr(C, align(8))]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    payload: [u8; 24],
}

impl Request {
    fn empty() -> Self {
        Self { name: [0; libc::IFNAMSIZ], payload: [0; 24] }
    }

    fn named(name: &str) -> Result<Self, TapError> {
        let fits = !name.is_empty()
            && name.len() < libc::IFNAMSIZ
            && name != "."
            && name != ".."
            && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':'));
        if !fits {
            return Err(TapError::Name { name: name.to_owned() });
        }
        let mut request = Self::empty();
        for (old, new) in request.name.iter_mut().zip(name.bytes()) {
            *old = new;
        }
        Ok(request)
    }

    fn name(&self) -> String {
        let bytes = self.name.iter().take_while(|byte| **byte != 0).copied().collect();
        String::from_utf8(bytes).unwrap_or_default()
    }

    fn flags(&self) -> u16 {
        let [a, b, ..] = self.payload;
        u16::from_ne_bytes([a, b])
    }

    fn set_flags(&mut self, flags: u16) {
        let (value, _) = self.payload.split_at_mut(2);
        value.copy_from_slice(&flags.to_ne_bytes());
    }

    fn payload(&self) -> &[u8; 24] {
        &self.payload
    }

    fn payload_mut(&mut self) -> &mut [u8; 24] {
        &mut self.payload
    }

    fn control(&mut self, fd: &impl AsRawFd, command: libc::c_ulong) -> io::Result<()> {
        // SAFETY: every request that is passed here reads or writes a struct ifreq, which this is.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), command, std::ptr::from_mut(self)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

#[cfg(test)]
mod tests;
