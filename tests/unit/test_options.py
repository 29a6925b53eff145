"""The options of ``@checkpoint``, from Python and as text."""

from __future__ import annotations

import importlib.util
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import async_ckpt
from async_ckpt.errors import UsageError

# By its path: its package is Metaflow's to import, with all of Metaflow.
_FILE = Path(async_ckpt.__file__).parents[1] / "metaflow_extensions" / "async_ckpt" / "plugins" / "options.py"
_SPEC = importlib.util.spec_from_file_location("checkpoint_options", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
sys.modules[_SPEC.name] = options = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(options)
OPTIONS, convert = options.OPTIONS, options.convert


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("load_policy", "eager", "eager"),
        ("load_policy", " fresh ", "fresh"),
        ("load_policy", None, "none"),
        ("load_policy", "None", "none"),
        ("load_policy", "NONE", "none"),
        ("load_shard", None, "all"),
        ("uploader", "None", "process"),
        ("storage_format", None, "files"),
        ("snapshot", "none", "auto"),
        ("show_card", "True", True),
        ("show_card", "false", False),
        ("show_card", np.bool_(False), False),
        ("show_card", 1, True),
        ("show_card", None, True),
        ("temp_dir_root", "None", None),
        ("temp_dir_root", Path("/scratch"), "/scratch"),
        ("temp_dir_root", 2024, "2024"),
        ("flush_timeout", "60", 60.0),
        ("flush_timeout", "0.5", 0.5),
        ("flush_timeout", np.float32(2), 2.0),
        ("flush_timeout", np.int64(3), 3.0),
        ("flush_timeout", None, None),
        ("on_failure", "warn", "warn"),
        ("on_backlog", "None", None),
        ("max_pending", "3", 3),
        ("max_pending", 0, 0),
        ("max_pending", np.int64(4), 4),
        ("max_pending", 5.0, 5),
        ("max_pending", "1e3", 1000),
        ("max_pending", "9007199254740993", 9007199254740993),
        ("max_pending_bytes", np.uint8(200), 200),
        ("max_exposure", 900, 900.0),
        ("max_exposure", np.float32(2.5), 2.5),
        ("max_exposure", "900", 900.0),
        ("max_exposure", "15 min", 900.0),
        ("max_exposure", "1h 30m", 5400.0),
        ("max_exposure", "2 Days, 1 second", 172801.0),
        ("max_exposure", timedelta(minutes=15), 900.0),
        ("max_exposure", str(timedelta(minutes=15)), 900.0),
        ("max_exposure", "None", None),
        ("max_slowdown", "0.05", 0.05),
        ("max_slowdown", np.float64(0.5), 0.5),
        ("max_slowdown", 1, 1.0),
        ("max_slowdown", None, None),
    ],
)
def test_an_option_means_the_same_as_text_and_in_python(name: str, given: Any, found: Any) -> None:
    (value,) = convert({name: given}).values()
    assert (value, type(value)) == (found, type(found))


@pytest.mark.parametrize("name", OPTIONS)
def test_what_metaflow_makes_of_the_defaults_for_a_task_is_read_back_as_them(name: str) -> None:
    default = OPTIONS[name].default
    assert convert({name: str(default)}) == convert({name: default}) == {name: default}


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("load_policy", "newest", "fresh, eager, none"),
        ("load_policy", 3, "fresh, eager, none"),
        ("load_shard", "mine", "all, own"),
        ("uploader", "fork", "process, thread"),
        ("storage_format", "zip", "files, tar"),
        ("snapshot", ["auto"], "auto, hardlink, reflink, copy"),
        ("snapshot", "move", "save() and then shutil.rmtree() does the same"),
        ("on_failure", True, "raise, warn"),
        ("on_backlog", "drop", "wait, supersede, raise"),
        ("show_card", "maybe", "True or False"),
        ("show_card", 2, "True or False"),
        ("temp_dir_root", True, "path of a directory"),
        ("temp_dir_root", ["a"], "path of a directory"),
        ("flush_timeout", "1h", "number of seconds"),
        ("flush_timeout", -1, "number of seconds"),
        ("flush_timeout", "nan", "number of seconds"),
        ("flush_timeout", float("inf"), "number of seconds"),
        ("flush_timeout", True, "number of seconds"),
        ("flush_timeout", {}, "number of seconds"),
        ("max_pending", "x", "number of checkpoints"),
        ("max_pending", "", "number of checkpoints"),
        ("max_pending", -1, "number of checkpoints"),
        ("max_pending", 2.5, "number of checkpoints"),
        ("max_pending", "nan", "number of checkpoints"),
        ("max_pending", "inf", "number of checkpoints"),
        ("max_pending_bytes", True, "number of bytes"),
        ("max_pending_bytes", "10G", "number of bytes"),
        ("max_exposure", "yesterday", "number of seconds, a timedelta, or a text such as"),
        ("max_exposure", "10 parsecs", "number of seconds"),
        ("max_exposure", "min", "number of seconds"),
        ("max_exposure", "", "number of seconds"),
        ("max_exposure", "10 min?", "number of seconds"),
        ("max_exposure", 0, "more than nothing"),
        ("max_exposure", -1, "number of seconds"),
        ("max_exposure", "nan", "number of seconds"),
        ("max_exposure", "inf", "number of seconds"),
        ("max_exposure", True, "number of seconds"),
        ("max_exposure", timedelta(0), "number of seconds"),
        ("max_slowdown", 0, "would hold back every upload until the end"),
        ("max_slowdown", "0.0", "would hold back every upload until the end"),
        ("max_slowdown", -0.01, "a share above 0 and up to 1"),
        ("max_slowdown", 1.5, "a share above 0 and up to 1"),
        ("max_slowdown", "nan", "a share above 0 and up to 1"),
        ("max_slowdown", "1 %", "a share above 0 and up to 1"),
        ("max_slowdown", True, "a share above 0 and up to 1"),
    ],
)
def test_a_wrong_value_is_refused_with_the_option_the_value_and_what_is_allowed(
    name: str, given: Any, allowed: str
) -> None:
    with pytest.raises(UsageError) as caught:
        convert({name: given})
    assert f"{name}={given!r}" in str(caught.value)
    assert allowed in str(caught.value)
