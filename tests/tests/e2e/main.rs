//! The end-to-end tests, linked as one binary.

mod away;
mod bad_input;
mod cast;
mod crash;
mod exports;
mod gap;
mod house;
mod instruments;
mod large;
mod operator;
mod phantom;
mod replay;
mod secured;
mod standby;
mod start;
mod topics;
