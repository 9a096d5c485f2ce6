-- Closed deletions go to an archive, month by month, so that the table of the open ones and its indexes
-- stay as small as the work at hand.

-- A receipt stays for ever; its deletion goes to the archive, and may be dropped there.
alter table tombstream.receipt drop constraint receipt_deletion_id_fkey;

create table tombstream.deletion_archive (like tombstream.deletion including constraints)
    partition by range (closed_at);
create index deletion_archive_key on tombstream.deletion_archive (relation, key, id);
create index deletion_archive_id on tombstream.deletion_archive (id);
create trigger append_only before update on tombstream.deletion_archive
    for each statement execute function tombstream.refuse_change();

-- Every deletion, wherever it is.
create view tombstream.deletion_all as
    select * from tombstream.deletion union all select * from tombstream.deletion_archive;

-- What may be moved, oldest first.
create index deletion_closed on tombstream.deletion (closed_at, id) where closed_at is not null;

-- An open deletion is a promise. (The guard of a relation takes back the row that it has written itself to
-- meet the claim: that is a trigger's delete.)
create function tombstream.refuse_removal() returns trigger language plpgsql set search_path = '' as $$
begin
    raise exception 'deletion % is open: it is not deleted', old.id using errcode = 'TS003',
        hint = 'cancel it by restoring its row';
end
$$;
create trigger stays before delete on tombstream.deletion for each row
    when (old.closed_at is null and pg_trigger_depth() = 0)
    execute function tombstream.refuse_removal();
create trigger stays_whole before truncate on tombstream.deletion
    for each statement execute function tombstream.refuse_change();

-- Moves at most `batch` deletions that were closed longer ago than `keep`, the oldest first, and says how many.
-- One process at a time: another's call says null. Runs as the ledger's owner, since it makes partitions.
create function tombstream.archive_closed(keep interval, batch bigint) returns bigint
language plpgsql volatile security definer set search_path = '' as $$
declare
    month timestamptz;
    partition text;
    moved bigint;
begin
    if keep < interval '0' or batch < 1 then
        raise exception 'keep is not below zero, and batch is at least 1' using errcode = 'invalid_parameter_value';
    end if;
    if not pg_try_advisory_xact_lock(hashtextextended('tombstream.tidy', 0)) then
        return null;
    end if;
    -- The months are of UTC, whatever the session's zone.
    for month in
        select distinct date_trunc('month', d.closed_at, 'UTC') from (
            select closed_at from tombstream.deletion
            where closed_at < now() - keep order by closed_at, id limit batch
        ) d
    loop
        partition := 'deletion_archive_' || to_char(month at time zone 'UTC', 'YYYY_MM');
        if to_regclass('tombstream.' || partition) is null then
            -- Attached, not made in place: that would wait for every reader of the archive, and block them.
            execute format('create table tombstream.%I (like tombstream.deletion_archive including all)', partition);
            execute format(
                'alter table tombstream.deletion_archive attach partition tombstream.%I for values from (%L) to (%L)',
                partition, month, (month at time zone 'UTC' + interval '1 month') at time zone 'UTC'
            );
        end if;
    end loop;
    with due as (
        select id from tombstream.deletion
        where closed_at < now() - keep order by closed_at, id limit batch for update skip locked
    ), taken as (
        delete from tombstream.deletion d using due where d.id = due.id returning d.*
    ), put as (
        insert into tombstream.deletion_archive select * from taken returning 1
    )
    select count(*) from put into moved;
    return moved;
end
$$;

-- Drops the months of the archive that ended longer ago than `older`, and gives their names.
create function tombstream.drop_archive(older interval) returns setof text
language plpgsql volatile security definer set search_path = '' as $$
declare
    partition text;
begin
    if older <= interval '0' then
        raise exception 'older is above zero' using errcode = 'invalid_parameter_value';
    end if;
    if not pg_try_advisory_xact_lock(hashtextextended('tombstream.tidy', 0)) then
        return;
    end if;
    for partition in
        select c.relname from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'tombstream.deletion_archive'::regclass
            and c.relname ~ '^deletion_archive_\d{4,}_\d\d$'
            and (to_date(substring(c.relname from '\d+_\d\d$'), 'YYYY_MM') + interval '1 month')
                at time zone 'UTC' < now() - older
        order by c.relname
    loop
        execute format('drop table tombstream.%I', partition);
        return next partition;
    end loop;
end
$$;
-- Only the pipeline's role, and the owner, tidy.
revoke execute on function tombstream.archive_closed(interval, bigint) from public;
revoke execute on function tombstream.drop_archive(interval) from public;
