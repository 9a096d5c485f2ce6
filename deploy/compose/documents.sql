-- The demo's own table, made when the database is made. Tombstream takes any table that its configuration names.
create table documents (
    id uuid primary key default gen_random_uuid(),
    name text not null,
    uploaded_at timestamptz not null default now(),
    deleted_at timestamptz
);
-- The old row in every event: so that setting the flag can be told from changing it.
alter table documents replica identity full;
