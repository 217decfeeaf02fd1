//! The program `cumulet`, without its `main`: the command line, the log, the way it speaks.
//!
//! A library only so that the client program and the fuzz targets can share the grammar.

pub mod absent;
pub mod logger;
pub mod options;
pub mod process;
pub mod program;
pub mod remote;
pub mod run;
