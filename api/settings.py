"""Every setting, read from the environment variable of its name behind ``HOLDBOOK_``.

Any of them may stand in a file instead, as container engines hand out secrets: ``HOLDBOOK_DATABASE_URL_FILE`` names the file with the value
of ``HOLDBOOK_DATABASE_URL``. A secret in the environment can be read by whoever may list the machine's processes or containers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from eventstore.requests import Options

PREFIX = "HOLDBOOK_"


class SettingsError(Exception):
    """A setting cannot be read. Names the variable, never its value."""


class _Files(PydanticBaseSettingsSource):
    """Values from the files that variables ending in ``_FILE`` name; a line end at the end of a file is not part of the value."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """See pydantic-settings."""
        name = PREFIX + field_name.upper()
        path = os.environ.get(f"{name}_FILE")
        if path is None:
            return None, field_name, False
        if name in os.environ:
            raise SettingsError(f"Both {name} and {name}_FILE are set; which one holds is not guessed.")
        try:
            value = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"The file that {name}_FILE names cannot be read: {type(error).__name__}.") from error
        if not value:
            raise SettingsError(f"The file that {name}_FILE names is empty.")
        return value, field_name, False

    def __call__(self) -> dict[str, Any]:
        """All values found."""
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """What can be set. The defaults run one machine well."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

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
    worker_port: int | None = Field(
        None, ge=0, le=65535, description="Port on which a worker answers /livez, /readyz and /metrics. Without it there is none."
    )
    drain_delay_seconds: float = Field(0.0, ge=0, description="From SIGTERM to the end of accepting; /readyz says no meanwhile.")
    drain_seconds: float = Field(20.0, gt=0, description="Longest time given to requests under way when shutting down.")
    ready_lag_events: int = Field(100_000, ge=1, description="Events read models may be behind before /readyz says no.")
    audit_key: str | None = Field(
        None,
        description="The Ed25519 private key that audit exports are signed with, as PEM. Better given as HOLDBOOK_AUDIT_KEY_FILE. "
        "Default with the embedded PostgreSQL: audit.key in the data directory, made when it is first needed.",
        repr=False,
    )
    default_tenant: UUID | None = Field(None, description="The tenant that the key commands mean when none is named.")
    webhook_source: str = Field(
        "holdbook", min_length=1, max_length=200, pattern=r"^[!-~]+$", description="The CloudEvents source that messages of webhooks carry."
    )
    webhook_allow_private: bool = Field(False, description="Whether webhooks may lead to loopback, private and other addresses not public.")
    webhook_allow_http: bool = Field(False, description="Whether webhooks may have addresses without TLS.")
    webhook_keep_days: int = Field(30, ge=1, description="Days for which deliveries that ended can be listed and replayed.")
    nats_url: str | None = Field(
        None,
        description="NATS server to publish the log to, 2.12 or newer with JetStream; several of a cluster separated by commas. "
        "Without it nothing is published.",
        repr=False,
    )
    nats_port: int = Field(0, ge=0, le=65535, description="Port of the nats-server of holdbook up --nats; 0 keeps the one it had first.")
    nats_stream: str = Field("HOLDBOOK", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The JetStream stream that holds the log.")
    nats_replicas: int = Field(1, ge=1, le=5, description="Servers of a cluster that keep the stream: 1, 3 or 5.")
    nats_keep_days: float | None = Field(
        None, gt=0, description="Days for which the stream keeps events; a partition's last one stays. Without it: for ever."
    )
    nats_source: str = Field(
        "holdbook", min_length=1, max_length=200, pattern=r"^[!-~]+$", description="The CloudEvents source that published events carry."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is logged.")
    log_json: bool = Field(True, description="Log lines as JSON; otherwise for people.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code first, then the environment and the files it names."""
        return init_settings, env_settings, _Files(settings_cls)

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
