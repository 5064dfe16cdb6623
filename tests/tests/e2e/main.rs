//! The end-to-end tests, linked as one binary.

mod away;
mod bad_input;
mod cast;
mod compose;
mod crash;
mod demo;
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
