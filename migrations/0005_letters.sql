-- Dead letters driven again, and how much is kept of them.

alter table tombstream.dead_letter
    -- The topic that it was written to, where that is not where it stood: a line of a file tells it.
    add column written_to text,
    -- A message, or a row of Postgres's own log. A row's columns were described by the session that read
    -- it, so it can't be decoded alone: the sweep finds its flag.
    add column form text not null default 'message' check (form in ('message', 'row')),
    -- Whole; cut to the limit; or nothing, and a digest. Only what is whole can be driven again.
    add column kept text not null default 'whole' check (kept in ('whole', 'cut', 'redacted')),
    -- The bytes of key and value together as they came, and the SHA-256 of what is not kept whole: of the
    -- key's length (8 bytes, big-endian; none: eight 0xff), the key and the value.
    add column bytes bigint not null default 0,
    add column sha256 bytea check ((sha256 is null) = (kept = 'whole')),
    -- How often it was found undecodable.
    add column attempts integer not null default 1,
    -- An operator ordered that it be decoded again. Null once that is done.
    add column redrive_at timestamptz check (redrive_at is null or (form = 'message' and kept = 'whole')),
    -- Who drives it now: as in deletion, a lease with a token. What was handed on under another token is
    -- not resolved by it.
    add column drive_token bigint,
    add column driven_until timestamptz,
    -- It was decoded, and what came of it is durable.
    add column resolved_at timestamptz;
update tombstream.dead_letter set bytes = coalesce(length(key), 0) + coalesce(length(value), 0);

create index dead_letter_redrive on tombstream.dead_letter (id) where redrive_at is not null;
