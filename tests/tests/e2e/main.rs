//! The end-to-end tests, linked as one binary.

mod house;
mod instruments;
