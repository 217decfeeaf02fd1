//! The guest's wiring and the transaction that changes it.
