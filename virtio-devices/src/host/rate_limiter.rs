//! Token buckets: how many bytes and operations may pass in a time.
//!
//! A bucket holds `size` tokens and fills up in `refill_ms`; a one-time burst is spent first. A request that
//! is larger than the bucket passes when the bucket is full and leaves it in debt, so the mean rate holds.
//! One limiter may be shared by several devices (a rate limit group). Time is an argument: nothing here
//! reads a clock.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The shape of one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketConfig {
    /// Tokens that it holds.
    pub size: u64,
    /// Extra tokens, once.
    pub one_time_burst: u64,
    /// Milliseconds in which it fills up.
    pub refill_ms: u64,
}

/// Limits of bytes and of operations.
#[derive(Debug)]
pub struct RateLimiter {
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl RateLimiter {
    /// A limiter with full buckets. A bucket whose size or refill time is zero does not limit.
    pub fn new(bytes: Option<BucketConfig>, operations: Option<BucketConfig>, now: Instant) -> Self {
        let bucket = |config: Option<BucketConfig>| config.and_then(|config| Bucket::new(config, now));
        Self { buckets: Mutex::new(Buckets { bytes: bucket(bytes), operations: bucket(operations) }) }
    }

    /// Lets one operation of `bytes` bytes pass.
    ///
    /// # Errors
    /// Not now: how long to wait before asking again. Nothing was taken.
    pub fn take(&self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock();
        let costs = [bytes, 1];
        let Buckets { bytes, operations } = &mut *buckets;
        let mut wait = Duration::ZERO;
        for (bucket, cost) in [&mut *bytes, &mut *operations].into_iter().zip(costs) {
            if let Some(bucket) = bucket {
                bucket.refill(now);
                wait = wait.max(bucket.missing(cost));
            }
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, cost) in [bytes, operations].into_iter().zip(costs) {
            if let Some(bucket) = bucket {
                bucket.spend(cost);
            }
        }
        Ok(())
    }

    /// Whether an operation of unknown size may pass; [`charge`](Self::charge) it when its size is known.
    ///
    /// # Errors
    /// Not now: how long to wait before asking again.
    pub fn ready(&self, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock();
        let Buckets { bytes, operations } = &mut *buckets;
        let mut wait = Duration::ZERO;
        for bucket in [bytes, operations].into_iter().flatten() {
            bucket.refill(now);
            wait = wait.max(bucket.missing(1));
        }
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Takes note of an operation that passed, going into debt if need be.
    pub fn charge(&self, bytes: u64) {
        let mut buckets = self.buckets.lock();
        let Buckets { bytes: byte_bucket, operations } = &mut *buckets;
        for (bucket, cost) in [(byte_bucket, bytes), (operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.spend(cost);
            }
        }
    }
}

/// Tokens are counted in units of 1 / (nanoseconds of a refill), so that a nanosecond adds `size` units.
#[derive(Debug)]
struct Bucket {
    size: u64,
    refill_ns: u64,
    burst: u64,
    /// At most a full bucket; negative is debt.
    units: i128,
    last: Instant,
}

impl Bucket {
    fn new(config: BucketConfig, now: Instant) -> Option<Self> {
        let BucketConfig { size, one_time_burst: burst, refill_ms } = config;
        let refill_ns = refill_ms.saturating_mul(1_000_000);
        if size == 0 || refill_ns == 0 {
            return None;
        }
        let mut bucket = Self { size, refill_ns, burst, units: 0, last: now };
        bucket.units = bucket.full();
        Some(bucket)
    }

    fn units_of(&self, tokens: u64) -> i128 {
        i128::from(tokens).saturating_mul(i128::from(self.refill_ns))
    }

    fn full(&self) -> i128 {
        self.units_of(self.size)
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.last).as_nanos();
        self.last = self.last.max(now);
        let elapsed = i128::try_from(elapsed).unwrap_or(i128::MAX);
        let added = elapsed.saturating_mul(i128::from(self.size));
        self.units = self.units.saturating_add(added).min(self.full());
    }

    /// How long until `cost` can be spent.
    fn missing(&self, cost: u64) -> Duration {
        let owed = cost.saturating_sub(self.burst).min(self.size);
        let lacking = self.units_of(owed).saturating_sub(self.units);
        if owed == 0 || lacking <= 0 {
            return Duration::ZERO;
        }
        let nanoseconds = lacking.div_euclid(i128::from(self.size)) + 1;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn spend(&mut self, cost: u64) {
        let of_burst = cost.min(self.burst);
        self.burst -= of_burst;
        self.units = self.units.saturating_sub(self.units_of(cost - of_burst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: u64, one_time_burst: u64, refill_ms: u64) -> (RateLimiter, Instant) {
        let now = Instant::now();
        let config = BucketConfig { size, one_time_burst, refill_ms };
        (RateLimiter::new(Some(config), None, now), now)
    }

    #[test]
    fn the_rate_holds() {
        let (limiter, start) = bytes(1000, 0, 100);
        assert_eq!(limiter.take(600, start), Ok(()));
        assert_eq!(limiter.take(400, start), Ok(()));
        let wait = limiter.take(1, start).unwrap_err();
        assert!(wait <= Duration::from_micros(101), "{wait:?}");
        assert_eq!(limiter.take(1, start + wait), Ok(()));
        // 10 bytes each millisecond, never more than a bucket.
        assert!(limiter.take(11, start + Duration::from_millis(1)).is_err());
        assert_eq!(limiter.take(1000, start + Duration::from_secs(100)), Ok(()));
        assert!(limiter.take(1, start + Duration::from_secs(100)).is_err());
    }

    #[test]
    fn what_passed_before_its_size_was_known_is_paid_for() {
        let (limiter, start) = bytes(100, 0, 100);
        assert!(limiter.ready(start).is_ok());
        limiter.charge(150);
        let wait = limiter.ready(start).unwrap_err();
        assert!(wait > Duration::from_millis(50) && wait < Duration::from_millis(52), "{wait:?}");
        assert!(limiter.ready(start + wait).is_ok());
    }

    #[test]
    fn a_burst_is_spent_once() {
        let (limiter, start) = bytes(10, 100, 1000);
        assert_eq!(limiter.take(105, start), Ok(()));
        assert_eq!(limiter.take(5, start), Ok(()));
        assert!(limiter.take(1, start).is_err());
        let later = start + Duration::from_secs(10);
        assert_eq!(limiter.take(10, later), Ok(()));
        assert!(limiter.take(1, later).is_err());
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_and_is_paid_for() {
        let (limiter, start) = bytes(10, 0, 10);
        assert_eq!(limiter.take(1000, start), Ok(()));
        let wait = limiter.take(1, start).unwrap_err();
        assert!(wait > Duration::from_millis(990) && wait < Duration::from_millis(992), "{wait:?}");
        assert_eq!(limiter.take(1, start + wait), Ok(()));
        assert!(limiter.take(u64::MAX, start + wait).is_err());
    }

    #[test]
    fn both_limits_hold_and_a_refused_request_costs_nothing() {
        let now = Instant::now();
        let config = |size| Some(BucketConfig { size, one_time_burst: 0, refill_ms: 1000 });
        let limiter = RateLimiter::new(config(100), config(2), now);
        assert!(limiter.take(100, now).is_ok());
        assert!(limiter.take(50, now).is_err());
        let half = now + Duration::from_millis(500);
        assert!(limiter.take(50, half).is_ok());
        // Bytes would be there, operations are not.
        let full = now + Duration::from_millis(900);
        assert!(limiter.take(1, full).is_ok());
        assert!(limiter.take(1, full).is_err());
    }

    #[test]
    fn zero_is_no_limit_and_large_numbers_do_not_overflow() {
        let (limiter, now) = bytes(0, 0, 100);
        assert!(limiter.take(u64::MAX, now).is_ok());
        let (limiter, now) = bytes(u64::MAX, u64::MAX, u64::MAX);
        for seconds in [0, 1, 1 << 20, 1 << 40] {
            let _ = limiter.take(u64::MAX, now + Duration::from_secs(seconds));
        }
    }
}
