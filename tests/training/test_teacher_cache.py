"""The teacher's outputs on disk: the same run with and without, and nothing wrong after kills and full disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from small_runs import model_state, quick_distill, read
from tiny_encoders import padded_batch, same_tensors, tiny
from torch import Tensor

from bert_emd import DistillTrainer, UserError, distill
from bert_emd.method import Features, Needs
from bert_emd.models import Tap
from bert_emd.training import teacher_cache
from bert_emd.training.cache_layout import layout_of
from bert_emd.training.teacher_cache import TeacherCache, data_key, default_directory, model_key, open_cache

ALL = Needs(embedding=True, hidden=True, attention=True, values=True)
HIDDEN_AND_ATTENTION = Needs(hidden=True, attention=True)


def outputs_of(model: Any, batch: dict[str, Tensor], needs: Needs = ALL) -> tuple[Tensor, Features]:
    with torch.no_grad(), Tap(model, needs) as tap:
        outputs, features = tap(**batch)
    return outputs.logits, features


def cache_for(
    folder: Path, features: Features, lengths: list[int], *, scores: bool = False, **key: Any
) -> TeacherCache:
    return TeacherCache(folder, {"model": "m", **key}, lengths, layout_of(features, lengths, scores=scores), 2)


def assert_same_where_kept(found: Tensor, expected: Tensor, mask: Tensor) -> None:
    """Up to the rounding of 16 bits; positions are the second dimension, or the third of queries, keys and values."""
    if found.dim() == 4:
        found, expected = found.transpose(1, 2), expected.transpose(1, 2)
    keep = mask.bool()
    torch.testing.assert_close(found[keep].float(), expected[keep], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("holes", [False, True])
def test_what_was_stored_comes_back_for_the_right_examples(tmp_path: Path, holes: bool) -> None:
    model = tiny("bert", layers=3)
    batch = padded_batch((9, 5, 3))
    if holes:  # a tokenizer that pads on the left, and a mask with a hole
        batch = {name: tensor.flip(1) for name, tensor in batch.items()}
        batch["attention_mask"][0, 4] = 0
    mask = batch["attention_mask"]
    logits, features = outputs_of(model, batch)
    lengths = mask.sum(1).tolist()
    cache = cache_for(tmp_path, features, [4, lengths[0], lengths[2], 6, lengths[1]])
    assert not cache.has([1, 4, 2])
    cache.store([1, 4, 2], mask, logits, features)
    assert cache.has([1, 4, 2])
    assert not cache.has([0, 1])
    assert cache.count == 3

    order = [2, 0, 1]  # another batch of the same examples, through a second object as a later run would have
    found_logits, found = cache_for(tmp_path, features, [4, lengths[0], lengths[2], 6, lengths[1]]).load(
        [[1, 4, 2][i] for i in order], mask[order]
    )
    assert torch.equal(found_logits, logits[order])
    assert_same_where_kept(found.embedding, features.embedding[order], mask[order])
    assert len(found.hidden) == len(found.attention) == len(found.values) == 3
    for ours, truth in zip(found.hidden, features.hidden, strict=True):
        assert_same_where_kept(ours, truth[order], mask[order])
    for ours, truth in zip(found.values, features.values, strict=True):
        assert_same_where_kept(ours, truth[order], mask[order])
    for pair, truths in zip(found.attention, features.attention, strict=True):
        for ours, truth in zip(pair, truths, strict=True):
            assert_same_where_kept(ours, truth[order], mask[order])


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_scores_are_kept_where_they_take_less_room(tmp_path: Path, holes: bool, bf16: bool) -> None:
    """9 tokens have 9 scores in a head for the 8 + 8 numbers of their query and key."""
    batch = padded_batch((9, 5, 3))
    if holes:
        batch = {name: tensor.flip(1) for name, tensor in batch.items()}
        batch["attention_mask"][0, 4] = 0
    mask = batch["attention_mask"]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits, features = outputs_of(tiny("bert", layers=3), batch, HIDDEN_AND_ATTENTION)
    lengths = mask.sum(1).tolist()
    cache = cache_for(tmp_path, features, [*lengths, 4], scores=True)
    cache.store([0, 1, 2], mask, logits, features)
    order = [2, 0, 1]
    found_logits, found = cache_for(tmp_path, features, [*lengths, 4], scores=True).load(order, mask[order])
    assert torch.equal(found_logits, logits[order])
    for ours, truth in zip(found.hidden, features.hidden, strict=True):
        assert_same_where_kept(ours, truth[order].float(), mask[order])
    assert len(found.attention) == 3
    for layer, (query, key) in enumerate(features.attention):
        ours = found.attention.layer(layer)
        scores = query.double() @ key.double().transpose(2, 3) / 8**0.5
        for place, row in enumerate(order):
            keep = mask[row].bool()
            truth = scores[row][:, keep][:, :, keep]
            assert ours.rows[place].dtype == torch.float16
            torch.testing.assert_close(ours.rows[place][0].double(), truth, rtol=2**-10, atol=1e-6)


def test_scores_that_16_bits_do_not_hold_are_not_kept(tmp_path: Path) -> None:
    logits, features = outputs_of(tiny("bert", layers=2), padded_batch((4, 4)), HIDDEN_AND_ATTENTION)
    features.attention[1][0][1, 0, 3] = 1e4
    features.attention[1][1][1, 0, 2] = 1e3
    cache = cache_for(tmp_path, features, [4, 4], scores=True)
    cache.store([0, 1], torch.ones(2, 4), logits, features)
    assert cache.has([0])
    assert not cache.has([1])


@pytest.mark.parametrize(("length", "scores"), [(4, True), (15, True), (16, False), (40, False)])
def test_what_takes_less_room_is_kept(tmp_path: Path, length: int, scores: bool) -> None:
    """Heads are 8 wide: at 16 tokens a head has as many scores as numbers in its query and key."""
    _, features = outputs_of(tiny("bert", layers=3), padded_batch((4,)), HIDDEN_AND_ATTENTION)
    cache = cache_for(tmp_path, features, [length, length], scores=True)
    hidden, factors = 3 * length * 16, 3 * length * 2 * 16
    assert cache.bytes == 2 * 2 * (hidden + (3 * 2 * length**2 if scores else factors)) + 2 * 2 * 4 + 2
    assert bool(cache.layout.scores) == scores
    assert not layout_of(features, [length, length]).scores


def test_a_mapping_that_takes_queries_apart_has_them_kept(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[2, 5, 6, 3]], "attention_mask": [[1] * 4]})
    batch = {"input_ids": torch.tensor(rows["input_ids"][:]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    model = tiny("bert", layers=2)
    for needs, scores in ((Needs(attention=True), True), (Needs(attention=True, factors=True), False)):
        cache = open_cache(tmp_path, Tap(model, needs), rows, batch, "fp32", torch.device("cpu"))
        assert bool(cache.layout.scores) == scores
        # What counts is where the run will be: the teacher may still be on the CPU.
        elsewhere = open_cache(tmp_path, Tap(model, needs), rows, batch, "fp32", torch.device("cuda"))
        assert not elsewhere.layout.scores


def test_values_too_large_for_16_bits_are_not_kept(tmp_path: Path) -> None:
    logits, features = outputs_of(tiny("bert", layers=2), padded_batch((4, 4)))
    features.hidden[0][1, 2, 3] = 1e5
    cache = cache_for(tmp_path, features, [4, 4])
    cache.store([0, 1], torch.ones(2, 4), logits, features)
    assert cache.has([0])
    assert not cache.has([1])


def test_what_the_teacher_made_in_bfloat16_is_kept_to_the_bit(tmp_path: Path) -> None:
    batch = padded_batch((6, 4))
    mask = batch["attention_mask"].bool()
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = outputs_of(tiny("bert", layers=2), batch)
    (query, key), value = features.attention[1], features.values[1]
    assert query.dtype == key.dtype == value.dtype == torch.bfloat16
    assert features.hidden[1].dtype == torch.float32
    # bfloat16 reaches further than float16, and has fewer digits for what float16 would hold.
    query[0, 0, 2, 1], key[1, 0, 0, 0] = 3e38, 1e-30
    cache = cache_for(tmp_path, features, [6, 4])
    cache.store([0, 1], mask, logits, features)
    assert cache.has([0, 1])
    _, found = cache.load([0, 1], mask)
    for ours, truth in zip((*found.attention[1], found.values[1]), (query, key, value), strict=True):
        assert torch.equal(ours.transpose(1, 2)[mask], truth.transpose(1, 2)[mask])
    assert_same_where_kept(found.hidden[1], features.hidden[1], mask)


def test_an_infinite_bfloat16_is_not_kept(tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = outputs_of(tiny("bert", layers=2), padded_batch((4, 4)))
    features.attention[0][1][1, 0, 3, 0] = torch.inf
    cache = cache_for(tmp_path, features, [4, 4])
    cache.store([0, 1], torch.ones(2, 4), logits, features)
    assert cache.has([0])
    assert not cache.has([1])


def test_an_example_of_another_length_than_was_said_is_not_written_over_its_neighbour(tmp_path: Path) -> None:
    batch = padded_batch((9, 5))
    logits, features = outputs_of(tiny("bert", layers=1), batch)
    cache = cache_for(tmp_path, features, [8, 5])
    with pytest.raises(ValueError, match="example 0 has 9 tokens, and its length was given as 8"):
        cache.store([0, 1], batch["attention_mask"], logits, features)
    assert cache.count == 0


def test_logits_alone_take_no_room_for_features(tmp_path: Path) -> None:
    logits, features = outputs_of(tiny("bert"), padded_batch((4, 4)), Needs())
    cache = cache_for(tmp_path, features, [4, 4])
    assert cache.bytes == 2 * 2 * 4 + 2
    cache.store([0, 1], torch.ones(2, 4), logits, features)
    found, none = cache.load([1, 0], torch.ones(2, 4))
    assert torch.equal(found, logits.flip(0))
    assert none == Features()


def test_the_size_is_what_was_announced_and_taken_from_the_disk(tmp_path: Path) -> None:
    _, features = outputs_of(tiny("bert", layers=3), padded_batch((4,)))
    cache = cache_for(tmp_path, features, [4, 7])
    # 11 tokens of 3 layers x (hidden, query, key, value) and the embedding, 16 wide; logits; marks.
    assert cache.bytes == 11 * (3 * 4 + 1) * 16 * 2 + 2 * 2 * 4 + 2
    assert sum(file.stat().st_size for file in cache.folder.iterdir() if file.suffix != ".json") == cache.bytes
    assert sum(file.stat().st_blocks * 512 for file in cache.folder.iterdir()) >= cache.bytes


def test_other_content_is_another_cache() -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[2, 5, 3], [2, 6, 7, 3]], "attention_mask": [[1] * 3, [1] * 4]})
    keys = {
        data_key(rows),
        data_key(rows.select([1, 0])),
        data_key(rows.select([0])),
        data_key(rows.map(lambda row: {"input_ids": [*row["input_ids"][:-1], 9]})),
        # The same numbers, cut into other examples.
        data_key(
            datasets.Dataset.from_dict({"input_ids": [[2, 5, 3, 2], [6, 7, 3]], "attention_mask": [[1] * 4, [1] * 3]})
        ),
    }
    assert len(keys) == 5
    assert data_key(rows) == data_key(datasets.concatenate_datasets([rows.select([0]), rows.select([1])]))
    one, two = tiny("bert", seed=1), tiny("bert", seed=2)
    assert model_key(one, one.config) != model_key(two, two.config)
    before = model_key(one, one.config)
    one.config._name_or_path = "elsewhere"
    assert model_key(one, one.config) == before
    with torch.no_grad():
        next(one.parameters()).view(-1)[0] += 1e-3
    assert model_key(one, one.config) != before


def test_a_cache_that_is_not_whole_is_made_anew(tmp_path: Path) -> None:
    logits, features = outputs_of(tiny("bert"), padded_batch((4, 4)))
    cache = cache_for(tmp_path, features, [4, 4])
    cache.store([0, 1], torch.ones(2, 4), logits, features)
    with (cache.folder / "features.16").open("r+b") as file:
        file.truncate(10)
    again = cache_for(tmp_path, features, [4, 4])
    assert again.folder == cache.folder
    assert again.count == 0
    assert not list(tmp_path.glob("*.partial-*"))


def test_after_the_machine_went_down_while_writing_nothing_is_believed(tmp_path: Path) -> None:
    logits, features = outputs_of(tiny("bert"), padded_batch((4, 4)))
    cache = cache_for(tmp_path, features, [4, 4])
    cache.store([0], torch.ones(1, 4), logits[:1], Features(
        embedding=features.embedding[:1], hidden=[h[:1] for h in features.hidden],
        attention=[(q[:1], k[:1]) for q, k in features.attention], values=[v[:1] for v in features.values],
    ))  # fmt: skip
    (marker,) = cache.folder.glob("writing-*")
    assert cache_for(tmp_path, features, [4, 4]).count == 1  # this start of the machine: the files are as written
    marker.write_text("another start")
    assert cache_for(tmp_path, features, [4, 4]).count == 0
    cache.close()
    assert not list(cache.folder.glob("writing-*"))


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_teacher_cache import cache_for, outputs_of
from tiny_encoders import padded_batch, tiny
batch = padded_batch((9, 5, 3))
logits, features = outputs_of(tiny("bert", layers=3), batch)
cache = cache_for(Path({folder!r}), features, [9, 5, 3, 8])
cache.store([0, 1, 2], batch["attention_mask"], logits, features)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_what_it_had_written(tmp_path: Path) -> None:
    here = Path(__file__).resolve()
    paths = [str(here.parent), str(here.parent.parent)]
    code = _KILLED.format(paths=paths, folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    batch = padded_batch((9, 5, 3))
    _, features = outputs_of(tiny("bert", layers=3), batch)
    cache = cache_for(tmp_path, features, [9, 5, 3, 8])
    assert cache.count == 3
    _, found = cache.load([0, 1, 2], batch["attention_mask"])
    assert_same_where_kept(found.hidden[2], features.hidden[2], batch["attention_mask"])
    cache.close()
    assert not list(cache.folder.glob("writing-*"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the teacher's batches in training, counted at the tap."""
    found: list[int] = []
    original = Tap.__call__

    def counted(tap: Tap, **inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            found.append(len(inputs["input_ids"]))
        return original(tap, **inputs)

    monkeypatch.setattr(Tap, "__call__", counted)
    return found


@pytest.mark.parametrize(
    ("mapping", "scores"),
    [
        ("emd", True),
        ("emd", False),
        ("uniform", True),
        ("uniform", False),
        ("skip", True),
        ("pkd", False),
        ("minilm", False),
        ("kd", False),
    ],
)
def test_the_same_run_with_and_without(
    teacher: str,
    files: dict[str, str],
    tmp_path: Path,
    calls: list[int],
    mapping: str,
    scores: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Costs to 1e-3 and the same plans; the teacher runs once over the data, and not at all in a later run."""
    layouts = []

    def chosen(*arguments: Any, **options: Any) -> Any:
        """As it would be chosen; with queries and keys where that is asked, as if the texts were longer."""
        if mapping in ("emd", "uniform") and not scores:
            options["scores"] = False
        layouts.append(layout_of(*arguments, **options))
        return layouts[-1]

    monkeypatch.setattr(teacher_cache, "layout_of", chosen)
    options = {
        **files,
        "mapping": mapping,
        "num_train_epochs": 3.0,
        "bf16": False,
        "learning_rate": 1e-3,
        "student_hidden_size": 12,
        "student_num_attention_heads": 3,
    }
    if mapping in ("kd", "pkd"):
        options = {**options, "student_hidden_size": None, "student_num_attention_heads": None}
    plain = distill(teacher, None, config=quick_distill(tmp_path / "plain", **options))
    assert sum(calls) == 3 * 40
    calls.clear()
    cached = {**options, "cache_teacher": True, "teacher_cache_dir": str(tmp_path / "cache")}
    first = distill(teacher, None, config=quick_distill(tmp_path / "first", **cached))
    assert sum(calls) == 1 + 40  # one row to see what comes out
    calls.clear()
    second = distill(teacher, None, config=quick_distill(tmp_path / "second", **cached))
    assert sum(calls) == 1
    assert [bool(layout.scores) for layout in layouts] == [scores, scores]

    for run in (first, second):
        assert len(run.mapping) == len(plain.mapping)
        for ours, truth in zip(run.mapping, plain.mapping, strict=True):
            for term in {"attention", "hidden", "relation"} & set(truth):
                np.testing.assert_allclose(
                    np.array(ours[term]["cost"], dtype=float), np.array(truth[term]["cost"], dtype=float), rtol=1e-3
                )
                np.testing.assert_allclose(ours[term]["plan"], truth[term]["plan"], rtol=0, atol=2e-3)
        state, truth_state = model_state(tmp_path / run_name(run) / "last"), model_state(tmp_path / "plain" / "last")
        for name, tensor in truth_state.items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=5e-3)
    if scores:  # the epoch that made them saw them as every later one did
        assert same_tensors(model_state(tmp_path / "first" / "last"), model_state(tmp_path / "second" / "last"))
    assert read(tmp_path / "first" / "metrics.json")["teacher"]["accuracy"] == plain.metrics["teacher"]["accuracy"]


def run_name(run: Any) -> str:
    return Path(run.summary.rstrip().rpartition("Saved in ")[2]).name


def test_the_batches_of_a_cached_run_are_those_of_a_plain_one(
    teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    """Without intermediate losses only the float32 logits are read, so the runs agree bit for bit but for rounding."""
    options = {**files, "mapping": "kd", "bf16": False, "num_train_epochs": 2.0}
    distill(teacher, None, config=quick_distill(tmp_path / "plain", **options))
    cache = {"cache_teacher": True, "teacher_cache_dir": str(tmp_path / "cache")}
    distill(teacher, None, config=quick_distill(tmp_path / "one", **options, **cache))
    distill(teacher, None, config=quick_distill(tmp_path / "two", **options, **cache))
    plain, one, two = (model_state(tmp_path / name / "last") for name in ("plain", "one", "two"))
    assert same_tensors(one, two)
    for name, tensor in plain.items():
        # A key's bias adds the same to all scores of a query, so softmax does not see it: its gradient is rounding
        # alone, which Adam scales up, on some processors to more than 1e-5.
        torch.testing.assert_close(one[name], tensor, rtol=0, atol=1e-3 if name.endswith("key.bias") else 1e-5)


def test_a_short_disk_is_seen_before_the_run(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    config = quick_distill(tmp_path / "out", **files, cache_teacher=True, teacher_cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"need 0\.0 GB in .* and 0\.0 GB are free; make room"):
        distill(teacher, None, config=config)
    assert not list((tmp_path / "out").iterdir())
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_that_cannot_be_written_is_the_users_mistake(
    teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    config = quick_distill(tmp_path / "out", **files, cache_teacher=True, teacher_cache_dir=str(tmp_path / "file"))
    with pytest.raises(UserError, match="name another --teacher_cache_dir"):
        distill(teacher, None, config=config)


def test_padding_that_counts_is_not_kept() -> None:
    with pytest.raises(UserError, match="count_padding compares padding too"):
        quick_distill("x", cache_teacher=True, count_padding=True)


def test_the_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_directory(str(tmp_path)) == tmp_path / "teacher-outputs"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_directory(None) == tmp_path / "xdg" / "bert-emd" / "teacher-outputs"


def test_a_data_set_of_another_kind_is_refused(tmp_path: Path) -> None:
    model = tiny("bert")
    config = quick_distill(tmp_path, cache_teacher=True)
    with pytest.raises(UserError, match="cache_teacher needs train_dataset to be a"):
        DistillTrainer(student=tiny("bert", layers=1), teacher=model, config=config, train_dataset=[{"input_ids": [1]}])
