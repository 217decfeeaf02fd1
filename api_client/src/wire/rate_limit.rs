//! Limits of throughput. Unlike everywhere else, an unknown key is an error here, and what is absent
//! prints as `null`.

use serde::{Deserialize, Serialize};

/// Limits of a device or group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Limit in bytes.
    #[serde(default)]
    pub bandwidth: Option<TokenBucket>,
    /// Limit in operations.
    #[serde(default)]
    pub ops: Option<TokenBucket>,
}

/// A bucket of tokens that are spent on work and come back with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// How many it holds.
    pub size: u64,
    /// How many come on top, once.
    #[serde(default)]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket is full again.
    pub refill_time: u64,
}

/// Limits that several disks share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimitGroupConfig {
    /// Id, unique over all devices, rate limit groups and memory zones; not empty.
    #[serde(default)]
    pub id: String,
    /// The limits: one bucket at least.
    pub rate_limiter_config: RateLimiterConfig,
}
