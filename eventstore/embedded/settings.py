"""How the server is set up: durable, for a log that only grows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from eventstore.embedded.address import PORT

SETTINGS: Final[Mapping[str, str]] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "max_wal_size": "8GB",  # below that, checkpoints are what limits writing
    "checkpoint_timeout": "15min",
    "wal_buffers": "16MB",
    "shared_buffers": "256MB",
    "max_connections": "100",
    "jit": "off",  # our statements are short: compiling costs more than it saves
    # Logs only grow. Without this their visibility map and statistics stay behind until a fifth of them is new.
    "autovacuum_naptime": "15s",
    "autovacuum_vacuum_insert_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.05",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def on_socket_only(sockets: Path) -> Mapping[str, str]:
    """What nobody may set otherwise: the one way in is the socket in this directory."""
    return {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": '"' + str(sockets).replace('"', '""') + '"',
        "unix_socket_permissions": "0700",
    }


def as_arguments(settings: Mapping[str, str]) -> list[str]:
    """For the command line of ``postgres``."""
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
