"""Passwords: which may become somebody's, and hashes of them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from api import passwords
from api.passwords import Hashing
from api.problems import Problem

PASSWORD, WRONG = "correct horse battery", "staple battery horse"


@pytest.mark.asyncio
async def test_more_passwords_than_may_wait_are_answered_with_503() -> None:
    hashing, come = Hashing(at_once=1, waiting=2), threading.Event()
    hashing._threads.submit(come.wait)  # the only thread begins with none of them before all have come

    tasks = [asyncio.create_task(hashing.verify(PASSWORD, None)) for _ in range(5)]
    await asyncio.sleep(0)
    come.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert sum(isinstance(answer, Problem) and answer.code == "store.overloaded" for answer in answers) == 3
    assert not (await hashing.verify(PASSWORD, None)).right, "places come back"


@pytest.mark.asyncio
async def test_nobodys_hash_costs_what_the_others_cost_and_is_never_right() -> None:
    hashing = Hashing()
    made = await hashing.hash(PASSWORD)

    assert made.split("$")[:4] == hashing.nobodys.split("$")[:4]
    assert [len(part) for part in made.split("$")] == [len(part) for part in hashing.nobodys.split("$")]
    assert await hashing.verify(PASSWORD, made) == passwords.Verdict(True)
    assert await hashing.verify(WRONG, made) == passwords.Verdict(False)
    assert await hashing.verify(PASSWORD, None) == passwords.Verdict(False)


@pytest.mark.asyncio
async def test_a_password_is_the_same_whichever_keyboard_writes_it() -> None:
    hashing = Hashing()

    assert (await hashing.verify("\u0065\u0301cole buissonniere", await hashing.hash("\u00e9cole buissonniere"))).right


@pytest.mark.parametrize(
    ("password", "email", "right"),
    [
        ("nine char", None, False),
        ("ten chars!", None, True),
        ("x1" + "yz" * 511, None, True),
        ("x1" + "yz" * 512, None, False),
        ("Password123", None, False),
        ("aaaaaaaaaaaaaa", None, False),
        ("ababababababab", None, False),
        ("ADA@example.com", "ada@example.com", False),
        ("ada@example.com", "eva@example.com", True),
        ("\u2460" * 9 + "!", None, False),
    ],
)
def test_which_passwords_may_become_somebodys(password: str, email: str | None, right: bool) -> None:
    refused: Problem | None = None
    try:
        passwords.check(password, email, "new")
    except Problem as problem:
        refused = problem

    assert (refused is None) == right
    if refused is not None:
        assert refused.members["errors"][0]["field"] == "new"
        assert password not in str(refused.body())
