//! Files of change events: in folders, and in a bucket in memory.
