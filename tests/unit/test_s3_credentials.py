"""Credentials are asked for again: after a refusal, after a failure, in a new session, and in words that hold none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import anyio
import pytest
from botocore.exceptions import CredentialRetrievalError

from async_ckpt.errors import StoreError
from async_ckpt.stores.s3 import credentials as credentials_module
from async_ckpt.stores.s3.credentials import Credentials, botocore_chain
from async_ckpt.stores.s3.errors import mapped


class Keys(NamedTuple):
    access_key: str
    secret_key: str = "secret"
    token: str | None = None


class Content:
    """A source of which every session answers what is next; counts both."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.sessions = self.questions = 0

    def __call__(self) -> Callable[[], Any]:
        self.sessions += 1

        def ask() -> Any:
            self.questions += 1
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


def test_many_requests_ask_once() -> None:
    source = Content(Keys("a"))

    async def check() -> None:
        credentials = Credentials(source, 5)
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(credentials.get)
        assert await credentials.get() == Keys("a")

    anyio.run(check)
    assert (source.sessions, source.questions) == (1, 1)


def test_after_a_minute_the_same_session_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Content(Keys("a"), Keys("b"))

    async def check() -> None:
        credentials = Credentials(source, 5)
        assert await credentials.get() == Keys("a")
        later = time.monotonic() + 61
        monkeypatch.setattr(credentials_module.time, "monotonic", lambda: later)
        assert await credentials.get() == Keys("b")

    anyio.run(check)
    assert (source.sessions, source.questions) == (1, 2)


def test_after_a_refusal_a_new_session_is_asked() -> None:
    source = Content(Keys("old"), Keys("new"))

    async def check() -> None:
        credentials = Credentials(source, 5)
        used = await credentials.get()
        assert credentials.refuse(used)
        assert await credentials.get() == Keys("new")
        assert credentials.refuse(used)  # Others that were signed with the old ones.
        assert await credentials.get() == Keys("new")

    anyio.run(check)
    assert (source.sessions, source.questions) == (2, 2)


def test_an_ambiguous_refusal_asks_a_new_session_only_now_and_then() -> None:
    source = Content(Keys("a"))

    async def check() -> None:
        credentials = Credentials(source, 5)
        assert not credentials.refuse(await credentials.get(), ambiguous=True)
        await credentials.get()

    anyio.run(check)
    assert source.questions == 1


@pytest.fixture
def _no_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials_module, "FAILURE_SHARED_S", 0.0)


def test_a_source_that_has_just_failed_is_left_in_peace() -> None:
    source = Content(RuntimeError("vault is sealed"))

    async def check() -> None:
        credentials = Credentials(source, 5)
        for _ in range(10):
            with pytest.raises(CredentialRetrievalError, match="vault is sealed"):
                await credentials.get()

    anyio.run(check)
    assert source.questions == 1


@pytest.mark.usefixtures("_no_peace")
def test_a_source_that_fails_is_asked_again_in_a_new_session() -> None:
    source = Content(RuntimeError("vault is sealed"), None, Keys("a"))

    async def check() -> None:
        credentials = Credentials(source, 5)
        with pytest.raises(CredentialRetrievalError, match="vault is sealed"):
            await credentials.get()
        with pytest.raises(CredentialRetrievalError, match="no source has any"):
            await credentials.get()
        assert await credentials.get() == Keys("a")

    anyio.run(check)
    assert source.sessions == 3


def test_a_source_that_fails_does_not_take_away_what_the_store_still_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Content(Keys("a"), RuntimeError("vault is sealed"))

    async def check() -> None:
        credentials = Credentials(source, 5)
        used = await credentials.get()
        later = time.monotonic() + 61
        monkeypatch.setattr(credentials_module.time, "monotonic", lambda: later)
        assert await credentials.get() == used
        credentials.refuse(used)
        with pytest.raises(CredentialRetrievalError, match="vault is sealed"):
            await credentials.get()

    anyio.run(check)


def test_a_source_that_never_answers_is_given_up() -> None:
    release = threading.Event()

    async def check() -> None:
        with pytest.raises(CredentialRetrievalError, match=r"no answer within 0\.2 s"):
            await Credentials(lambda: release.wait, 0.2).get()

    try:
        anyio.run(check)
    finally:
        release.set()


@pytest.mark.parametrize(
    "text",
    [
        "got wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY from the process",
        "token FwoGZXIvYXdzEBYaDHd2tEXAMPLE0123456789 is not JSON",
        "the secret is hunter2hunter2",
    ],
)
def test_what_may_be_a_secret_is_not_shown(text: str) -> None:
    source = Content(Keys("a", "hunter2hunter2"), RuntimeError(f"vault said: {text}"))

    async def check() -> None:
        credentials = Credentials(source, 5)
        credentials.refuse(await credentials.get())
        with pytest.raises(CredentialRetrievalError, match="vault said") as caught:
            await credentials.get()
        for word in text.split():
            if any(c.isdigit() for c in word):
                assert word not in str(caught.value)

    anyio.run(check)


def test_paths_in_an_error_are_shown() -> None:
    source = Content(RuntimeError("cannot run /opt/vendor/bin/credential-helper-2024 --profile x"))

    async def check() -> None:
        with pytest.raises(CredentialRetrievalError, match="/opt/vendor/bin/credential-helper-2024"):
            await Credentials(source, 5).get()

    anyio.run(check)


def test_the_chain_is_botocores_and_keys_that_are_given_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    assert botocore_chain({})()().access_key == "from-environment"
    given = {"aws_access_key_id": "given", "aws_secret_access_key": "s"}
    assert botocore_chain(given)()().access_key == "given"


def test_what_is_masked_is_not_shown_by_a_cause() -> None:
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    source = Content(RuntimeError(f'{{"SecretAccessKey": "{secret}", "secret_key={secret}"}}'))

    async def check() -> None:
        with pytest.raises(StoreError) as caught, mapped("Cannot write", "s3://b/k"):
            await Credentials(source, 5).get()
        assert secret not in str(caught.value)

    anyio.run(check)


def test_a_refusal_is_forgotten_once_the_store_has_taken_the_same_again() -> None:
    source = Content(Keys("a"), Keys("a"), RuntimeError("vault is sealed"))

    async def check() -> None:
        credentials = Credentials(source, 5)
        used = await credentials.get()
        credentials.refuse(used)
        assert await credentials.get() == used
        credentials.accepted(used)
        assert credentials.were_good(used)
        credentials._until = 0.0
        assert await credentials.get() == used

    anyio.run(check)


@pytest.mark.parametrize("error", [SystemExit(1), StopIteration(), KeyboardInterrupt()])
def test_a_source_that_wants_to_end_the_process_only_fails(error: BaseException) -> None:
    def ask() -> Any:
        raise error

    async def check() -> None:
        with pytest.raises(CredentialRetrievalError, match=type(error).__name__):
            await Credentials(lambda: ask, 5).get()

    anyio.run(check)
