//! What a machine asks of the host's operating system: its size, and where threads run.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Main memory and swap of the host, in bytes.
pub fn memory_and_swap() -> u64 {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit.max(1));
    info.totalram.saturating_add(info.totalswap).saturating_mul(unit)
}

/// Lets the calling thread run only on `cpus`; on any if that is empty.
///
/// # Errors
/// A CPU does not exist or may not be used by this process.
pub fn pin_thread(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        set.set(cpu);
    }
    sched_setaffinity(None, &set)?;
    Ok(())
}
