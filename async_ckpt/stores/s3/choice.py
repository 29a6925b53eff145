"""Which S3 client: aiobotocore's, or where that is missing or does not fit, botocore's own in threads.

Aiobotocore stands on the inside of botocore and fits few of its releases. Where it does not, it fails in many ways, at
its import or with a request, or does something else than it should; so what it says of itself is asked first.
"""

from __future__ import annotations

import functools
import importlib
import re
from contextlib import AsyncExitStack
from importlib import metadata

import botocore

from ...config import Config
from ...errors import UsageError
from . import S3Settings
from .boto3_transport import open_client as open_threads
from .settings import Exchange, OpenedClient

_REMEDY = "@pypi(packages={'aiobotocore': '>=3.0'}), or an image that has it, brings it"


async def open_client(stack: AsyncExitStack, settings: S3Settings, config: Config, exchange: Exchange) -> OpenedClient:
    """The best client that can be had; its ``notice`` says why it is not aiobotocore's. See ``OpenClient``."""
    why = why_not_aiobotocore()
    if not why:
        async with AsyncExitStack() as own:
            try:
                opened: OpenedClient = await importlib.import_module(".aiohttp_transport", __package__).open_client(
                    own, settings, config, exchange
                )
            except (UsageError, ImportError, AttributeError, TypeError, NotImplementedError) as error:
                # Settings that no client takes are refused by the other one as well, and in its words.
                why = f"aiobotocore cannot make a client ({_line(error.__cause__ or error)})"
            else:
                stack.push_async_exit(own.pop_all())
                return opened
    opened = await open_threads(stack, settings, config, exchange)
    return opened._replace(notice=f"Uploads go over boto3 in threads: {why}. {_REMEDY}")


@functools.cache
def why_not_aiobotocore() -> str:
    """Why aiobotocore cannot be used here; empty: it can."""
    try:
        wanted = metadata.requires("aiobotocore") or []
        version = metadata.version("aiobotocore")
    except metadata.PackageNotFoundError:
        wanted, version = [], ""  # Perhaps it lies there without its description.
    for requirement in wanted:
        fits = fits_requirement(requirement, botocore.__version__)
        if fits is False:
            needed = requirement.split(";")[0].strip()
            return f"aiobotocore {version} needs {needed}, and botocore {botocore.__version__} is installed"
    try:
        importlib.import_module("aiobotocore")  # First: without it, what it brings may be missing as well.
        importlib.import_module(".aiohttp_transport", __package__)
    except ModuleNotFoundError as error:
        missing = str(error.name).split(".")[0]
        return "aiobotocore is not installed" if missing == "aiobotocore" else f"aiobotocore needs {missing}"
    except Exception as error:  # Whatever an import in a library that does not fit may raise.
        return f"aiobotocore cannot be imported ({_line(error)})"
    return ""


def fits_requirement(requirement: str, version: str) -> bool | None:
    """Whether a version of botocore is one that a requirement (as ``botocore<1.43,>=1.40``) allows; None: it is about
    something else, or an extra.
    """
    text, _, marker = requirement.partition(";")
    match = re.match(r"\s*botocore\s*\(?((?:[<>=!~][^)]*)?)\)?\s*$", text)
    if match is None or "extra" in marker:
        return None
    found = _numbers(version)
    for clause in match[1].split(","):
        operator, number = re.match(r"\s*([<>=!~]*)\s*(.*?)\s*$", clause).groups()  # type: ignore[union-attr]
        limit = _numbers(number)
        held = {
            "<": found < limit, "<=": found <= limit, ">": found > limit, ">=": found >= limit,
            "==": found == limit, "!=": found != limit,
        }.get(operator)  # fmt: skip
        if held is False:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in [*re.findall(r"\d+", version), 0, 0, 0][:3])


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
