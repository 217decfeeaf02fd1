//! What a machine asks of the host's operating system: its size, where threads run, and to take memory back.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use thiserror::Error;

/// Main memory and swap of the host, in bytes.
pub fn memory_and_swap() -> u64 {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit.max(1));
    info.totalram.saturating_add(info.totalswap).saturating_mul(unit)
}

/// Gives memory that was let go of back to the host. The allocator by itself keeps what lies between pieces that
/// are still in use. For the moments after something large, when nobody waits: it looks at all that is free.
#[expect(unsafe_code, reason = "the allocator is the C library's")]
pub fn give_back_memory() {
    // SAFETY: the call only returns pages of memory that nobody has; any thread may make it at any time.
    unsafe { libc::malloc_trim(0) };
}

/// A host CPU that a thread cannot run on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("host CPU {0} is not there, or this process may not use it")]
pub struct NoCpu(pub usize);

/// Lets the calling thread run only on `cpus`; on any if that is empty.
///
/// # Errors
/// One of them does not exist, is offline, or may not be used by this process.
pub fn pin_thread(cpus: &[usize]) -> Result<(), NoCpu> {
    let Some(first) = cpus.first() else { return Ok(()) };
    let mut wanted = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(NoCpu(cpu));
        }
        wanted.set(cpu);
    }
    // The kernel is content if one of them can be used, and leaves out the others.
    let got = sched_setaffinity(None, &wanted).and_then(|()| sched_getaffinity(None));
    let got = got.map_err(|_| NoCpu(*first))?;
    match cpus.iter().find(|cpu| !got.is_set(**cpu)) {
        Some(cpu) => Err(NoCpu(*cpu)),
        None => Ok(()),
    }
}

/// Whether a thread of this process could run on `cpus`, and only on those.
///
/// # Errors
/// See [`pin_thread`].
pub fn check_cpus(cpus: &[usize]) -> Result<(), NoCpu> {
    // Tried by a thread for which it does not matter. A panic aborts the process.
    std::thread::scope(|scope| scope.spawn(|| pin_thread(cpus)).join()).unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_cannot_be_used_is_named() {
        let got = sched_getaffinity(None).unwrap();
        let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| got.is_set(*cpu)).collect();
        let first = usable[0];
        assert_eq!(check_cpus(&[]), Ok(()));
        assert_eq!(check_cpus(&usable), Ok(()));
        assert_eq!(check_cpus(&[CpuSet::MAX_CPU - 1]), Err(NoCpu(CpuSet::MAX_CPU - 1)));
        assert_eq!(check_cpus(&[first, CpuSet::MAX_CPU - 1]), Err(NoCpu(CpuSet::MAX_CPU - 1)));
        assert_eq!(check_cpus(&[first, usize::MAX]), Err(NoCpu(usize::MAX)));
        // The thread that asked runs where it did.
        assert!(sched_getaffinity(None).unwrap() == got);
    }
}
