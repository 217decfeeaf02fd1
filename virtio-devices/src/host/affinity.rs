//! Which host CPUs a thread runs on.
#![expect(unsafe_code, reason = "sched_setaffinity has no safe form")]

use std::io;

/// Lets the calling thread run on these host CPUs only.
///
/// # Errors
/// None of them can be used, or one is beyond what a CPU set holds.
pub fn pin_current_thread(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: a CPU set is plain bits, for which all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let capacity = 8 * size_of::<libc::cpu_set_t>();
    for cpu in cpus {
        if *cpu >= capacity {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("host CPU {cpu}")));
        }
        // SAFETY: the index is inside of the set.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: the set is valid and its size is given; thread 0 is the calling one.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned() {
        std::thread::spawn(|| {
            pin_current_thread(&[0]).unwrap();
            let allowed = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let list = allowed.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap();
            assert!(list.ends_with("\t0"), "{list}");
            assert!(pin_current_thread(&[1 << 20]).is_err());
            assert!(pin_current_thread(&[]).is_err());
        })
        .join()
        .unwrap();
    }
}
