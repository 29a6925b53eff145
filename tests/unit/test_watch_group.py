"""Files that belong together, told by their names and by what says which is the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_ckpt.errors import UsageError
from async_ckpt.watch import WatchOptions
from async_ckpt.watch.group import Group, Grouping, must_come
from async_ckpt.watch.tree import read_tree


def write(folder: Path, *names: str, **texts: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for name, text in texts.items():
        (folder / name).write_text(text)


def test_tensorflow_is_finished_with_its_index_and_all_its_parts_and_takes_along_what_names_it(tmp_path: Path) -> None:
    write(tmp_path, "ckpt-1.data-00001-of-00002", "ckpt-11.index", "other.txt")
    grouping = Grouping("auto")
    look = lambda name: grouping.arrange(str(tmp_path), [name])  # noqa: E731
    assert look("ckpt-1.data-00001-of-00002")["ckpt-1"].lacks == "ckpt-1.data-00000-of-00002"
    write(tmp_path, "ckpt-1.data-00000-of-00002", "ckpt-1.data-00000-of-00002.tempstate123")
    assert look("ckpt-1.data-00001-of-00002")["ckpt-1"].lacks == "ckpt-1.index"
    write(
        tmp_path, "ckpt-1.index", checkpoint='model_checkpoint_path: "ckpt-11"\nall_model_checkpoint_paths: "ckpt-1"\n'
    )
    members = ("ckpt-1.data-00000-of-00002", "ckpt-1.data-00001-of-00002", "ckpt-1.index")
    assert look("ckpt-1.index") == {"ckpt-1": Group(members)}
    for text in ('model_checkpoint_path: "ckpt-1"\n', 'model_checkpoint_path: "/far/away/ckpt-1"\n'):
        write(tmp_path, checkpoint=text)
        assert look("ckpt-1.index") == {"ckpt-1": Group(members, "", {"checkpoint": text.encode()})}
    assert look("ckpt-11.index") == {}, "another program's index"


def test_directories_of_deepspeed_and_megatron_take_along_what_names_them(tmp_path: Path) -> None:
    write(tmp_path, "global_step10/a", "global_step2/a", "iter_0000010/a", latest="global_step10\n")
    write(tmp_path, **{"latest_checkpointed_iteration.txt": "10"})
    found = Grouping("auto").arrange(str(tmp_path), ["global_step10", "global_step2", "iter_0000010"])
    assert found == {
        "global_step10": Group(("global_step10",), "", {"latest": b"global_step10\n"}),
        "global_step2": Group(("global_step2",)),
        "iter_0000010": Group(("iter_0000010",), "", {"latest_checkpointed_iteration.txt": b"10"}),
    }


def test_weights_of_keras_take_along_a_json_file_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, "m-1.weights.h5", "m-1.json", "m-2.h5", "m-3.weights.h5", "m-3.json.tmp")
    found = Grouping("auto").arrange(str(tmp_path), ["m-1.weights.h5", "m-2.h5", "m-3.weights.h5"])
    assert found == {"m-1": Group(("m-1.json", "m-1.weights.h5"))}


def test_others_belong_together_by_a_regular_expression_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path, "step-1.model", "step-1-optimizer", "step-12.model", "notes", "step-1.model.tmp", "ckpt-1.index")
    found = Grouping(r"(step-\d+)[.-]").arrange(str(tmp_path), ["step-1.model", "notes"])
    assert found == {"step-1": Group(("step-1-optimizer", "step-1.model"))}
    assert Grouping(r"step-\d+").arrange(str(tmp_path), ["step-12.model"]) == {"step-12": Group(("step-12.model",))}
    assert Grouping(None).arrange(str(tmp_path), ["step-1.model", "ckpt-1.index"]) == {}
    assert Grouping("auto").arrange(str(tmp_path / "gone"), ["ckpt-1.index"]) == {}


@pytest.mark.parametrize("group", ["(", 3])
def test_what_is_no_regular_expression_is_refused(group: str) -> None:
    with pytest.raises(UsageError, match="is no regular expression of names"):
        WatchOptions(group=group)


def test_distributed_checkpoints_of_torch_are_finished_with_their_metadata(tmp_path: Path) -> None:
    write(tmp_path, "model/__0_0.distcp", "model/.metadata.tmp", "optimizer/x")
    assert must_come(read_tree(str(tmp_path))) == "model/.metadata"
    (tmp_path / "model/.metadata.tmp").rename(tmp_path / "model/.metadata")
    assert must_come(read_tree(str(tmp_path))) == ""
