"""``holdbook privacy erase`` in a process that dies where the key would be destroyed: the record is committed, and nothing else is done.

``python -m tests.support.dying_erasure TENANT SUBJECT``, with the environment of the command.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from eventstore.sealing import Sealing


async def die(self: Sealing, *arguments: Any) -> bool:
    """In place of the destruction."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def main() -> None:
    """Run the command line as it is, but for its end."""
    from api.cli import app

    patched: Any = Sealing
    patched.shred = die
    app(["privacy", "erase", sys.argv[2], "--tenant", sys.argv[1], "--yes"])


if __name__ == "__main__":
    main()
