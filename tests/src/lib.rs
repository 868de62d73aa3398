//! Tests of the hypervisor as a whole: they boot real guests. Each file under `tests/` is about one promise.

#![forbid(unsafe_code)]
