"""The settings of an artifact store: which store they mean, and that the keys in them are never written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from async_ckpt.errors import UsageError
from async_ckpt.stores.base import Access, StoreSpec
from async_ckpt.stores.metaflow import ENV_ARTIFACT_STORE, access_of, artifact_store

SECRET = "not-to-be-shown"
PARAMS = {"aws_access_key_id": "id", "aws_secret_access_key": SECRET}
CONFIG = {"root": "s3://b/root/", "role_arn": "arn", "session_vars": {"region": "x"}, "client_params": PARAMS}


@pytest.mark.parametrize("kind", ["s3", "s3-compatible", "coreweave"])
def test_all_names_of_s3_mean_the_same_store(kind: str) -> None:
    spec = artifact_store({"type": kind, "config": CONFIG})
    assert (spec.kind, spec.root) == ("metaflow-s3", "s3://b/root")
    assert spec.access == Access("arn", {"region": "x"}, PARAMS)


def test_a_relative_directory_is_made_absolute(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert artifact_store({"type": "local", "config": {"root": "x"}}) == StoreSpec("local", f"{tmp_path}/x")


def test_what_is_written_down_has_no_keys_and_says_where_they_are() -> None:
    spec = artifact_store({"type": "s3", "config": CONFIG})
    written = spec.to_json()
    assert written == {"kind": "metaflow-s3", "root": "s3://b/root", "options": {"access_from": ENV_ARTIFACT_STORE}}
    assert SECRET not in json.dumps(written) + repr(spec) + repr(spec.access)


def test_another_process_finds_the_keys_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    context = {"type": "s3", "config": CONFIG}
    read = StoreSpec.from_json(artifact_store(context).to_json())
    monkeypatch.setenv(ENV_ARTIFACT_STORE, json.dumps(context))
    assert access_of(read) == Access("arn", {"region": "x"}, PARAMS)
    assert access_of(StoreSpec("metaflow-s3", "s3://datastore")) == Access()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is not set"),
        ("", "is not set"),
        (f'{{"{SECRET}', "holds no settings"),
        (json.dumps({"type": "s3", "config": {**CONFIG, "root": "s3://other"}}), "is about s3://other"),
    ],
)
def test_without_settings_for_this_very_store_it_is_not_opened(
    monkeypatch: pytest.MonkeyPatch, text: str | None, said: str
) -> None:
    monkeypatch.delenv(ENV_ARTIFACT_STORE, raising=False)
    if text is not None:
        monkeypatch.setenv(ENV_ARTIFACT_STORE, text)
    read = StoreSpec.from_json(artifact_store({"type": "s3", "config": CONFIG}).to_json())
    with pytest.raises(UsageError, match=said) as caught:
        access_of(read)
    assert SECRET not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("context", [None, [], "s3", {}, {"type": "s3"}, {"type": "s3", "config": None}])
def test_what_is_no_settings_at_all_is_refused(context: Any) -> None:
    with pytest.raises(UsageError):
        artifact_store(context)
