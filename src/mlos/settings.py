"""One frozen settings model for all three programs, layered: defaults < file < environment < flags.

The file is ``$XDG_CONFIG_HOME/mlos/config.toml`` (``MLOS_CONFIG`` names another); environment variables are
the field names in capitals behind ``MLOS_``; flags are the keyword arguments of :class:`Settings`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


def config_file() -> Path:
    """Where the settings file is looked for; it need not exist."""
    named = os.environ.get("MLOS_CONFIG")
    return Path(named) if named else platformdirs.user_config_path("mlos") / "config.toml"


class Settings(BaseSettings):
    """What can be set. Every field has a default with which the programs work as they are."""

    model_config = SettingsConfigDict(env_prefix="MLOS_", frozen=True, extra="ignore")

    home: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("mlos"),
        description="Folder of the store, the caches and the sockets.",
    )
    host: str = Field(default="127.0.0.1", description="Address that mlos_core listens on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port of mlos_core; 0 takes a free one.")
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of mlos_core for gRPC; 0 takes a free one, and without one gRPC is not served.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="Threads per model worker; 0 takes what the model was tuned to, else the physical cores. "
        "Several workers of a model share the cores.",
    )
    replicas: int = Field(
        default=1, ge=1, le=64, description="Workers of each model, which share its queue, not its memory."
    )
    batch_wait_ms: float = Field(
        default=0.0,
        ge=0,
        le=60_000,
        description="Milliseconds that a request may wait for others, where the model was tuned to compute "
        "several together; never more than half of its time. 0 takes those that wait anyhow.",
    )
    precision: Literal["fp32", "auto", "bf16", "fp16", "int8"] = Field(
        default="fp32",
        description="Precision that models packaged in fp32 are served in: fp32 stays equal to the framework, "
        "auto takes the fastest that was tuned and proved, the others force one.",
    )
    spare_worker: bool = Field(
        default=True,
        description="Whether a process waits, started and without a model, to become the next worker: loads "
        "and restarts are faster by its start, and it takes some 60 MB.",
    )
    tune: Literal["never", "first-load"] = Field(
        default="never",
        description="When mlos_core tunes: first-load tunes a model that has no record on this host before its "
        "first worker starts, while its requests wait; never leaves it to axon tune.",
    )
    sequences: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Generations that a language model's worker continues together; 1 writes one by one.",
    )
    request_timeout: float = Field(
        default=60.0, gt=0, description="Seconds from a request's arrival to its deadline."
    )
    read_timeout: float = Field(
        default=10.0, gt=0, description="Seconds a client may be silent in the middle of a request before 408."
    )
    load_timeout: float = Field(default=300.0, gt=0, description="Seconds a worker may take to load its model.")
    drain_timeout: float = Field(default=30.0, gt=0, description="Seconds for requests in flight at SIGTERM.")
    max_body_bytes: int = Field(default=32 << 20, gt=0, description="Largest request body accepted.")
    max_text_bytes: int = Field(
        default=1 << 20,
        gt=0,
        description="Largest UTF-8 text tokenised, per request, all its texts together.",
    )
    max_image_pixels: int = Field(
        default=64_000_000,
        gt=0,
        description="Most pixels decoded, per request, all its images together; known before one is decoded.",
    )
    max_audio_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Most seconds of sound heard, per request, each sound counted as its longest; known before "
        "one is decoded.",
    )
    memory_budget: int | None = Field(
        default=None,
        gt=0,
        description="Bytes of memory that all workers may have together; idle models make way for others. "
        "Without it: what this host has and other programs leave.",
    )
    max_queue: int = Field(default=256, gt=0, description="Requests waiting per model before 503.")
    token: SecretStr | None = Field(
        default=None, description="Token that requests must bring; without one, who reaches the server may ask."
    )
    token_file: Path | None = Field(default=None, description="File that holds the token, instead of it.")
    admin_token: SecretStr | None = Field(
        default=None,
        description="Token that administration must bring; without one, only the Unix socket administers.",
    )
    admin_token_file: Path | None = Field(
        default=None, description="File that holds the token of administration, instead of it."
    )
    allow_remote: bool = Field(
        default=False, description="Listen on an address other than loopback although requests need no token."
    )

    @property
    def store(self) -> Path:
        """Folder of the packages."""
        return self.home / "store"

    @property
    def sockets(self) -> Path:
        """Folder of the Unix sockets on which servers are administered."""
        return self.home / "sockets"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_file())
