"""The pages' tables of options and arguments say what the code has, and the pages' links lead somewhere."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest

from harness.common.pages import pages
from harness.flow_runs.metaflow_env import REPOSITORY, Workspace

README = (REPOSITORY / "README.md").read_text()
SAVING = (REPOSITORY / "docs" / "saving.md").read_text()

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


def test_the_page_shows_every_option_and_argument_with_its_default(local: Workspace) -> None:
    declared = local.query(_DECLARED)
    (options,) = re.findall(r"^\*\*`@(checkpoint\(.*?\))`\*\*$", SAVING, flags=re.S | re.M)
    assert arguments(options) == declared["options"]
    explained = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", SAVING.split(options)[1].split("**`current")[0], flags=re.M)
    assert set(re.findall(r"\w+", " ".join(explained))) == set(arguments(options))

    table = SAVING.split("**`current.checkpoint`**")[1].split("\n**")[0]
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


def read(page: str) -> str:
    return (REPOSITORY / page).read_text()


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
    """To those of frameworks through their index."""
    folder, _, name = page.rpartition("/")
    index = f"{folder}/README.md"
    of_framework = folder == "docs/frameworks" and page != index
    assert f"({name})" in read(index) if of_framework else f"({page})" in README


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 100


def test_the_benchmarks_begin_with_what_was_missed() -> None:
    page = read("BENCHMARKS.md")
    title, table = page.split("\n## ")[1].split("\n", 1)
    assert title == "Aims"
    verdicts = re.findall(r"^\| (\*\*missed\*\*|met) \|", table, flags=re.M)
    assert verdicts == sorted(verdicts), "the missed ones first"
    for aim in re.findall(r"^- (.*?): (?:met|\*\*missed\*\*) \(", page, flags=re.M):
        assert f"| {aim} |" in table
