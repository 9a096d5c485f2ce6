-- Batch jobs: what each was asked, who runs it, and how far it is.

create table tombstream.job (
    -- The operator's word for it. One process at a time runs a name.
    name text primary key check (name <> '' and length(name) <= 200),
    kind text not null,
    -- What was asked for. The same name with another spec is refused.
    spec jsonb not null,
    state text not null default 'running' check (state in ('running', 'stopped', 'done')),
    -- Who runs it: a lease by Postgres's clock. What was counted or read under another token is not written.
    owner text,
    token bigint not null default 0,
    lease_until timestamptz,
    -- How many rows there are to look at, when it was planned.
    total bigint,
    -- What became of what was read: {"claimed": 3, …}.
    counts jsonb not null default '{}' check (jsonb_typeof(counts) = 'object'),
    -- Why it is stopped.
    reason text,
    begun_at timestamptz not null default now(),
    -- When it was moved on last.
    at timestamptz not null default now(),
    done_at timestamptz
);

-- The parts of a job that are read side by side, and how far each is. Everything up to `at` is durable.
create table tombstream.job_range (
    job text not null references tombstream.job (name) on delete cascade,
    range integer not null,
    -- Behind this, up to and with that, as {"flag": text or null, "key": [text]}. Null: from the beginning, to
    -- the end.
    after jsonb,
    upto jsonb,
    at jsonb,
    looked_at bigint not null default 0,
    is_done boolean not null default false,
    primary key (job, range)
);
