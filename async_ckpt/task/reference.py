"""What users get about a checkpoint: from ``save()`` a ``Reference``, from ``list()`` a ``CheckpointInfo``."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from .. import layout
from ..spool import journal
from ..spool.journal import FAILED, SUPERSEDED
from .annotate import added
from .tracker import Tracker

#: Always there as attributes; None where the metadata does not say.
ATTRIBUTES = (
    "key", "name", "pathspec", "attempt", "version_id", "size", "metadata", "url", "created_on", "storage_format",
)  # fmt: skip


class _PassesForDict(type):
    """The type of types that are equal to ``dict``.

    metaflow-checkpoint asks ``type(reference) == dict``: ``load_model`` of any other type loads nothing and says
    nothing, ``@model(load=...)`` and ``current.model.load`` refuse it.
    """

    def __eq__(cls, other: object) -> bool:
        return other is dict or other is cls

    __hash__ = type.__hash__


class CheckpointInfo(dict[str, Any], metaclass=_PassesForDict):
    """The metadata of a checkpoint: a dict whose fields are attributes as well.

    Where something keeps it (an artifact, a copy), it is a plain ``dict``, as metaflow-checkpoint's are: nothing else
    will do for what loads it in the next step.
    """

    def __getattr__(self, field: str) -> Any:
        try:
            return self[field]
        except KeyError:
            if field in ATTRIBUTES:
                return None
            raise AttributeError(f"The metadata of this checkpoint has no {field!r}") from None

    def to_dict(self) -> dict[str, Any]:
        """A plain dict of the fields."""
        return dict(self)

    def __eq__(self, other: object) -> bool:
        """An entry of ``list()`` is equal to what ``save()`` returned: the ``state`` is no part of a checkpoint."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() - {"state"} == other.keys() - {"state"} and all(
            value == other[field] for field, value in self.items() if field != "state"
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class LoadedInfo(CheckpointInfo):
    """The metadata of what was loaded, ``current.checkpoint.info``.

    Flows keep it as an artifact for its attributes: it becomes an ``OrderedDict`` with the same fields, attributes and
    ``to_dict()``, which needs nothing of this package. Where metaflow-checkpoint is installed it becomes what that
    makes of it, as ``@model(load=...)`` takes nothing else that has attributes.
    """

    #: metaflow-checkpoint's class of a checkpoint, made from the fields by name; None where it is not installed.
    kept_as: ClassVar[Callable[..., Any] | None] = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.kept_as is not None:
            return functools.partial(self.kept_as, **self), ()
        # The pickle of a cycle: to_dict of what comes out is that of the OrderedDict, not of this object.
        return OrderedDict, (dict(self),), {**self._attributes(), "to_dict": functools.partial(dict, self)}

    def __copy__(self) -> OrderedDict[str, Any]:
        made = OrderedDict(self)
        vars(made).update(self._attributes(), to_dict=functools.partial(dict, made))
        return made

    def _attributes(self) -> dict[str, Any]:
        """Those that what is kept has; none hides a method of dict."""
        fields = dict.fromkeys(ATTRIBUTES) | self
        return {
            field: value for field, value in fields.items() if field.isidentifier() and not hasattr(OrderedDict, field)
        }


class Reference(CheckpointInfo):
    """A saved checkpoint: its metadata, and how far it has come."""

    _tracker: Tracker

    def __init__(self, data: Mapping[str, Any], tracker: Tracker) -> None:
        super().__init__(data)
        self._tracker = tracker

    @property
    def id(self) -> str:
        return layout.identity(self)

    @property
    def state(self) -> str:
        """``ADMITTED``, ``UPLOADING``, ``UPLOADED``, ``COMMITTED``, ``FAILED``, ``SUPERSEDED``, or ``REMOVED``: it was
        in the store, and the task's rules have removed it.
        """
        return self._tracker.state(self.id)[0]

    @property
    def error(self) -> str | None:
        """Why it failed, or was dropped for newer ones; None if neither."""
        state, why = self._tracker.state(self.id)
        return why if state in (FAILED, SUPERSEDED) else None

    def done(self) -> bool:
        """Whether it is in the store, or never will be."""
        return self.state in journal.FINAL

    def annotate(self, metadata: Mapping[str, Any] | None = None, **values: Any) -> Reference:
        """Add to its metadata, after an evaluation, say: ``reference.annotate(loss=0.3)``, or a dict. What has a name
        that is there already is replaced. Returns at once: it is in the store when the checkpoint is, or soon after.
        The end of the step waits for it. Lists, the card and ``keep_best`` see it then.

        Raises
        ------
        UsageError
            There is nothing, or it is no dict.
        SpoolError
            The disk is full, or this process has outlived its task.
        """
        more = added(metadata, values, self._tracker.config)
        self._tracker.annotate(self, more)
        mine = self.get("metadata")
        self["metadata"] = {**(mine if isinstance(mine, Mapping) else {}), **more}
        return self

    def wait(self, timeout: float | None = None) -> Reference:
        """Wait until it is in the store.

        Parameters
        ----------
        timeout : float or None
            Seconds; None: as long as a flush may take (``METAFLOW_ASYNC_CKPT_FLUSH_TIMEOUT_S``).

        Raises
        ------
        StoreError
            It failed for good, or was superseded; says why.
        WaitTimeout
            It is still under way.
        """
        self._tracker.wait(self.id, timeout)
        return self
