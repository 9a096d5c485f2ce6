-- What comes after a restored backup: receipts that were taken out of an export, rows that are erased again. Copies
-- that nobody knows, destroyed by approval. Jobs that are begun by the clock.

-- A receipt that this database did not write: an export had it. Its row was not removed here.
alter table tombstream.receipt add column imported boolean not null default false;

-- One more cause. What is in the archive was checked before it went there, and what is on receipts too: those that are
-- there already are not read for it.
alter table tombstream.deletion drop constraint deletion_cause_check,
    add constraint deletion_cause_check
        check (cause in ('flag', 'hard_delete', 'resurrected', 're_erase', 'orphan'));
alter table tombstream.receipt drop constraint receipt_cause_check,
    add constraint receipt_cause_check
        check (cause in ('flag', 'hard_delete', 'resurrected', 're_erase', 'orphan')) not valid;
alter table tombstream.deletion_archive drop constraint if exists deletion_archive_cause_check;
-- A month has a constraint of its own beside the one that it inherits.
do $$
declare
    partition regclass;
begin
    for partition in
        select i.inhrelid::regclass from pg_catalog.pg_inherits i
        where i.inhparent = 'tombstream.deletion_archive'::regclass
    loop
        execute format('alter table %s drop constraint if exists deletion_archive_cause_check', partition);
    end loop;
end
$$;

-- What a job of the kind `re-erase` found: a line for each row that is back. Forgotten with the job.
create table tombstream.re_erasure (
    job text not null references tombstream.job (name) on delete cascade,
    relation text not null,
    key text[] not null,
    -- The number of the deletion whose receipt says that the row was removed. Of the export: this ledger may use the
    -- same number for another one.
    receipt bigint not null,
    ending text not null check (ending in ('re_erased', 'already_flagged', 'alive_anew', 'ambiguous')),
    reason text not null,
    at timestamptz not null default now(),
    primary key (job, relation, key)
);

-- What `run` begins by the clock: one process at a time is at each, by a lease as a claim's.
create table tombstream.schedule (
    name text primary key,
    -- When it is begun next. A process that finds another interval than this one was made with writes its own.
    every_ms bigint not null check (every_ms > 0),
    due_at timestamptz not null,
    lease_owner text,
    lease_token bigint not null default 0,
    lease_until timestamptz,
    -- How the last run went.
    begun_at timestamptz,
    ended_at timestamptz,
    result text check (result in ('ok', 'found', 'failed')),
    detail jsonb not null default '{}',
    runs bigint not null default 0,
    failures bigint not null default 0
);
