from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from mlos.settings import Settings

SAMPLES: dict[str, tuple[str, object]] = {
    "home": ("/srv/mlos", Path("/srv/mlos")),
    "host": ("::1", "::1"),
    "port": ("9000", 9000),
    "grpc_port": ("9001", 9001),
    "threads": ("3", 3),
    "replicas": ("2", 2),
    "batch_wait_ms": ("2.5", 2.5),
    "precision": ("auto", "auto"),
    "spare_worker": ("0", False),
    "tune": ("first-load", "first-load"),
    "sequences": ("4", 4),
    "request_timeout": ("1.5", 1.5),
    "read_timeout": ("4.5", 4.5),
    "load_timeout": ("2.5", 2.5),
    "drain_timeout": ("3.5", 3.5),
    "max_body_bytes": ("1000", 1000),
    "max_text_bytes": ("100", 100),
    "max_image_pixels": ("100", 100),
    "max_audio_seconds": ("1.5", 1.5),
    "memory_budget": ("1000", 1000),
    "max_queue": ("7", 7),
    "token": ("a" * 16, SecretStr("a" * 16)),
    "token_file": ("/etc/token", Path("/etc/token")),
    "admin_token": ("b" * 16, SecretStr("b" * 16)),
    "admin_token_file": ("/etc/admin-token", Path("/etc/admin-token")),
    "allow_remote": ("true", True),
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for field in Settings.model_fields:
        monkeypatch.delenv(f"MLOS_{field.upper()}", raising=False)
    config = tmp_path / "config.toml"
    monkeypatch.setenv("MLOS_CONFIG", str(config))
    return config


def test_every_field_is_described_and_tested_here() -> None:
    assert Settings.model_fields.keys() == SAMPLES.keys()
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("field", SAMPLES)
def test_every_field_is_read_from_the_environment(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = SAMPLES[field]
    assert getattr(Settings(), field) != value
    monkeypatch.setenv(f"MLOS_{field.upper()}", text)
    assert getattr(Settings(), field) == value


def test_flags_win_over_environment_over_file(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean.write_text("port = 1001\nthreads = 5\n")
    assert (Settings().port, Settings().threads) == (1001, 5)
    monkeypatch.setenv("MLOS_PORT", "1002")
    assert (Settings().port, Settings().threads) == (1002, 5)
    assert (Settings(port=1003).port, Settings(port=1003).threads) == (1003, 5)


def test_settings_cannot_change_after_they_were_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]  # the refusal is what is tested
