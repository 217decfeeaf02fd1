//! Core scheduling (Linux, `Documentation/admin-guide/hw-vuln/core-scheduling.rst`): threads run on one core at
//! the same time only if they have the same cookie.

use std::io;

use parking_lot::Mutex;
use rustix::{
    io::Errno,
    process::Pid,
    thread::{CoreSchedulingScope, create_core_scheduling_cookie, gettid, pull_core_scheduling_cookie},
};

use crate::config::CoreScheduling;

/// Gives the vCPU threads of one machine their cookies.
#[derive(Debug)]
pub struct Cookie {
    mode: CoreScheduling,
    /// The thread whose cookie the others take over.
    first: Mutex<Option<Pid>>,
}

impl Cookie {
    /// Of that kind; no thread has one yet.
    pub fn new(mode: CoreScheduling) -> Self {
        Self { mode, first: Mutex::default() }
    }

    /// Gives the calling thread its cookie.
    ///
    /// # Errors
    /// Every vCPU shall have a core of its own, and the host cannot do that.
    pub(super) fn give(&self) -> io::Result<()> {
        let given = match self.mode {
            CoreScheduling::Off => return Ok(()),
            CoreScheduling::Vcpu => create_core_scheduling_cookie(gettid(), CoreSchedulingScope::Thread),
            CoreScheduling::Vm => {
                let mut first = self.first.lock();
                match *first {
                    Some(thread) => pull_core_scheduling_cookie(thread, CoreSchedulingScope::Thread),
                    None => {
                        let created = create_core_scheduling_cookie(gettid(), CoreSchedulingScope::Thread);
                        *first = created.is_ok().then(gettid);
                        created
                    }
                }
            }
        };
        match given {
            // Cores of one thread each are shared by nobody.
            Ok(()) | Err(Errno::NODEV) => Ok(()),
            Err(error) if self.mode == CoreScheduling::Vm => {
                log::info!("vCPUs may share a core with other programs: core scheduling: {error}");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::core_scheduling_cookie;

    use super::*;

    /// The cookies of two threads that exist at the same time; none on a host without core scheduling.
    fn cookies(mode: CoreScheduling) -> io::Result<Vec<Option<u64>>> {
        let cookie = Cookie::new(mode);
        let both = std::sync::Barrier::new(2);
        let thread = || {
            let given = cookie.give();
            let mine = core_scheduling_cookie(gettid(), CoreSchedulingScope::Thread).ok();
            both.wait();
            given.map(|()| mine)
        };
        std::thread::scope(|scope| {
            let threads = [scope.spawn(thread), scope.spawn(thread)];
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn vcpus_of_a_machine_share_a_cookie_or_have_their_own() {
        let off = cookies(CoreScheduling::Off).unwrap();
        assert!(off.iter().all(|cookie| matches!(cookie, None | Some(0))));
        let [one, two] = cookies(CoreScheduling::Vm).unwrap().try_into().unwrap();
        assert_eq!(one, two);
        match cookies(CoreScheduling::Vcpu) {
            Ok(own) => assert!(own[0].is_none() || own[0] != own[1], "{own:?}"),
            // A kernel without it.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL)),
        }
    }
}
