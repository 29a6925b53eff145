"""The texts of all errors that the package raises, as they stand in its source."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from async_ckpt import errors
from harness.flow_runs.metaflow_env import REPOSITORY

_CLASSES = {name for name, _ in inspect.getmembers(errors, inspect.isclass)} | {"CheckpointException"}
#: Functions that make an error of a text and of the system's reason. (An ``Outcome`` has a text that is raised later.)
_WITH_REASON = {"spool_errors"}
#: Stands for what is filled in: a path, a number, the words of the system.
FILLED = "…"


@functools.cache
def error_texts() -> dict[str, str]:
    """Each text, with ``FILLED`` for what is filled in, and its place. Texts that are all filled in are left out."""
    found: dict[str, str] = {}
    for folder in ("async_ckpt", "metaflow_extensions"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for line, text in _texts_of(path):
                if re.search(r"[a-z]{2}", text):
                    found.setdefault(text, f"{path.relative_to(REPOSITORY)}:{line}")
    return found


def _texts_of(path: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    seen = set()
    # From the inside to the outside: a variable means what its own function gives to it.
    for scope in (*reversed(functions), tree):
        texts = _assigned(scope)
        for node in ast.walk(scope):
            if isinstance(node, ast.Call) and node not in seen and node.args and _makes_an_error(node):
                seen.add(node)
                argument = node.args[-1] if _name_of(node) == "Outcome" else node.args[0]
                known = texts.get(argument.id, []) if isinstance(argument, ast.Name) else [_text(argument, texts)]
                end = f": {FILLED}" if _name_of(node) in _WITH_REASON else ""
                yield from ((node.lineno, text + end) for text in known)


def _name_of(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _makes_an_error(call: ast.Call) -> bool:
    # A class in a variable, or a function that makes the error: they are given what all errors have.
    return _name_of(call) in _CLASSES | _WITH_REASON | {"Outcome"} or bool(
        {"where", "hint"} & {word.arg for word in call.keywords}
    )


def _assigned(scope: ast.AST) -> dict[str, list[str]]:
    """The texts that a function gives to its variables."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = (
                    zip(target.elts, node.value.elts, strict=False)
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                    else [(target, node.value)]
                )
                for name, value in pairs:
                    if isinstance(name, ast.Name):
                        found.setdefault(name.id, []).append(_text(value))
    return found


def _text(node: ast.expr, texts: dict[str, list[str]] | None = None) -> str:
    """``texts``: those of the variables that may stand in it; one that has several is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    elif isinstance(node, ast.JoinedStr):
        text = "".join(_part(part, texts or {}) for part in node.values)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        text = _text(node.left) + _text(node.right)
    else:
        text = FILLED
    return re.sub(f"{FILLED}(/?{FILLED})+", FILLED, text)


def _part(part: ast.expr, texts: dict[str, list[str]]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
        known = texts.get(part.value.id, [])
        return known[0] if len(known) == 1 else FILLED
    return FILLED
