//! Configuration, machine builder, life cycle, snapshot and migration orchestration, REST server.
