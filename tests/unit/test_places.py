"""Where a checkpoint is looked for: what a reference's address says, and in which order stores are asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from async_ckpt.config import Config
from async_ckpt.errors import IntegrityError, NotFound, StoreError, TransientStoreError, UsageError
from async_ckpt.stores.base import StoreSpec
from async_ckpt.task import listing, loader, lookup
from harness.tasks.task import TASK

KEY = TASK.key("model", 3)
DATASTORE = StoreSpec("metaflow-s3", "s3://own/root")


@pytest.mark.parametrize(
    ("root", "kind", "found"),
    [
        ("/a/root", "local", "/a/root"),
        ("", "local", "/"),
        ("relative/root", "local", os.path.abspath("relative/root")),
        ("../root", "local", os.path.abspath("../root")),
        ("s3://bucket", "metaflow-s3", "s3://bucket"),
        ("s3://bucket/deep/root", "metaflow-s3", "s3://bucket/deep/root"),
        ("gs://bucket/root", "gs", "gs://bucket/root"),
    ],
)
def test_the_address_of_a_reference_tells_the_store_it_was_saved_in(root: str, kind: str, found: str) -> None:
    assert lookup.of_reference({"url": f"{root}/{KEY}", "key": KEY}) == StoreSpec(kind, found)


@pytest.mark.parametrize(
    "reference",
    [
        KEY, {"key": KEY}, {"url": f"/root/{KEY}"}, {"url": f"/root/{KEY}x", "key": KEY}, {"url": 3, "key": KEY},
        {"url": "/root/", "key": ""}, {"url": f"s3:///{KEY}", "key": KEY}, {"url": f"/ro\0ot/{KEY}", "key": KEY},
        {"url": f"/root/{KEY}", "key": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_reference_without_an_address_that_fits_its_key_tells_nothing(reference: Any) -> None:
    assert lookup.of_reference(reference) is None


def test_each_root_is_asked_once_by_the_first_that_names_it() -> None:
    again = StoreSpec("metaflow-s3", "s3://own/root/", {"access_from": "X"})
    assert lookup.distinct(None, DATASTORE, again, StoreSpec("local", "/x")) == [DATASTORE, StoreSpec("local", "/x")]


class Asked:
    """Stands in for opening stores: each root has an outcome; counts who was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **outcomes: Any) -> None:
        self.asked: list[str] = []
        self._outcomes = outcomes
        monkeypatch.setattr(lookup, "run_with_store", self._answer)

    def _answer(self, spec: StoreSpec, config: Config, function: Any) -> Any:
        self.asked.append(spec.root)
        outcome = self._outcomes[spec.root]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def local(*roots: str) -> list[StoreSpec]:
    return [StoreSpec("local", root) for root in roots]


def load(*roots: str) -> dict[str, Any]:
    return loader.load_from_first(local(*roots), {"key": KEY}, "into", Config())


@pytest.mark.parametrize("error", [NotFound("none"), StoreError("denied: AccessDenied"), StoreError("NoSuchBucket")])
def test_the_next_place_is_asked_where_one_does_not_have_it_or_does_not_let_us_read(
    monkeypatch: pytest.MonkeyPatch, error: StoreError
) -> None:
    asked = Asked(monkeypatch, first=error, second={"key": KEY}, third={})
    assert load("first", "second", "third") == {"key": KEY}
    assert asked.asked == ["first", "second"]


@pytest.mark.parametrize("error", [TransientStoreError("down"), IntegrityError("damaged"), UsageError("no key")])
def test_an_outage_damage_or_a_mistake_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    asked = Asked(monkeypatch, first=error, second={"key": KEY})
    with pytest.raises(type(error)) as caught:
        load("first", "second")
    assert caught.value is error
    assert asked.asked == ["first"]


def test_where_no_place_has_it_all_are_named_with_their_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    Asked(monkeypatch, first=StoreError("NoSuchBucket", hint="Create it"), second=NotFound("There is none"))
    wanted = [*local("first", "second"), StoreSpec("gs", "gs://third")]
    with pytest.raises(NotFound) as caught:
        loader.load_from_first(wanted, {"key": KEY}, "into", Config())
    for part in ("first: NoSuchBucket", "second: There is none", "gs://third: Stores of the kind 'gs'", "Create it"):
        assert part in str(caught.value)


def test_a_single_places_own_error_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = StoreError("denied")
    Asked(monkeypatch, first=error)
    with pytest.raises(StoreError) as caught:
        load("first")
    assert caught.value is error


def test_a_listing_is_the_first_that_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, first=StoreError("denied"), second=[], third=[{"key": KEY}], fourth=[{}])
    found, failed = lookup.first_answer(local("first", "second", "third", "fourth"), Config(), lambda store: store)  # type: ignore[arg-type, return-value]
    assert (found, list(map(str, failed))) == ([{"key": KEY}], ["denied"])
    assert asked.asked == ["first", "second", "third"]


def test_an_empty_listing_does_not_hide_that_a_place_could_not_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    Asked(monkeypatch, first=StoreError("denied"), second=[])
    monkeypatch.setattr(listing, "stores_of_task", lambda task, first: local("first", "second"))
    monkeypatch.setattr(listing, "all_spools", lambda config, given: [])
    with pytest.raises(StoreError, match="denied"):
        listing._list(None, TASK.pathspec, None, None, False, None, None)


def test_looking_for_a_checkpoint_makes_nothing(tmp_path: Path) -> None:
    reference = {"url": f"{tmp_path}/somebody/else/{KEY}", "key": KEY}
    spec = lookup.of_reference(reference)
    assert spec is not None
    with pytest.raises(NotFound):
        loader.load_from_first([spec], reference, str(tmp_path / "into"), Config())
    assert list(tmp_path.iterdir()) == []
