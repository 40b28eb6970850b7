"""The page on processes is true: its examples are run as they stand there."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-process.md"


def examples() -> dict[str, Any]:
    """Everything that the page's blocks define."""
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    defined: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), defined)  # noqa: S102  # our own page
    return {name: value for name, value in defined.items() if name.startswith("test_")}


@pytest.mark.parametrize("name", examples())
def test_an_example_of_the_page(name: str) -> None:
    test = examples()[name]

    result = test()
    if inspect.iscoroutine(result):
        asyncio.run(result)


def test_there_are_examples() -> None:
    assert len(examples()) == 3
