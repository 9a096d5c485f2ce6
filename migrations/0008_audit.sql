-- The audit: finalized keys are looked up again, and a copy that came back is destroyed again.

-- Why there is a deletion.
alter table tombstream.deletion add column cause text not null default 'flag'
    check (cause in ('flag', 'hard_delete', 'resurrected', 're_erase'));
alter table tombstream.deletion_archive add column cause text not null default 'flag'
    check (cause in ('flag', 'hard_delete', 'resurrected', 're_erase'));
create or replace view tombstream.deletion_all as
    select * from tombstream.deletion union all select * from tombstream.deletion_archive;
-- What is known of those that were before. Closed ones change here, and nowhere else.
alter table tombstream.deletion disable trigger moves;
update tombstream.deletion set cause = 'hard_delete' where removed is not null;
alter table tombstream.deletion enable trigger moves;
alter table tombstream.deletion_archive disable trigger append_only;
update tombstream.deletion_archive set cause = 'hard_delete' where removed is not null;
alter table tombstream.deletion_archive enable trigger append_only;
-- Null: a receipt from before.
alter table tombstream.receipt add column cause text
    check (cause in ('flag', 'hard_delete', 'resurrected', 're_erase'));

-- What waits without a row, as the sweep reads it.
drop index tombstream.deletion_removed;
create index deletion_removed on tombstream.deletion (relation, id)
    where removed is not null and state in ('pending', 'hidden');
-- The archive in the order of closing: the ledger's own part has deletion_closed.
create index deletion_archive_closed on tombstream.deletion_archive (closed_at, id);

-- How far each pass of the audit is. A pass looks at what was closed longer ago than `lag_ms`; its parts, one
-- for each store of each relation, go on each on its own.
create table tombstream.audit_pass (
    lag_ms bigint not null check (lag_ms > 0),
    relation text not null,
    store text not null,
    -- Everything that was closed before this place is looked at, or kept in audit_again. Null: nothing yet.
    closed_at timestamptz,
    deletion_id bigint not null default 0,
    -- Targets that were looked at; and of those: copies that were there and are destroyed again; copies of a row
    -- that uses the key anew; targets of which a look could not tell.
    looked bigint not null default 0,
    resurrected bigint not null default 0,
    reused bigint not null default 0,
    unknown bigint not null default 0,
    -- As of a deletion's: who is at it, and until when.
    lease_owner text,
    lease_token bigint,
    lease_until timestamptz,
    -- When it last got on, and what stopped it since.
    ran_at timestamptz,
    failed_at timestamptz,
    failure text,
    primary key (lag_ms, relation, store)
);

-- Finalized deletions of which a look at a store could not tell, to be looked at again.
create table tombstream.audit_again (
    relation text not null,
    store text not null,
    deletion_id bigint not null,
    since timestamptz not null default now(),
    tries integer not null default 1,
    due_at timestamptz not null,
    reason text not null,
    -- When it was given to people as unknown. It is looked at all the same.
    unknown_at timestamptz,
    primary key (relation, store, deletion_id)
);
create index audit_again_due on tombstream.audit_again (relation, store, due_at);
