#!/usr/bin/env python3
"""`tombstream replay --dry-run` over the same change events as JSON Lines and as Parquet, by turns.

    eval "$(cargo xtask services env --dir DIR)"
    pip install pyarrow                               # another writer of Parquet than ours
    python3 benches/replay.py target/release/tombstream FOLDER [EVENTS [ROUNDS]]

One event in twenty is a deletion, of a key without a row, so that reading and decoding are most of what is done. Prints a
line of JSON: the median of events a second and of processor seconds of each form, their sizes, and Parquet ÷ JSON Lines.
"""
import json, os, pathlib, resource, statistics, subprocess, sys

import pyarrow
import pyarrow.parquet

NAME = "replay_bench"


def sql(text, database=NAME):
    base = os.environ["TOMBSTREAM_TEST_POSTGRES_URL"].rsplit("/", 1)[0]
    subprocess.run(["psql", "-qX", "-v", "ON_ERROR_STOP=1", f"{base}/{database}", "-c", text], check=True)


def messages(count):
    for n in range(count):
        flag = "2026-01-01T10:00:00.123456Z" if n % 20 == 0 else None
        row = {"id": n, "name": f"document {n}.pdf", "uploaded_at": "2026-01-01T09:00:00Z", "deleted_at": flag}
        value = {"before": {**row, "deleted_at": None}, "after": row, "source": {
            "version": "3.6.3.Final", "connector": "postgresql", "name": "bench", "ts_ms": 1795435116944, "snapshot": "false",
            "db": "app", "sequence": f"[null,\"{1000 + n}\"]", "schema": "public", "table": "documents", "txId": 810,
            "lsn": 1000 + n, "xmin": None}, "transaction": None, "op": "u", "ts_ms": 1795435117135}
        yield json.dumps({"id": n}), json.dumps(value)


def write(folder, count):
    for form in ("jsonl", "parquet"):
        (folder / form).mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema([("topic", "string"), ("partition", "int32"), ("offset", "int64"), ("key", "string"), ("value", "string")])
    with open(folder / "jsonl/1.jsonl", "w") as lines, \
            pyarrow.parquet.ParquetWriter(folder / "parquet/1.parquet", schema, compression="zstd") as table:
        batch = []
        for n, (key, value) in enumerate(messages(count)):
            record = {"topic": "documents", "partition": 0, "offset": n, "key": key, "value": value}
            lines.write(json.dumps(record) + "\n")
            batch.append(record)
            if len(batch) == 50_000 or n + 1 == count:
                table.write_table(pyarrow.Table.from_pylist(batch, schema))
                batch = []


def environment():
    base = os.environ["TOMBSTREAM_TEST_POSTGRES_URL"].rsplit("/", 1)[0]
    return {**os.environ, "DATABASE_URL": f"{base}/{NAME}", "TOMBSTREAM_LOG": "warn"}


def replay(binary, folder, form):
    option = "--files" if form == "jsonl" else "--parquet"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([binary, "replay", option, f"file://{folder}/{form}", "--dry-run", "--json",
                          "--config", str(folder / "tombstream.toml")], env=environment(), stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(run.stdout.splitlines()[-1])
    assert run.returncode == 0, report
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return report, cpu


def main(binary, folder, count="1000000", rounds="5"):
    count, rounds, folder = int(count), int(rounds), pathlib.Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sql(f"drop database if exists {NAME}", "postgres")
    sql(f"create database {NAME}", "postgres")
    sql("create table documents (id bigint primary key, deleted_at timestamptz)")
    (folder / "copies").mkdir(exist_ok=True)
    (folder / "tombstream.toml").write_text(f"""[database]
url = {{ env = "DATABASE_URL" }}
[store.copies]
kind = "object_store"
url = "file://{folder}/copies"
[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "bigint" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
key_reuse = "forbidden"
targets = [{{ store = "copies", key = "{{id}}" }}]
""")
    subprocess.run([binary, "migrate", "--config", str(folder / "tombstream.toml")], check=True, env=environment(),
                   stdout=subprocess.DEVNULL)
    made = folder / f"made-{count}"
    if not made.exists():
        write(folder, count)
        made.touch()
    found = {form: [] for form in ("jsonl", "parquet")}
    for _ in range(rounds):
        for form, runs in found.items():
            report, cpu = replay(binary, folder, form)
            assert report["looked_at"] == count and report["counts"]["gone"] == -(-count // 20), report
            runs.append((count / report["seconds"], cpu))
    result = {"bench": "replay", "events": count, "rounds": rounds}
    for form, runs in found.items():
        path = next((folder / form).iterdir())
        result[form] = {"events_per_second": round(statistics.median(run[0] for run in runs)),
                        "cpu_seconds": round(statistics.median(run[1] for run in runs), 2),
                        "bytes": path.stat().st_size}
    ratios = sorted(parquet[0] / jsonl[0] for parquet, jsonl in zip(found["parquet"], found["jsonl"]))
    result["parquet_to_jsonl"] = [round(statistics.median(ratios), 2), round(ratios[0], 2), round(ratios[-1], 2)]
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
