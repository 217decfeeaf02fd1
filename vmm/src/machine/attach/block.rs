//! Virtio block device: opens the image, finds out what it is, and locks it.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use virtio_devices::{
    block::{self, Block, BlockControl},
    host::{
        disk::{
            probe::{self, ImageFormat},
            raw::{RawImage, RawOptions},
        },
        lock::Granularity,
    },
    worker::PlainThreads,
};

use super::{AttachError, Attached, Context, Control, ImageLocks, limiter, virtio};
use crate::{
    config::{BlockConfig, ImageType, LockGranularity},
    host::check_cpus,
    layout::DeviceLayout,
};

/// A disk of a machine: its image, and what can be asked of it.
#[derive(Clone, Debug)]
pub struct Disk {
    path: PathBuf,
    control: BlockControl,
}

impl Disk {
    /// Makes sure that nobody else uses the image against our use of it. Does nothing if it is locked already.
    ///
    /// # Errors
    /// Somebody does.
    pub fn lock(&self) -> Result<(), AttachError> {
        let image = self.control.image();
        image.lock().map_err(|source| AttachError::Locked { path: self.path.clone(), source })
    }

    /// Lets others use the image, for a machine that is handed over.
    ///
    /// # Errors
    /// The host refuses.
    pub fn unlock(&self) -> Result<(), AttachError> {
        let image = self.control.image();
        image.unlock().map_err(|source| AttachError::Locked { path: self.path.clone(), source })
    }

    /// What else can be asked of it.
    pub fn control(&self) -> &BlockControl {
        &self.control
    }
}

/// Opens the image and builds the device.
///
/// # Errors
/// The image cannot be opened, is of a format that this version does not read, or is in use.
pub fn attach(
    config: &BlockConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<Attached, AttachError> {
    let path = &config.path;
    let image = open_image(config)?;
    let parts = block::BlockConfig {
        id: config.id.clone(),
        read_only: config.readonly,
        // A guest could make an image whose format was guessed look like another one.
        protect_first_sector: config.image_type == ImageType::Probe,
        serial: config.serial.clone().unwrap_or_else(|| config.id.clone()),
        queues: config.num_queues,
        queue_size: config.queue_size,
        limiter: match &config.rate_limit_group {
            Some(group) => Some(context.limiters.get(group)?),
            None => config.rate_limit.map(limiter),
        },
        affinity: config.queue_affinity.iter().cloned().collect(),
    };
    let device = Block::new(parts, Arc::new(image), Arc::new(PlainThreads));
    log::info!("{}: {} through {}", config.id, path.display(), device.engine());
    let disk = Disk { path: path.clone(), control: device.control() };
    if context.image_locks == ImageLocks::Now {
        disk.lock()?;
    }
    let device =
        virtio::function(Box::new(device), layout, context, config.packed).map_err(AttachError::Function)?;
    Ok(Attached { device, control: Control::Disk(disk) })
}

/// Opens the image as it shall be used, once it is clear that the threads of the queues could run where they shall. It
/// is not locked, and nothing about it is changed.
///
/// # Errors
/// The image cannot be opened, or is of a format that this version does not read; or there is no such host CPU.
pub fn open_image(config: &BlockConfig) -> Result<RawImage, AttachError> {
    for (queue, cpus) in &config.queue_affinity {
        check_cpus(cpus).map_err(|source| AttachError::Affinity { queue: *queue, source })?;
    }
    let path = &config.path;
    super::probe::refuse_pipe(path)?;
    let format = find_format(path)?;
    match (config.image_type, format) {
        (ImageType::Raw, _) | (ImageType::Probe, ImageFormat::Raw) => {}
        (ImageType::Probe, other) => {
            return Err(AttachError::Format { path: path.clone(), format: other.to_string() });
        }
    }
    let file = open(path, config)?;
    let options = RawOptions {
        read_only: config.readonly,
        direct: config.direct,
        sparse: config.sparse,
        lock: match config.lock {
            LockGranularity::ByteRange => Granularity::ByteRange,
            LockGranularity::Full => Granularity::Full,
        },
        io_uring: !config.disable_io_uring,
        aio: !config.disable_aio,
    };
    RawImage::new(file, options)
        .map_err(|source| AttachError::Image { path: path.clone(), source: Box::new(source) })
}

fn find_format(path: &Path) -> Result<ImageFormat, AttachError> {
    let failed = |source| AttachError::Open { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    probe::probe(&file, size).map_err(failed)
}

fn open(path: &Path, config: &BlockConfig) -> Result<File, AttachError> {
    let mut options = OpenOptions::new();
    options.read(true).write(!config.readonly);
    if config.direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options.open(path).map_err(|source| AttachError::Open { path: path.to_path_buf(), source })
}
