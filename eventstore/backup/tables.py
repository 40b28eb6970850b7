"""What a backup holds of each table, in one place. A migration that makes a table adds it here; a test asks for it."""

from __future__ import annotations

from typing import LiteralString

LOG = ("event", "log_partition")
"""Kept row by row, in segments; epochs stand in the manifest."""

SMALL: dict[str, LiteralString] = {
    "store": "",
    "tenant_key": "",
    "subject_key": "",
    "master_key": "",
    "signing_key": "",
    "checkpoint": "consumer not in (select name from {})",
    "skipped_event": "",
    "task_lane": "",
    "task": "",
    "webhook_endpoint": "",
    "webhook_delivery": "",
    "origin": "",
    "telemetry": "",
    "door_refusal": "",
    "key_use": "",
}
"""Kept whole in every run: what cannot be folded from the log again. Of checkpoints those that are no read model's, because read models
are built anew; the condition is on each of the registries that there are."""

REGISTRIES = ("projection", "projection_generation")

DERIVED = ("snapshot", "follower_lease", *REGISTRIES)
"""Not kept: folds of the log, caches, and who is at work at present. Tables of read models end in ``_g`` and their generation."""

OWN = ("holdbook_schema", "holdbook_restore")
"""Of the migrations, and of a restore under way."""
