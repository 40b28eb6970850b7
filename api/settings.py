"""Every setting, read from the environment variable of its name behind ``HOLDBOOK_``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from uuid import UUID

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventstore.requests import Options


class Settings(BaseSettings):
    """What can be set. The defaults run one machine well."""

    model_config = SettingsConfigDict(env_prefix="HOLDBOOK_", extra="ignore", frozen=True)

    database_url: str | None = Field(
        None, description="Address of a PostgreSQL server, 15 or newer. Without it an embedded one is started.", repr=False
    )
    data: Path | None = Field(None, description="Directory of the embedded PostgreSQL. Default: the user's data directory.")
    partitions: int = Field(64, ge=1, le=4096, description="Partitions of a new store; fixed when it is initialised.")
    host: str = Field("127.0.0.1", description="Address the HTTP server listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port the HTTP server listens on; 0 takes any that is free.")
    connections: int = Field(4, ge=2, le=64, description="Connections of the process to the log.")
    body_limit_bytes: int = Field(2**20, ge=1024, description="Largest request body; a larger one is answered with 413.")
    queue_commands: int = Field(20_000, ge=1, description="Commands that may wait in one partition's queue before 503.")
    queue_bytes: int = Field(64 * 2**20, ge=1024, description="Bytes of bodies that may wait in one partition's queue before 503.")
    batch_commands: int = Field(1_000, ge=1, description="Most commands in one transaction.")
    batch_bytes: int = Field(8 * 2**20, ge=1024, description="Most bytes of bodies in one transaction.")
    cached_streams: int = Field(50_000, ge=1, description="Streams whose state each partition's writer keeps in memory.")
    snapshot_every: int = Field(1_000, ge=0, description="Events of a stream between snapshots; 0 makes none.")
    requests_at_once: int = Field(5_000, ge=1, description="Requests served at once; more are answered with 503.")
    drain_delay_seconds: float = Field(0.0, ge=0, description="From SIGTERM to the end of accepting; /readyz says no meanwhile.")
    drain_seconds: float = Field(20.0, gt=0, description="Longest time given to requests under way when shutting down.")
    ready_lag_events: int = Field(100_000, ge=1, description="Events read models may be behind before /readyz says no.")
    default_tenant: UUID | None = Field(None, description="The tenant that the key commands mean when none is named.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is logged.")
    log_json: bool = Field(True, description="Log lines as JSON; otherwise for people.")

    def writer_options(self) -> Options:
        """The bounds of each partition's writer."""
        return Options(
            queue_commands=self.queue_commands,
            queue_bytes=self.queue_bytes,
            batch_commands=self.batch_commands,
            batch_bytes=self.batch_bytes,
            cached_streams=self.cached_streams,
            snapshot_every=self.snapshot_every,
        )
