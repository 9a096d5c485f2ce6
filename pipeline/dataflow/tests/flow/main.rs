//! The whole flow with everything in memory, always with two workers.

mod commit;
mod support;
