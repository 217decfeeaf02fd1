//! The options of a VM, put together.

use api_client::wire;

use super::{
    OptionError, Options, console, cpus, device, disk, grammar::GrammarError, memory, net, passthrough,
    platform, values::hex,
};

/// The VM that the options describe.
pub(super) fn said(options: &Options) -> Result<wire::VmConfig, OptionError> {
    let mut memory = options.one("memory", memory::parse)?.unwrap_or_default();
    memory.zones = options.several("memory-zone", |text| memory::parse_zone(text, &memory))?;
    Ok(wire::VmConfig {
        cpus: options.one("cpus", cpus::parse)?.unwrap_or_default(),
        memory,
        payload: Some(payload(options)),
        rate_limit_groups: options.several("rate-limit-group", disk::parse_group)?,
        disks: options.several("disk", disk::parse)?,
        net: options.several("net", net::parse)?,
        rng: options.one("rng", device::rng)?.unwrap_or_default(),
        balloon: options.one("balloon", device::balloon)?,
        fs: options.several("fs", device::fs)?,
        generic_vhost_user: options.several("generic-vhost-user", passthrough::generic_vhost_user)?,
        pmem: options.several("pmem", device::pmem)?,
        serial: options.one("serial", console::serial)?.unwrap_or_default(),
        console: options.one("console", console::console)?.unwrap_or_default(),
        debug_console: options.one("debug-console", console::debug_console)?.unwrap_or_default(),
        devices: options.several("device", passthrough::device)?,
        user_devices: options.several("user-device", passthrough::user_device)?,
        vdpa: options.several("vdpa", device::vdpa)?,
        vsock: options.one("vsock", device::vsock)?,
        pvpanic: options.flag("pvpanic"),
        // The devices ask for it.
        iommu: false,
        numa: options.several("numa", platform::numa)?,
        watchdog: options.flag("watchdog"),
        rtc: options.one("rtc", device::rtc)?,
        pci_segments: options.several("pci-segment", platform::pci_segment)?,
        platform: options.one("platform", platform::parse)?,
        tpm: options.one("tpm", device::tpm)?,
        landlock_enable: options.landlock(),
        landlock_rules: options.several("landlock-rules", platform::landlock_rule)?,
        // Things of builds that there are not.
        gdb: false,
        pvmemcontrol: None,
        ivshmem: None,
        debug_exit: options.one("debug-exit", |text| hex(text).map_err(GrammarError::Whole))?,
    })
}

fn payload(options: &Options) -> wire::PayloadConfig {
    wire::PayloadConfig {
        firmware: options.path("firmware").map(Into::into),
        kernel: options.path("kernel").map(Into::into),
        cmdline: options.text("cmdline").map(Into::into),
        initramfs: options.path("initramfs").map(Into::into),
        ..wire::PayloadConfig::default()
    }
}
