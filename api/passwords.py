"""Passwords: their rules, and their hashes, which are costly on purpose and therefore made in threads, few at a time.

Argon2id with 46 MiB of memory, two passes and one lane: about 75 ms of one processor core, measured, which a person does not notice and
somebody who guesses does. (RFC 9106 and OWASP's cheat sheet for password storage ask for at least 19 MiB with two passes.)
So many are computed at once as there are cores, each with its memory; a few wait, and more are answered with 503.

Text is normalised (NFKC) before it is hashed, so that a password is the same whichever keyboard writes it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, NamedTuple, TypeVar

from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import Field

from api.problems import Problem, invalid

Found = TypeVar("Found")

MEMORY_KIB = 46 * 1024
PASSES = 2
LANES = 1
MIN_CHARACTERS = 10
MAX_CHARACTERS = 1024

Password = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS, repr=False, description="Normalised to NFKC.")]
"""One that is tried. Whether it may become somebody's is said by :func:`check`."""

_COMMON_WORDS = """
1234567890 0123456789 12345678910 123456789a 0987654321 1q2w3e4r5t 1q2w3e4r5t6y 1qaz2wsx3edc q1w2e3r4t5 q1w2e3r4t5y6 qwertyuiop
qwerty12345 qwerty123456 qwertyuiop123 asdfghjkl; zxcvbnm123 password12 password123 password1234 password12345 password1! passw0rd123
p@ssw0rd123 passwordpassword administrator admin12345 admin123456 letmein123 letmein1234 welcome123 welcome1234 iloveyou123
changeme123 football123 baseball123 superman123 princess123 sunshine123 starwars123 trustno1234 abcdefghij abcdefghijk abcd123456
abc1234567 a123456789 aa123456789 123qweasdzxc qazwsxedcrfv йцукенгшщз пароль1234 пароль12345
"""  # noqa: RUF001  # these are Cyrillic
_COMMON = frozenset(_COMMON_WORDS.split())
"""The commonest of those that are long enough."""


class Verdict(NamedTuple):
    """Whether a password is the right one; ``renewed`` is a hash to keep instead, when the old one was made with less effort."""

    right: bool
    renewed: str | None = None


class Hashing:
    """Hashes and verifies off the event loop. ``waiting`` bounds those that are computed or wait for it; more get 503."""

    def __init__(self, *, at_once: int | None = None, waiting: int | None = None) -> None:
        cores = at_once or os.cpu_count() or 1
        self._hasher = Argon2Hasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)
        self._threads = ThreadPoolExecutor(cores, thread_name_prefix="argon2")
        self._places = threading.BoundedSemaphore(waiting or 16 * cores)
        # Of no password: what would have to be found is random. Verifying against it costs what any other costs.
        salt, digest = (base64.b64encode(os.urandom(size)).decode().rstrip("=") for size in (16, 32))
        self.nobodys = f"$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}${salt}${digest}"

    async def hash(self, password: str) -> str:
        """The hash to keep, with its salt and parameters in it. Raises the problem store.overloaded."""
        return await self._threaded(partial(self._hasher.hash, normal(password)))

    async def verify(self, password: str, hashed: str | None) -> Verdict:
        """Whether the password belongs to the hash. Without one the same work is done, and the answer is no."""
        return await self._threaded(partial(self.compare, normal(password), hashed))

    def compare(self, normalised: str, hashed: str | None) -> Verdict:
        """One verification, in the thread that calls; two hashings when the kept hash is outdated."""
        right = self._hasher.verify(normalised, self.nobodys if hashed is None else hashed) and hashed is not None
        if not right or hashed is None or not self._hasher.check_needs_rehash(hashed):
            return Verdict(right)
        return Verdict(True, self._hasher.hash(normalised))

    async def _threaded(self, work: Callable[[], Found]) -> Found:
        if not self._places.acquire(blocking=False):
            raise Problem("store.overloaded")
        try:
            future = self._threads.submit(work)
        except BaseException:
            self._places.release()
            raise
        # Given back when the work is done or withdrawn, not when the caller goes away: a thread cannot be stopped.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)


def normal(password: str) -> str:
    """The password as it is hashed."""
    return unicodedata.normalize("NFKC", password)


def check(password: str, email: str | None = None, field: str = "password") -> None:
    """Refuse a password that may not become somebody's, with a problem that names the field."""
    text = normal(password)
    plain = text.casefold()
    if len(text) < MIN_CHARACTERS or len(text) > MAX_CHARACTERS:
        said = f"A password has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters."
    elif email is not None and plain == normal(email).strip().casefold():
        said = "This is the e-mail address."
    elif plain in _COMMON or len(set(plain)) < 3:
        said = "This password is one of the first that anybody would try."
    else:
        return
    raise invalid([{"type": "password", "loc": (field,), "msg": said}])


SHARED = Hashing()
"""The one of this process: its cores are there once, however many applications run in it."""


async def hash(password: str) -> str:  # noqa: A001  # read as passwords.hash
    """See :meth:`Hashing.hash`."""
    return await SHARED.hash(password)


async def verify(password: str, hashed: str | None) -> Verdict:
    """See :meth:`Hashing.verify`."""
    return await SHARED.verify(password, hashed)
