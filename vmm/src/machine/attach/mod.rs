//! From a device's configuration to the device: opens files, taps and sockets, and calls one
//! constructor. This is the only place that matches over all kinds of devices. It knows no address:
//! the layout has them.

pub mod block;
pub mod console;
pub mod net;
pub mod pmem;
pub mod probe;
mod rng;
pub mod terminal;
mod virtio;
mod vsock;
mod window;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use address_manager::AddressManager;
use devices::SharedDevice;
use thiserror::Error;
use virtio_devices::{
    block::BlockState,
    host::{
        lock::LockError,
        rate_limiter::{self, RateLimiter},
        tap::TapError,
    },
    pmem::PmemState,
};
use vm_migration::Section;

use super::{BuildError, consoles::Consoles, persistent::Persistent, sections, sinks::Interrupts};
use crate::{
    config::{BucketConfig, DeviceConfig, DeviceKind, RateLimit, RateLimitGroup},
    events::Events,
    host::NoCpu,
    layout::DeviceLayout,
};

/// What a device needs could not be had.
#[derive(Debug, Error)]
pub enum AttachError {
    /// A file cannot be opened or made.
    #[error("cannot open {}", .path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Standard input or output cannot be used.
    #[error("cannot use {what}")]
    Standard {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image is of a format that this version does not read.
    #[error("{} is a {format} image: raw is what this version reads", .path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What it is.
        format: String,
    },
    /// The image cannot be used.
    #[error("cannot use {}", .path.display())]
    Image {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The image is somebody else's, or its lock cannot be had.
    #[error("cannot lock {}", .path.display())]
    Locked {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: LockError,
    },
    /// A queue's thread cannot run where it shall.
    #[error("queue {queue}: affinity")]
    Affinity {
        /// Which queue.
        queue: u16,
        /// Which host CPU is the cause.
        #[source]
        source: NoCpu,
    },
    /// No limits have that name.
    #[error("there is no rate limit group {0}")]
    NoGroup(String),
    /// The tap cannot be used.
    #[error("network")]
    Tap(#[source] TapError),
    /// The host has no descriptor or thread left for it.
    #[error("no resources of the host's are left for it")]
    Function(#[source] io::Error),
    /// This build cannot do that.
    #[error("this version has no support for {what}")]
    Unavailable {
        /// What was asked for.
        what: &'static str,
    },
    /// The configuration and the layout name different kinds.
    #[error("configured as {configured:?}, laid out as {laid_out:?}")]
    Kind {
        /// What the configuration says.
        configured: DeviceKind,
        /// What the layout says.
        laid_out: DeviceKind,
    },
}

/// What every device is built with.
#[derive(Debug)]
pub struct Context<'machine> {
    /// The owner of the wiring.
    pub manager: &'machine Arc<AddressManager>,
    /// Where interrupts go.
    pub interrupts: &'machine Arc<Interrupts>,
    /// Where the consoles' other ends are.
    pub consoles: &'machine Consoles,
    /// Who is told of a device's life.
    pub events: &'machine Events,
    /// Whether a doorbell may match a write of any width.
    pub doorbell_any_width: bool,
    /// Limits that disks share.
    pub limiters: &'machine RateLimiters,
    /// When images are locked.
    pub image_locks: ImageLocks,
    /// The memory that devices show, opened and mapped.
    pub persistent: &'machine Persistent,
}

/// When the images of disks and of persistent memory are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageLocks {
    /// As soon as they are open.
    Now,
    /// When the machine that has them until then has let go of them ([`lock_images`]).
    ///
    /// [`lock_images`]: super::Machine::lock_images
    Later,
}

/// The buckets of the rate limit groups, by their ids.
#[derive(Debug, Default)]
pub struct RateLimiters(BTreeMap<String, Arc<RateLimiter>>);

impl RateLimiters {
    /// Full buckets for every group.
    pub fn new(groups: &[RateLimitGroup]) -> Self {
        Self(groups.iter().map(|group| (group.id.clone(), limiter(group.limit))).collect())
    }

    fn get(&self, group: &str) -> Result<Arc<RateLimiter>, AttachError> {
        self.0.get(group).cloned().ok_or_else(|| AttachError::NoGroup(group.to_owned()))
    }
}

/// A device that has been built.
#[derive(Debug)]
pub struct Attached {
    /// The device.
    pub device: SharedDevice,
    /// What can be asked of it beyond what all devices can be asked.
    pub control: Control,
}

impl Attached {
    fn plain(device: SharedDevice) -> Self {
        Self { device, control: Control::None }
    }
}

/// What the machine can ask of a device of a certain kind while it runs.
#[derive(Clone, Debug)]
pub enum Control {
    /// Nothing.
    None,
    /// The lock of its image, its size.
    Disk(block::Disk),
    /// The size of its window.
    Window(console::Window),
    /// Its tap's host end.
    Tap(net::Tap),
    /// The lock of its file, and what of its memory is in no file.
    Pmem(pmem::Window),
}

impl Control {
    /// Makes sure that nobody else uses the image, if there is one, against our use of it. Does nothing if it is locked
    /// already.
    ///
    /// # Errors
    /// Somebody does.
    pub fn lock_image(&self) -> Result<(), AttachError> {
        match self {
            Self::Disk(disk) => disk.lock(),
            Self::Pmem(window) => window.lock(),
            Self::None | Self::Window(_) | Self::Tap(_) => Ok(()),
        }
    }

    /// Lets others use the image, for a machine that is handed over.
    ///
    /// # Errors
    /// The host refuses.
    pub fn unlock_image(&self) -> Result<(), AttachError> {
        match self {
            Self::Disk(disk) => disk.unlock(),
            Self::Pmem(window) => window.unlock(),
            Self::None | Self::Window(_) | Self::Tap(_) => Ok(()),
        }
    }
}

/// Opens what `config` needs and builds the device at the place that `layout` gives it.
///
/// # Errors
/// Something cannot be opened, or the constructor refuses it.
pub fn attach(
    config: &DeviceConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<Attached, AttachError> {
    if config.kind() != layout.kind {
        return Err(AttachError::Kind { configured: config.kind(), laid_out: layout.kind });
    }
    match config {
        DeviceConfig::Rng(config) => rng::attach(config, layout, context),
        DeviceConfig::Console(config) => console::attach(config, layout, context),
        DeviceConfig::Block(config) => block::attach(config, layout, context),
        DeviceConfig::Net(config) => net::attach(config, layout, context),
        DeviceConfig::Pmem(config) => pmem::attach(config, layout, context),
        DeviceConfig::Vsock(config) => vsock::attach(config, layout, context),
    }
}

/// Whether what `config` needs is there, is nobody else's, and is what the saved state of the device needs it to be, without
/// making or changing anything.
///
/// # Errors
/// Something is not there, may not be used, or is not what it was.
pub fn probe(config: &DeviceConfig, saved: &BTreeMap<String, Section>) -> Result<(), BuildError> {
    let id = config.id();
    let attach = |source| BuildError::Attach { id: id.to_owned(), source };
    match config {
        DeviceConfig::Rng(config) => probe::entropy(&config.source).map(drop).map_err(attach),
        DeviceConfig::Console(config) => probe::console(&config.target).map_err(attach),
        DeviceConfig::Block(config) => {
            let image = probe::image(config).map_err(attach)?;
            let state: BlockState = sections::device_state(saved, id)?;
            state.check(&image).map_err(|error| error.in_device(id))?;
            Ok(())
        }
        DeviceConfig::Net(config) => probe::net(config).map_err(attach),
        DeviceConfig::Pmem(config) => {
            let state: PmemState = sections::device_state(saved, id)?;
            pmem::probe(config, &state).map_err(attach)
        }
        DeviceConfig::Vsock(config) => probe::new_socket(&config.socket).map_err(attach),
    }
}

/// Devices whose image one before them would have locked against them, and what locking it says then. Which file a path
/// is the name of is looked up; nothing is opened or locked.
pub fn locked_twice(devices: &[DeviceConfig]) -> BTreeMap<&str, AttachError> {
    // By device and inode, as the kernel knows who has a lock: whether the first has it for itself alone.
    let mut locks: BTreeMap<(u64, u64), bool> = BTreeMap::new();
    let mut refused = BTreeMap::new();
    for device in devices {
        let (path, read_only) = match device {
            DeviceConfig::Block(config) => (&config.path, config.readonly),
            DeviceConfig::Pmem(config) => (&config.file, config.discard_writes),
            DeviceConfig::Rng(_)
            | DeviceConfig::Console(_)
            | DeviceConfig::Net(_)
            | DeviceConfig::Vsock(_) => continue,
        };
        // What cannot be found is told of by whoever opens it; a directory is the place of a file that nobody else can open.
        let Some(found) = path.metadata().ok().filter(|found| !found.is_dir()) else { continue };
        match locks.entry((found.dev(), found.ino())) {
            Entry::Vacant(entry) => {
                entry.insert(!read_only);
            }
            Entry::Occupied(entry) if *entry.get() || !read_only => {
                let source = LockError::Taken { pid: None, exclusive: *entry.get() };
                refused.insert(device.id(), AttachError::Locked { path: path.clone(), source });
            }
            Entry::Occupied(_) => {}
        }
    }
    refused
}

/// Full buckets of a device's own, or of a group's.
fn limiter(limit: RateLimit) -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(limit.bandwidth.map(bucket), limit.ops.map(bucket), Instant::now()))
}

/// A token bucket as the devices take it.
fn bucket(config: BucketConfig) -> rate_limiter::BucketConfig {
    let BucketConfig { size, one_time_burst, refill_ms } = config;
    rate_limiter::BucketConfig { size, one_time_burst, refill_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_one_bucket() {
        let ops = Some(BucketConfig { size: 2, one_time_burst: 0, refill_ms: 1_000_000 });
        let group = |id: &str| RateLimitGroup { id: id.into(), limit: RateLimit { bandwidth: None, ops } };
        let limiters = RateLimiters::new(&[group("a"), group("b")]);
        let (now, one, another) = (Instant::now(), limiters.get("a").unwrap(), limiters.get("a").unwrap());
        assert!(one.take(512, now).is_ok() && another.take(512, now).is_ok());
        assert!(one.take(512, now).is_err() && another.take(512, now).is_err());
        assert!(limiters.get("b").unwrap().take(512, now).is_ok());
        assert_eq!(limiters.get("c").unwrap_err().to_string(), "there is no rate limit group c");
    }
}
