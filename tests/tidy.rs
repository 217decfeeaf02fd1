//! The layer rules, as an ordinary test.
