"""What people save, and how: rows of docs/compatibility.md, each in metaflow-checkpoint's environment and in ours."""

from __future__ import annotations

from typing import Any

import pytest

from harness.flow_runs.idiom_runs import ABSENT, Sides, assert_same_but

#: The first of them may make the peer's environment.
pytestmark = pytest.mark.timeout(400)

OK, FAILED = "ok", "failed"


def test_callbacks_of_the_examples(sides: Sides) -> None:
    """Lightning's, Keras', the Trainer's and DDP's, in the step and in a process of its own; killed, and resumed."""
    seen = sides.run("callbacks_flow")
    assert_same_but(
        seen,
        {
            # There, Checkpoint() reads the attempt from a variable, and leaves it a text; and each counts for itself.
            "attempt of Checkpoint().save()": ("0", 0),
            "versions of two objects": ([1, 1], [2, 3]),
        },
    )
    assert seen[1]["resumed"] == [
        ["last", "loss-checkpoint-epoch=1-step=100.ckpt", "epoch 1 of attempt 0",
         {"loss-checkpoint-epoch=1-step=100.ckpt": "epoch 1 of attempt 0"}],
    ]  # fmt: skip


@pytest.mark.long
def test_names(sides: Sides) -> None:
    theirs, ours = sides.run("names_flow")

    def found(saved: Any, *, by_key: Any = None, listed: bool = True) -> list[dict[str, Any]]:
        whole = {"name": "named"}
        return [{"saved": [saved, 7], "by reference": whole, "by key": by_key or whole, "listed by name": listed}]

    good = ("run_7", "a b", "modèle-日本", "100%", "a:b", "latest", "metadata")
    dotted = ("epoch-3-loss-0.25", "epoch=3-val_loss=0.25", "run.1", "Qwen2.5-7B", "v1.", ".hidden")
    for name in good + dotted:
        assert ours.pop(repr(name)) == found(name)
    for name in good:
        assert theirs.pop(repr(name)) == found(name)
    for name in dotted:
        assert theirs.pop(repr(name)) == found(name, by_key=FAILED, listed=False)

    long = theirs.pop("200"), ours.pop("200")
    assert long[0] == long[1] == found("n" * 200)
    assert theirs.pop("300") == ours.pop("300") == [{"saved": FAILED}]
    # Numbers and None: there they are what they are in the reference and text in the key.
    assert [theirs.pop("7"), ours.pop("7")] == [found(7, listed=False), found("7")]
    assert [theirs.pop("0.5"), ours.pop("0.5")] == [found(0.5, by_key=FAILED, listed=False), found("0.5")]
    assert [theirs.pop("None"), ours.pop("None")] == [found(None), found("mfchckpt")]
    # What is taken there and cannot be found or loaded afterwards is refused here.
    assert theirs.pop("'a/b'")[0]["listed by name"] is False
    assert theirs.pop(repr("line\nbreak"))[0]["by reference"] == FAILED
    assert theirs.pop("''") == found("")
    assert ours == {name: [{"saved": FAILED}] for name in ("'a/b'", repr("line\nbreak"), "''")}
    assert theirs == {}


@pytest.mark.long
def test_metadata(sides: Sides) -> None:
    seen = sides.run("metadata_flow")
    lost = "<value cannot be JSON serialized>"
    different: dict[str, tuple[Any, Any]] = {
        "a date": ({"on": lost}, {"on": "2026-11-28"}),
        "a path": ({"file": lost}, {"file": "/data/train.bin"}),
        "a set": ({"seen": lost}, {"seen": [1, 2, 3]}),
        "a decimal": ({"rate": lost}, {"rate": 0.1}),
        "an enumeration": ({"phase": lost}, {"phase": 1}),
        "bytes": ({"digest": lost}, {"digest": "\x00\x01"}),
    }
    an_object = seen[1].pop("an object")[0]["model"]
    assert an_object.startswith("<module 'fractions'")
    assert seen[0].pop("an object") == [{"model": lost}]
    # And list() says the same of each.
    for side in seen:
        (listed,) = side.pop("listed")
        assert listed.pop("an object")
        assert listed == {kind: metadata for kind, (metadata,) in side.items()}
    assert_same_but(seen, different)


@pytest.mark.long
def test_directories_and_files_in_both_formats(sides: Sides) -> None:
    seen = sides.run("formats_flow")
    saved = ["save: a path object as tar", "save: a file as a path object as tar"]
    for what in saved:
        # There, a path object can be saved as files alone.
        assert seen[0].pop(what) == [FAILED]
        assert seen[1].pop(what)[0]["storage_format"] == "tar"
    for what in ("load: a path object as tar", "load: a file as a path object as tar"):
        assert what not in seen[0]
        assert seen[1].pop(what) == seen[1][what.replace(" as tar", " as files")]
    # Of a path that is not there, its tar becomes an empty checkpoint with a warning.
    nothing = "what is not there as tar"
    assert seen[0].pop(f"save: {nothing}")[0]["storage_format"] == "tar"
    assert seen[0].pop(f"load: {nothing}") == [{}]
    assert seen[1].pop(f"save: {nothing}") == [FAILED]
    assert seen[0].pop(f"FileNotFoundError: {nothing}") == [False]
    assert seen[1].pop(f"FileNotFoundError: {nothing}") == [True]
    # Modification times are those of the store's own files.
    assert seen[0].pop("times: a directory as files")[0] > 1_000_000_000
    assert seen[1].pop("times: a directory as files") == [1_000_000_000]
    assert seen[0].pop("FileNotFoundError: what is not there as files") == [True]
    assert seen[1].pop("FileNotFoundError: what is not there as files") == [True]
    assert_same_but(
        seen,
        {
            # The archive's size, and that of what is in it.
            "size of a tar": (20480, 32),
            # On a local datastore what is loaded are links to the store's own files.
            "links: a directory as files": (True, False),
            "load: a directory with an empty one as files": ({"full/file": "x"}, {"full/file": "x", "hollow/": None}),
        },
    )


@pytest.mark.long
def test_symbolic_links(sides: Sides) -> None:
    lora = {"adapter.safetensors": "adapter", "base/model.safetensors": "base weights"}
    snapshot = {"config.json": "{}", "model.safetensors": "weights"}
    dangling = "FileNotFoundError"
    seen = sides.run("links_flow")
    assert seen[1]["load: cache/snapshots/rev as files"] == [snapshot]
    assert seen[1]["load: lightning as files"] == [{"epoch=3.ckpt": "epoch 3", "last.ckpt": "epoch 3"}]
    assert_same_but(
        seen,
        {
            "load: cache/snapshots/rev as tar": (dict.fromkeys(snapshot, dangling), snapshot),
            "load: lora as files": ({"adapter.safetensors": "adapter"}, lora),
            "load: lora as tar": ({"adapter.safetensors": "adapter", "base": dangling}, lora),
            # There it is a second copy.
            "last.ckpt: lightning as files": (False, True),
            "save: dangling as tar": (OK, FAILED),
            "load: dangling as tar": ({"file": "there", "gone": dangling}, ABSENT),
        },
    )
