"""A PostgreSQL of our own, as a child of the process that needs it.

One data directory has one owner at a time: the process that holds ``flock`` on ``<data>/lock``. The owner starts
``postgres`` as its child, restarts it when it dies and stops it when it ends; other processes get the owner's address
(:func:`connect_or_start`). The server listens on a Unix socket only, in a directory that only its user may enter.

PostgreSQL refuses to run as root. As root it runs under the owner of an existing data directory, else ``postgres``,
else ``nobody``. Permissions of directories that were here before us are never changed.
"""

from eventstore.embedded.address import redact
from eventstore.embedded.binaries import bin_directory
from eventstore.embedded.directory import data_directory
from eventstore.embedded.errors import EmbeddedError
from eventstore.embedded.ownership import AlreadyOwned
from eventstore.embedded.server import EmbeddedPostgres, connect_or_start
from eventstore.embedded.settings import SETTINGS

__all__ = [
    "SETTINGS",
    "AlreadyOwned",
    "EmbeddedError",
    "EmbeddedPostgres",
    "bin_directory",
    "connect_or_start",
    "data_directory",
    "redact",
]
