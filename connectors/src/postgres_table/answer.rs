//! What an error of the database says: of some row of the batch, or of the store as a whole. Pure.
//!
//! Of what concerns rows the code and the names of table and constraint are kept, never the message: it
//! quotes values.

use tombstream_model::{SinkError, Verdict};

/// Why a transaction came to nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// Some row of it; alone it is told by this.
    Row(Verdict, String),
    /// The store.
    Whole(SinkError),
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(told) => {
                let code = told.code().unwrap_or_default().into_owned();
                let constraint = told.constraint().map(str::to_owned);
                let message = told.message().to_owned();
                judge(&code, constraint.as_deref(), message, error)
            }
            _ => Self::Whole(SinkError::Unavailable(Box::new(error))),
        }
    }
}

/// The classes of SQLSTATE, and the codes that are not as their class.
fn judge(code: &str, constraint: Option<&str>, message: String, error: sqlx::Error) -> Fault {
    let refused = || {
        let by = constraint.map(|name| format!(", constraint {name}")).unwrap_or_default();
        Fault::Row(Verdict::Refused, format!("the database refuses (SQLSTATE {code}{by})"))
    };
    let class = code.get(..2).unwrap_or_default();
    match (code, class) {
        ("55P03", _) => Fault::Row(Verdict::Busy, "another transaction holds the row".to_owned()),
        ("40001" | "40P01", _) => {
            Fault::Row(Verdict::Busy, format!("another transaction was faster (SQLSTATE {code})"))
        }
        ("25006", _) => Fault::Whole(SinkError::Unavailable(READ_ONLY.into())),
        ("42P01" | "42703" | "3D000" | "3F000", _) => Fault::Whole(SinkError::Missing(message)),
        // These speak of tables, functions and privileges; a row's values are not in them.
        (_, "42" | "28" | "0A") => Fault::Whole(SinkError::Denied(message)),
        // Connections, resources, an operator, the system; what has no code.
        ("", _) | (_, "08" | "53" | "55" | "57" | "58" | "XX" | "25") => {
            Fault::Whole(SinkError::Unavailable(Box::new(error)))
        }
        // Data, constraints, and whatever else a trigger raises.
        (_, _) => refused(),
    }
}

/// What a standby, or a server that was set so, is told by.
pub(super) const READ_ONLY: &str =
    "the server takes no writes (a standby, or read-only): url must lead to the primary";

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(code: &str) -> Fault {
        let error = sqlx::Error::PoolTimedOut; // A source that says nothing.
        judge(code, Some("c"), "\"copies\"".to_owned(), error)
    }

    #[test]
    fn one_row_is_told_from_the_whole_store() {
        for code in
            ["22P02", "22003", "23503", "23514", "23001", "P0001", "TS001", "ZZ123", "44000"]
        {
            let fault = judged(code);
            assert!(matches!(fault, Fault::Row(Verdict::Refused, _)), "{code}: {fault:?}");
        }
        for code in ["55P03", "40001", "40P01"] {
            assert!(matches!(judged(code), Fault::Row(Verdict::Busy, _)), "{code}");
        }
        for code in
            ["57014", "57P01", "57P03", "53300", "53100", "08006", "25006", "55000", "XX000", ""]
        {
            let fault = judged(code);
            assert!(matches!(fault, Fault::Whole(SinkError::Unavailable(_))), "{code}: {fault:?}");
        }
        for code in ["42P01", "42703", "3D000"] {
            assert!(matches!(judged(code), Fault::Whole(SinkError::Missing(_))), "{code}");
        }
        for code in ["42501", "28P01", "0A000", "42883"] {
            assert!(matches!(judged(code), Fault::Whole(SinkError::Denied(_))), "{code}");
        }
    }

    #[test]
    fn what_is_said_of_a_row_names_the_constraint_and_no_value() {
        let Fault::Row(_, said) = judged("23503") else { panic!("of a row") };
        assert_eq!(said, "the database refuses (SQLSTATE 23503, constraint c)");
    }
}
