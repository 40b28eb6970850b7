"""Verifies an audit export by docs/audit-format.md alone: python verify_export.py EXPORT [PUBLIC-KEY-FILE]"""

import json
import sys
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FIXED = {"salt": 16, "partition": 4, "position": 8, "tenant_id": 16, "version": 8, "command_id": 16, "ordinal": 4, "recorded_at": 8}
HEAD = ("partition", "epoch", "position", "hash", "events", "leaves", "pruned", "content")
place = ["the header"]  # what is being checked


def need(holds):
    if not holds:
        raise ValueError("not as it was signed")


def leaf(row):
    values = [bytes.fromhex(row[name]) if size == 16 else row[name].to_bytes(size, "big", signed=True) for name, size in FIXED.items()]
    for name in ("stream", "type", "cause", "actor", "trace", "payload", "reply", "fingerprint"):
        read = bytes.fromhex if name in ("cause", "fingerprint") else str.encode
        values.append(None if row[name] is None else read(row[name]))
    return sha256(b"".join(b"\xff" * 4 if value is None else len(value).to_bytes(4, "big") + value for value in values)).digest()


def section(lines, header, tag, partition):
    position, chain, content, pruned, deleted, count = 0, bytes(32), sha256(), {}, set(), {"event": 0, "leaves": 0, "pruned": 0}
    while True:
        place[0] = f"partition {partition}, position {position + 1}"
        kind, tenant = (line := json.loads(raw := lines.readline()))["kind"], line.get("tenant_id")
        need(raw.endswith(b"\n") and line.get("partition", partition) == partition and line["position"] == position + (kind != "head"))
        if kind == "head":
            break
        need(header["tenant_id"] if kind == "leaves" else header["tenant_id"] in (None, tenant))  # own events are given in full
        leaves = leaf(line) if kind == "event" else bytes.fromhex(line["leaves"])
        for at in range(0, len(leaves), 32):
            chain = sha256(chain + leaves[at : at + 32]).digest()
        need(leaves and len(leaves) % 32 == 0 and chain.hex() == line["hash"] and line.get("type") != "log.pruned")
        pruned |= {tenant: pruned.get(tenant, position + 1)} if kind == "pruned" else {}
        deleted |= {tenant} if (line.get("type"), line.get("stream")) == ("tenant.deleted", f"tenant-{tenant}") else set()
        position, count[kind] = position + len(leaves) // 32, count[kind] + len(leaves) // 32
        content.update(raw)
    place[0] = f"partition {partition}, position {min([position, *(pruned[tenant] for tenant in {*pruned} - deleted)])}"
    found = dict(zip(HEAD, (partition, line["epoch"], position, chain.hex(), *count.values(), content.hexdigest()), strict=True))
    right = json.dumps({"kind": "head", **found, "signature": line["signature"]}, separators=(",", ":")).encode() + b"\n"
    need(raw == right and {*pruned} <= deleted)
    text = "".join(f"{name}={value}\n" for name, value in {"holdbook-audit-head\nversion": 1, "header": tag, **found}.items())
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(header["public_key"])).verify(bytes.fromhex(line["signature"]), text.encode())
    place[0] = f"partition {partition}, position {position + 1}"


try:
    with open(sys.argv[1], "rb") as lines:
        header = json.loads(raw := lines.readline())
        need([header[name] for name in ("kind", "format", "version")] == ["header", "holdbook-audit", 1] and header["partitions"])
        need(header["partitions"] == sorted(set(header["partitions"])) and (not header["tenant_id"] or len(header["partitions"]) == 1))
        need(not sys.argv[2:] or header["public_key"] == Path(sys.argv[2]).read_text().strip())
        for partition in header["partitions"]:
            section(lines, header, sha256(raw).hexdigest(), partition)
        need(not lines.read(1))
    print("ok, signed with", header["public_key"])
except (ValueError, KeyError, TypeError, AttributeError, OverflowError, InvalidSignature) as error:
    sys.exit(f"broken at {place[0]}: {error!r}")
