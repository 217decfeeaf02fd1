//! Whatever is wrong with a snapshot is found before anything is made of it.

mod damage;
mod forged;
mod golden;
