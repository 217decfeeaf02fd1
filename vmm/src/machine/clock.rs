//! What the clocks of a restored guest show.
//!
//! A saved state is as of the moment at which the machine was paused, both the paravirtual clock and the time
//! stamp counters, which cannot be stopped: what they have counted until the machine was saved is taken off, as far as
//! that is certain.
//! At a restore both are set forward by one and the same time, or by none. The real-time clock runs with the host's, and
//! is set back by that time if nothing shall have moved. From then on all run, as in every paused machine: a guest sees
//! its pauses, and of the time that it was a snapshot what [`ClockPolicy`] says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hypervisor::{
    Hypervisor,
    x86_64::{VcpuState, VmClock},
};
use vm_migration::Section;

use super::{BuildError, MachineState};

/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;

/// What becomes of the time for which the guest was a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockPolicy {
    /// The real-time clock went on with the host's, and the others did not move.
    #[default]
    Wall,
    /// None of the guest's clocks moved.
    Frozen,
    /// They all went on.
    Advance,
}

/// At which frequency the time stamp counters of a restored machine count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TscFrequency {
    /// At the one that the guest has measured; a host that cannot is refused.
    #[default]
    Saved,
    /// At that of the host, whatever it is.
    Host,
}

impl TscFrequency {
    /// Leaves in a processor's state what is to be loaded of it.
    pub(super) fn choose(self, state: &mut VcpuState) {
        if self == Self::Host {
            state.tsc_khz = None;
        }
    }
}

/// Checks that the clocks of a restored machine can show what they shall: what building it would find out.
///
/// # Errors
/// They cannot, or the states of its clocks cannot be read.
pub fn check(
    sections: &BTreeMap<String, Section>,
    vcpus: &[u32],
    hypervisor: &dyn Hypervisor,
    policy: ClockPolicy,
    frequency: TscFrequency,
) -> Result<(), BuildError> {
    let shift = Shift::new(policy, MachineState::clock_of(sections)?.as_ref())?;
    let mut frequencies = BTreeSet::new();
    for index in vcpus {
        let mut state = MachineState::vcpu_of(sections, *index)?;
        shift.counter(&mut state)?;
        frequency.choose(&mut state);
        frequencies.extend(state.tsc_khz);
    }
    for khz in frequencies {
        hypervisor.check_tsc_khz(khz)?;
    }
    Ok(())
}

/// How far the clocks of a machine are set forward.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shift {
    now_ns: u64,
    ns: u64,
    real_time_ns: i64,
}

impl Shift {
    /// For a guest whose clock stood at `saved`.
    ///
    /// # Errors
    /// One is to be set forward or back, and nobody knows how far.
    pub(super) fn new(policy: ClockPolicy, saved: Option<&VmClock>) -> Result<Self, BuildError> {
        let now_ns = host_ns();
        let then_ns = || {
            let then_ns = saved.and_then(|clock| clock.realtime_ns);
            then_ns.ok_or(BuildError::Clock { why: "the snapshot does not say when it was" })
        };
        let (ns, real_time_ns) = match policy {
            ClockPolicy::Wall => (0, 0),
            ClockPolicy::Frozen => (0, ahead_ns(then_ns()?, now_ns)),
            ClockPolicy::Advance => {
                let then_ns = then_ns()?;
                if then_ns > now_ns {
                    log::warn!("the snapshot was taken {} ns ahead of this host's clock", then_ns - now_ns);
                }
                (now_ns.saturating_sub(then_ns), 0)
            }
        };
        Ok(Self { now_ns, ns, real_time_ns })
    }

    /// How far the real-time clock is set forward, or back, from the host's time, in nanoseconds.
    pub(super) fn real_time_ns(&self) -> i64 {
        self.real_time_ns
    }

    /// The paravirtual clock, to be set when the machine is resumed.
    pub(super) fn clock(&self, saved: VmClock) -> VmClock {
        VmClock {
            guest_ns: saved.guest_ns.saturating_add(self.ns),
            realtime_ns: saved.realtime_ns.map(|_| self.now_ns),
            host_tsc: None,
        }
    }

    /// The time stamp counter of a processor.
    ///
    /// # Errors
    /// It is to be set forward, and nobody knows how fast it counts.
    pub(super) fn counter(&self, state: &mut VcpuState) -> Result<(), BuildError> {
        if self.ns == 0 {
            return Ok(());
        }
        let khz =
            state.tsc_khz.ok_or(BuildError::Clock { why: "the frequency of its counters is not known" })?;
        let ticks = ticks(self.ns, khz);
        for msr in state.msrs.iter_mut().filter(|msr| msr.index == TSC) {
            msr.value = msr.value.wrapping_add(ticks);
        }
        Ok(())
    }
}

/// What of a pause is not taken off the counters, as one part of so many: more than a counter's rate is from its nominal
/// one, or the host's clock from the time. A counter that is a little ahead looks like a pause; one that went back would
/// take time away that the guest has seen.
const DOUBT: u32 = 256;

/// Takes what a processor's counter has counted in `paused` off its state: no more than that, and a little less. The
/// time is one that was over before the counter was read.
pub(super) fn rewind(state: &mut VcpuState, paused: Duration) {
    let Some(khz) = state.tsc_khz else { return };
    let certain = paused.saturating_sub(paused / DOUBT);
    let ticks = ticks(u64::try_from(certain.as_nanos()).unwrap_or(u64::MAX), khz);
    for msr in state.msrs.iter_mut().filter(|msr| msr.index == TSC) {
        msr.value = msr.value.saturating_sub(ticks);
    }
}

/// How far one time is ahead of another, in nanoseconds; as far as can be said.
fn ahead_ns(time_ns: u64, of_ns: u64) -> i64 {
    let ahead = i128::from(time_ns) - i128::from(of_ns);
    i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX })
}

/// Nanoseconds since 1970.
fn host_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What a counter of that frequency counts in that time; it wraps, as counters do.
fn ticks(ns: u64, khz: u32) -> u64 {
    let counted = u128::from(ns) * u128::from(khz) / 1_000_000;
    u64::try_from(counted & u128::from(u64::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use hypervisor::x86_64::Msr;

    use super::*;

    const HOUR_NS: u64 = 3_600_000_000_000;

    fn vcpu() -> VcpuState {
        let msrs = vec![Msr { index: 0x6e0, value: 7 }, Msr { index: TSC, value: 1 << 60 }];
        VcpuState { msrs, tsc_khz: Some(2_500_000), ..VcpuState::default() }
    }

    fn an_hour_ago() -> VmClock {
        VmClock { guest_ns: 5, realtime_ns: Some(host_ns() - HOUR_NS), host_tsc: Some(1) }
    }

    #[test]
    fn counters_may_count_at_the_rate_of_the_host() {
        for (choice, left) in [(TscFrequency::Saved, Some(2_500_000)), (TscFrequency::Host, None)] {
            let mut state = vcpu();
            choice.choose(&mut state);
            assert_eq!((state.tsc_khz, state.msrs), (left, vcpu().msrs));
        }
    }

    #[test]
    fn clocks_go_on_where_they_stood() {
        let (mut state, clock) = (vcpu(), an_hour_ago());
        for policy in [ClockPolicy::Wall, ClockPolicy::Frozen] {
            let shift = Shift::new(policy, Some(&clock)).unwrap();
            shift.counter(&mut state).unwrap();
            assert_eq!(state, vcpu());
            let set = shift.clock(clock);
            assert_eq!(set.guest_ns, 5);
            // From now on it runs.
            assert!(host_ns() - set.realtime_ns.unwrap() < HOUR_NS / 2);
        }
    }

    #[test]
    fn the_real_time_clock_goes_on_with_the_hosts_unless_all_is_frozen() {
        let clock = an_hour_ago();
        let of = |policy| Shift::new(policy, Some(&clock)).unwrap().real_time_ns();
        assert_eq!((of(ClockPolicy::Wall), of(ClockPolicy::Advance)), (0, 0));
        let behind = u64::try_from(-of(ClockPolicy::Frozen)).unwrap();
        assert!((HOUR_NS..2 * HOUR_NS).contains(&behind), "{behind}");
        // A host whose clock is behind shows it ahead.
        let later = VmClock { realtime_ns: Some(host_ns() + 2 * HOUR_NS), ..clock };
        assert!(Shift::new(ClockPolicy::Frozen, Some(&later)).unwrap().real_time_ns() > 0);
        let never = VmClock { realtime_ns: Some(u64::MAX), ..clock };
        assert!(Shift::new(ClockPolicy::Frozen, Some(&never)).unwrap().real_time_ns() > 0);
        let unknown = VmClock { realtime_ns: None, ..clock };
        assert!(Shift::new(ClockPolicy::Frozen, Some(&unknown)).is_err());
        assert!(Shift::new(ClockPolicy::Frozen, None).is_err());
        assert!(Shift::new(ClockPolicy::Wall, None).is_ok());
        assert_eq!((ahead_ns(0, u64::MAX), ahead_ns(u64::MAX, 0)), (i64::MIN, i64::MAX));
    }

    #[test]
    fn clocks_are_set_forward_together() {
        let (mut state, clock) = (vcpu(), an_hour_ago());
        let shift = Shift::new(ClockPolicy::Advance, Some(&clock)).unwrap();
        shift.counter(&mut state).unwrap();
        let elapsed_ns = shift.clock(clock).guest_ns - 5;
        assert!((HOUR_NS..2 * HOUR_NS).contains(&elapsed_ns));
        assert_eq!(state.msrs[0].value, 7);
        assert_eq!(state.msrs[1].value - (1 << 60), elapsed_ns * 5 / 2);
        let unknown = VmClock { realtime_ns: None, ..clock };
        assert!(Shift::new(ClockPolicy::Advance, Some(&unknown)).is_err());
        state.tsc_khz = None;
        assert!(shift.counter(&mut state).is_err());
        // A clock that runs behind the other host's stands still.
        let later = VmClock { realtime_ns: Some(u64::MAX), ..clock };
        assert_eq!(Shift::new(ClockPolicy::Advance, Some(&later)).unwrap().clock(later).guest_ns, 5);
    }

    #[test]
    fn a_saved_counter_is_that_of_the_pause_and_never_of_before() {
        let taken_off = |paused: Duration| {
            let mut state = vcpu();
            rewind(&mut state, paused);
            assert_eq!(state.msrs[0].value, 7);
            (1 << 60) - state.msrs[1].value
        };
        assert_eq!(taken_off(Duration::ZERO), 0);
        let hour = taken_off(Duration::from_nanos(HOUR_NS));
        let counted = HOUR_NS * 5 / 2;
        assert!((counted - counted / 200..counted - counted / 1000).contains(&hour), "{hour} of {counted}");
        // Of a counter whose rate nobody knows nothing can be taken.
        let mut state = VcpuState { tsc_khz: None, ..vcpu() };
        rewind(&mut state, Duration::from_secs(1));
        assert_eq!(state.msrs, vcpu().msrs);
        assert_eq!(ticks(1_000_000, 3), 3);
        ticks(u64::MAX, u32::MAX);
    }
}
