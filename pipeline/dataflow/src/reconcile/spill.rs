//! Entries on disk, in buckets by their place, so that no more than one bucket is ever in memory.
//!
//! A file without a name, which goes with the process however that ends. Each bucket has a buffer; a full one
//! is written behind what is there, and its bucket remembers where.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::entry::Entry;

/// Buckets of one spill: one for each value of a byte of the place.
pub(crate) const BUCKETS: usize = 256;
/// Bytes of a bucket's buffer: 4 MiB for all of them.
const BLOCK: usize = 16 << 10;

/// Entries by bucket.
#[derive(Debug)]
pub(crate) struct Spill {
    file: File,
    buckets: Vec<Bucket>,
    /// Which byte of the place tells the bucket.
    byte: usize,
    end: u64,
}

#[derive(Debug, Default)]
struct Bucket {
    buffer: Vec<u8>,
    blocks: Vec<(u64, usize)>,
    bytes: u64,
}

impl Spill {
    /// An empty one in `folder`, told apart by the place's byte of this number.
    pub(crate) fn new(folder: &Path, byte: usize) -> io::Result<Self> {
        let buckets = (0..BUCKETS).map(|_| Bucket::default()).collect();
        Ok(Self { file: tempfile::tempfile_in(folder)?, buckets, byte, end: 0 })
    }

    pub(crate) fn push(&mut self, entry: &Entry) -> io::Result<()> {
        let bucket = &mut self.buckets[usize::from(entry.place[self.byte])];
        if !bucket.buffer.is_empty() && bucket.buffer.len() + entry.len() > BLOCK {
            self.file.write_all_at(&bucket.buffer, self.end)?;
            bucket.blocks.push((self.end, bucket.buffer.len()));
            self.end += bucket.buffer.len() as u64;
            bucket.buffer.clear();
        }
        entry.write(&mut bucket.buffer);
        bucket.bytes += entry.len() as u64;
        Ok(())
    }

    /// Bytes of a bucket.
    pub(crate) fn bytes(&self, bucket: usize) -> u64 {
        self.buckets[bucket].bytes
    }

    /// Bytes that were put into it.
    pub(crate) fn total(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.bytes).sum()
    }

    /// Shows every entry of a bucket, a block at a time.
    pub(crate) fn each(
        &self,
        bucket: usize,
        mut see: impl FnMut(Entry) -> io::Result<()>,
    ) -> io::Result<()> {
        let bucket = &self.buckets[bucket];
        let mut block = Vec::new();
        for (at, length) in &bucket.blocks {
            block.resize(*length, 0);
            self.file.read_exact_at(&mut block, *at)?;
            read(&block, &mut see)?;
        }
        read(&bucket.buffer, &mut see)
    }
}

fn read(mut block: &[u8], see: &mut impl FnMut(Entry) -> io::Result<()>) -> io::Result<()> {
    while !block.is_empty() {
        let entry = Entry::read(&mut block).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "a spilled entry does not read back")
        })?;
        see(entry)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::entry::Seen;
    use super::*;

    #[test]
    fn a_bucket_gives_back_what_was_put_into_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::new(folder.path(), 8).unwrap();
        let entry = |n: u32| {
            let mut place = [0; 16];
            place[8] = (n % 3) as u8;
            place[9..13].copy_from_slice(&n.to_le_bytes());
            // Some longer than a block.
            let note = vec![n as u8; if n.is_multiple_of(100) { BLOCK + 1 } else { 200 }];
            Entry { place, seen: Seen::Waiting, note: note.into() }
        };
        (0..1_000).for_each(|n| spill.push(&entry(n)).unwrap());
        for bucket in 0..3_u32 {
            let mut back = Vec::new();
            spill
                .each(bucket as usize, |entry| {
                    back.push(entry);
                    Ok(())
                })
                .unwrap();
            let put: Vec<_> = (0..1_000).filter(|n| n % 3 == bucket).map(entry).collect();
            assert_eq!(back, put);
        }
        assert_eq!(spill.bytes(3), 0);
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "it has no name");
    }
}
