//! Links the guest as a static ELF at a fixed address, with its own linker script and without the host's C runtime.

use std::env;
use std::path::PathBuf;

fn main() {
    let script = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("guest.ld");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=guest.ld");
    for arg in ["-nostdlib", "-nostartfiles", "-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
    for arg in
        ["-z,norelro", "-z,noexecstack", "-z,max-page-size=4096", "--build-id=none", "--no-eh-frame-hdr"]
    {
        println!("cargo::rustc-link-arg-bins=-Wl,{arg}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
}
