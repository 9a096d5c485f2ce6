//! From the batches of an answer to events. No I/O.

use std::sync::Arc;

use bytes::Bytes;
use fluvio::dataplane::record::{Batch, RawRecords};
use tombstream_model::{Event, Origin};

use super::spu::Raw;

/// What an answer brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fetched {
    /// The events, none of them before what was expected.
    pub(super) events: Vec<Event>,
    /// Where the first batch begins, if that is after what was expected: something is missing.
    pub(super) hole: Option<i64>,
    /// What is read next; none if there was no whole batch.
    pub(super) next: Option<i64>,
}

/// Takes an answer apart. What stands before `expected` was read already: batches come whole.
///
/// An SPU sends as many bytes as were asked for, and cuts the last batch wherever they end. Fluvio's own
/// consumer takes what it finds of that batch for all of it, and goes on behind it. Here it is left for
/// the next answer, which begins with it. Records are decoded here for the same reason: that client
/// leaves out what is cut off, shortens a value that is, and panics at lengths that can't be.
///
/// Invariant (S7): nothing is passed over in silence; `an_answer_that_is_cut_brings_its_whole_batches_and_no_half_one`.
pub(super) fn decode(
    topic: &Arc<str>,
    partition: u32,
    expected: i64,
    answer: &Raw,
) -> Result<Fetched, String> {
    let number =
        i32::try_from(partition).map_err(|_| format!("there is no partition {partition}"))?;
    let mut fetched = Fetched::default();
    let mut after = None;
    for (index, batch) in answer.batches.iter().enumerate() {
        let base = batch.base_offset;
        if !batch.validate_decoding() {
            if index + 1 < answer.batches.len() {
                return Err(format!("the batch at offset {base} is cut, and others follow"));
            }
            break;
        }
        let records = records(batch).map_err(|why| format!("the batch at offset {base}: {why}"))?;
        let first = after.unwrap_or(expected);
        if base > first {
            if after.is_some() {
                return Err(format!("offsets {first} to {base} are missing between two batches"));
            }
            fetched.hole = Some(base);
        }
        for (record, offset) in records.into_iter().zip(base..) {
            if offset < expected {
                continue;
            }
            let origin = Origin { topic: Arc::clone(topic), partition: number, offset };
            // Fluvio has no null values: an empty one is what a tombstone is published as.
            let value = Some(record.value).filter(|value| !value.is_empty());
            fetched.events.push(Event { origin, topic: None, key: record.key, value });
        }
        after = Some(batch.computed_last_offset());
    }
    fetched.next = after.map(|after| after.max(expected));
    Ok(fetched)
}

#[derive(Debug)]
struct Record {
    key: Option<Bytes>,
    value: Bytes,
}

/// All records of a batch, or why they are not all there.
fn records(batch: &Batch<RawRecords>) -> Result<Vec<Record>, String> {
    let codec = batch.get_compression().map_err(|error| error.to_string())?;
    let raw = &batch.records().0;
    let unpacked = codec.uncompress(raw).map_err(|error| error.to_string())?;
    let mut rest = unpacked.as_deref().unwrap_or(raw);
    let count = batch.records_len();
    let counted = take(&mut rest, 4).map(|it| i32::from_be_bytes([it[0], it[1], it[2], it[3]]));
    if counted.and_then(|counted| usize::try_from(counted).ok()) != Some(count) {
        return Err(format!("its header says {count} records, and its records another number"));
    }
    // A header that lies does not reserve memory: a record has 7 bytes at least.
    let mut records = Vec::with_capacity(count.min(rest.len() / 7));
    for index in 0..count {
        let whole = varint(&mut rest).and_then(|length| take(&mut rest, length));
        let record = whole.and_then(record);
        records.push(record.ok_or_else(|| format!("record {index} of {count} is cut or broken"))?);
    }
    Ok(records)
}

/// A record's bytes: attributes, two numbers, whether there is a key, the key, the value, headers.
fn record(mut bytes: &[u8]) -> Option<Record> {
    let rest = &mut bytes;
    take(rest, 1)?;
    varint(rest)?;
    varint(rest)?;
    let data = |rest: &mut &[u8]| {
        let length = varint(rest)?;
        take(rest, length).map(Bytes::copy_from_slice)
    };
    let key = match take(rest, 1)? {
        [0] => None,
        [1] => Some(data(rest)?),
        _ => return None,
    };
    let value = data(rest)?;
    varint(rest)?;
    Some(Record { key, value })
}

fn take<'a>(rest: &mut &'a [u8], length: i64) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = left;
    Some(taken)
}

/// A number in groups of 7 bits, the lowest first, its sign in the lowest bit.
fn varint(rest: &mut &[u8]) -> Option<i64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use fluvio::Compression;
    use fluvio::dataplane::record::{Record, RecordData, RecordKey, RecordSet};
    use fluvio::dataplane::{Decoder, Encoder};

    use super::{Batch, Bytes, Fetched, Raw, RawRecords, decode};

    fn batch(base: i64, values: &[&str], compression: Compression) -> Batch<RawRecords> {
        let mut batch = Batch::default();
        let record = |value: &&str| {
            Record::new_key_value(RecordKey::from(format!("k{value}")), RecordData::from(*value))
        };
        batch.add_records(&mut values.iter().map(record).collect());
        batch.base_offset = base;
        batch.header.set_compression(compression);
        batch.try_into().unwrap()
    }

    fn plain(base: i64, values: &[&str]) -> Batch<RawRecords> {
        batch(base, values, Compression::None)
    }

    /// As they are on the wire, without the length before them.
    fn wire(batches: Vec<Batch<RawRecords>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        RecordSet { batches }.encode(&mut bytes, 0).unwrap();
        bytes.split_off(4)
    }

    fn received(expected: i64, bytes: &[u8]) -> Result<Fetched, String> {
        let length = i32::try_from(bytes.len()).unwrap();
        let mut whole = Bytes::from([&length.to_be_bytes()[..], bytes].concat());
        let mut answer = Raw::default();
        answer.decode(&mut whole, 0).unwrap();
        decode(&"t".into(), 3, expected, &answer)
    }

    fn decoded(expected: i64, batches: Vec<Batch<RawRecords>>) -> Result<Fetched, String> {
        received(expected, &wire(batches))
    }

    fn offsets(fetched: &Fetched) -> Vec<(i64, Option<&[u8]>)> {
        let events = fetched.events.iter();
        events.map(|event| (event.origin.offset, event.value.as_deref())).collect()
    }

    #[test]
    fn records_have_their_offsets_and_what_was_read_already_is_left_out() {
        let fetched = decoded(6, vec![plain(5, &["a", "b"]), plain(7, &["c"])]).unwrap();
        assert_eq!(offsets(&fetched), [(6, Some(&b"b"[..])), (7, Some(b"c"))]);
        assert_eq!((fetched.next, fetched.hole), (Some(8), None));
        assert_eq!(fetched.events[0].origin.partition, 3);
        assert_eq!(fetched.events[0].key.as_deref(), Some(&b"kb"[..]));
        let fetched = decoded(8, vec![plain(7, &["c"])]).unwrap();
        assert_eq!((fetched.events.len(), fetched.next), (0, Some(8)));
    }

    #[test]
    fn every_codec_is_read() {
        for codec in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
            let fetched = decoded(0, vec![batch(0, &["a", "b", "c"], codec)]).unwrap();
            assert_eq!(offsets(&fetched)[2], (2, Some(&b"c"[..])), "{codec:?}");
        }
    }

    #[test]
    fn an_empty_value_is_a_tombstone_and_an_empty_key_a_key() {
        let mut empty = Batch::default();
        empty.add_records(&mut vec![
            Record::new_key_value(RecordKey::from(""), RecordData::from("")),
            Record::new(RecordData::from("v")),
        ]);
        let fetched = decoded(0, vec![empty.try_into().unwrap()]).unwrap();
        assert_eq!(offsets(&fetched), [(0, None), (1, Some(&b"v"[..]))]);
        assert_eq!(fetched.events[0].key.as_deref(), Some(&b""[..]));
        assert_eq!(fetched.events[1].key, None);
    }

    #[test]
    fn an_answer_that_is_cut_brings_its_whole_batches_and_no_half_one() {
        for codec in [Compression::None, Compression::Zstd] {
            let batches = || vec![batch(5, &["a", "b"], codec), batch(7, &["c", "d", "e"], codec)];
            let (first, both) = (wire(vec![batches().remove(0)]).len(), wire(batches()));
            for end in 0..both.len() {
                let fetched = received(5, &both[..end]).unwrap();
                let whole = if end < first { (0, None) } else { (2, Some(7)) };
                assert_eq!((fetched.events.len(), fetched.next), whole, "{end} bytes");
            }
            assert_eq!(received(5, &both).unwrap().next, Some(10));
        }
    }

    #[test]
    fn a_batch_with_too_few_records_is_an_error_and_not_a_shorter_batch() {
        let whole = plain(5, &["a", "b", "c"]);
        for end in 0..whole.records().0.len() {
            let mut cut = whole.clone();
            cut.mut_records().0.truncate(end);
            let error = decoded(5, vec![cut]).unwrap_err();
            assert!(error.contains("offset 5"), "{error}");
        }
    }

    #[test]
    fn garbage_is_an_error_and_no_panic() {
        let whole = batch(5, &["a", "b", "c"], Compression::None);
        for at in 0..whole.records().0.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.records().0.to_vec();
                bytes[at] = byte;
                let mut broken = whole.clone();
                broken.mut_records().0 = bytes.into();
                if let Ok(fetched) = decoded(5, vec![broken]) {
                    assert_eq!(fetched.events.len(), 3);
                }
            }
        }
        let mut lying = whole.clone();
        lying.header.set_compression(Compression::Zstd);
        assert!(decoded(5, vec![lying]).is_err());
        let mut lying = whole;
        lying.header.last_offset_delta = 1_000_000;
        assert!(decoded(5, vec![lying]).is_err());
    }

    #[test]
    fn what_is_missing_is_told() {
        let fetched = decoded(5, vec![plain(9, &["a"])]).unwrap();
        assert_eq!((fetched.hole, fetched.next), (Some(9), Some(10)));
        assert!(decoded(5, vec![plain(5, &["a"]), plain(9, &["b"])]).is_err());
        assert_eq!(decoded(5, vec![]).unwrap().next, None);
    }
}
