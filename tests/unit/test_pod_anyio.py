"""anyio that came in the code package: the machine's own wins, and what it needs is seen by it alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from async_ckpt import pod_anyio

REPOSITORY = Path(pod_anyio.__file__).parents[1]

#: Runs a loop, a thread and a lazily imported part of what was found.
_USE = """
import async_ckpt, anyio, sys
from anyio.from_thread import start_blocking_portal

async def work():
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0)
    return await anyio.to_thread.run_sync(lambda: 7)

with start_blocking_portal() as portal:
    assert portal.call(work) == 7
print(anyio.__file__)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The code directory of a package, as a pod extracts it."""
    code = tmp_path / "code"
    shutil.copytree(REPOSITORY / "async_ckpt", code / "async_ckpt", ignore=shutil.ignore_patterns("__pycache__"))
    for path, name in pod_anyio.files():
        target = code / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return code


def bare_python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that has nothing but the standard library and ``path``."""
    start = f"import sys; sys.path[:0] = {[str(folder) for folder in path]!r}\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code], capture_output=True, text=True, check=False, timeout=60
    )


def test_where_there_is_no_anyio_the_one_that_travelled_is_found(package: Path) -> None:
    done = bare_python(_USE + "assert not [p for p in sys.path if 'carried' in p]\n", package)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(package / pod_anyio.FOLDER / "anyio" / "__init__.py")


def test_the_machines_own_wins(package: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "anyio").mkdir(parents=True)
    (tmp_path / "site" / "anyio" / "__init__.py").touch()
    # Behind the code package, as site-packages is.
    done = bare_python("import async_ckpt, anyio; print(anyio.__file__)", package, tmp_path / "site")
    assert done.stdout.strip() == str(tmp_path / "site" / "anyio" / "__init__.py"), done.stderr


@pytest.mark.parametrize("imported", [True, False], ids=["imported already", "not imported yet"])
def test_an_old_library_of_the_image_stays_what_it_is_and_is_not_what_anyio_sees(
    package: Path, tmp_path: Path, imported: bool
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "typing_extensions.py").write_text("AGE = 'old'\n")
    first = "import typing_extensions as before\n" if imported else ""
    after = "import typing_extensions as after\nassert after.AGE == 'old'\n"
    same = "assert after is before\n" if imported else ""
    done = bare_python(first + _USE + after + same, package, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert pod_anyio.FOLDER in done.stdout


def test_nothing_is_looked_for_where_nothing_travelled() -> None:
    done = bare_python("import async_ckpt; print(len(sys.meta_path))", REPOSITORY)
    bare = bare_python("print(len(sys.meta_path))")
    assert done.stdout == bare.stdout != ""


def test_what_travelled_once_travels_again(package: Path) -> None:
    """A flow may be started from within a task."""
    code = "from async_ckpt import pod_anyio; print(*sorted(name for _, name in pod_anyio.files()), sep='\\n')"
    done = bare_python(code, package)
    assert done.stdout.splitlines() == sorted(name for _, name in pod_anyio.files())
