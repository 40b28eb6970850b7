"""Pages whose examples build on each other, pasted into a shell one after the other, as they stand."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.api.conftest import Site

ROOT = Path(__file__).parents[2]
NEEDED = ("bash", "curl", "jq", "openssl")
TOLD = {
    "sign-in.md": {'"token":"ey': 4, '"status":"password_set"': 1},  # accepted, signed in, refreshed, by Telegram
    "sessions.md": {'"token":"ey': 1, '"current":true': 1, '"status":': 2},  # accepted; listed; left twice
    "privacy.md": {'"purpose":"processing"': 3, '"status":"erased"': 1},  # given, stands, was given; then erased
}
"""What must be among the answers of each page, how often at least."""


@pytest.mark.skipif(any(shutil.which(tool) is None for tool in NEEDED), reason=f"needs {', '.join(NEEDED)}")
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("page", TOLD)
async def test_every_example_works_as_it_stands(site: Site, module_database: str, tmp_path: Path, page: str) -> None:
    examples = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    script = "set -e -o pipefail\n" + "\necho\n".join(examples)
    ours = {name: value for name, value in os.environ.items() if name.startswith("HOLDBOOK_")}
    environment = ours | {
        "HOLDBOOK": site.url,
        "HOLDBOOK_DATABASE_URL": module_database,
        "KEY": site.account.text,
        "NO_PROXY": "127.0.0.1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TENANT": str(site.account.tenant_id),
    }

    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", script, env=environment, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(shell.communicate(), 120)

    told = output.decode()
    assert shell.returncode == 0, told
    assert {text for text, count in TOLD[page].items() if told.count(text) < count} == set(), told
