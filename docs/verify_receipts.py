#!/usr/bin/env python3
"""Checks exports of Tombstream's receipts without Tombstream, as docs/receipts.md describes them.

    verify_receipts.py [--head HASH] FILE...     exports: `tombstream receipts export`
    verify_receipts.py --proof FILE...           proofs:  `tombstream receipts find`

Prints a line for each file, and ends with 1 if one of them is wrong. Standard library only.
"""

import argparse
import hashlib
import json
import sys

ZERO = "0" * 64
LEAF, NODE, BLOCK, END = b"\0", b"\1", b"\2", b"\3"


class Wrong(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Wrong(what)


def read(text):
    """JSON without fractions, and without one name twice in an object."""

    def no(what):
        raise Wrong(f"{what} can't be in a receipt")

    def once(pairs):
        need(len(dict(pairs)) == len(pairs), "one name is there twice")
        return dict(pairs)

    return json.loads(text, parse_float=no, parse_constant=no, object_pairs_hook=once)


def sha256(kind, *parts):
    return hashlib.sha256(kind + b"".join(parts)).digest()


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def own_hash(kind, value):
    return sha256(kind, canonical({k: v for k, v in value.items() if k != "hash"})).hex()


def root(leaves):
    while len(leaves) > 1:
        pairs = [sha256(NODE, *leaves[n : n + 2]) for n in range(0, len(leaves) - 1, 2)]
        leaves = pairs + leaves[len(pairs) * 2 :]
    return leaves[0].hex()


def check_entry(line, receipts, closed):
    if "receipt" in line:
        receipt = line["receipt"]
        need(receipt["deletion_id"] not in receipts, "a second receipt of one deletion")
        receipts.add(receipt["deletion_id"])
        need(receipt["targets"] or receipt.get("waived"), "nothing was destroyed")
        for target in receipt["targets"]:
            verdict = target["outcome"]["verdict"]
            need(verdict in ("deleted", "absent", "waived"), f"a store has not confirmed: {verdict}")
    else:
        number = line["closed"]["deletion_id"]
        need(number in receipts and number not in closed, "closes no receipt, or one twice")
        closed.add(number)


def check_export(lines, head):
    need(read(next(lines, "null")) == {"format": "tombstream-receipts", "version": 1}, "no header")
    blocks, entries, last, leaves, end, heads = 0, 0, 0, None, None, []
    receipts, closed, block = set(), set(), {"hash": ZERO}

    def close():
        if leaves is not None:
            need(len(leaves) == block["entries"], f"block {blocks} has {len(leaves)} entries")
            need(leaves and root(leaves) == block["root"], f"block {blocks}: another root")
            need(last == block["last"], f"block {blocks}: another last entry")

    for line in map(read, lines):
        need(end is None, "a line behind the closing line")
        if set(line) == {"block"}:
            close()
            previous, block, blocks, leaves = block["hash"], line["block"], blocks + 1, []
            need(block["number"] == blocks, f"block {block['number']} where {blocks} is due")
            need(block["previous"] == previous, f"block {blocks} follows another block")
            need(block["hash"] == own_hash(BLOCK, block), f"block {blocks}: another header")
            heads.append(block["hash"])
        elif set(line) in ({"entry", "receipt"}, {"entry", "closed"}):
            need(leaves is not None, "an entry in no block")
            need(last < line["entry"], "entries are not in order")
            last, entries = line["entry"], entries + 1
            leaves.append(sha256(LEAF, canonical(line)))
            check_entry(line, receipts, closed)
        else:
            need(set(line) == {"end"}, "an unknown line")
            close()
            end = line["end"]
            need(end["hash"] == own_hash(END, end), "the closing line was changed")
            need((end["blocks"], end["entries"]) == (blocks, entries), "other counts")
            need(end["head"] == block["hash"], "another head")
    need(end is not None, "no closing line: the export was cut")
    need(head is None or head in heads, f"head {head} is of none of these blocks")
    return f"{blocks} blocks, {entries} entries ({len(closed)} close a receipt), head {block['hash']}"


def check_proof(lines):
    for proof in map(read, lines):
        need((proof["format"], proof["version"]) == ("tombstream-proof", 1), "no proof")
        need("sealed" in proof, "the entry is not sealed yet: nothing is shown")
        sealed, block = proof["sealed"], proof["sealed"]["block"]
        need(block["hash"] == own_hash(BLOCK, block), "another header")
        at, end = sealed["index"], block["entries"] - 1
        need(0 <= at <= end, "no such place in the block")
        node = sha256(LEAF, canonical(proof["line"]))
        for other in map(bytes.fromhex, sealed["path"]):
            need(end > 0, "the path is too long")
            while at % 2 == 0 and at == end:
                at, end = at // 2, end // 2
            node = sha256(NODE, other, node) if at % 2 else sha256(NODE, node, other)
            at, end = at // 2, end // 2
        need(end == 0 and node.hex() == block["root"], "another root")
    return f"in block {block['number']} of {block['hash']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", help="the hash of an earlier head, kept elsewhere")
    parser.add_argument("--proof", action="store_true", help="the files are proofs")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    wrong = 0
    for name in args.files:
        try:
            with open(name, encoding="utf-8", newline="\n") as lines:
                shown = check_proof(lines) if args.proof else check_export(lines, args.head)
            print(f"{name}: right: {shown}")
        except (Wrong, ValueError, KeyError, TypeError, AttributeError, UnboundLocalError) as error:
            wrong += 1
            print(f"{name}: WRONG: {type(error).__name__}: {error}")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
