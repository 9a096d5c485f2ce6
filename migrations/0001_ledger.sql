-- Tombstream's ledger. The migrator makes the schema `tombstream` first, since its own table is in it.

-- One setting of one row's flag. Open: pending, hidden, claimed, parked.
create table tombstream.deletion (
    id bigint generated always as identity primary key,
    relation text not null,
    -- The text of each key column, as Postgres writes it. An array, so that keys stay injective.
    key text[] not null check (array_position(key, null) is null and cardinality(key) > 0),
    state text not null check (state in (
        'pending', 'hidden', 'claimed', 'parked', 'finalized', 'cancelled', 'superseded', 'late_restore'
    )),
    -- The flag's value as the claim read it from the row: ISO text in UTC, or 'true'.
    flag text,
    -- By Postgres's clock. Grace runs from the later of the flag's value and this.
    first_seen timestamptz not null default now(),
    -- Where the flip is in the log, if an event told it.
    flip_lsn pg_lsn,
    -- What is to be destroyed: [{"store": name, "address": {…}, "outcome": null or {"verdict", "said", "verified"}}].
    targets jsonb check (jsonb_typeof(targets) = 'array'),
    -- The lease. Verdicts and finalizing are accepted with the current token only. A null lease_until is a
    -- released lease.
    lease_owner text,
    lease_token bigint,
    lease_until timestamptz,
    -- How often its targets were driven, and when they may be driven again.
    attempts integer not null default 0,
    due_at timestamptz,
    -- Set once, at the point of no return. Whether a restore is free is decided by this, not by the state.
    claimed_at timestamptz,
    closed_at timestamptz,
    -- Why it is parked, superseded or late.
    reason text,
    check (state not in ('claimed', 'finalized', 'late_restore') or claimed_at is not null),
    check (claimed_at is null or (flag is not null and targets is not null and lease_token is not null)),
    check ((closed_at is null) = (state in ('pending', 'hidden', 'claimed', 'parked')))
);

-- At most one open deletion for a key. The guard trigger and the claim meet on this index.
create unique index deletion_open on tombstream.deletion (relation, key)
    where state in ('pending', 'hidden', 'claimed', 'parked');
-- The newest deletion of a key, open or closed.
create index deletion_key on tombstream.deletion (relation, key, id);
-- What the sweep takes over: expired leases and what is owed.
create index deletion_claimed on tombstream.deletion (id) where state = 'claimed';

-- Grows with every claim and takeover.
create sequence tombstream.lease_token as bigint;

-- The evidence that a deletion is finished. Written in the transaction that removes the row.
create table tombstream.receipt (
    deletion_id bigint primary key references tombstream.deletion (id),
    relation text not null,
    key text[] not null,
    flag text not null,
    flip_lsn pg_lsn,
    claimed_at timestamptz not null,
    finalized_at timestamptz not null default now(),
    -- The transaction that removed the row.
    transaction_id xid8 not null default pg_current_xact_id(),
    -- Another hand had removed the row before.
    row_gone boolean not null,
    targets jsonb not null
);

-- A person's order that a row must stay. Whoever sets one locks the row first (S1).
create table tombstream.hold (
    id bigint generated always as identity primary key,
    relation text not null,
    key text[] not null,
    case_name text not null,
    actor text not null,
    set_at timestamptz not null default now(),
    until timestamptz,
    released_at timestamptz
);
create index hold_active on tombstream.hold (relation, key) where released_at is null;

-- What could not be decoded, whole, so that nothing is lost and it can be driven again after a fix.
create table tombstream.dead_letter (
    id bigint generated always as identity primary key,
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    reason text not null,
    key bytea,
    value bytea,
    buried_at timestamptz not null default now(),
    unique (topic, partition, "offset")
);

-- Who flipped which flag through the api. Append-only.
create table tombstream.flip (
    id bigint generated always as identity primary key,
    relation text not null,
    key text[] not null,
    action text not null check (action in ('create', 'flag', 'restore')),
    actor text not null,
    at timestamptz not null default now()
);
create index flip_key on tombstream.flip (relation, key, id);

create function tombstream.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'tombstream.% is append-only', tg_table_name using errcode = 'restrict_violation';
end
$$;
create trigger append_only before update or delete or truncate on tombstream.flip
    for each statement execute function tombstream.refuse_change();
create trigger append_only before update or delete or truncate on tombstream.receipt
    for each statement execute function tombstream.refuse_change();

-- A paused relation: nothing of it is claimed or finalized until a person resumes it.
create table tombstream.pause (
    relation text primary key,
    reason text not null,
    -- For an absent share: some of the addresses that were not there.
    detail jsonb not null default '{}',
    paused_at timestamptz not null default now()
);

-- The last 1,000 first attempts of a store, oldest first: '1' for a copy that was not there, '0' else.
create table tombstream.absent_share (
    relation text not null,
    store text not null,
    recent text not null default '' check (recent ~ '^[01]*$' and length(recent) <= 1000),
    primary key (relation, store)
);

-- Which life of the server, slot or topic positions are from (S4).
create table tombstream.generation (
    source text primary key,
    generation integer not null default 0,
    -- What the generation stands for: system identifier, timeline, topic id.
    identity jsonb not null default '{}',
    since timestamptz not null default now()
);
