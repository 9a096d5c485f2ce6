//! Flat tables, written row by row.

use std::io::Write;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Rows of a group: some megabytes, which a reader takes at a time.
const GROUP: usize = 50_000;

/// What a column holds. Any of its cells may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// UTF-8.
    Text,
    /// 64 bits.
    Integer,
    /// True or false.
    Boolean,
    /// Microseconds, UTC.
    Time,
}

/// What stands in a row under a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// Nothing.
    Null,
    /// Of [`ColumnKind::Text`].
    Text(&'a str),
    /// Of [`ColumnKind::Integer`].
    Integer(i64),
    /// Of [`ColumnKind::Boolean`].
    Boolean(bool),
    /// Of [`ColumnKind::Time`].
    Time(DateTime<Utc>),
}

/// Why a table can't be written.
#[derive(Debug, thiserror::Error)]
#[error("the table can't be written")]
pub struct TableError(#[from] ParquetError);

/// The cells of one column, and for each whether there is one.
enum Cells {
    Text(Vec<ByteArray>),
    Integer(Vec<i64>),
    Boolean(Vec<bool>),
}

struct Column {
    cells: Cells,
    levels: Vec<i16>,
}

/// A table that is being written.
pub struct TableWriter<W: Write + Send> {
    writer: SerializedFileWriter<W>,
    columns: Vec<Column>,
    rows: usize,
}

impl<W: Write + Send> TableWriter<W> {
    /// Begins a table of these columns.
    pub fn new(to: W, columns: &[(&str, ColumnKind)]) -> Result<Self, TableError> {
        let fields = columns.iter().map(|(name, kind)| match kind {
            ColumnKind::Text => format!("optional binary {name} (utf8);"),
            ColumnKind::Integer => format!("optional int64 {name};"),
            ColumnKind::Boolean => format!("optional boolean {name};"),
            ColumnKind::Time => format!("optional int64 {name} (timestamp(micros,true));"),
        });
        let schema = format!("message tombstream {{ {} }}", fields.collect::<String>());
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(concat!("tombstream ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let schema = Arc::new(parse_message_type(&schema)?);
        let writer = SerializedFileWriter::new(to, schema, Arc::new(properties))?;
        let columns = columns.iter().map(|(_, kind)| Column {
            cells: match kind {
                ColumnKind::Text => Cells::Text(Vec::new()),
                ColumnKind::Integer | ColumnKind::Time => Cells::Integer(Vec::new()),
                ColumnKind::Boolean => Cells::Boolean(Vec::new()),
            },
            levels: Vec::new(),
        });
        Ok(Self { writer, columns: columns.collect(), rows: 0 })
    }

    /// Adds a row. Its cells are of the columns' kinds, in their order; what is not is written as empty.
    pub fn push(&mut self, row: &[Cell<'_>]) -> Result<(), TableError> {
        debug_assert_eq!(row.len(), self.columns.len(), "a cell for each column");
        let cells = row.iter().copied().chain(std::iter::repeat(Cell::Null));
        for (column, cell) in self.columns.iter_mut().zip(cells) {
            let is_there = match (&mut column.cells, cell) {
                (Cells::Text(all), Cell::Text(text)) => {
                    all.push(ByteArray::from(text));
                    true
                }
                (Cells::Integer(all), Cell::Integer(number)) => {
                    all.push(number);
                    true
                }
                (Cells::Integer(all), Cell::Time(at)) => {
                    all.push(at.timestamp_micros());
                    true
                }
                (Cells::Boolean(all), Cell::Boolean(is)) => {
                    all.push(is);
                    true
                }
                (_, cell) => {
                    debug_assert_eq!(cell, Cell::Null, "a cell is of its column's kind");
                    false
                }
            };
            column.levels.push(i16::from(is_there));
        }
        self.rows += 1;
        if self.rows >= GROUP { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), TableError> {
        if self.rows == 0 {
            return Ok(());
        }
        self.rows = 0;
        let mut group = self.writer.next_row_group()?;
        for Column { cells, levels } in &mut self.columns {
            let Some(mut column) = group.next_column()? else { break };
            let present = Some(&levels[..]);
            match cells {
                Cells::Text(all) => {
                    column.typed::<ByteArrayType>().write_batch(all, present, None)?;
                    all.clear();
                }
                Cells::Integer(all) => {
                    column.typed::<Int64Type>().write_batch(all, present, None)?;
                    all.clear();
                }
                Cells::Boolean(all) => {
                    column.typed::<BoolType>().write_batch(all, present, None)?;
                    all.clear();
                }
            }
            column.close()?;
            levels.clear();
        }
        group.close()?;
        Ok(())
    }

    /// Ends the table, and gives back what it was written to.
    pub fn close(mut self) -> Result<W, TableError> {
        self.flush()?;
        Ok(self.writer.into_inner()?)
    }
}
