"""Tables in a terminal and elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from async_ckpt.cli import output
from async_ckpt.cli.output import plain_table, print_table, size_text

KEY = "mf.checkpoints/" + "k" * 200


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """Of 60 columns."""
    monkeypatch.setattr(output, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.setenv("COLUMNS", "60")
    return capsys


def test_a_key_stands_in_one_line_so_that_it_can_be_copied(terminal: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "key"), [["model", KEY]])
    assert KEY in terminal.readouterr().out


def test_long_sentences_go_on_in_the_next_line(terminal: pytest.CaptureFixture[str]) -> None:
    print_table(("what", "finding"), [["spool", "a long word " * 20]], fold=True)
    assert max(map(len, terminal.readouterr().out.splitlines())) <= 60


def test_texts_of_others_are_no_markup(terminal: pytest.CaptureFixture[str]) -> None:
    print_table(("name",), [["[red]model[/red]"]])
    assert "[red]model[/red]" in terminal.readouterr().out


def test_elsewhere_each_row_is_a_line() -> None:
    assert plain_table(("a", "key"), [["1", "two\nlines"], ["three", "4"]]) == [
        "A      KEY", "1      two lines", "three  4",
    ]  # fmt: skip


def test_sizes_may_be_anything() -> None:
    assert [size_text(size) for size in (2048, None, "x", True)] == ["2.0 KiB", "?", "?", "?"]
