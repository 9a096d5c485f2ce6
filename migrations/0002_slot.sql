-- What is known of each replication slot that is read straight from the log. It tells a slot that somebody
-- made anew or moved from the one that was read before: what lies between is made good by the sweep.
create table tombstream.slot (
    slot text primary key,
    -- Which server it was seen on last.
    system_identifier text not null,
    timeline integer not null,
    -- The generation of the positions that it gives (S4).
    generation integer not null,
    -- Everything before this is durable. Written before the server is told, so that a slot which stands
    -- beyond it was moved by another hand.
    acknowledged pg_lsn not null,
    -- Whether the rows that were there before it are handed on; a slot that began with a snapshot which
    -- was not finished is made anew.
    is_complete boolean not null default true,
    since timestamptz not null default now()
);
