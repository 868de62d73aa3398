//! A store that speaks the Redis protocol, on a block device: killed at any moment, it keeps what it acknowledged.

#![no_std]
#![no_main]
