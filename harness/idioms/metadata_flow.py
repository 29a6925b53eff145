"""Metadata as training code has it at hand."""

import collections
import datetime
import decimal
import enum
import fractions
import pathlib

from metaflow import FlowSpec, checkpoint, current, step
from seen import outcome, saw

Point = collections.namedtuple("Point", ["x", "y"])


class Phase(enum.Enum):
    TRAIN = 1


KINDS = {
    "plain": {"epoch": 3, "loss": 0.25, "tags": ["a"], "nested": {"deep": [1, {"er": None}]}, "on": True},
    "a tuple": {"betas": (0.9, 0.99)},
    "a named tuple": {"point": Point(1, 2)},
    "a datetime": {"at": datetime.datetime(2026, 11, 28, 12, 30)},
    "integer keys": {"by epoch": {1: 0.5, 2: 0.25}},
    "integer keys at the top": {1: "one"},
    "infinity": {"best": float("inf")},
    "a date": {"on": datetime.date(2026, 11, 28)},
    "a path": {"file": pathlib.Path("/data/train.bin")},
    "a set": {"seen": {3, 1, 2}},
    "bytes": {"digest": b"\x00\x01"},
    "a decimal": {"rate": decimal.Decimal("0.1")},
    "an enumeration": {"phase": Phase.TRAIN},
    "an object": {"model": fractions},
    "none at all": None,
    "a list": ["not", "a", "dict"],
}


class MetadataFlow(FlowSpec):
    @checkpoint(show_card=False)
    @step
    def start(self):
        self.keys = {}
        for kind, metadata in KINDS.items():
            result, reference = outcome(current.checkpoint.save, metadata=metadata)
            saw(kind, result if result == "failed" else reference["metadata"])
            if result == "ok":
                self.keys[reference["version_id"]] = kind
        self.next(self.end)

    @checkpoint(show_card=False)
    @step
    def end(self):
        from metaflow import Run

        entries = current.checkpoint.list(task=Run(f"{current.flow_name}/{current.run_id}")["start"].task)
        saw("listed", {self.keys[entry["version_id"]]: entry["metadata"] for entry in entries})


if __name__ == "__main__":
    MetadataFlow()
