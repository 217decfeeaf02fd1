//! The state container, the snapshot directory, the migration protocol and its transports.
