"""The tables of the pages say of options, arguments and settings what the code has, and their links lead somewhere."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from typing import Any

import pytest

from async_ckpt.config import Config
from harness.metaflow_env import REPOSITORY, Workspace
from harness.pages import pages

README = (REPOSITORY / "README.md").read_text()
#: Options that metaflow-checkpoint has, and that do nothing here yet.
_NO_EFFECT_YET = {"show_card"}

_DECLARED = """
import inspect, json, metaflow
from metaflow_extensions.async_ckpt.plugins.checkpoint import CurrentCheckpoint
from metaflow_extensions.async_ckpt.plugins.checkpoint_decorator import CheckpointDecorator
methods = {}
for name, method in inspect.getmembers(CurrentCheckpoint, inspect.isfunction):
    parameters = list(inspect.signature(method).parameters.values())[1:]
    methods[name] = {p.name: None if p.default is p.empty else p.default for p in parameters}
print(json.dumps({"options": CheckpointDecorator.defaults, "methods": methods}, default=repr))
"""


def arguments(call: str) -> dict[str, Any]:
    """``f(a, b=1)`` → names and defaults; ``...`` where the page shows none."""
    tree = ast.parse(call, mode="eval").body
    assert isinstance(tree, ast.Call)
    shown = {argument.id: ... for argument in tree.args if isinstance(argument, ast.Name)}
    return {**shown, **{str(word.arg): ast.literal_eval(word.value) for word in tree.keywords}}


def test_the_readme_shows_every_option_and_argument_with_its_default(local: Workspace) -> None:
    declared = local.query(_DECLARED)
    (options,) = re.findall(r"^\*\*`@(checkpoint\(.*?\))`\*\*$", README, flags=re.S | re.M)
    assert arguments(options) == {k: v for k, v in declared["options"].items() if k not in _NO_EFFECT_YET}
    explained = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", README.split(options)[1].split("**`current")[0], flags=re.M)
    assert set(re.findall(r"\w+", " ".join(explained))) == set(arguments(options))

    table = README.split("**`current.checkpoint`**")[1].split("\n**")[0]
    methods = re.findall(r"^\| `((\w+)\(.*?\))` \|", table, flags=re.M)
    assert {name for _, name in methods} >= {"save", "list", "load", "flush", "status"}
    for call, name in methods:
        shown, there = arguments(call), declared["methods"][name]
        assert list(shown) == list(there), name
        for argument, default in shown.items():
            used = there[argument]
            if used is None:  # Then the decorator's option counts, where it has one.
                used = declared["options"].get(argument)
            assert default in (..., used), (name, argument)


def settings() -> list[tuple[str, str, str]]:
    """(page, variable without its prefix, default as shown) of each row of the tables of settings."""
    found = []
    for page in ("README.md", "docs/s3.md"):
        for names, defaults in re.findall(r"^\| ((?:`[A-Z0-9_]+`(?:, )?)+) \| (.*?) \|", read(page), flags=re.M):
            shown = defaults.split(", ") if "," in names else [defaults]
            found += [(page, *pair) for pair in zip(re.findall(r"\w+", names), shown, strict=True)]
    return found


def read(page: str) -> str:
    return (REPOSITORY / page).read_text()


_UNITS = {"h": 3600, "min": 60, "s": 1, "MiB": 1 << 20}


@pytest.mark.parametrize(("page", "variable", "shown"), settings())
def test_the_default_of_a_setting_is_the_one_shown(page: str, variable: str, shown: str) -> None:
    default = {item.name: item.default for item in fields(Config)}[variable.lower()]
    if isinstance(default, bool):
        assert shown == ("on" if default else "off")
    elif not default:
        # Words say what it means that there is none.
        assert not re.match(r"[1-9]", shown)
    elif isinstance(default, str):
        assert variable == "SPOT_NOTICE_FILE", "the file that Metaflow writes"
    else:
        number, unit = shown.split() if " " in shown else (shown, "")
        assert float(number) * _UNITS.get(unit, 1) == default


def test_the_tables_of_settings_are_found() -> None:
    assert {"SPOOL_DIR", "OUTAGE_S", "S3_SSE_C_KEY"} <= {variable for _, variable, _ in settings()}


def anchors(page: str) -> set[str]:
    """What a link may name after ``#``: the headings, as GitHub spells them; a test."""
    if page.endswith(".py"):
        return set(re.findall(r"^def (\w+)\(", read(page), flags=re.M))
    headings = re.findall(r"^#+ (.*)$", read(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages())
def test_a_link_leads_to_a_file_and_a_heading_that_are_there(page: str) -> None:
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#([^)\s]*))?\)", read(page)):
        path = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        assert path.exists(), f"{page} leads to {target}"
        assert not anchor or anchor in anchors(str(path.resolve().relative_to(REPOSITORY))), f"{page}: #{anchor}"


@pytest.mark.parametrize("page", [page for page in pages() if page.startswith("docs/")])
def test_the_readme_leads_to_every_chapter(page: str) -> None:
    assert f"({page})" in README
