-- Change events on their way to the archive: here before they are claimed, gone from here once a file has them.

create table tombstream.archive_event (
    id bigint generated always as identity primary key,
    relation text not null,
    key text[] not null,
    event text not null check (event in ('flagged', 'removed')),
    -- Where in the log, and in which life of it, if the event said so.
    generation integer,
    lsn pg_lsn,
    at timestamptz not null default clock_timestamp()
);

-- Who writes files: a lease by Postgres's clock, so that two processes seldom write the same events twice. It guards
-- nothing: an event that is in two files is replayed twice.
create table tombstream.archive_writer (
    one boolean primary key default true check (one),
    owner text,
    lease_until timestamptz
);
insert into tombstream.archive_writer default values;
