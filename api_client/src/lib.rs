//! The wire types of the REST API and a typed client.
