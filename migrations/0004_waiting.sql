-- Waiting, holding, refusing: what a deletion waits for, who stopped it, and what a restore owes.

alter table tombstream.deletion
    -- When the hide of its recoverable stores was taken. From here on a restore owes a rehydrate notice.
    add column hidden_at timestamptz,
    -- A tripped breaker kept it back, and an operator let it go on. Kept back and not approved, it waits.
    add column kept_back_at timestamptz,
    add column approved_at timestamptz,
    -- The row is gone by a hard delete: what the event told of the columns that the templates name,
    -- {"column": text or null}. Null for the deletion of a flagged row.
    add column removed jsonb check (jsonb_typeof(removed) = 'object'),
    -- Stores for which an operator said that no proof is needed: {"store": {"reason", "actor", "at"}}. The
    -- next claim obeys.
    add column waived jsonb not null default '{}' check (jsonb_typeof(waived) = 'object'),
    add check (state <> 'hidden' or (hidden_at is not null and claimed_at is null)),
    add check (hidden_at is null or targets is not null),
    add check (approved_at is null or kept_back_at is not null);

-- A hard delete has no flag.
alter table tombstream.deletion drop constraint deletion_check1, add constraint deletion_claim
    check (claimed_at is null
        or ((flag is not null or removed is not null) and targets is not null and lease_token is not null));
alter table tombstream.receipt alter column flag drop not null,
    -- Where the log stood when the row had been removed: what is told of the key from behind here is of
    -- another life.
    add column removed_lsn pg_lsn,
    -- Stores that were waived before there was an address, as in deletion.waived.
    add column waived jsonb not null default '{}';
create index receipt_key on tombstream.receipt (relation, key);

-- The moves of a deletion, as `State::may_become` has them (`the_database_allows_what_the_model_allows`).
-- The condition is judged before the function is called: an allowed move costs no call.
create function tombstream.refuse_move() returns trigger language plpgsql set search_path = '' as $$
begin
    raise exception 'deletion % can not go from % to %', old.id, old.state, new.state
        using errcode = 'TS003', hint = 'a closed deletion never changes; its identity and its claim neither';
end
$$;
create trigger moves before update on tombstream.deletion for each row when (
    old.closed_at is not null
    or new.id <> old.id or new.relation <> old.relation or new.key <> old.key
    or new.first_seen > old.first_seen
    or (old.claimed_at is not null and new.claimed_at is distinct from old.claimed_at)
    or (old.hidden_at is not null and new.hidden_at is distinct from old.hidden_at)
    or (old.claimed_at is not null and new.flag is distinct from old.flag)
    or (old.state <> new.state and not case old.state
        when 'pending' then new.state in ('hidden', 'claimed', 'parked', 'cancelled', 'superseded')
        when 'hidden' then new.state in ('claimed', 'parked', 'cancelled', 'superseded')
        when 'claimed' then new.state in ('finalized', 'parked', 'superseded', 'late_restore')
        when 'parked' then new.state in ('superseded', 'claimed')
            or old.claimed_at is null and new.state in ('pending', 'hidden', 'cancelled')
            or old.claimed_at is not null and new.state = 'late_restore'
        else false end)
) execute function tombstream.refuse_move();
-- A deletion begins open.
create trigger begins before insert on tombstream.deletion for each row
    when (new.closed_at is not null) execute function tombstream.refuse_move();

-- What waits, by the time it was first seen: the sweep reads it from the oldest on.
create index deletion_waiting on tombstream.deletion (relation, first_seen, id)
    where state in ('pending', 'hidden') and claimed_at is null;
-- What is owed to hidden deletions, beside deletion_claimed.
create index deletion_hidden on tombstream.deletion (id)
    where state = 'hidden' and (due_at is not null or lease_until is not null);
-- Hard deletes that wait: no row leads to them.
create index deletion_removed on tombstream.deletion (relation, first_seen, id)
    where removed is not null and state = 'pending';
-- What a tripped breaker keeps back.
create index deletion_kept_back on tombstream.deletion (relation, id)
    where kept_back_at is not null and approved_at is null and state in ('pending', 'hidden');
create index deletion_parked on tombstream.deletion (relation, id) where state = 'parked';

-- A deletion was restored after copies were hidden: whoever fills the recoverable stores fills them again.
-- Written by the restore itself, in its transaction.
create table tombstream.rehydrate (
    id bigint generated always as identity primary key,
    deletion_id bigint not null unique,
    relation text not null,
    key text[] not null,
    -- What was hidden: entries as in deletion.targets.
    targets jsonb not null,
    restored_at timestamptz not null default now(),
    -- Not before this: a hide that is under way may still destroy. The end of its lease, brought forward
    -- when the hide ends.
    ready_at timestamptz not null,
    lease_token bigint,
    -- When it was published to the topic, if one is configured.
    published_at timestamptz,
    -- When somebody said that the copies are there again, and who.
    done_at timestamptz,
    done_by text
);
create index rehydrate_unpublished on tombstream.rehydrate (ready_at, id) where published_at is null;
create index rehydrate_open on tombstream.rehydrate (relation, id) where done_at is null;

-- Keys that rows left for another one, where hard deletes are deletions: the delete that some captures make of
-- it is none (S5). Forgotten when the key is used again.
create table tombstream.moved_key (
    relation text not null,
    key text[] not null,
    at timestamptz not null default now(),
    primary key (relation, key)
);

-- How much of a relation may be claimed: one row a relation, locked by every claim that spends (S1).
create table tombstream.breaker (
    relation text primary key,
    -- Tripped: nothing more is claimed until an operator approves or rejects what was kept back.
    tripped_at timestamptz,
    reason text,
    -- How many rows the relation had, for a limit by share.
    row_count bigint,
    counted_at timestamptz
);
-- What was spent: claims by slot of a limit's window. A slot is a sixtieth of it.
create table tombstream.breaker_spent (
    relation text not null references tombstream.breaker (relation),
    "limit" text not null check ("limit" in ('window', 'rate')),
    slot timestamptz not null,
    claims bigint not null,
    primary key (relation, "limit", slot)
);

-- Spends `wanted` claims of a relation's budget, all or none; null if they are granted, else why not. What is
-- refused trips the breaker. The row is locked until the claim's transaction ends, so no two workers
-- overshoot. Any stretch of time as long as the window holds at most the limit: the oldest slot counts
-- whole.
create function tombstream.spend(
    of_relation text, wanted bigint,
    claims_max bigint, "window" interval, share_max double precision, rate_max bigint, rate_window interval
) returns text language plpgsql volatile set search_path = '' as $$
declare
    state tombstream.breaker;
    spent bigint;
    spent_now bigint;
    refusal text;
begin
    insert into tombstream.breaker (relation) values (of_relation) on conflict do nothing;
    select * into state from tombstream.breaker b where b.relation = of_relation for update;
    if state.tripped_at is not null then
        return state.reason;
    end if;
    delete from tombstream.breaker_spent s where s.relation = of_relation
        and s.slot + case s."limit" when 'window' then "window" * 61 / 60 else rate_window * 61 / 60 end
            < clock_timestamp();
    select coalesce(sum(s.claims) filter (where s."limit" = 'window'), 0),
        coalesce(sum(s.claims) filter (where s."limit" = 'rate'), 0)
        into spent, spent_now from tombstream.breaker_spent s where s.relation = of_relation;
    if spent + wanted > claims_max then
        refusal := format('%s claims within %s, and %s more are asked for: claims_max is %s',
            spent, "window", wanted, claims_max);
    elsif share_max < 1 and spent + wanted > 100 and spent + wanted > share_max * coalesce(state.row_count, 0) then
        refusal := format('%s claims within %s, and %s more are asked for, of %s rows: share_max is %s',
            spent, "window", wanted, state.row_count, share_max);
    elsif spent_now + wanted > rate_max then
        refusal := format('%s claims within %s, and %s more are asked for: rate_max allows %s',
            spent_now, rate_window, wanted, rate_max);
    end if;
    if refusal is not null then
        update tombstream.breaker b set tripped_at = clock_timestamp(), reason = refusal
            where b.relation = of_relation;
        return refusal;
    end if;
    insert into tombstream.breaker_spent as s (relation, "limit", slot, claims)
    select of_relation, l.name, date_bin(l.length / 60, clock_timestamp(), 'epoch'), wanted
    from (values ('window', "window"), ('rate', rate_window)) as l(name, length)
    where (l.name = 'window' and (claims_max is not null or share_max < 1))
        or (l.name = 'rate' and rate_max is not null)
    on conflict (relation, "limit", slot) do update set claims = s.claims + excluded.claims;
    return null;
end
$$;

-- What operators ordered, through the api or the command line. Append-only.
create table tombstream.operator_order (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    actor text not null,
    action text not null,
    relation text not null,
    key text[],
    deletion_id bigint,
    detail jsonb not null default '{}'
);
create index operator_order_key on tombstream.operator_order (relation, key, id);
create trigger append_only before update or delete or truncate on tombstream.operator_order
    for each statement execute function tombstream.refuse_change();

alter table tombstream.hold add column released_by text;

-- Which stores hold copies of a relation's rows, as `run` has known them. One that is not configured any more
-- still holds copies: `run` refuses to start until it is back, or waived.
create table tombstream.store (
    relation text not null,
    store text not null,
    since timestamptz not null default now(),
    -- An operator said that its copies need no proof any more, and why.
    waived_at timestamptz,
    waived_by text,
    waived_reason text,
    primary key (relation, store),
    check ((waived_at is null) = (waived_by is null) and (waived_at is null) = (waived_reason is null))
);

-- Where copies of a row were: its templates' columns before they were changed. Written by a trigger, read by the
-- claim, forgotten when the row is gone.
create table tombstream.former_address (
    relation text not null,
    key text[] not null,
    -- {"column": text or null}, of all that the templates name.
    columns jsonb not null,
    at timestamptz not null default now(),
    primary key (relation, key, columns)
);

-- Truncations that paused their relation: the same one told again does not do so twice.
create table tombstream.truncation (
    relation text not null,
    lsn pg_lsn not null,
    at timestamptz not null default now(),
    primary key (relation, lsn)
);
