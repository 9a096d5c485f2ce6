#!/usr/bin/env python3
"""`tombstream reconcile` over many rows, objects and documents, with errors of each kind planted.

    eval "$(cargo xtask services env --dir DIR)"
    python3 benches/reconcile.py seed target/release/tombstream 1000000 BUCKETS FOLDER   # the gateway's folder of buckets
    python3 benches/reconcile.py run target/release/tombstream FOLDER [options of reconcile]

Rows and deletions are made by SQL, documents by `_bulk`, objects as files in the gateway's folder, which is how it
keeps them: a million PUTs would measure the gateway. What `run` prints is what the command found, against what was
planted, its time and its largest resident memory.
"""
import collections, json, os, pathlib, resource, shutil, subprocess, sys, time, urllib.error, urllib.request

PLANTED = 1_000
NAME = os.environ.get("RECONCILE_NAME", "reconcile_bench")  # Of database, index and bucket.


def tenant(n):
    return f"t{n % 1000:04}"


def sql(text, database=NAME):
    base = os.environ["TOMBSTREAM_TEST_POSTGRES_URL"].rsplit("/", 1)[0]
    subprocess.run(["psql", "-qX", "-v", "ON_ERROR_STOP=1", f"{base}/{database}", "-c", text], check=True)


def search(method, path, body=b""):
    url = os.environ["TOMBSTREAM_TEST_ELASTICSEARCH_URL"] + "/" + path
    kind = "application/x-ndjson" if path.startswith("_bulk") else "application/json"
    request = urllib.request.Request(url, data=body or None, method=method, headers={"content-type": kind})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def copies(rows):
    """Every id that has copies: not the missing, and the zombies and orphans too."""
    yield from range(1, PLANTED + 1)                          # stragglers
    yield from range(2 * PLANTED + 1, rows + 1)               # what is right
    yield from range(2 * rows + 1, 2 * rows + PLANTED + 1)    # zombies
    yield from range(9 * rows + 1, 9 * rows + PLANTED + 1)    # orphans


def seed(binary, rows, buckets, folder):
    rows, folder = int(rows), pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    sql(f"drop database if exists {NAME}", "postgres")
    sql(f"create database {NAME}", "postgres")
    sql("create table documents (id bigint primary key, tenant text not null, deleted_at timestamptz)")
    (folder / "tombstream.toml").write_text(f"""[database]
url = {{ env = "DATABASE_URL" }}
[store.originals]
kind = "s3"
endpoint = "{os.environ['TOMBSTREAM_TEST_S3_ENDPOINT']}"
bucket = "{NAME.replace('_', '-')}"
access_key_id = {{ env = "TOMBSTREAM_TEST_S3_ACCESS_KEY" }}
secret_access_key = {{ env = "TOMBSTREAM_TEST_S3_SECRET_KEY" }}
[store.search]
kind = "elasticsearch"
url = "{os.environ['TOMBSTREAM_TEST_ELASTICSEARCH_URL']}"
index = "{NAME}"
[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "bigint" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
key_reuse = "forbidden"
targets = [{{ store = "originals", key = "{{tenant}}/{{id}}" }}, {{ store = "search", id = "{{id}}" }}]
""")
    (folder / "rows").write_text(str(rows))
    subprocess.run([binary, "migrate", "--config", str(folder / "tombstream.toml")], check=True, env=environment())
    finalized = rows // 10
    sql(f"""insert into documents select id, 't' || lpad((id % 1000)::text, 4, '0'),
            case when id <= {PLANTED} then now() - interval '1 hour' end from generate_series(1, {rows}) id;
        set session_replication_role = replica;
        insert into tombstream.deletion (relation, key, state, flag, first_seen, targets, lease_token, attempts,
            claimed_at, closed_at)
        select 'documents', array[id::text], 'finalized', '2026-01-01', now() - interval '2 hours', jsonb_build_array(
            jsonb_build_object('store', 'originals', 'address', jsonb_build_object('kind', 'object', 'bucket',
                '{NAME.replace('_', '-')}', 'key', 't' || lpad((id % 1000)::text, 4, '0') || '/' || id),
                'outcome', null),
            jsonb_build_object('store', 'search', 'address', jsonb_build_object('kind', 'document', 'index',
                '{NAME}', 'id', id::text, 'routing', null), 'outcome', null)),
            1, 1, now() - interval '2 hours', now() - interval '1 hour'
        from generate_series({2 * rows + 1}, {2 * rows + finalized}) id;
        insert into tombstream.receipt (deletion_id, relation, key, flag, claimed_at, finalized_at, row_gone, targets)
        select id, relation, key, flag, claimed_at, closed_at, false, targets from tombstream.deletion
        where state = 'finalized';
        analyze""")
    print(f"{rows} rows, {finalized} finalized deletions: {time.time() - began:.0f} s", flush=True)
    began = time.time()
    bucket = pathlib.Path(buckets) / NAME.replace("_", "-")
    shutil.rmtree(bucket, ignore_errors=True)
    for n in range(1000):
        (bucket / tenant(n)).mkdir(parents=True, exist_ok=True)
    for n in copies(rows):
        with open(bucket / tenant(n) / str(n), "wb") as file:
            file.write(b"x")
    print(f"objects: {time.time() - began:.0f} s", flush=True)
    began = time.time()
    try:
        search("DELETE", NAME)
    except urllib.error.HTTPError:
        pass
    search("PUT", NAME, json.dumps({"settings": {"number_of_shards": 2, "number_of_replicas": 0,
        "refresh_interval": "-1"}}).encode())
    lines = []
    for n in copies(rows):
        lines.append(f'{{"index":{{"_index":"{NAME}","_id":"{n}"}}}}\n{{"n":{n}}}\n')
        if len(lines) == 10_000:
            assert not search("POST", "_bulk", "".join(lines).encode())["errors"]
            lines = []
    if lines:
        assert not search("POST", "_bulk", "".join(lines).encode())["errors"]
    print(f"documents: {time.time() - began:.0f} s", flush=True)


def environment():
    url = os.environ["TOMBSTREAM_TEST_POSTGRES_URL"].rsplit("/", 1)[0] + "/" + NAME
    return {**os.environ, "DATABASE_URL": url}


def run(binary, folder, *options):
    folder = pathlib.Path(folder)
    rows = int((folder / "rows").read_text())
    report = folder / "report.jsonl"
    report.unlink(missing_ok=True)
    began = time.time()
    ended = subprocess.run([binary, "reconcile", "--config", str(folder / "tombstream.toml"), "--settle", "1s",
        "--report", str(report), *options], env=environment())
    took = time.time() - began
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak, cpu = usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime
    found = collections.defaultdict(list)
    for line in map(json.loads, report.open()):
        if line["kind"] == "summary":
            summary = line
        else:
            found[line["kind"], line["store"]].append(int(line["key"][0]))
    begins = {"straggler": 1, "missing": PLANTED + 1, "zombie": 2 * rows + 1, "orphan": 9 * rows + 1}
    planted = {(kind, store): list(range(begin, begin + PLANTED))
        for kind, begin in begins.items() for store in ("originals", "search")}
    is_all = {key: sorted(ids) for key, ids in found.items()} == planted
    print(f"{rows} rows {' '.join(options)}: exit {ended.returncode}; all that was planted and nothing else: {is_all}; "
        f"{took:.1f} s (compared {summary['compared_s']:.1f}, looked again {summary['looked_s']:.1f}), {cpu:.1f} s of processor, peak {peak:.0f} MiB, "
        f"{summary['spilled_bytes'] / 2**20:.0f} MiB on disk, {summary['suspects']} suspects; load {os.getloadavg()[0]:.0f}")
    sys.exit(0 if is_all else 1)


{"seed": seed, "run": run}[sys.argv[1]](*sys.argv[2:])
