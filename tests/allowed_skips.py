"""Which tests may be skipped where all can be had that they need; with ``CHECK_SKIPS=1`` any other one fails the run.

A pytest plugin; ``tests/conftest.py`` takes it in. Under xdist it judges in the process that has all reports.
"""

from __future__ import annotations

import os
import re

import pytest

#: Expressions that are looked for in ``<test>: <reason>``. The first ones are in the nature of things: a table of
#: strategies, file systems or servers has cells in which there is nothing to claim.
ALLOWED_SKIPS = [
    # Neither the file system of the temporary directory (ext4 on most machines) nor tmpfs can; xfs and btrfs have to.
    r"the file system under (disk|tmpfs) cannot clone files$",
    r"test_what_is_captured_otherwise_is_sent.*cannot clone files \(reflink\)",
    # Few kernels have a server and a client of NFS: ``stress/nfs.sh`` runs the same in a Linux of its own.
    r"in_all_combinations\[nfs[34]\].*: no NFS server runs here",
    r"test_snapshot.*: (copy|reflink) takes no lease$",
    r"test_snapshot.*: (copy|reflink) shares nothing with the trainer$",
    # What these servers do not do. Others do, and are tested there.
    r"Rclone.*test_readers_never_see_half_an_object.*: this server itself hands out an object that is being replaced",
    r"Rclone.*: it writes in any case$",
    r"Moto.*test_of_those_who_count_on_at_once_none_is_lost.*: this server lets two in at once$",
    # As root, which most of the others need.
    r"test_a_folder_that_may_not_be_written_is_an_error_for_good: root may write everywhere$",
]

_CHECK = "CHECK_SKIPS"


def _not_allowed(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get(_CHECK) != "1" or reporter is None or hasattr(config, "workerinput"):
        return []
    found = []
    for report in reporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        found.append(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")
    return sorted({line for line in found if not any(re.search(allowed, line) for allowed in ALLOWED_SKIPS)})


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What was skipped without being allowed to be fails a run that has not failed yet."""
    if session.exitstatus == pytest.ExitCode.OK and _not_allowed(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = _not_allowed(terminalreporter.config)
    if lines:
        terminalreporter.section(f"skipped, and not on the list of those that may be ({__name__})", red=True)
        for line in lines:
            terminalreporter.line(line)
