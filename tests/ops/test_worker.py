"""A worker that answers for itself: three addresses on a port of their own, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import MASTER_KEY
from tests.support.processes import free_port

ROOT = Path(__file__).parents[2]
DRAIN_DELAY_SECONDS = 10
"""Between SIGTERM and the end one must come to ask, also on a busy machine."""


@pytest.fixture
def worker(database_dsn: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A running worker and its address, told by files as a container engine does."""
    port = free_port()
    (tmp_path / "url").write_text(database_dsn + "\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOLDBOOK_")}
    environment = {
        **clean,
        "HOLDBOOK_DATABASE_URL_FILE": str(tmp_path / "url"),
        "HOLDBOOK_MASTER_KEY": MASTER_KEY,
        "HOLDBOOK_WORKER_PORT": str(port),
        "HOLDBOOK_DRAIN_DELAY_SECONDS": str(DRAIN_DELAY_SECONDS),
    }
    process = subprocess.Popen([sys.executable, "-m", "api.cli", "worker"], env=environment, cwd=ROOT)
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def answers(url: str, status: int, seconds: float = 120) -> httpx.Response:
    """The answer, once it is this one."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = httpx.get(url, timeout=10, trust_env=False)
        except httpx.TransportError:
            pass
        else:
            if answer.status_code == status:
                return answer
        assert time.monotonic() < deadline, url
        time.sleep(0.05)


def test_a_worker_tells_how_it_is_until_it_has_drained(worker: tuple[subprocess.Popen[bytes], str]) -> None:
    process, url = worker

    ready = answers(f"{url}/readyz", 200)

    assert ready.json()["checks"]["store"] == "ok"
    assert answers(f"{url}/livez", 200).json() == {"status": "ok"}
    assert "holdbook_projection_lag_events 0.0" in answers(f"{url}/metrics", 200).text
    for path in ("/v1/usage/reserve", "/v1/quotas", "/openapi.json"):
        assert {httpx.request(method, url + path, timeout=60, trust_env=False).status_code for method in ("GET", "POST")} == {404}, path

    process.send_signal(signal.SIGTERM)
    assert answers(f"{url}/readyz", 503).json()["checks"]["draining"] == "draining"
    assert process.wait(120) == 0
