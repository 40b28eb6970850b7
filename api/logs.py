"""Log lines: structured, to standard error. Bodies, keys and addresses of databases are never logged."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from api import masking, tracing
from api.settings import Settings

_TRACE = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=30)
"""Local variables are where keys and bodies are."""


def configure(settings: Settings) -> None:
    """Send our own lines and the libraries' through one pipeline."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        tracing.add_request,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = (
        [structlog.processors.ExceptionRenderer(_TRACE), masking.processor, structlog.processors.JSONRenderer()]
        if settings.log_json
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback),
            masking.rendered,
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("httpx", "httpcore", "alembic", "uvicorn.error", "psycopg.pool"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
