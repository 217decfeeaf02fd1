//! The `cumulet` program: arguments in, a VM's life, an exit code out.

fn main() {}
