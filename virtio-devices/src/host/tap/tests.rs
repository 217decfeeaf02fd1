//! On taps of this host's kernel. They need the right to make one.

use super::*;

/// Whether taps are to be made here. A host where they cannot be has to say so.
fn may_make_taps() -> bool {
    if std::env::var_os("CUMULET_WITHOUT_TAP").is_some_and(|value| value == "1") {
        println!("SKIPPED: CUMULET_WITHOUT_TAP is set");
        return false;
    }
    true
}

fn name(suffix: &str) -> String {
    format!("cml{:x}{suffix}", std::process::id())
}

#[test]
fn a_tap_is_made_and_set_up() {
    if !may_make_taps() {
        return;
    }
    let wanted = name("a");
    let taps = Taps::open(Some(&wanted), 2).unwrap();
    assert_eq!((taps.name(), taps.queues()), (wanted.as_str(), 2));
    let interface = Interface::named(&wanted);
    assert!(interface.is_there());
    let mac = [0x2e, 1, 2, 3, 4, 5];
    interface.set_mac(mac).unwrap();
    assert_eq!(interface.mac().unwrap(), mac);
    interface.set_mtu(9000).unwrap();
    assert_eq!(interface.mtu().unwrap(), 9000);
    interface.set_address("192.0.2.1".parse().unwrap(), "255.255.255.0".parse().unwrap()).unwrap();
    assert!(interface.set_up().unwrap());
    assert!(!interface.set_up().unwrap());
    let flags = std::fs::read_to_string(format!("/sys/class/net/{wanted}/flags")).unwrap();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags & 1, 1);
    if std::path::Path::new("/proc/net/if_inet6").exists() {
        interface.set_address("2001:db8::1".parse().unwrap(), "ffff:ffff::".parse().unwrap()).unwrap();
        let addresses = std::fs::read_to_string("/proc/net/if_inet6").unwrap();
        let ours = addresses.lines().find(|line| line.ends_with(&wanted) && line.starts_with("20010db8"));
        assert!(ours.unwrap().contains(" 20 "), "a prefix of 32 bits");
    }
    for offloads in
        [Offloads::default(), Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: false }]
    {
        taps.set_offloads(offloads).unwrap();
    }
    for pairs in [1, 2, 1, 1, 2] {
        taps.enable_queues(pairs).unwrap();
    }
    // The same by descriptors.
    Taps::check_descriptors(&taps.queues).unwrap();
    let again: Vec<OwnedFd> = taps.queues.iter().map(|file| file.try_clone().unwrap().into()).collect();
    let again = Taps::from_descriptors(again).unwrap();
    assert_eq!((again.name(), again.queues()), (wanted.as_str(), 2));
    drop((taps, again));
    assert!(interface.mtu().is_err(), "it goes with its last descriptor");
    assert!(!interface.is_there());
}

/// A tap that is there without anybody having opened it; gone when dropped.
struct Persistent(File);

impl Persistent {
    fn make(name: &str, flags: u16) -> Self {
        let file = open_device(name).unwrap();
        attach(&file, name, flags).unwrap();
        Self::set(&file, 1);
        Self(file)
    }

    fn set(file: &File, on: libc::c_ulong) {
        // <linux/if_tun.h>
        const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
        // SAFETY: the request takes its argument by value.
        assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, on) }, 0);
    }

    /// Closes what made it, and does `work`.
    fn unused(self, name: &str, flags: u16, work: impl FnOnce()) {
        drop(self.0);
        work();
        let file = open_device(name).unwrap();
        attach(&file, name, flags).unwrap();
        Self::set(&file, 0);
    }
}

/// What opening a tap is refused with, which looking at it must say too.
fn said(name: Option<&str>, queues: u16) -> String {
    let chain = |error: TapError| format!("{error}: {}", std::error::Error::source(&error).unwrap());
    let told = chain(Taps::check(name, queues).unwrap_err());
    assert_eq!(chain(Taps::open(name, queues).unwrap_err()), told);
    told
}

#[test]
fn a_tap_is_looked_at_without_being_made_or_changed() {
    if !may_make_taps() {
        return;
    }
    let wanted = name("c");
    for queues in [1, 2] {
        Taps::check(None, queues).unwrap();
        Taps::check(Some(&wanted), queues).unwrap();
        assert!(!Interface::named(&wanted).is_there(), "it was made");
    }
    let flags = || std::fs::read_to_string(format!("/sys/class/net/{wanted}/tun_flags")).unwrap();
    for (multi_queue, right, wrong) in [(0, 1, 2), (IFF_MULTI_QUEUE, 2, 1)] {
        // Without what this one would attach with.
        let others = IFF_TAP | multi_queue;
        let made = Persistent::make(&wanted, others);
        assert!(said(Some(&wanted), wrong).ends_with("Invalid argument (os error 22)"));
        if multi_queue == 0 {
            assert!(said(Some(&wanted), right).ends_with("busy (os error 16)"));
        } else {
            Taps::check(Some(&wanted), right).unwrap();
        }
        let before = flags();
        made.unused(&wanted, others, || {
            for _ in 0..2 {
                Taps::check(Some(&wanted), right).unwrap();
                assert_eq!(flags(), before);
            }
            assert!(said(Some(&wanted), wrong).ends_with("Invalid argument (os error 22)"));
        });
        assert!(!Interface::named(&wanted).is_there());
    }
    assert!(said(Some("lo"), 1).starts_with("tap lo: cannot attach to it: "));
}

#[test]
fn what_a_tap_was_given_is_taken_back() {
    if !may_make_taps() {
        return;
    }
    let wanted = name("d");
    let _taps = Taps::open(Some(&wanted), 1).unwrap();
    let interface = Interface::named(&wanted);
    let give = |address: &str, mask: &str| {
        interface.set_address(address.parse().unwrap(), mask.parse().unwrap()).unwrap()
    };
    let v4 = || interface.v4().unwrap().map(|(address, mask)| format!("{address}/{mask}"));
    assert_eq!(v4(), None);
    let first = give("192.0.2.1", "255.255.255.0");
    let second = give("198.51.100.7", "255.255.0.0");
    let none = give("198.51.100.7", "255.255.0.0");
    let other_mask = give("198.51.100.7", "255.255.255.128");
    assert_eq!(v4().unwrap(), "198.51.100.7/255.255.255.128");
    interface.put_address_back(other_mask).unwrap();
    interface.put_address_back(none).unwrap();
    assert_eq!(v4().unwrap(), "198.51.100.7/255.255.0.0");
    interface.put_address_back(second).unwrap();
    assert_eq!(v4().unwrap(), "192.0.2.1/255.255.255.0");
    interface.put_address_back(first).unwrap();
    assert_eq!(v4(), None);

    assert!(interface.set_up().unwrap());
    assert!(interface.set_down().unwrap());
    assert!(!interface.set_down().unwrap());
    let error = interface.set_address("192.0.2.1".parse().unwrap(), "255.0.255.0".parse().unwrap());
    assert!(matches!(error, Err(TapError::Mask { .. })));
    assert_eq!(v4(), None);
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        return;
    }
    let has = |start: &str| {
        let all = std::fs::read_to_string("/proc/net/if_inet6").unwrap();
        all.lines().any(|line| line.ends_with(&wanted) && line.starts_with(start))
    };
    let first = give("2001:db8::1", "ffff:ffff::");
    let again = give("2001:db8::1", "ffff:ffff::");
    let second = give("2001:db8::2", "ffff:ffff::");
    interface.put_address_back(again).unwrap();
    interface.put_address_back(second).unwrap();
    assert_eq!(
        (has("20010db8000000000000000000000001"), has("20010db8000000000000000000000002")),
        (true, false)
    );
    interface.put_address_back(first).unwrap();
    assert!(!has("20010db8"));
}

#[test]
fn a_tap_without_a_name_gets_one() {
    if !may_make_taps() {
        return;
    }
    let (first, second) = (Taps::open(None, 1).unwrap(), Taps::open(None, 1).unwrap());
    assert!(first.name().starts_with("vmtap"));
    assert_ne!(first.name(), second.name());
    first.enable_queues(1).unwrap();
}

#[test]
fn what_is_no_tap_is_refused() {
    for bad in ["", "a/b", "0123456789abcdef", "two words", "..", "colon:1", "né"] {
        let error = Taps::open(Some(bad), 1).unwrap_err();
        assert!(matches!(error, TapError::Name { .. }), "{bad}: {error}");
    }
    let file = tempfile::tempfile().unwrap();
    let error = Taps::check_descriptors([&file]).unwrap_err();
    assert!(error.to_string().contains("is no tap at all"), "{error}");
    let error = Taps::from_descriptors(vec![file.into()]).unwrap_err();
    assert!(error.to_string().contains("is no tap at all"), "{error}");
    if !may_make_taps() {
        return;
    }
    let error = Taps::open(Some("lo"), 1).unwrap_err();
    assert_eq!(error.to_string(), "tap lo: cannot attach to it");
    // A tap that is open for one queue is busy.
    let wanted = name("b");
    let _taps = Taps::open(Some(&wanted), 1).unwrap();
    assert!(Taps::open(Some(&wanted), 1).is_err());
    assert!(Taps::open(Some(&wanted), 4).is_err());
    let interface = Interface::named("cmlnothere");
    let error = interface.set_up().unwrap_err();
    assert_eq!(error.to_string(), "tap cmlnothere: cannot ask for its state");
}

#[test]
fn masks_are_leading_ones() {
    let v4 = |mask: &str| prefix(u128::from(u32::from(mask.parse::<Ipv4Addr>().unwrap())) << 96, 32);
    assert_eq!(v4("255.255.255.0"), Some(24));
    assert_eq!(v4("0.0.0.0"), Some(0));
    assert_eq!(v4("255.255.255.255"), Some(32));
    assert_eq!(v4("255.0.255.0"), None);
    let v6 = |mask: &str| prefix(u128::from(mask.parse::<Ipv6Addr>().unwrap()), 128);
    assert_eq!(v6("ffff:ffff:ffff:ffff::"), Some(64));
    assert_eq!(v6("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Some(128));
    assert_eq!(v6("::1"), None);
    let interface = Interface::named("lo");
    let error = interface.set_address("10.0.0.1".parse().unwrap(), "ffff::".parse().unwrap()).unwrap_err();
    assert!(matches!(error, TapError::Mask { .. }));
}
