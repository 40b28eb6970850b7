"""The page about signing in: its examples, pasted into a shell one after the other."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.api.conftest import Site

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sign-in.md"
NEEDED = ("bash", "curl", "jq", "openssl")


@pytest.mark.skipif(any(shutil.which(tool) is None for tool in NEEDED), reason=f"needs {', '.join(NEEDED)}")
@pytest.mark.asyncio(loop_scope="module")
async def test_every_example_works_as_it_stands(site: Site, tmp_path: Path) -> None:
    examples = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    script = "set -e -o pipefail\n" + "\necho\n".join(examples)
    environment = {"HOLDBOOK": site.url, "KEY": site.account.text, "PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"}

    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", script, env=environment, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told, _ = await asyncio.wait_for(shell.communicate(), 120)

    assert shell.returncode == 0, told.decode()
    assert told.decode().count('"token":"ey') == 4, "accepted, signed in, refreshed, by Telegram"
    assert '"status":"password_set"' in told.decode()
