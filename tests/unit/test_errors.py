"""Errors reach other processes whole, and are what callers of the built-in ones catch."""

from __future__ import annotations

import pickle

import pytest

from async_ckpt import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CheckpointError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_the_same_in_another_process(kind: type[errors.CheckpointError]) -> None:
    error = kind("It failed", where="/there", hint="Do this")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.what, copy.where, copy.hint, str(copy)) == ("It failed", "/there", "Do this", str(error))


def test_attributes_of_an_error_come_along() -> None:
    error = errors.TransientStoreError("Slow down")
    error.pause_s = 3.0
    assert pickle.loads(pickle.dumps(error)).pause_s == 3.0


def test_what_callers_of_built_in_errors_catch_is_one() -> None:
    assert issubclass(errors.UsageError, ValueError)
    assert issubclass(errors.MissingPathError, FileNotFoundError)
    assert issubclass(errors.WaitTimeout, TimeoutError)
