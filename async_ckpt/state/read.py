"""Reading a state: its files are checked, and each tensor is a view of what was read or mapped."""

from __future__ import annotations

import json
import os
import pickle as pickles
from collections.abc import Callable
from typing import Any

from ..errors import IntegrityError, UsageError, os_hint, os_reason, shorten
from .decoder import NOTHING, Decoder, Leaf
from .fit import Fit
from .places import Place, place_of
from .plan import FORMAT, VERSION
from .tensor_file import TensorFile
from .tree import path_text

STATE_FILE, STRUCTURE_FILE, PICKLE_FILE = "state.safetensors", "state.json", "state.pkl"


def is_state(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory holds what ``save_state`` wrote."""
    return all(os.path.isfile(os.path.join(directory, name)) for name in (STATE_FILE, STRUCTURE_FILE))


def read_state(
    directory: str | os.PathLike[str],
    *,
    map_location: Any = None,
    mmap: bool = True,
    into: Any = None,
    pickle: bool = False,
) -> Any:
    """The state that is in a directory.

    Parameters
    ----------
    directory : str or path
        It has the files that ``plan`` planned.
    map_location : None, str, torch.device, dict or callable
        On which devices tensors of torch come to be, as for ``torch.load``.
    mmap : bool
        Tensors are views of the mapped file, read when they are used. Writing to them leaves the file as it is, and the
        file may be removed. Else each is read into memory of its own.
    into : Any
        A state whose tensors get the values, in place. All of them must be stored, with the same shapes and types. A
        dict that has tensors must have all that are stored beside them. Where ``into`` has None, an empty dict or an
        empty list, or nothing at all, what is stored is taken as it is.
    pickle : bool
        Unpickle what was saved with ``pickle=True``. That can run any code: only for checkpoints that you trust.

    Returns
    -------
    Any
        The state, with ``into``'s tensors in their places.

    Raises
    ------
    UsageError
        There is no state; it needs ``pickle=True``, a newer version, or a class that is not imported; or ``into`` does
        not fit: nothing was written then.
    IntegrityError
        A file is damaged.
    """
    base = os.fspath(directory)
    if not is_state(base):
        raise UsageError(
            f"There is no state: {STATE_FILE} or {STRUCTURE_FILE} is missing", where=base,
            hint="Load what save() wrote with load(), and what save_state() wrote with load_state()",
        )  # fmt: skip
    structure = _structure(os.path.join(base, STRUCTURE_FILE))
    path = os.path.join(base, STATE_FILE)
    try:
        with open(path, "rb", buffering=0) as opened:
            file = TensorFile(opened.fileno(), path, structure.get("together", []), mapped=mmap)
            return _Reader(file, base, map_location, pickle).read(structure["state"], into)
    except OSError as error:
        raise IntegrityError(
            f"The state cannot be read: {os_reason(error)}", where=path, hint=os_hint(error)
        ) from error


def _structure(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except OSError as error:
        raise IntegrityError(
            f"The state cannot be read: {os_reason(error)}", where=path, hint=os_hint(error)
        ) from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"The structure of the state is no JSON: {shorten(str(error), 200)}", where=path
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or type(found.get("version")) is not int:
        raise IntegrityError("The structure of the state is not what save_state writes", where=path)
    if found["version"] > VERSION:
        raise UsageError(
            f"A newer version of metaflow-async-ckpt wrote this state: format {found['version']}, not {VERSION}",
            where=path, hint="Upgrade metaflow-async-ckpt",
        )  # fmt: skip
    if "state" not in found:
        raise IntegrityError("The structure of the state is not whole", where=path)
    return found


class _Reader:
    def __init__(self, file: TensorFile, base: str, map_location: Any, pickle: bool) -> None:
        self._file, self._base, self._pickle, self._map_location = file, base, pickle, map_location
        self._restore: Callable[[Any, str], Any] | None = None
        self._pickled: list[Any] | None = None
        #: What was built from a leaf: where the state had one object twice, it has it again.
        self._built: dict[tuple[str, str], Any] = {}
        self._storages: dict[tuple[tuple[int, int], str | None], Any] = {}
        self._relaid: dict[tuple[Any, ...], Any] = {}
        #: Blocks of which there are views.
        self._in_use: set[tuple[int, int]] = set()
        self._leaves: dict[str, Leaf] = {
            "$tensor": self._tensor, "$array": self._array, "$pickle": self._unpickled,
            "$torch": _torch_value, "$torch.Size": _torch_value, "$torch.device": _torch_value,
            "$scalar": _numpy_value, "$dtype": _numpy_value,
        }  # fmt: skip

    def read(self, encoded: Any, into: Any) -> Any:
        if into is None:
            return Decoder(self._leaves).decode(encoded)
        fit = Fit()
        checks = {
            "$tensor": lambda mark, into, path: fit.leaf(
                _torch(), place_of(mark["$tensor"], self._file, _torch()), into, path
            ),
            "$array": lambda mark, into, path: fit.leaf(
                _numpy(), place_of(mark["$array"], self._file, _numpy()), into, path
            ),
        }
        Decoder({**self._leaves, **checks}, fit).decode(encoded, into)
        fit.raise_if_not()
        return Decoder(self._leaves).decode(encoded, into)

    # Leaves. Each method gets the mark, the part of ``into`` in its place, and the keys that lead there.

    def _tensor(self, mark: dict[str, Any], into: Any, path: list[Any]) -> Any:
        torch, leaf = _torch(), mark["$tensor"]
        flags = {} if isinstance(leaf, str) else leaf
        place = place_of(leaf, self._file, torch)
        if into is NOTHING or into is None:
            location = flags.get("device", "cpu")
            memory = self._storage(place.block, location)
            return self._once(mark, lambda: torch.finished(self._new(torch, place, memory, location), flags))
        view = place.build(torch, self._storage(place.block, None))
        torch.assign(into, torch.with_bits(view, flags))
        self._forget(place.block)
        return into

    def _array(self, mark: dict[str, Any], into: Any, path: list[Any]) -> Any:
        numpy = _numpy()
        place = place_of(mark["$array"], self._file, numpy)
        memory = self._file.buffer(place.block)
        if into is NOTHING or into is None:
            return self._once(mark, lambda: self._new(numpy, place, memory, ""))
        numpy.assign(into, place.build(numpy, memory))
        self._forget(place.block)
        return into

    def _unpickled(self, mark: dict[str, Any], into: Any, path: list[Any]) -> Any:
        if not self._pickle:
            raise UsageError(
                f"{path_text(path)} was pickled when the state was saved", where=self._base,
                hint="Load it with pickle=True, if you trust who saved it: that can run any code",
            )  # fmt: skip
        if self._pickled is None:
            file = os.path.join(self._base, PICKLE_FILE)
            try:
                with open(file, "rb") as opened:
                    self._pickled = pickles.load(opened)
            except OSError as error:
                raise IntegrityError(f"The state cannot be read: {os_reason(error)}", where=file) from error
            except Exception as error:
                raise UsageError(
                    f"What was pickled cannot be unpickled here: {type(error).__name__}: {shorten(str(error), 200)}",
                    where=file,
                    hint="Load it where the modules of its objects can be imported, in the versions that saved it",
                ) from error
        return self._pickled[mark["$pickle"]]

    # What they are made of.

    def _once(self, mark: dict[str, Any], make: Callable[[], Any]) -> Any:
        kind, leaf = next(iter(mark.items()))
        key = kind, leaf if isinstance(leaf, str) else json.dumps(leaf, sort_keys=True)
        if key not in self._built:
            self._built[key] = make()
        return self._built[key]

    def _new(self, library: Any, place: Place, memory: Any, location: str) -> Any:
        """A view of the memory; or a copy, where the elements lay in another order."""
        self._in_use.add(place.block)
        view = place.build(library, memory)
        if place.was_strided is None:
            return view
        key = library.KIND, place.name, place.dtype, place.was_strided, location
        found = self._relaid.get(key)
        if found is not None:
            return library.alias(found)
        self._relaid[key] = relaid = library.relaid(view, place.was_strided)
        return relaid

    def _storage(self, block: tuple[int, int], location: str | None) -> Any:
        """torch's storage of a block, where ``map_location`` says; without a location, on the host."""
        found = self._storages.get((block, location))
        if found is not None:
            return found
        storage = _torch().storage_of(*self._file.buffer(block), block[1] - block[0])
        if location is not None and (location != "cpu" or self._map_location is not None):
            if self._restore is None:
                self._restore = _torch().locations(self._map_location)
            storage = self._restore(storage, location)
        if storage.device.type != "cpu":
            self._file.forget(block)
        self._storages[block, location] = storage
        return storage

    def _forget(self, block: tuple[int, int]) -> None:
        """The memory into which a block was read is free again, where its tensors were only copied elsewhere."""
        if block not in self._in_use:
            self._storages.pop((block, None), None)
            self._file.reuse(block)


def _torch_value(mark: dict[str, Any], into: Any, path: list[Any]) -> Any:
    return _torch().decode_value(mark)


def _numpy_value(mark: dict[str, Any], into: Any, path: list[Any]) -> Any:
    return _numpy().decode_value(mark)


def _torch() -> Any:
    try:
        from . import torch_tensors
    except ImportError as error:
        raise UsageError(
            "The state has tensors of torch, and torch cannot be imported", hint="Install torch"
        ) from error
    return torch_tensors


def _numpy() -> Any:
    try:
        from . import numpy_arrays
    except ImportError as error:
        raise UsageError("The state has arrays of numpy, and numpy cannot be imported", hint="Install numpy") from error
    return numpy_arrays
