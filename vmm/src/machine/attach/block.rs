//! Virtio block device: opens the image, finds out what it is, and locks it.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::Instant,
};

use devices::SharedDevice;
use virtio_devices::{
    block::{self, Block},
    host::{
        disk::{
            lock::Granularity,
            probe::{self, ImageFormat},
            raw::{RawImage, RawOptions},
        },
        rate_limiter::RateLimiter,
    },
    worker::PlainThreads,
};

use super::{AttachError, Context, bucket, virtio};
use crate::{
    config::{BlockConfig, ImageType, LockGranularity, RateLimit},
    layout::DeviceLayout,
};

/// Opens the image and builds the device.
///
/// # Errors
/// The image cannot be opened, is of a format that this version does not read, or is in use.
pub fn attach(
    config: &BlockConfig,
    layout: &DeviceLayout,
    context: &Context<'_>,
) -> Result<SharedDevice, AttachError> {
    if config.rate_limit_group.is_some() {
        return Err(AttachError::Unavailable { what: "rate limit groups" });
    }
    let path = &config.path;
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
    let image = RawImage::new(file, options)
        .map_err(|source| AttachError::Image { path: path.clone(), source: Box::new(source) })?;
    let parts = block::BlockConfig {
        id: config.id.clone(),
        read_only: config.readonly,
        // A guest could make an image whose format was guessed look like another one.
        protect_first_sector: config.image_type == ImageType::Probe,
        serial: config.serial.clone().unwrap_or_else(|| config.id.clone()),
        queues: config.num_queues,
        queue_size: config.queue_size,
        limiter: config.rate_limit.map(limiter),
        affinity: config.queue_affinity.iter().cloned().collect(),
    };
    let device = Block::new(parts, Arc::new(image), Arc::new(PlainThreads));
    log::info!("{}: {} through {}", config.id, path.display(), device.engine());
    virtio::function(Box::new(device), layout, context).map_err(AttachError::Function)
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

fn limiter(limit: RateLimit) -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(limit.bandwidth.map(bucket), limit.ops.map(bucket), Instant::now()))
}
