//! The wire types of the REST API, and a typed client.
//!
//! A leaf: it depends on nothing else of Cumulet. The server uses the same types, so that a request and
//! its reading cannot differ; so does the command line, whose options are another spelling of them.
//!
//! ```no_run
//! use api_client::{Client, wire::VmConfig};
//!
//! let mut client = Client::connect("/run/vm.sock".as_ref())?;
//! println!("process {}", client.ping()?.pid);
//! client.create(&VmConfig::default())?;
//! match client.boot() {
//!     Ok(()) => {}
//!     Err(error) => println!("{error}"),
//! }
//! # Ok::<(), api_client::ClientError>(())
//! ```

mod client;
pub mod wire;

/// The document that describes the API, in OpenAPI 3.1: served by every VMM, and true to it.
pub const OPENAPI: &str = include_str!("../openapi.json");

pub use self::client::{Answer, Client, ClientError, Method, Refusal, Restored};
