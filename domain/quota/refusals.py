"""Refusals that several functions raise. The others stand beside the one that raises them."""

from __future__ import annotations

from typing import ClassVar

from domain.kernel.decider import Rejected


class InvalidCommand(Rejected):
    """A field of the command makes no sense."""

    code: ClassVar[str] = "quota.invalid"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "invalid"


class QuotaNotFound(Rejected):
    """The subject has no quota on this meter."""

    code: ClassVar[str] = "quota.not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


class ReservationNotFound(Rejected):
    """There is no such reservation, or it ended long ago."""

    code: ClassVar[str] = "quota.reservation_not_found"
    frozen: ClassVar[bool] = False
    status: ClassVar[str] = "not_found"


class ReservationClosed(Rejected):
    """The reservation has already ended in another way."""

    code: ClassVar[str] = "quota.reservation_closed"
