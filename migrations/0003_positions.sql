-- How far the files of a source were read. A row is removed by a person alone: its file is then read from its
-- beginning again.
create table tombstream.file_position (
    -- The source's name in the configuration.
    source text not null,
    -- The file's whole address.
    file text not null,
    -- Everything before this byte is durable. Of a compressed file: of what is in it.
    next bigint not null check (next >= 0),
    -- A digest of the bytes before it. It tells a file that was appended to from one that was replaced.
    tail text not null,
    -- The version of the file that was read to its end, if it was.
    whole text,
    at timestamptz not null default now(),
    primary key (source, file)
);
