//! Disks and the limits of throughput.

use api_client::wire;

use super::{place, wrong};
use crate::config::{
    BlockConfig, BucketConfig, ConfigError, ImageType, LockGranularity, RateLimit, RateLimitGroup,
};

pub(super) fn resolve(
    said: &wire::DiskConfig,
    groups: &[RateLimitGroup],
) -> Result<BlockConfig, ConfigError> {
    let id = said.id.clone().unwrap_or_default();
    let path = match (&said.path, &said.vhost_socket) {
        (Some(_), Some(_)) => return Err(wrong(&id, "path and vhost_socket exclude each other")),
        (None, Some(_)) if !said.vhost_user => return Err(wrong(&id, "vhost_socket needs vhost_user")),
        // What else is said of it is looked at as of any disk, before it is refused (`absent`).
        (None, Some(socket)) => socket.into(),
        (None, None) => return Err(wrong(&id, "a disk needs a path")),
        (Some(path), None) => path.clone(),
    };
    let rate_limit = said.rate_limiter_config.as_ref().and_then(rate_limit);
    if let Some(group) = &said.rate_limit_group {
        if said.rate_limiter_config.is_some() {
            return Err(wrong(&id, "rate_limit_group and a rate limiter of its own exclude each other"));
        }
        if !groups.iter().any(|known| known.id == *group) {
            return Err(wrong(&id, format!("rate_limit_group {group}: there is no such group")));
        }
    }
    let queue_affinity = said.queue_affinity.iter().flatten();
    let queue_affinity: Vec<(u16, Vec<usize>)> =
        queue_affinity.map(|entry| (entry.queue_index, entry.host_cpus.clone())).collect();
    for (queue, cpus) in &queue_affinity {
        if usize::from(*queue) >= said.num_queues {
            return Err(wrong(&id, format!("queue_affinity of queue {queue}, of {}", said.num_queues)));
        }
        if cpus.is_empty() {
            return Err(wrong(&id, format!("queue_affinity of queue {queue}: no host CPU is given")));
        }
    }
    Ok(BlockConfig {
        place: place(said),
        path,
        readonly: said.readonly,
        direct: said.direct,
        num_queues: queues(&id, said.num_queues)?,
        queue_size: said.queue_size,
        serial: said.serial.clone(),
        rate_limit,
        rate_limit_group: said.rate_limit_group.clone(),
        sparse: said.sparse,
        image_type: match said.image_type {
            wire::ImageType::Raw => ImageType::Raw,
            // Those that are not supported were refused.
            _ => ImageType::Probe,
        },
        lock: match said.lock_granularity {
            wire::LockGranularity::ByteRange => LockGranularity::ByteRange,
            wire::LockGranularity::Full => LockGranularity::Full,
        },
        queue_affinity,
        packed: said.packed,
        disable_io_uring: said.disable_io_uring,
        disable_aio: said.disable_aio,
        id,
    })
}

pub(super) fn queues(id: &str, said: usize) -> Result<u16, ConfigError> {
    u16::try_from(said).map_err(|_| wrong(id, format!("num_queues {said}: {} at most", u16::MAX)))
}

/// The limits that say something; `None` if none does.
pub(super) fn rate_limit(said: &wire::RateLimiterConfig) -> Option<RateLimit> {
    let bandwidth = said.bandwidth.as_ref().and_then(bucket);
    let ops = said.ops.as_ref().and_then(bucket);
    (bandwidth.is_some() || ops.is_some()).then_some(RateLimit { bandwidth, ops })
}

/// A bucket of nothing, or one that is full again at once, is no limit.
fn bucket(said: &wire::TokenBucket) -> Option<BucketConfig> {
    let wire::TokenBucket { size, one_time_burst, refill_time } = *said;
    let one_time_burst = one_time_burst.unwrap_or(0);
    (size != 0 && refill_time != 0).then_some(BucketConfig { size, one_time_burst, refill_ms: refill_time })
}

pub(super) fn groups(said: &[wire::RateLimitGroupConfig]) -> Result<Vec<RateLimitGroup>, ConfigError> {
    let groups = said.iter().map(|group| {
        let limit = rate_limit(&group.rate_limiter_config)
            .ok_or_else(|| wrong(&group.id, "a rate limit group needs a limit"))?;
        Ok(RateLimitGroup { id: group.id.clone(), limit })
    });
    groups.collect()
}
