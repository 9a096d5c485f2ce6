//! The whole flow with everything in memory, always with two workers.

mod commit;
mod end;
mod ledger;
mod random;
mod sources;
mod stop;
mod stores;
mod support;
