"""What can go wrong in the store. The docstring of each is its message; ``retryable`` says whether the same key may be sent again."""

from __future__ import annotations


class StoreError(Exception):
    """The store could not do this."""

    retryable = False

    def __str__(self) -> str:
        detail = super().__str__()
        message = " ".join((type(self).__doc__ or "").split("\n\n")[0].split())
        return f"{message} {detail}".strip()


class KeyReused(StoreError):
    """The same idempotency key was used before with another body."""


class Overloaded(StoreError):
    """Too many commands are waiting; try again shortly with the same key."""

    retryable = True


class Unavailable(StoreError):
    """The store cannot be reached or did not confirm; whether the command took effect is unknown, so send it again with the same key."""

    retryable = True


class Draining(StoreError):
    """This process is shutting down; send the command again with the same key."""

    retryable = True


class UnknownEventType(StoreError):
    """The stream holds an event of a type that this version of the program does not know; a newer one does."""

    retryable = True


class CorruptLog(StoreError):
    """The log contradicts itself; nothing is read or written past this point."""


class UnsafeServer(StoreError):
    """The server would lose acknowledged answers."""


class WrongSchema(StoreError):
    """The database's schema is not the one this program needs; run `holdbook migrate`."""
