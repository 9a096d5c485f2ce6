//! Rows as Postgres's own log tells them: the messages of `pgoutput`, protocol version 1.
//!
//! A message is kept as the bytes that came; what it says is read where it is needed, by borrowing.
//! The formats are those of the chapter "Logical Replication Message Formats" of Postgres's
//! documentation. What a row means for a relation is said in [`crate::decode`].

use std::sync::Arc;

use bytes::Bytes;

use crate::{Generation, Lsn, Origin, Position};

/// One message about one row (or a truncated table), with what stood before it in the log.
#[derive(Clone, Debug)]
pub struct WalRow {
    /// Where it stood. `topic` is the table's, as Debezium would name it; `offset` is the LSN;
    /// `partition` counts the rows that share that LSN, as those of one `copy` do.
    pub origin: Origin,
    /// Which life of the log.
    pub generation: Generation,
    /// The table as the log described it last.
    pub table: Arc<WalTable>,
    /// The transaction.
    pub transaction: Arc<WalTransaction>,
    /// The message: an insert, update, delete or truncate.
    pub message: Bytes,
}

/// The transaction that a row was committed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalTransaction {
    /// Its number, as Postgres reuses it.
    pub xid: u32,
    /// Where its commit stands.
    pub commit_lsn: Lsn,
    /// When it was committed, in microseconds since 1970, by the server's clock.
    pub committed_micros: i64,
}

/// A table as the log describes it before its first row, and again after each change of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalTable {
    /// Its object id.
    pub oid: u32,
    /// Its schema.
    pub schema: Box<str>,
    /// Its name; the root's for a partition that is published by its root.
    pub name: Box<str>,
    /// What its updates and deletes say of the row before.
    pub identity: ReplicaIdentity,
    /// Its columns, in the order of its rows.
    pub columns: Box<[WalColumn]>,
}

/// A column of a [`WalTable`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalColumn {
    /// Its name.
    pub name: Box<str>,
    /// The object id of its type.
    pub type_oid: u32,
    /// The type's modifier (a length, a precision), -1 for none.
    pub type_modifier: i32,
    /// Whether it is part of the replica identity.
    pub is_identity: bool,
}

/// `alter table … replica identity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// None: updates and deletes can't be published.
    Nothing,
    /// The whole row.
    Full,
    /// A unique index.
    Index,
}

/// What a [`WalRow`]'s message says.
#[derive(Clone, Copy, Debug)]
pub enum RowMessage<'a> {
    /// A row came.
    Insert {
        /// It.
        new: Tuple<'a>,
    },
    /// A row changed.
    Update {
        /// The row before: whole under REPLICA IDENTITY FULL; else the identity's columns, and
        /// only if they changed.
        old: Option<Old<'a>>,
        /// The row after.
        new: Tuple<'a>,
    },
    /// A row went.
    Delete {
        /// The row before.
        old: Old<'a>,
    },
    /// All rows went at once.
    Truncate,
}

/// A row before its change.
#[derive(Clone, Copy, Debug)]
pub struct Old<'a> {
    /// The columns; those that are not known are null.
    pub tuple: Tuple<'a>,
    /// Whether it is the whole row, and a null means null.
    pub is_whole: bool,
}

/// The columns of a row, in the order of its [`WalTable`].
#[derive(Clone, Copy, Debug)]
pub struct Tuple<'a> {
    count: usize,
    bytes: &'a [u8],
}

/// One column's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Null, or not told.
    Null,
    /// A TOASTed value that the update left as it was, and that the log does not repeat.
    Unchanged,
    /// In the type's text form.
    Text(&'a [u8]),
}

/// Bytes that are no message of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// They end in the middle of something.
    #[error("a pgoutput message ends in the middle of its {0}")]
    Cut(&'static str),
    /// A text that is none.
    #[error("a name in a pgoutput message is not utf-8")]
    Utf8,
    /// A byte that tells a kind, and tells none that is known.
    #[error("a pgoutput message has {found:?} where its {part} is told")]
    Kind {
        /// Of what.
        part: &'static str,
        /// The byte.
        found: char,
    },
}

impl WalRow {
    /// What its message says.
    pub fn read(&self) -> Result<RowMessage<'_>, WalError> {
        RowMessage::read(&self.message)
    }

    /// Where in the log.
    pub fn position(&self) -> Position {
        Position {
            generation: self.generation,
            lsn: self.lsn(),
            order: u32::try_from(self.origin.partition).unwrap_or(0),
        }
    }

    /// Where in the log, without the generation.
    pub fn lsn(&self) -> Lsn {
        Lsn(u64::try_from(self.origin.offset).unwrap_or(0))
    }
}

impl WalTable {
    /// Reads a Relation message (`R`).
    pub fn read(message: &[u8]) -> Result<Self, WalError> {
        let mut cursor = Cursor(message);
        cursor.kind(b"R", "kind")?;
        let oid = cursor.u32("table")?;
        let schema = match cursor.text()? {
            // The protocol leaves this one's name out.
            "" => "pg_catalog",
            schema => schema,
        };
        let name = cursor.text()?;
        let identity = match cursor.kind(b"dnfi", "replica identity")? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            _ => ReplicaIdentity::Index,
        };
        let count = cursor.u16("columns")?;
        let mut columns = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            columns.push(WalColumn {
                is_identity: cursor.u8("column")? & 1 == 1,
                name: cursor.text()?.into(),
                type_oid: cursor.u32("column")?,
                type_modifier: cursor.u32("column")?.cast_signed(),
            });
        }
        let columns = columns.into_boxed_slice();
        Ok(Self { oid, schema: schema.into(), name: name.into(), identity, columns })
    }

    /// The place of the column `name`.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| *column.name == *name)
    }
}

impl<'a> RowMessage<'a> {
    /// Reads an Insert, Update, Delete or Truncate message (`I`, `U`, `D`, `T`).
    pub fn read(message: &'a [u8]) -> Result<Self, WalError> {
        let mut cursor = Cursor(message);
        let kind = cursor.kind(b"IUDT", "kind")?;
        cursor.u32("table")?;
        let old = |cursor: &mut Cursor<'a>, is_whole| {
            Ok::<_, WalError>(Old { tuple: cursor.tuple()?, is_whole })
        };
        match kind {
            b'I' => {
                cursor.kind(b"N", "new row")?;
                Ok(Self::Insert { new: cursor.tuple()? })
            }
            b'U' => match cursor.kind(b"KON", "row")? {
                b'N' => Ok(Self::Update { old: None, new: cursor.tuple()? }),
                which => {
                    let old = old(&mut cursor, which == b'O')?;
                    cursor.kind(b"N", "new row")?;
                    Ok(Self::Update { old: Some(old), new: cursor.tuple()? })
                }
            },
            b'D' => {
                let which = cursor.kind(b"KO", "old row")?;
                Ok(Self::Delete { old: old(&mut cursor, which == b'O')? })
            }
            _ => Ok(Self::Truncate),
        }
    }

    /// An Insert message, for a row that was read from the table itself.
    pub fn insert<'v>(
        table: u32,
        values: impl ExactSizeIterator<Item = Option<&'v [u8]>>,
    ) -> Bytes {
        let mut message = vec![b'I'];
        message.extend(table.to_be_bytes());
        message.push(b'N');
        message.extend(u16::try_from(values.len()).unwrap_or(u16::MAX).to_be_bytes());
        for value in values.take(usize::from(u16::MAX)) {
            match value {
                None => message.push(b'n'),
                Some(value) => {
                    message.push(b't');
                    // Postgres has no value beyond a gigabyte.
                    message.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
                    message.extend(value);
                }
            }
        }
        message.into()
    }

    /// The object id of the table that an Insert, Update or Delete message is about.
    pub fn table(message: &[u8]) -> Result<u32, WalError> {
        let mut cursor = Cursor(message);
        cursor.kind(b"IUD", "kind")?;
        cursor.u32("table")
    }

    /// The object ids of the tables that a Truncate message is about.
    pub fn truncated(message: &[u8]) -> Result<Vec<u32>, WalError> {
        let mut cursor = Cursor(message);
        cursor.kind(b"T", "kind")?;
        let count = cursor.u32("tables")?;
        cursor.u8("options")?;
        (0..count).map(|_| cursor.u32("tables")).collect()
    }
}

impl<'a> Tuple<'a> {
    /// How many columns there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The columns' values. The bytes were found to be whole when the message was read.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut cursor = Cursor(self.bytes);
        (0..self.count).map_while(move |_| cursor.value().ok())
    }

    /// The values at `places`, in their order. A place beyond the columns is null.
    pub fn pick(&self, places: &[usize], values: &mut [Value<'a>]) {
        for (place, value) in self.values().enumerate() {
            for (wanted, slot) in places.iter().zip(values.iter_mut()) {
                if *wanted == place {
                    *slot = value;
                }
            }
        }
    }
}

/// The bytes that are not read yet.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, part: &'static str) -> Result<&'a [u8], WalError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(WalError::Cut(part))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], WalError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(WalError::Cut(part))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self, part: &'static str) -> Result<u8, WalError> {
        self.array::<1>(part).map(|[byte]| byte)
    }

    fn u16(&mut self, part: &'static str) -> Result<u16, WalError> {
        self.array(part).map(u16::from_be_bytes)
    }

    fn u32(&mut self, part: &'static str) -> Result<u32, WalError> {
        self.array(part).map(u32::from_be_bytes)
    }

    fn kind(&mut self, known: &[u8], part: &'static str) -> Result<u8, WalError> {
        let kind = self.u8(part)?;
        if known.contains(&kind) {
            Ok(kind)
        } else {
            Err(WalError::Kind { part, found: char::from(kind) })
        }
    }

    /// A text that ends in a zero byte.
    fn text(&mut self) -> Result<&'a str, WalError> {
        let end = memchr::memchr(0, self.0).ok_or(WalError::Cut("name"))?;
        let text = self.take(end, "name")?;
        self.take(1, "name")?;
        std::str::from_utf8(text).map_err(|_| WalError::Utf8)
    }

    /// A row, each of whose columns is there as a whole.
    fn tuple(&mut self) -> Result<Tuple<'a>, WalError> {
        let count = usize::from(self.u16("row")?);
        let bytes = self.0;
        for _ in 0..count {
            self.value()?;
        }
        Ok(Tuple { count, bytes })
    }

    fn value(&mut self) -> Result<Value<'a>, WalError> {
        match self.kind(b"nut", "column")? {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            _ => {
                let length = self.u32("column")?;
                let length = usize::try_from(length).map_err(|_| WalError::Cut("column"))?;
                self.take(length, "column").map(Value::Text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Recorded from Postgres 15: `create table t (id bigint primary key, name text)`.
    const RELATION: &[u8] =
        b"R\0\0\x40\x05public\0t\0d\0\x02\x01id\0\0\0\0\x14\xff\xff\xff\xff\0name\0\0\0\0\x19\xff\xff\xff\xff";

    #[test]
    fn a_table_is_read_as_the_log_describes_it() {
        let table = WalTable::read(RELATION).unwrap();
        assert_eq!((table.oid, &*table.schema, &*table.name), (0x4005, "public", "t"));
        assert_eq!(table.identity, ReplicaIdentity::Default);
        let column = |name: &str, type_oid, is_identity| WalColumn {
            name: name.into(),
            type_oid,
            type_modifier: -1,
            is_identity,
        };
        assert_eq!(*table.columns, [column("id", 20, true), column("name", 25, false)]);
        assert_eq!((table.place("name"), table.place("nam")), (Some(1), None));
    }

    #[test]
    fn rows_are_read_with_nulls_and_values_that_did_not_change() {
        let update = b"U\0\0\x40\x05K\0\x02t\0\0\0\x017nN\0\x02t\0\0\0\x018u";
        let RowMessage::Update { old: Some(old), new } = RowMessage::read(update).unwrap() else {
            panic!("an update with a key")
        };
        assert!(!old.is_whole);
        let values = |tuple: Tuple<'static>| tuple.values().collect::<Vec<_>>();
        assert_eq!(values(old.tuple), [Value::Text(b"7"), Value::Null]);
        assert_eq!(values(new), [Value::Text(b"8"), Value::Unchanged]);
        let mut picked = [Value::Null; 2];
        new.pick(&[1, 0], &mut picked);
        assert_eq!(picked, [Value::Unchanged, Value::Text(b"8")]);
        assert_eq!(RowMessage::table(update), Ok(0x4005));
        assert_eq!(RowMessage::truncated(b"T\0\0\0\x02\0\0\0\0\x07\0\0\0\x08"), Ok(vec![7, 8]));
    }

    #[test]
    fn a_message_cut_anywhere_is_no_message() {
        let whole: [&[u8]; 3] = [
            RELATION,
            b"U\0\0\x40\x05O\0\x02t\0\0\0\x017nN\0\x02t\0\0\0\x018u",
            b"D\0\0\x40\x05K\0\x01t\0\0\0\x017",
        ];
        for message in whole {
            let read = |bytes| match message[0] {
                b'R' => WalTable::read(bytes).map(drop),
                _ => RowMessage::read(bytes).map(drop),
            };
            assert_eq!(read(message), Ok(()));
            for end in 0..message.len() {
                assert!(read(&message[..end]).is_err(), "{end} of {message:?}");
            }
        }
    }

    #[test]
    fn a_row_that_was_read_from_its_table_is_an_insert() {
        let values = [Some(&b"7"[..]), None];
        let message = RowMessage::insert(0x4005, values.into_iter());
        let RowMessage::Insert { new } = RowMessage::read(&message).unwrap() else {
            panic!("an insert")
        };
        assert_eq!(new.values().collect::<Vec<_>>(), [Value::Text(b"7"), Value::Null]);
        assert_eq!(RowMessage::table(&message), Ok(0x4005));
    }

    #[test]
    fn binary_columns_are_not_asked_for_and_not_guessed_at() {
        let error = RowMessage::read(b"I\0\0\0\x01N\0\x01b\0\0\0\x017").unwrap_err();
        assert_eq!(error, WalError::Kind { part: "column", found: 'b' });
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            for kind in [b'R', b'I', b'U', b'D', b'T'] {
                let mut message = vec![kind];
                message.extend_from_slice(&bytes);
                // None of them panics.
                drop(WalTable::read(&message));
                if let Ok(RowMessage::Insert { new }) = RowMessage::read(&message) {
                    prop_assert_eq!(new.values().count(), new.len());
                }
                drop(RowMessage::truncated(&message));
            }
        }
    }
}
