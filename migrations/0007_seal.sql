-- Receipts are chained: entries in the order of their numbers, sealed in blocks, each with the hash of the one
-- before (docs/design/0001-receipt-chain.md).

-- An entry's number. Taken by a transaction that has its transaction id already: the sealer counts on it.
create sequence tombstream.receipt_entry as bigint;

alter table tombstream.receipt
    -- Behind transaction_id, whose default gives the transaction its id. Receipts that are there get theirs now.
    add column entry bigint not null default nextval('tombstream.receipt_entry'),
    add column hidden_at timestamptz,
    -- Whether key and addresses are keyed hashes.
    add column hashed boolean not null default false,
    -- Where the log stood when the row was locked: with removed_lsn, the only place where its removal can be.
    add column locked_lsn pg_lsn;
create index receipt_entry_number on tombstream.receipt (entry);

-- The second entry of a deletion: its row's removal, seen back in the log.
create table tombstream.receipt_closed (
    deletion_id bigint primary key,
    removed_lsn pg_lsn not null,
    seen_at timestamptz not null default clock_timestamp(),
    transaction_id xid8 not null default pg_current_xact_id(),
    entry bigint not null default nextval('tombstream.receipt_entry')
);
create index receipt_closed_entry on tombstream.receipt_closed (entry);

-- What was sealed: all entries behind the block before, up to last_entry.
create table tombstream.receipt_block (
    number bigint primary key check (number > 0),
    previous bytea not null check (length(previous) = 32),
    entries bigint not null check (entries > 0),
    last_entry bigint not null unique,
    root bytea not null check (length(root) = 32),
    sealed_at timestamptz not null,
    hash bytea not null check (length(hash) = 32)
);

create trigger append_only before update or delete or truncate on tombstream.receipt_closed
    for each statement execute function tombstream.refuse_change();
create trigger append_only before update or delete or truncate on tombstream.receipt_block
    for each statement execute function tombstream.refuse_change();
