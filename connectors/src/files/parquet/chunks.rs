//! A file of a place as the crate `parquet` asks for it: ranges, from a thread that may wait.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};
use tokio::runtime::Handle;

use super::super::place::{Entry, Fault, Place};

/// Bytes that are asked for at once where the crate reads on: an answer takes longer than its way.
const BLOCK: u64 = 1 << 20;

/// A file that is read by ranges. All of them must be of the version that was listed.
#[derive(Clone)]
pub(super) struct Chunks {
    place: Place,
    entry: Arc<Entry>,
    runtime: Handle,
}

impl Chunks {
    pub(super) fn new(place: &Place, entry: &Entry, runtime: &Handle) -> Self {
        let (place, entry) = (place.clone(), Arc::new(entry.clone()));
        Self { place, entry, runtime: runtime.clone() }
    }

    fn fetch(&self, start: u64, end: u64) -> Result<Bytes> {
        if start >= end || end > self.entry.size {
            let said = format!("bytes {start} to {end} of a file of {}", self.entry.size);
            return Err(ParquetError::EOF(said));
        }
        let read = self.runtime.block_on(self.place.read(&self.entry, start..end));
        let block = read.map_err(|fault| ParquetError::External(Box::new(fault)))?;
        if block.version != self.entry.version {
            return Err(ParquetError::General("it changed while it was read".to_owned()));
        }
        Ok(block.bytes)
    }
}

/// Whether `error` is of the place, and not of the file.
pub(super) fn is_fault(error: &ParquetError) -> bool {
    let ParquetError::External(source) = error else { return false };
    let within = source.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let within = within.and_then(|inner| inner.downcast_ref::<ParquetError>());
    source.is::<Fault>() || within.is_some_and(is_fault)
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.entry.size
    }
}

impl ChunkReader for Chunks {
    type T = From;

    fn get_read(&self, start: u64) -> Result<From> {
        Ok(From { chunks: self.clone(), next: start, block: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        self.fetch(start, start.saturating_add(length as u64))
    }
}

/// A file from some byte on.
pub(super) struct From {
    chunks: Chunks,
    next: u64,
    block: Bytes,
}

impl Read for From {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.block.is_empty() && self.next < self.chunks.entry.size {
            let end = (self.next + BLOCK).min(self.chunks.entry.size);
            self.block = self.chunks.fetch(self.next, end).map_err(io::Error::other)?;
            self.next = end;
        }
        let count = into.len().min(self.block.len());
        self.block.copy_to_slice(&mut into[..count]);
        Ok(count)
    }
}
