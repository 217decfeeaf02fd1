//! The wire types of the REST API, and a typed client.
//!
//! A leaf: it depends on nothing else of Cumulet. The server uses the same types, so that a request and
//! its reading cannot differ; so does the command line, whose options are another spelling of them.

pub mod wire;
