//! `--disk`, `--rate-limit-group`, and the limits of throughput that both and `--net` have.

use api_client::wire::{
    DiskConfig, ImageType, LockGranularity, RateLimitGroupConfig, RateLimiterConfig, TokenBucket,
    VirtQueueAffinity,
};

use super::{
    grammar::{GrammarError, Keys, Pairs},
    place::{IOMMU, PCI, Place},
    values::{Tuple, number},
};

/// The keys of `--disk`.
pub const KEYS: Keys = &[
    &[
        "path=PATH",
        "readonly=off",
        "direct=off",
        "num_queues=1",
        "queue_size=128",
        "vhost_user=off",
        "socket=PATH",
        "serial=TEXT",
        "queue_affinity=[QUEUE@[CPU,...],...]",
        "backing_files=off",
        "sparse=on",
        "image_type=raw|qcow2|vhd|vhdx|vmdk",
        "lock_granularity=byte-range",
        "rate_limit_group=ID",
        "packed=on",
    ],
    LIMITS,
    PCI,
    IOMMU,
    &["_disable_io_uring=off", "_disable_aio=off"],
];

/// The keys of `--rate-limit-group`.
pub const GROUP_KEYS: Keys = &[&["id=ID"], LIMITS];

/// The keys of limits.
pub const LIMITS: &[&str] = &[
    "bw_size=BYTES",
    "bw_one_time_burst=BYTES",
    "bw_refill_time=MS",
    "ops_size=NUMBER",
    "ops_one_time_burst=NUMBER",
    "ops_refill_time=MS",
];

const IMAGE_TYPES: [(&str, ImageType); 5] = [
    ("raw", ImageType::Raw),
    ("qcow2", ImageType::Qcow2),
    ("vhd", ImageType::FixedVhd),
    ("vhdx", ImageType::Vhdx),
    ("vmdk", ImageType::FlatVmdk),
];

const LOCKS: [(&str, LockGranularity); 2] =
    [("byte-range", LockGranularity::ByteRange), ("full", LockGranularity::Full)];

/// Reads `--disk`.
///
/// # Errors
/// A key or value that is none.
pub fn parse(text: &str) -> Result<DiskConfig, GrammarError> {
    let pairs = Pairs::parse(text, KEYS)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    let default = DiskConfig::default();
    let affinity = pairs.tuples("queue_affinity")?;
    Ok(DiskConfig {
        id,
        iommu,
        pci_segment,
        pci_device_id,
        path: pairs.path("path"),
        readonly: pairs.toggle("readonly")?.unwrap_or(default.readonly),
        direct: pairs.toggle("direct")?.unwrap_or(default.direct),
        num_queues: pairs.number("num_queues")?.unwrap_or(default.num_queues),
        queue_size: pairs.number("queue_size")?.unwrap_or(default.queue_size),
        vhost_user: pairs.toggle("vhost_user")?.unwrap_or(default.vhost_user),
        vhost_socket: pairs.text("socket"),
        rate_limit_group: pairs.text("rate_limit_group"),
        rate_limiter_config: limits(&pairs)?,
        serial: pairs.text("serial"),
        queue_affinity: affinity.map(|tuples| tuples.into_iter().map(pinned).collect()).transpose()?,
        backing_files: pairs.toggle("backing_files")?.unwrap_or(default.backing_files),
        sparse: pairs.toggle("sparse")?.unwrap_or(default.sparse),
        image_type: pairs.word("image_type", &IMAGE_TYPES)?.unwrap_or_default(),
        lock_granularity: pairs.exact_word("lock_granularity", &LOCKS)?.unwrap_or_default(),
        packed: pairs.toggle("packed")?.unwrap_or(default.packed),
        disable_io_uring: pairs.toggle("_disable_io_uring")?.unwrap_or(default.disable_io_uring),
        disable_aio: pairs.toggle("_disable_aio")?.unwrap_or(default.disable_aio),
    })
}

/// Reads `--rate-limit-group`.
///
/// # Errors
/// A key or value that is none, no id, or no limit.
pub fn parse_group(text: &str) -> Result<RateLimitGroupConfig, GrammarError> {
    let pairs = Pairs::parse(text, GROUP_KEYS)?;
    let id = pairs.required("id")?;
    let rate_limiter_config = limits(&pairs)?
        .ok_or_else(|| GrammarError::Whole("neither bw_ nor ops_ keys make a limit".into()))?;
    Ok(RateLimitGroupConfig { id, rate_limiter_config })
}

/// The limits, if the keys make any.
///
/// # Errors
/// A value is no number.
pub fn limits(pairs: &Pairs) -> Result<Option<RateLimiterConfig>, GrammarError> {
    let bandwidth = bucket(pairs, ["bw_size", "bw_one_time_burst", "bw_refill_time"])?;
    let ops = bucket(pairs, ["ops_size", "ops_one_time_burst", "ops_refill_time"])?;
    Ok((bandwidth.is_some() || ops.is_some()).then_some(RateLimiterConfig { bandwidth, ops }))
}

/// There is a bucket only if it holds something and takes time to fill.
fn bucket(pairs: &Pairs, [size, burst, refill]: [&str; 3]) -> Result<Option<TokenBucket>, GrammarError> {
    let number = |key| Ok(pairs.number(key)?.unwrap_or(0));
    let bucket = TokenBucket {
        size: number(size)?,
        one_time_burst: Some(number(burst)?),
        refill_time: number(refill)?,
    };
    Ok((bucket.size != 0 && bucket.refill_time != 0).then_some(bucket))
}

fn pinned((queue, host_cpus): Tuple) -> Result<VirtQueueAffinity, GrammarError> {
    let wrong = |what| GrammarError::value("queue_affinity", what);
    let host_cpus = host_cpus
        .into_iter()
        .map(|cpu| usize::try_from(cpu).map_err(|_| wrong(format!("there is no CPU {cpu}"))));
    let host_cpus = host_cpus.collect::<Result<_, _>>()?;
    Ok(VirtQueueAffinity { queue_index: number(&queue).map_err(wrong)?, host_cpus })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_arrives() {
        let text = "path=/d,readonly=on,direct=on,num_queues=4,queue_size=256,vhost_user=on,socket=/s,serial=s1,\
                    queue_affinity=[0@[1,2],1@[3]],backing_files=on,sparse=off,image_type=VHD,lock_granularity=full,\
                    rate_limit_group=g,packed=off,bw_size=1000,bw_one_time_burst=5,bw_refill_time=100,ops_size=7,\
                    ops_one_time_burst=1,ops_refill_time=9,id=d0,pci_segment=1,pci_device_id=7,iommu=on,\
                    _disable_io_uring=on,_disable_aio=on";
        let expected = DiskConfig {
            id: Some("d0".into()),
            iommu: true,
            pci_segment: 1,
            pci_device_id: Some(7),
            path: Some("/d".into()),
            readonly: true,
            direct: true,
            num_queues: 4,
            queue_size: 256,
            vhost_user: true,
            vhost_socket: Some("/s".into()),
            rate_limit_group: Some("g".into()),
            rate_limiter_config: Some(RateLimiterConfig {
                bandwidth: Some(TokenBucket { size: 1000, one_time_burst: Some(5), refill_time: 100 }),
                ops: Some(TokenBucket { size: 7, one_time_burst: Some(1), refill_time: 9 }),
            }),
            serial: Some("s1".into()),
            queue_affinity: Some(vec![
                VirtQueueAffinity { queue_index: 0, host_cpus: vec![1, 2] },
                VirtQueueAffinity { queue_index: 1, host_cpus: vec![3] },
            ]),
            backing_files: true,
            sparse: false,
            image_type: ImageType::FixedVhd,
            lock_granularity: LockGranularity::Full,
            packed: false,
            disable_io_uring: true,
            disable_aio: true,
        };
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(""), Ok(DiskConfig::default()));
    }

    #[test]
    fn wrong_values_are_refused_by_key() {
        for (text, said) in [
            ("readonly=maybe", r#"readonly: "maybe" is not on or off"#),
            ("lock_granularity=Full", r#"lock_granularity: "Full" is not one of byte-range, full"#),
            ("bw_size=1K", r#"bw_size: "1K" is not a decimal number"#),
            ("queue_affinity=0@1", r#"queue_affinity: "0@1" is not in brackets"#),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), said, "{text}");
        }
    }

    #[test]
    fn a_bucket_needs_size_and_time() {
        for text in
            ["bw_size=1", "bw_refill_time=1", "bw_size=0,bw_refill_time=1", "bw_size=1,bw_refill_time=0"]
        {
            assert_eq!(parse(text).map(|disk| disk.rate_limiter_config), Ok(None), "{text}");
        }
        let limits = parse("ops_size=1,ops_refill_time=2").unwrap().rate_limiter_config.unwrap();
        assert_eq!(limits.bandwidth, None);
        assert_eq!(limits.ops, Some(TokenBucket { size: 1, one_time_burst: Some(0), refill_time: 2 }));
    }

    #[test]
    fn groups_have_a_name_and_a_limit() {
        let group = parse_group("id=g,bw_size=1,bw_refill_time=2").unwrap();
        assert_eq!(group.id, "g");
        assert!(group.rate_limiter_config.bandwidth.is_some());
        assert_eq!(parse_group("bw_size=1,bw_refill_time=2"), Err(GrammarError::Missing("id")));
        assert!(parse_group("id=g").unwrap_err().to_string().contains("limit"));
    }
}
