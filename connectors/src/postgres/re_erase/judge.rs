//! Whether a row that is there is the one that a receipt says was removed. Pure.
//!
//! Invariant (S1): what is not shown to be the erased life is never flagged. A key alone shows nothing, though it was
//! declared that none is used twice: a restored sequence gives the numbers out again that the erased rows had;
//! `tests::a_row_is_erased_again_only_where_something_shows_that_it_is_the_erased_one`.

use chrono::{DateTime, TimeDelta, Utc};

/// What a receipt says, as far as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erased {
    /// The deletion's number in the export.
    pub deletion: i64,
    /// The entry's number in the chain.
    pub entry: i64,
    /// The transaction that removed the row.
    pub transaction_id: String,
    /// The flag's value that was claimed; none of a row that was gone.
    pub flag: Option<String>,
    /// The point of no return.
    pub claimed_at: DateTime<Utc>,
    /// When the row was removed.
    pub finalized_at: DateTime<Utc>,
}

/// What the database says of a row under the receipt's key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Back {
    pub(super) is_flagged: bool,
    /// It has the very flag that was claimed, and the flag is a point in time.
    pub(super) has_its_flag: bool,
    /// An open deletion of it says that it is erased again.
    pub(super) is_under_way: bool,
    /// When the row came to be, where a column tells it.
    pub(super) created: Option<DateTime<Utc>>,
    /// The transaction that wrote the row as it is.
    pub(super) written_by: i64,
    /// This ledger wrote the receipt itself.
    pub(super) is_known: bool,
    /// This ledger removed a row of the key later than the receipt says.
    pub(super) was_removed_since: bool,
    /// An earlier erasing again was cancelled: a person restored the row.
    pub(super) was_taken_back: bool,
}

/// What is known of the database as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lineage {
    /// The newest transaction that both this database and the export have, where the server's numbers are still
    /// those of its receipts. What was written before it was there before anything that only the export has.
    pub(super) shared_transaction: Option<i64>,
    /// The export has receipts that this ledger did not write: the database was set back.
    pub(super) was_set_back: bool,
    /// An operator said that tables were put back out of a backup without the ledger. Else who put back a row that this
    /// ledger removed is a person who wanted it.
    pub(super) had_tables_alone: bool,
}

/// What follows for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It is the erased life: flagged again.
    ReErased,
    /// It is flagged already. Where its flag is the claimed one it is the erased life.
    AlreadyFlagged,
    /// It is another life: left alone.
    AliveAnew,
    /// Nothing shows which: left alone, for a person.
    Ambiguous,
}

impl Ending {
    /// Every ending.
    pub const ALL: [Self; 4] =
        [Self::ReErased, Self::AlreadyFlagged, Self::AliveAnew, Self::Ambiguous];

    /// The ledger's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReErased => "re_erased",
            Self::AlreadyFlagged => "already_flagged",
            Self::AliveAnew => "alive_anew",
            Self::Ambiguous => "ambiguous",
        }
    }
}

/// How much older than its claim a row must be to be the claimed one by its time alone. `now()` is the beginning of a
/// transaction: one that was open while a row was erased may bring another one to life with an earlier time.
const MARGIN: TimeDelta = TimeDelta::hours(1);

/// What follows, and why.
pub(super) fn judge(erased: &Erased, back: &Back, lineage: Lineage) -> (Ending, &'static str) {
    if back.was_removed_since {
        return (
            Ending::AliveAnew,
            "this ledger removed a row of the key later than that: this one came afterwards",
        );
    }
    if back.is_flagged {
        let why = match (back.is_under_way, back.has_its_flag) {
            (true, _) => "it is being erased again",
            (_, true) => "with the flag that was claimed: it is the erased row",
            (false, false) => "with another flag than the claimed one: it goes as any flagged row",
        };
        return (Ending::AlreadyFlagged, why);
    }
    if back.was_taken_back {
        return (Ending::Ambiguous, "it was flagged again before, and somebody restored it");
    }
    match back.created {
        Some(created) if created >= erased.finalized_at => {
            return (Ending::AliveAnew, "it was created after the removal");
        }
        Some(created) if created < erased.claimed_at - MARGIN => {
            return match back.is_known && !lineage.had_tables_alone {
                true => (
                    Ending::Ambiguous,
                    "this ledger removed it, and somebody put it back: a person, or out of a backup of the table \
                     alone (--tables-alone says that there was one)",
                ),
                false => (Ending::ReErased, "it was created before the claim"),
            };
        }
        _ => {}
    }
    if back.is_known {
        return match (lineage.was_set_back, back.created) {
            (true, None) => (
                Ending::AliveAnew,
                "this database has the removal behind it: the row came afterwards",
            ),
            _ => (
                Ending::Ambiguous,
                "this ledger wrote the receipt: the row was created anew, or put back out of a backup of the table \
                 alone, and no column tells when it was created",
            ),
        };
    }
    match lineage.shared_transaction {
        Some(shared) if back.written_by <= shared => {
            (Ending::ReErased, "it was written before the removal, by the server's transactions")
        }
        _ if back.created.is_some() => (
            Ending::Ambiguous,
            "it was created too shortly before the claim, or while the deletion was under way",
        ),
        _ => (
            Ending::Ambiguous,
            "nothing shows whether it is of the backup or came after it: name the column that tells when a row was \
             created (created = \"…\" of the relation)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::hours(hour)
    }

    fn erased() -> Erased {
        Erased {
            deletion: 7,
            entry: 9,
            transaction_id: "900".to_owned(),
            flag: Some("1970-01-05 04:00:00+00".to_owned()),
            claimed_at: at(101),
            finalized_at: at(102),
        }
    }

    const UNKNOWN: Lineage =
        Lineage { shared_transaction: None, was_set_back: true, had_tables_alone: false };
    const SET_BACK: Lineage = Lineage { shared_transaction: Some(500), ..UNKNOWN };
    const WHOLE: Lineage =
        Lineage { shared_transaction: Some(990), was_set_back: false, had_tables_alone: false };
    const ALONE: Lineage = Lineage { had_tables_alone: true, ..WHOLE };

    fn row() -> Back {
        Back { written_by: 600, ..Back::default() }
    }

    fn created(hour: i64) -> Back {
        Back { created: Some(at(hour)), ..row() }
    }

    #[test]
    fn a_row_is_erased_again_only_where_something_shows_that_it_is_the_erased_one() {
        use Ending::*;
        let known = |back: Back| Back { is_known: true, ..back };
        let flagged = |back: Back| Back { is_flagged: true, ..back };
        let old = Back { written_by: 500, ..row() };
        for (what, back, lineage, ending) in [
            ("nothing is known", row(), UNKNOWN, Ambiguous),
            ("written after what both have", row(), SET_BACK, Ambiguous),
            ("written before it", old.clone(), SET_BACK, ReErased),
            ("written before, and by another server's numbers", old.clone(), UNKNOWN, Ambiguous),
            ("created long before", created(50), UNKNOWN, ReErased),
            ("created long before, and put back by hand", known(created(50)), WHOLE, Ambiguous),
            ("put back by hand before the backup", known(created(50)), SET_BACK, Ambiguous),
            ("put back with its table alone", known(created(50)), ALONE, ReErased),
            ("with its table alone, and nothing tells it", known(old.clone()), ALONE, Ambiguous),
            ("created anew beside a table put back", known(created(200)), ALONE, AliveAnew),
            ("created within the hour before", created(100), UNKNOWN, Ambiguous),
            (
                "created within the hour before, and written before what both have",
                Back { written_by: 400, ..created(100) },
                SET_BACK,
                ReErased,
            ),
            ("created in between", created(101), UNKNOWN, Ambiguous),
            ("created with the removal", created(102), SET_BACK, AliveAnew),
            ("created after it", created(200), WHOLE, AliveAnew),
            (
                "created after it, whatever wrote it",
                Back { written_by: 1, ..created(200) },
                SET_BACK,
                AliveAnew,
            ),
            ("the removal is in this database", known(old.clone()), SET_BACK, AliveAnew),
            (
                "the removal is in this database, which lost nothing",
                known(old.clone()),
                WHOLE,
                Ambiguous,
            ),
            ("the removal is here, created in between", known(created(101)), SET_BACK, Ambiguous),
            ("flagged", flagged(created(50)), SET_BACK, AlreadyFlagged),
            (
                "removed again since",
                Back { was_removed_since: true, ..created(50) },
                SET_BACK,
                AliveAnew,
            ),
            ("taken back", Back { was_taken_back: true, ..created(50) }, SET_BACK, Ambiguous),
        ] {
            let (found, why) = judge(&erased(), &back, lineage);
            assert_eq!(found, ending, "{what}: {why}");
        }
    }
}
