"""What every part of the embedded PostgreSQL may raise."""


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot do what was asked; the message says why and what helps."""
