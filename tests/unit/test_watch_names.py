"""Which names say that what bears them is not finished, and which renames say that it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_ckpt.watch.names import Pattern, ends_a_save, is_temporary


def words(text: str) -> list[str]:
    return text.split()


TEMPORARY = words("""
5.orbax-checkpoint-tmp 5.orbax-checkpoint-tmp-1700000000 checkpoint-9.orbax-tmp-1 tmp-checkpoint-5 tmp.checkpoint-5
checkpoint-5.tmp checkpoint-4.TMP checkpoint-5.tmp.123 model.pt.tmp.1234.5678 x.tmp1234 __tmp__checkpoint-5 model_tmp
.metadata.tmp epoch=3.ckpt.tmp_8fh2 temp-checkpoint-5 temp_model.pt ckpt-2_temp model.ckpt-1_temp_3f2a9b x.Temp
model.ckpt-5_temp_92b0e2e5ff574a9a8ea3bfbd0f2f0dcd x.part x.part.12 checkpoint-5_part x.partial checkpoint-5.partial-2
x.incomplete model.pt.unfinished .model.swp model~ #model# x.lock x.crdownload x.writing x.inprogress
checkpoint-5.in-progress checkpoint-5.uploading model._COPYING_ _temporary checkpoint-3.deleting 7.trash
tmpab12cd_e checkpoint-5-tmpab12cd_e checkpoint-5.tmpab12cd_e x.a8Xk31 checkpoint-3.b7d3f9a1
""")

FINAL = words("""
checkpoint-5 checkpoint_5 5 1000 checkpoint_0000000005 global_step100 iter_0000100 step_100 model.step1000 default
epoch=1-step=10.ckpt epoch=1-val_loss=0.53.ckpt best.keras last.ckpt last-v1.ckpt model.weights.h5 model.safetensors
pytorch_model-00001-of-00002.bin part-00000 model-part-1-of-2 partition-3 ckpt-2.index ckpt-2.data-00000-of-00002
temp=0.7.ckpt model_temp=0.7.ckpt checkpoint-temp0.7 ckpt-temp-0.7 temp-0.7.ckpt temperature-3.ckpt template-5
checkpoint.epoch10 x.ckpt2024 model.2025-01-01T120000 checkpoint-20250101 ckpt.v2 model.pth best_model.tar resnet.sha256
checkpoint-5.bak lockstep-3 attempt-3 save-5 temporal-5 checkpoint-downloaded model_epoch_10_acc_0.93.pt contemporary-1
model.20250101T120000 model.20250101T120000Z ckpt.epoch10step500
""")


@pytest.mark.parametrize("name", TEMPORARY)
def test_names_of_what_is_not_finished(name: str) -> None:
    assert is_temporary(name)


@pytest.mark.parametrize("name", FINAL)
def test_names_of_checkpoints(name: str) -> None:
    assert not is_temporary(name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("5.orbax-checkpoint-tmp-1700000000", "5"), ("tmp-checkpoint-5", "checkpoint-5"), ("model_tmp.pt", "model.pt"),
        ("checkpoint.new", "checkpoint"), ("model.ckpt-1_temp_3f2a9b", "model.ckpt-1"), (".x.pt.AbC123", "x.pt"),
        ("checkpoint-5-incomplete", "checkpoint-5"), ("a/staging-checkpoint-5", "b/checkpoint-5"),
    ],
)  # fmt: skip
def test_a_rename_to_what_is_contained_in_the_old_name_or_differs_by_such_a_word_ends_a_save(
    old: str, new: str
) -> None:
    assert ends_a_save(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("checkpoint-5", "checkpoint-best"), ("checkpoint-1", "checkpoint-10"), ("a/checkpoint-1", "b/checkpoint-1"),
        ("model.pt", "model.pt.tmp"), ("x.tmp", "x.part"),
    ],
)  # fmt: skip
def test_other_renames_end_nothing(old: str, new: str) -> None:
    assert not ends_a_save(old, new)


def test_a_pattern_means_neither_hidden_nor_unfinished_names_unless_it_says_so(tmp_path: Path) -> None:
    names = ("5", ".5", "5.orbax-checkpoint-tmp", "ckpt-5_temp/6", ".cache/7", "tmp/8", "a/9")
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    assert set(Pattern("[0-9]*").find(str(tmp_path))) == {"5"}
    assert set(Pattern("**/[0-9]*").find(str(tmp_path))) == {"5", "tmp/8", "a/9"}
    assert set(Pattern("*.orbax-checkpoint-tmp").find(str(tmp_path))) == {"5.orbax-checkpoint-tmp"}
    assert set(Pattern(".cache/*").find(str(tmp_path))) == {".cache/7"}
