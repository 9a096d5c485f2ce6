//! What tests share: the ports implemented in memory, and the checks that every implementation of a
//! port must pass. A dev-dependency, never a part of the product.

pub mod conformance;
pub mod memory;
