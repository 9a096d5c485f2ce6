//! What the claim's second statement decides: claimed, hidden, waiting, or parked.

use tombstream_model::{BreakerLimits, Relation};

use super::guard::is_guarded;
use super::ledger::ClaimedRow;
use super::removed::is_again;
use super::table::{BY_KEY, OPEN_STATES, Table, interval, is_held, literal};

/// Decides on a fresh snapshot, and writes: one ledger row for each key that is claimed, hidden, parked, or
/// has to wait where nothing else would remember it. (A flag that the guard vouches for is remembered by
/// the table: ten million of them in their grace have no row here.)
///
/// What is parked of an earlier life of a key, whose flag had another value, is closed; what is parked
/// for an address that is safe now goes on. What is claimed already is not even locked: an event and the
/// sweep bring the same key, and its finalizing would skip what the second claim holds and wait for the
/// lease's end, its outcomes lost (`what_is_claimed_is_not_locked_again`).
///
/// Where no guard vouches that the flag was set at the time it tells, grace runs from first sight (L4). What is
/// parked under another value of the flag may be of this very life, stamped again with an older time: its first
/// sight counts, too, where that is later.
/// Nothing is added to a flag: its sum may be out of range.
///
/// While a hide is under way nothing is claimed ([`is_hiding`]).
///
/// What is erased again (`re_erase/`) spends nothing of the breaker's budget: it was claimed within it once.
///
/// The keys are `materialized`: inlined, each would be parsed again for every open deletion that it is compared with, and
/// no index on keys could be used. So is each step: inlined, what it looks up (a hold) is planned, and looked up, once for
/// each time that it is named.
///
/// The breaker's row is locked before the ledger's rows, by everybody, and until the end of the
/// transaction: what is granted here is spent when the next one asks.
pub(super) fn decide_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let vouched = is_guarded(relation, "before");
    format!(
        "with token as materialized (select nextval('tombstream.lease_token') as token), \
         vouched as materialized (select {vouched} as vouched), \
         c as materialized ( \
             select array(select jsonb_array_elements_text(u.key::jsonb)) as key, u.flag, \
                 u.flag_at::timestamptz as flag_at, u.targets::jsonb as targets, \
                 u.hides::jsonb as hides, u.lsn::pg_lsn as lsn, u.refusal, u.refused_store \
             from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], \
                     $7::text[], $8::text[]) \
                 as u(key, flag, flag_at, targets, hides, lsn, refusal, refused_store) \
         ), \
         seen as materialized ( \
             select c.*, d.id as open_id, d.outlived, vouched.vouched and c.flag_at is not null as vouched, \
                 {held} as held, \
                 not d.outlived and d.kept_back_at is not null and d.approved_at is null as kept_back, \
                 not d.outlived and d.approved_at is not null as approved, \
                 not d.outlived and d.again as again, \
                 not d.outlived and d.hidden_at is not null as hidden, \
                 not d.outlived and d.parked as parked, \
                 not d.outlived and coalesce(d.waived ? c.refused_store, false) as waived, \
                 greatest(c.flag_at, coalesce(case when not d.outlived then d.first_seen end, \
                     case when not vouched.vouched or c.flag_at is null then now() end), \
                     case when d.outlived and d.removed is null then d.first_seen end) as since \
             from c cross join vouched left join lateral ( \
                 select d.id, d.first_seen, d.state = 'claimed' or {is_hiding} as taken, \
                     d.state = 'parked' as parked, \
                     d.kept_back_at, d.approved_at, \
                     {again} as again, \
                     d.hidden_at, d.waived, d.removed, d.removed is not null or d.state = 'parked' \
                         and {claimed_flag} is distinct from {flag} as outlived \
                 from tombstream.deletion d where d.relation = {name} and d.key = c.key \
                     and d.state in {OPEN_STATES} {BY_KEY} \
             ) d on true \
             where d.taken is not true \
                 and not exists (select from tombstream.pause p where p.relation = {name}) \
         ), \
         due as materialized ( \
             select seen.*, case \
                 when refusal is not null then case when waived then 'pending' else 'parked' end \
                 when held then 'pending' \
                 when since > now() - {grace} then {in_grace} \
                 else 'claimed' end as due \
             from seen \
         ), \
         asked as materialized ( \
             select due.*, coalesce(due in ('hidden', 'claimed') and kept_back, false) as waits, \
                 due in ('hidden', 'claimed') and kept_back is not true and approved is not true \
                     and hidden is not true and again is not true as spends \
             from due \
         ), \
         budget as materialized ({budget}), \
         decided as ( \
             select asked.*, spends and budget.refusal is not null as refused, \
                 case when waits or spends and budget.refusal is not null then 'pending' \
                     else due end as state \
             from asked cross join budget \
         ), \
         closed as ( \
             update tombstream.deletion d set state = 'superseded', closed_at = clock_timestamp(), \
                 reason = concat_ws('; ', 'the key was used anew', d.reason) \
             from decided where d.id = decided.open_id and decided.outlived returning d.id \
         ), \
         written as ( \
             select decided.*, case state when 'hidden' then hides else targets end as going, \
                 state in ('hidden', 'claimed') as goes \
             from decided \
             where (select count(*) from closed) >= 0 and (state <> 'pending' or refused or held \
                 or not vouched or outlived or waits and parked) \
         ) \
         insert into tombstream.deletion as d (relation, key, state, flag, flip_lsn, targets, reason, \
             lease_owner, lease_token, lease_until, attempts, claimed_at, hidden_at, kept_back_at) \
         select {name}, key, state, flag, lsn, going, refusal, \
             case when goes then $9 end, \
             case when goes then token.token end, \
             case when goes then clock_timestamp() + make_interval(secs => $10) end, \
             case when goes then 1 else 0 end, \
             case state when 'claimed' then clock_timestamp() end, \
             case state when 'hidden' then clock_timestamp() end, \
             case when refused then clock_timestamp() end \
         from written cross join token order by key \
         on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked') \
         do update set state = case when excluded.state = 'pending' and not {unparked} then d.state \
                 else excluded.state end, \
             flag = excluded.flag, \
             flip_lsn = coalesce(excluded.flip_lsn, d.flip_lsn), \
             targets = case excluded.state when 'pending' then d.targets else excluded.targets end, \
             reason = case when excluded.state = 'pending' and not {unparked} then d.reason \
                 else excluded.reason end, \
             lease_owner = excluded.lease_owner, \
             lease_token = coalesce(excluded.lease_token, d.lease_token), \
             lease_until = excluded.lease_until, due_at = null, \
             attempts = excluded.attempts, claimed_at = excluded.claimed_at, \
             hidden_at = coalesce(d.hidden_at, excluded.hidden_at), \
             kept_back_at = coalesce(d.kept_back_at, excluded.kept_back_at) \
             where d.state in ('pending', 'hidden', 'parked') and d.claimed_at is null \
                 and (excluded.state in ('claimed', 'hidden', 'parked') \
                     or excluded.kept_back_at is not null and d.kept_back_at is null or {unparked}) \
                 and (d.state <> 'parked' or excluded.state <> 'parked' \
                     or d.reason is distinct from excluded.reason) \
         returning {returned}, {KEPT_BACK}, d.attempts",
        held = is_held(&name, "c.key"),
        is_hiding = is_hiding("d"),
        flag = table.flag_value("c.flag"),
        claimed_flag = table.flag_value("d.flag"),
        again = is_again("d"),
        grace = interval(relation.grace),
        in_grace = match relation.hide {
            None => "'pending'".to_owned(),
            Some(hide) => format!(
                "case when hidden is not true and since <= now() - {} then 'hidden' else 'pending' end",
                interval(hide)
            ),
        },
        // Its address is safe now, and the breaker keeps it back: it waits for who approves, not for who mends.
        unparked = "(d.state = 'parked' and d.approved_at is null \
             and coalesce(d.kept_back_at, excluded.kept_back_at) is not null)",
        returned = ClaimedRow::RETURNED,
        budget = budget_sql(relation, "select count(*) as asked from asked where spends"),
    )
}

/// Whether somebody hides a deletion's copies now, and may still do so.
///
/// Invariant (S1, S5): its request may arrive as late as its lease ends. Claimed and finalized meanwhile by another, the
/// key could have a new row by then, whose copies that request would destroy;
/// `a_hide_that_is_under_way_is_over_before_its_deletion_is_claimed`.
pub(super) fn is_hiding(alias: &str) -> String {
    format!(
        "({alias}.state = 'hidden' and coalesce({alias}.lease_until > clock_timestamp(), false))"
    )
}

/// What a claim adds to what it returns: whether the breaker keeps the deletion back.
pub(super) const KEPT_BACK: &str =
    "d.kept_back_at is not null and d.approved_at is null as kept_back";

/// Why the breaker grants nothing of what is asked, or null. `asked` is a query of its one column `asked`, the
/// number. Without a breaker all is granted.
pub(super) fn budget_sql(relation: &Relation, asked: &str) -> String {
    let Some(limits) = &relation.breaker else { return "select null::text as refusal".to_owned() };
    let number = |limit: Option<u64>| limit.map_or_else(|| "null".to_owned(), |n| n.to_string());
    let rate =
        limits.rate_max.map(|rate| rate.saturating_mul(BreakerLimits::RATE_WINDOW.as_secs()));
    format!(
        "select case when asked > 0 then tombstream.spend({}, asked, {}, {}, {}, {}, {}) end as refusal \
         from ({asked}) as wanted",
        literal(&relation.name),
        number(limits.claims_max),
        interval(limits.window),
        limits.share_max.map_or_else(|| "null".to_owned(), |share| format!("{share:?}")),
        number(rate),
        interval(BreakerLimits::RATE_WINDOW),
    )
}
