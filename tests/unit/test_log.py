"""What this package tells people goes through ``logging`` to stderr, or to whoever asks for it, from one level on."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest

from async_ckpt.config import Config
from async_ckpt.errors import UsageError
from async_ckpt.system import log
from async_ckpt.system.undisturbed import run
from harness.common import log_lines
from harness.flow_runs.environments import with_our_modules

_logger = logging.getLogger(f"{log.LOGGER}.task.somewhere")


def test_lines_go_to_stderr_once_with_our_mark(capsys: pytest.CaptureFixture[str]) -> None:
    log.write_lines_with(log.to_stderr)
    _logger.info("100% of it")
    assert capsys.readouterr().err == "[@checkpoint] 100% of it\n"


def test_whoever_asks_for_lines_gets_them_and_nobody_else_does(capsys: pytest.CaptureFixture[str]) -> None:
    with log_lines.collected() as first, log_lines.collected() as second:
        _logger.warning("a line")
    assert (first, second, capsys.readouterr().err) == ([], ["a line"], "")


@pytest.mark.parametrize(("level", "said"), [("INFO", ["info", "warning"]), ("WARNING", ["warning"]), ("ERROR", [])])
def test_lines_below_the_level_are_left_out(level: str, said: list[str]) -> None:
    with log_lines.collected() as lines:
        log.set_level(level)
        _logger.info("info")
        _logger.warning("warning")
    assert lines == said


@pytest.mark.parametrize(("level", "says"), [("INFO", True), ("ERROR", False), ("loud", True)])
def test_the_environment_says_the_level_and_a_wrong_one_breaks_no_import(level: str, says: bool) -> None:
    code = "import logging, async_ckpt.system.log; logging.getLogger('async_ckpt.x').warning('a line')"
    environment = {**with_our_modules(), "METAFLOW_ASYNC_CKPT_LOG_LEVEL": level}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ("a line" in done.stderr) is says


def test_an_unknown_level_is_refused_where_settings_are_read() -> None:
    with pytest.raises(UsageError, match="METAFLOW_ASYNC_CKPT_LOG_LEVEL='loud' is unknown"):
        Config.from_env({"METAFLOW_ASYNC_CKPT_LOG_LEVEL": "loud"})


def test_what_work_for_the_main_thread_says_is_said_by_the_main_thread() -> None:
    threads = []
    with log_lines.written_with(lambda line: threads.append(threading.current_thread())):
        run(lambda: _logger.info("from a thread of its own"))
    assert threads == [threading.main_thread()]


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("I/O operation on closed file")])
def test_a_line_that_nobody_can_read_stops_nothing(error: Exception) -> None:
    def gone(line: str) -> None:
        raise error

    with log_lines.written_with(gone):
        _logger.warning("a line")
        run(lambda: _logger.warning("a line"))
