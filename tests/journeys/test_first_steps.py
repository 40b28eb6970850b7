"""A newcomer's first steps, with the README's and the start page's own words: real process, real server, real curl."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import time
from typing import Any

import pytest

from tests.journeys.conftest import ROOT, run


def blocks(page: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's example needs curl, which not every machine has")
def test_the_readmes_example_works_as_it_stands(up: tuple[subprocess.Popen[str], str], environment: dict[str, str]) -> None:
    process, address = up
    commands = next(block for block in blocks("docs/start.md") if "tenant create" in block).splitlines()
    tenant = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", run(environment, *_words(commands[0])))
    assert tenant is not None
    key = re.search(r"hbk_\S+", run(environment, *_words(commands[1].replace("TENANT_ID", tenant.group()))))
    assert key is not None
    example = next(block for block in blocks("README.md") if "curl" in block)
    example = re.sub(r"^export .*$", f"export HOLDBOOK={address} KEY={key.group()}", example, count=1, flags=re.MULTILINE)

    first = _bash(example, environment)
    again = _bash(example, environment)

    assert first[1]["status"] == "reserved"
    assert first[1]["granted"] == 20
    assert again[1] == first[1], "the same correlation id gives the same answer"
    deadline = time.monotonic() + 60
    # As long as the read model does not know the quota, what is answered has no limits at all.
    while (usage := _bash(example, environment)[2]).get("limits", [{}])[0].get("reserved") != 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert usage["limits"][0]["reserved"] == 20, "counted once, however often it was sent"

    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0, "SIGTERM drains and leaves in order"


def _words(line: str) -> list[str]:
    return shlex.split(line)[1:]


def _bash(script: str, environment: dict[str, str]) -> list[dict[str, Any]]:
    said = subprocess.run(["bash", "-euc", script], env=environment, check=True, capture_output=True, text=True).stdout
    decoder, found, rest = json.JSONDecoder(), [], said.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found
