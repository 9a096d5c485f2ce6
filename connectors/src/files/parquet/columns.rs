//! Flat columns of a group of rows, read side by side, some rows at a time.

use bytes::Bytes;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArrayType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::RowGroupReader;

/// One column of a group.
pub(super) struct Column {
    typed: Typed,
    is_optional: bool,
}

enum Typed {
    Bytes(ColumnReaderImpl<ByteArrayType>),
    Long(ColumnReaderImpl<Int64Type>),
    Int(ColumnReaderImpl<Int32Type>),
}

impl Column {
    /// The column at `place`.
    pub(super) fn open(group: &dyn RowGroupReader, place: usize) -> Result<Self> {
        let description = group.metadata().schema_descr().column(place);
        if description.max_rep_level() > 0 || description.max_def_level() > 1 {
            let said = format!("column {} is nested", description.name());
            return Err(ParquetError::NYI(said));
        }
        let is_optional = description.max_def_level() == 1;
        let typed = match group.get_column_reader(place)? {
            ColumnReader::ByteArrayColumnReader(reader) => Typed::Bytes(reader),
            ColumnReader::Int64ColumnReader(reader) => Typed::Long(reader),
            ColumnReader::Int32ColumnReader(reader) => Typed::Int(reader),
            _ => {
                let said = format!("column {} is neither text nor number", description.name());
                return Err(ParquetError::NYI(said));
            }
        };
        Ok(Self { typed, is_optional })
    }

    /// Passes over so many rows.
    pub(super) fn skip(&mut self, rows: usize) -> Result<()> {
        let skipped = match &mut self.typed {
            Typed::Bytes(reader) => reader.skip_records(rows),
            Typed::Long(reader) => reader.skip_records(rows),
            Typed::Int(reader) => reader.skip_records(rows),
        }?;
        whole(rows, skipped)
    }

    /// The next texts.
    pub(super) fn texts(&mut self, rows: usize) -> Result<Vec<Option<Bytes>>> {
        let mut values = Vec::new();
        let mut levels = Vec::new();
        let Typed::Bytes(reader) = &mut self.typed else {
            return Err(ParquetError::NYI("a text was expected where numbers are".to_owned()));
        };
        let mut read = 0;
        while read < rows {
            let to = self.is_optional.then_some(&mut levels);
            let (records, _, _) = reader.read_records(rows - read, to, None, &mut values)?;
            if records == 0 {
                break;
            }
            read += records;
        }
        whole(rows, read)?;
        let texts = values.iter().map(|value| Bytes::copy_from_slice(value.data()));
        Ok(in_order(self.is_optional, &levels, texts))
    }

    /// The next numbers.
    pub(super) fn numbers(&mut self, rows: usize) -> Result<Vec<Option<i64>>> {
        let mut levels = Vec::new();
        let mut numbers: Vec<i64> = Vec::new();
        let mut read = 0;
        while read < rows {
            let to = self.is_optional.then_some(&mut levels);
            let (records, _, _) = match &mut self.typed {
                Typed::Long(reader) => reader.read_records(rows - read, to, None, &mut numbers)?,
                Typed::Int(reader) => {
                    let mut short = Vec::new();
                    let got = reader.read_records(rows - read, to, None, &mut short)?;
                    numbers.extend(short.into_iter().map(i64::from));
                    got
                }
                Typed::Bytes(_) => {
                    let said = "a number was expected where texts are";
                    return Err(ParquetError::NYI(said.to_owned()));
                }
            };
            if records == 0 {
                break;
            }
            read += records;
        }
        whole(rows, read)?;
        Ok(in_order(self.is_optional, &levels, numbers.into_iter()))
    }
}

/// A group that ends before its rows do is not whole.
fn whole(rows: usize, read: usize) -> Result<()> {
    match read == rows {
        true => Ok(()),
        false => Err(ParquetError::EOF(format!("a column ends after {read} of {rows} rows"))),
    }
}

/// Values with the gaps that `levels` tell of.
fn in_order<T>(
    is_optional: bool,
    levels: &[i16],
    mut values: impl Iterator<Item = T>,
) -> Vec<Option<T>> {
    match is_optional {
        false => values.map(Some).collect(),
        true => levels.iter().map(|level| (*level > 0).then(|| values.next()).flatten()).collect(),
    }
}
