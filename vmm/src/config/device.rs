//! The devices a configuration can name. One enum lists the kinds; `machine::attach` is the only
//! other place that does.

use std::{net::IpAddr, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

/// Kinds of PCI devices, as the layout names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// Virtio console.
    Console,
    /// Virtio block device.
    Block,
    /// Virtio network device.
    Net,
    /// Virtio entropy source.
    Rng,
    /// Virtio persistent memory.
    Pmem,
    /// Virtio socket device.
    Vsock,
}

/// Where a device shall be in PCI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciPlace {
    /// Segment, below the number of segments.
    pub segment: u16,
    /// Slot, 0 to 31; the next free one if not given.
    pub slot: Option<u8>,
}

/// One PCI device.
#[derive(Clone, Debug)]
pub enum DeviceConfig {
    /// Virtio console.
    Console(ConsoleConfig),
    /// Virtio block device.
    Block(BlockConfig),
    /// Virtio network device.
    Net(NetConfig),
    /// Virtio entropy source.
    Rng(RngConfig),
    /// Virtio persistent memory.
    Pmem(PmemConfig),
    /// Virtio socket device.
    Vsock(VsockConfig),
}

impl DeviceConfig {
    /// Its id, unique in the machine.
    pub fn id(&self) -> &str {
        match self {
            Self::Console(config) => &config.id,
            Self::Block(config) => &config.id,
            Self::Net(config) => &config.id,
            Self::Rng(config) => &config.id,
            Self::Pmem(config) => &config.id,
            Self::Vsock(config) => &config.id,
        }
    }

    /// Its kind.
    pub fn kind(&self) -> DeviceKind {
        match self {
            Self::Console(_) => DeviceKind::Console,
            Self::Block(_) => DeviceKind::Block,
            Self::Net(_) => DeviceKind::Net,
            Self::Rng(_) => DeviceKind::Rng,
            Self::Pmem(_) => DeviceKind::Pmem,
            Self::Vsock(_) => DeviceKind::Vsock,
        }
    }

    /// Where it shall be.
    pub fn place(&self) -> &PciPlace {
        match self {
            Self::Console(config) => &config.place,
            Self::Block(config) => &config.place,
            Self::Net(config) => &config.place,
            Self::Rng(config) => &config.place,
            Self::Pmem(config) => &config.place,
            Self::Vsock(config) => &config.place,
        }
    }

    /// Greatest size of each of its virtqueues.
    pub fn queue_sizes(&self) -> Vec<u16> {
        match self {
            Self::Console(_) => vec![256; 2],
            Self::Block(config) => vec![config.queue_size; usize::from(config.num_queues)],
            // A receive and a transmit queue a pair, and the control queue.
            Self::Net(config) => vec![config.queue_size; 2 * usize::from(config.queue_pairs) + 1],
            Self::Rng(_) | Self::Pmem(_) => vec![256],
            Self::Vsock(_) => vec![256; 3],
        }
    }
}

/// Where a console's output goes and its input comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsoleTarget {
    /// There is no device.
    Off,
    /// Output is dropped.
    #[default]
    Null,
    /// Standard output and input.
    Tty,
    /// A new pseudo-terminal.
    Pty,
    /// A file, created or truncated.
    File(PathBuf),
    /// A socket that is listened on, one client at a time.
    Socket(PathBuf),
}

/// Virtio console.
#[derive(Clone, Debug)]
pub struct ConsoleConfig {
    /// Id.
    pub id: String,
    /// Where it shall be.
    pub place: PciPlace,
    /// Its other end.
    pub target: ConsoleTarget,
}

/// Virtio entropy source.
#[derive(Clone, Debug)]
pub struct RngConfig {
    /// Id.
    pub id: String,
    /// Where it shall be.
    pub place: PciPlace,
    /// Where entropy is read from.
    pub source: PathBuf,
}

/// What the size of persistent memory, and its place in the guest, are multiples of, in bytes: guests map it by huge pages.
pub const PMEM_ALIGNMENT: u64 = 2 << 20;

/// Virtio persistent memory.
#[derive(Clone, Debug)]
pub struct PmemConfig {
    /// Id.
    pub id: String,
    /// Where it shall be.
    pub place: PciPlace,
    /// The file that is shown; or a directory, for a file without a name.
    pub file: PathBuf,
    /// Bytes of it that are shown, a multiple of [`PMEM_ALIGNMENT`] above 0; all of the file if not given.
    pub size: Option<u64>,
    /// What the guest writes is gone at the end, and the file stays as it is.
    pub discard_writes: bool,
}

/// Virtio socket device.
#[derive(Clone, Debug)]
pub struct VsockConfig {
    /// Id.
    pub id: String,
    /// Where it shall be.
    pub place: PciPlace,
    /// The guest's context id; not 0, 1, 2 or 0xffffffff.
    pub cid: u32,
    /// The socket that programs of the host connect to. Those that listen have sockets of the same name with `_PORT`
    /// after it.
    pub socket: PathBuf,
}

/// A token bucket: `size` units, refilled evenly within `refill_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketConfig {
    /// Capacity in bytes or operations.
    pub size: u64,
    /// Extra units at the start.
    pub one_time_burst: u64,
    /// Time to refill, in milliseconds.
    pub refill_ms: u64,
}

/// Limits of a device's throughput.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes.
    pub bandwidth: Option<BucketConfig>,
    /// Operations.
    pub ops: Option<BucketConfig>,
}

/// Format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageType {
    /// Found out by looking at it.
    Probe,
    /// Sectors as they are.
    Raw,
}

/// How much of an image is locked against other users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockGranularity {
    /// One byte range.
    #[default]
    ByteRange,
    /// The whole file.
    Full,
}

/// Virtio block device.
#[derive(Clone, Debug)]
pub struct BlockConfig {
    /// Id.
    pub id: String,
    /// Where it shall be.
    pub place: PciPlace,
    /// The image.
    pub path: PathBuf,
    /// The guest cannot write.
    pub readonly: bool,
    /// The host's page cache is not used.
    pub direct: bool,
    /// Number of queues, at least 1.
    pub num_queues: u16,
    /// Size of each queue: a power of two, above 2, up to 32768.
    pub queue_size: u16,
    /// Serial number, at most 20 bytes.
    pub serial: Option<String>,
    /// Limits of its own.
    pub rate_limit: Option<RateLimit>,
    /// The group whose limits it shares.
    pub rate_limit_group: Option<String>,
    /// Discarded ranges become holes.
    pub sparse: bool,
    /// Format of the image.
    pub image_type: ImageType,
    /// How the image is locked.
    pub lock: LockGranularity,
    /// Host CPUs for each queue that is named.
    pub queue_affinity: Vec<(u16, Vec<usize>)>,
    /// The packed ring format is offered.
    pub packed: bool,
    /// io_uring must not be used.
    pub disable_io_uring: bool,
    /// Linux AIO must not be used.
    pub disable_aio: bool,
}

/// Virtio network device.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Id.
    pub id: String,
    /// Where it shall be.
    pub place: PciPlace,
    /// Name of the tap to open or create; a free one if neither this nor descriptors are given.
    pub tap: Option<String>,
    /// Opened taps, one a queue pair.
    pub fds: Vec<Arc<OwnedFd>>,
    /// Address and mask for the host's end.
    pub address: Option<(IpAddr, IpAddr)>,
    /// The guest's MAC address; a random one if not given.
    pub mac: Option<[u8; 6]>,
    /// The host end's MAC address.
    pub host_mac: Option<[u8; 6]>,
    /// MTU of both ends, in bytes; 1280 at least.
    pub mtu: Option<u16>,
    /// Number of queue pairs, 1 to 16.
    pub queue_pairs: u16,
    /// Size of each queue: a power of two.
    pub queue_size: u16,
    /// Limits, for each direction.
    pub rate_limit: Option<RateLimit>,
    /// TCP segmentation offload.
    pub offload_tso: bool,
    /// UDP fragmentation offload.
    pub offload_ufo: bool,
    /// Checksum offload.
    pub offload_csum: bool,
    /// The packed ring format is offered.
    pub packed: bool,
}
