//! The bytes of a file, block by block, to the bytes that are in it: as they are, out of gzip, out of
//! zstd. No I/O.
//!
//! What comes out is bounded by whoever asks, not by what went in: a few bytes may unpack to gigabytes.

use std::io::{self, BufRead, ErrorKind, Read};

use bytes::{Buf as _, Bytes};
use flate2::bufread::MultiGzDecoder;

/// How a file is packed. Its name says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// The packing of the file, if its name ends like one of ours.
    pub(super) fn of(name: &str) -> Option<Self> {
        let (name, packing) = match name.rsplit_once('.') {
            Some((name, "gz")) => (name, Self::Gzip),
            Some((name, "zst")) => (name, Self::Zstd),
            _ => (name, Self::Plain),
        };
        let known = [".jsonl", ".ndjson", ".json"];
        known.iter().any(|suffix| name.ends_with(suffix)).then_some(packing)
    }

    /// As a person calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// What unpacking brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unpacked {
    /// Some bytes, and perhaps more.
    Some,
    /// The next block is needed.
    Hungry,
    /// Everything came out, and it was whole.
    End,
}

/// Unpacks one file from its beginning.
pub(super) struct Unpack(Decoder);

enum Decoder {
    Plain(Feed),
    Gzip(Box<MultiGzDecoder<Feed>>),
    Zstd(zstd::Decoder<'static, Feed>),
}

impl Unpack {
    pub(super) fn new(packing: Packing) -> io::Result<Self> {
        let feed = Feed::default();
        Ok(Self(match packing {
            Packing::Plain => Decoder::Plain(feed),
            // Both read a file of several members, one after the other, as one.
            Packing::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(feed))),
            Packing::Zstd => Decoder::Zstd(zstd::Decoder::with_buffer(feed)?),
        }))
    }

    /// Gives it the next block. `last`: there is none behind it.
    pub(super) fn feed(&mut self, block: Bytes, last: bool) {
        let feed = match &mut self.0 {
            Decoder::Plain(feed) => feed,
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut(),
        };
        debug_assert!(feed.block.is_empty(), "a block is given when one is asked for");
        *feed = Feed { block, last };
    }

    /// Appends at most `max` bytes to `into`. An error of the kind [`ErrorKind::UnexpectedEof`] is a file
    /// that is not whole; any other, one that is broken.
    pub(super) fn read(&mut self, into: &mut Vec<u8>, max: usize) -> io::Result<Unpacked> {
        let decoder: &mut dyn Read = match &mut self.0 {
            // Without room that is written twice: most files are plain.
            Decoder::Plain(feed) => return Ok(feed.copy(into, max)),
            Decoder::Gzip(decoder) => decoder,
            Decoder::Zstd(decoder) => decoder,
        };
        let before = into.len();
        into.resize(before + max, 0);
        let read = loop {
            match decoder.read(&mut into[before..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        into.truncate(before + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Ok(Unpacked::End),
            Ok(_) => Ok(Unpacked::Some),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Unpacked::Hungry),
            Err(error) => Err(error),
        }
    }
}

/// The block that is unpacked. Where it ends before the file does, reading "would block".
#[derive(Debug, Default)]
struct Feed {
    block: Bytes,
    last: bool,
}

impl Feed {
    fn copy(&mut self, into: &mut Vec<u8>, max: usize) -> Unpacked {
        match (self.block.len().min(max), self.last) {
            (0, true) => Unpacked::End,
            (0, false) => Unpacked::Hungry,
            (count, _) => {
                into.extend_from_slice(&self.block.split_to(count));
                Unpacked::Some
            }
        }
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.block.is_empty() && !self.last {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(&self.block)
    }

    fn consume(&mut self, count: usize) {
        self.block.advance(count);
    }
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn pack(packing: Packing, bytes: &[u8]) -> Vec<u8> {
        match packing {
            Packing::Plain => bytes.to_vec(),
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Zstd => zstd::encode_all(bytes, 3).unwrap(),
        }
    }

    /// Unpacks what comes in blocks of some size, some bytes at a time.
    fn unpack(
        packing: Packing,
        file: &[u8],
        block: usize,
        max: usize,
    ) -> (Vec<u8>, io::Result<()>) {
        let mut unpack = Unpack::new(packing).unwrap();
        let mut blocks = file.chunks(block).map(Bytes::copy_from_slice).peekable();
        if blocks.peek().is_none() {
            unpack.feed(Bytes::new(), true);
        }
        let mut into = Vec::new();
        loop {
            let before = into.len();
            match unpack.read(&mut into, max) {
                Ok(Unpacked::Some) => assert!((1..=max).contains(&(into.len() - before))),
                Ok(Unpacked::Hungry) => {
                    let block = blocks.next().expect("it is hungry before the last block only");
                    unpack.feed(block, blocks.peek().is_none());
                }
                Ok(Unpacked::End) => return (into, Ok(())),
                Err(error) => return (into, Err(error)),
            }
        }
    }

    const PACKED: [Packing; 2] = [Packing::Gzip, Packing::Zstd];

    fn lines(count: usize) -> Vec<u8> {
        (0..count).flat_map(|at| format!("{{\"id\":{at}}}\n").into_bytes()).collect()
    }

    #[test]
    fn a_name_tells_how_a_file_is_packed() {
        for (name, packing) in [
            ("a.jsonl", Some(Packing::Plain)),
            ("a/b.ndjson", Some(Packing::Plain)),
            (".json", Some(Packing::Plain)),
            ("a.jsonl.gz", Some(Packing::Gzip)),
            ("2026.01.json.zst", Some(Packing::Zstd)),
            ("a.gz", None),
            ("a.jsonl.gz.tmp", None),
            ("a.jsonl.bz2", None),
            ("a.jsonl.1", None),
            ("ajsonl", None),
            ("a.JSONL", None),
            ("a.gz.jsonl.gz.zst", None),
            ("", None),
        ] {
            assert_eq!(Packing::of(name), packing, "{name}");
        }
    }

    #[test]
    fn members_that_follow_one_another_are_one_file() {
        for packing in PACKED {
            let file =
                [pack(packing, b"one\n"), pack(packing, b""), pack(packing, b"two\n")].concat();
            for block in [1, 7, 1_000] {
                let (bytes, end) = unpack(packing, &file, block, 3);
                assert_eq!(bytes, b"one\ntwo\n", "{packing:?} {block}");
                end.unwrap();
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_not_whole() {
        for packing in PACKED {
            let whole = lines(50);
            let file = pack(packing, &whole);
            for length in 1..file.len() {
                let (bytes, end) = unpack(packing, &file[..length], 16, 64);
                assert!(whole.starts_with(&bytes), "{packing:?} {length}");
                let error = end.expect_err("it was cut");
                assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{packing:?} {length}: {error}");
            }
        }
    }

    #[test]
    fn a_file_that_is_broken_is_an_error_and_no_end() {
        for packing in PACKED {
            let file = pack(packing, &lines(50));
            let begun = [file.clone(), b"garbage".to_vec()].concat();
            let (_, end) = unpack(packing, &begun, 16, 64);
            assert!(end.is_err(), "{packing:?} with garbage behind it");
            let (_, end) = unpack(packing, b"{\"id\":1}\n{\"id\":2}\n", 16, 64);
            let error = end.expect_err("it is not packed at all");
            assert_ne!(error.kind(), ErrorKind::UnexpectedEof, "{packing:?}: {error}");
        }
        // The checksum at the end of gzip.
        let mut file = pack(Packing::Gzip, &lines(50));
        let at = file.len() - 6;
        file[at] ^= 1;
        let error = unpack(Packing::Gzip, &file, 16, 64).1.unwrap_err();
        assert_ne!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_few_bytes_that_unpack_to_many_come_out_bit_by_bit() {
        let many = vec![b' '; 64 << 20];
        for packing in PACKED {
            let file = pack(packing, &many);
            assert!(file.len() < 100_000);
            let mut unpack = Unpack::new(packing).unwrap();
            unpack.feed(file.into(), true);
            let mut into = Vec::new();
            assert_eq!(unpack.read(&mut into, 1_000).unwrap(), Unpacked::Some);
            assert!(into.len() <= 1_000, "{packing:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_the_blocks_are_it_comes_back(
            bytes in proptest::collection::vec(0_u8..8, 0..2_000),
            block in 1_usize..100,
            max in 1_usize..100,
        ) {
            for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
                let (back, end) = unpack(packing, &pack(packing, &bytes), block, max);
                prop_assert_eq!(&back, &bytes);
                prop_assert!(end.is_ok());
            }
        }

        #[test]
        fn any_bytes_end_or_are_an_error(
            file in proptest::collection::vec(any::<u8>(), 0..300),
            packed in any::<bool>(),
            flip in any::<prop::sample::Index>(),
        ) {
            for packing in PACKED {
                let mut file = if packed { pack(packing, &file) } else { file.clone() };
                if !file.is_empty() {
                    let at = flip.index(file.len());
                    file[at] ^= 4;
                }
                // No panic and no loop; what comes out is another test's.
                let (_, end) = unpack(packing, &file, 13, 50);
                prop_assert!(end.is_ok() || end.is_err());
            }
        }
    }
}
