//! Restores under conditions that nobody wishes for: snapshots of long ago, damaged ones, hosts that lack something; and
//! how many calls of the kernel one really makes.

mod golden;
mod states;
