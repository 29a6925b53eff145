"""Settings from the environment."""

from __future__ import annotations

import base64
from dataclasses import fields

import pytest

from async_ckpt.config import CHOICES, ENV_PREFIX, Config
from async_ckpt.errors import UsageError


def test_every_setting_can_be_given_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def value(name: str, kind: type) -> object:
        return CHOICES[name][-1] if name in CHOICES else {bool: True, int: 7, float: 0.75, str: "/x"}[kind]

    for item in fields(Config):
        if item.name != "s3_sse_c_key":  # It excludes others, and is a key: see below.
            monkeypatch.setenv(ENV_PREFIX + item.name.upper(), str(value(item.name, type(item.default))))
    config = Config.from_env()
    for item in fields(Config):
        assert item.name == "s3_sse_c_key" or getattr(config, item.name) == value(item.name, type(item.default))


KEY = base64.b64encode(bytes(range(32))).decode()


def test_a_key_of_ones_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{ENV_PREFIX}S3_SSE_C_KEY", KEY)
    assert Config.from_env().s3_sse_c_key == KEY


@pytest.mark.parametrize(
    ("key", "others"), [("no key", {}), (KEY[:20], {}), (KEY, {"S3_KMS_KEY_ID": "k"}), (KEY, {"S3_BUCKET_KEY": "1"})]
)
def test_keys_that_cannot_be_used_are_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, key: str, others: dict[str, str]
) -> None:
    for name, text in {"S3_SSE_C_KEY": key, **others}.items():
        monkeypatch.setenv(ENV_PREFIX + name, text)
    with pytest.raises(UsageError, match="S3_SSE_C_KEY") as caught:
        Config.from_env()
    assert key not in str(caught.value)


@pytest.mark.parametrize("name", ["GLACIER", "DEEP_ARCHIVE"])
def test_a_storage_class_that_a_retry_cannot_read_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"{ENV_PREFIX}S3_STORAGE_CLASS", name)
    with pytest.raises(UsageError, match="STANDARD_IA"):
        Config.from_env()


@pytest.mark.parametrize("name", CHOICES)
def test_a_value_that_is_not_among_the_choices_is_refused_with_them(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(ENV_PREFIX + name.upper(), "perhaps")
    with pytest.raises(UsageError, match=f"{name.upper()}='perhaps'") as caught:
        Config.from_env()
    assert all(choice in caught.value.hint for choice in CHOICES[name])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MAX_UPLOADS", "many"),
        ("MAX_UPLOADS", "1.5"),
        ("MAX_UPLOADS", "-1"),
        ("MAX_UPLOADS", "0"),
        ("MAX_UPLOADS", ""),
        ("PARTS_IN_FLIGHT", "0"),
        ("PART_BYTES", "0"),
        ("STORE_ATTEMPTS", "0"),
        ("MAX_LEASES", "1k"),
        ("RESCAN_S", "nan"),
        ("RESCAN_S", "0"),
        ("REPLY_TIMEOUT_S", "0"),
        ("MAX_SLOWDOWN", "0"),
        ("MAX_SLOWDOWN", "1.5"),
        ("DRAIN_TIMEOUT_S", "-1"),
        ("DRAIN_TIMEOUT_S", "1h"),
        ("UNSIGNED_PAYLOAD", "maybe"),
    ],
)
def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(ENV_PREFIX + name, text)
    with pytest.raises(UsageError) as caught:
        Config.from_env()
    assert f"{ENV_PREFIX}{name}={text!r}" in str(caught.value)
    assert ENV_PREFIX + name in caught.value.hint


@pytest.mark.parametrize("name", [item.name for item in fields(Config) if isinstance(item.default, float)])
def test_no_time_is_not_a_number(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(ENV_PREFIX + name.upper(), "nan")
    with pytest.raises(UsageError):
        Config.from_env()


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("YES", True), ("on", True), ("0", False), ("No", False), ("", False)]
)
def test_switches_are_read_as_people_write_them(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    monkeypatch.setenv(f"{ENV_PREFIX}UNSIGNED_PAYLOAD", text)
    assert Config.from_env().unsigned_payload is value
