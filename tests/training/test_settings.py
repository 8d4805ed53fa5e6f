"""Settings that contradict each other, have no effect, or that the engine cannot take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import quick_distill, quick_finetune, sentences, write_csv
from tiny_encoders import save, tiny
from transformers import BertTokenizerFast

from bert_emd import DistillConfig, EvaluateConfig, FinetuneConfig, UserError, distill, evaluate, finetune
from bert_emd.training.arguments import optimizer_choice
from bert_emd.training.resolve import resolve


@pytest.mark.parametrize("name", ["train_file", "validation_file", "test_file", "label_column"])
def test_a_task_and_own_files_exclude_each_other(name: str) -> None:
    with pytest.raises(UserError, match=f"task_name RTE and {name} exclude each other"):
        DistillConfig(task_name="RTE", **{name: "x"})


def test_a_task_and_data_in_memory_exclude_each_other(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task_name MRPC names the data already"):
        distill(teacher, files["train_file"], config=quick_distill(tmp_path / "out", task_name="MRPC"))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"student_model": "x", "student_init": "fresh"}, "none are here; leave it out"),
        ({"student_hidden_size": 8, "student_init": "last"}, "none are here; leave it out"),
        ({"student_hidden_size": 8, "student_layer_ids": (1, 2)}, "copies nothing; use student_layers"),
        ({"pkd": True, "mapping": "none"}, "keep one"),
        ({"seed": 2**32}, r"below 2\*\*32"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        DistillConfig(**given)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"mapping": "emd", "rule": "softmax", "update_weight": "false"}, {"rule"}),
        ({"rule": "softmax"}, {"rule"}),
        ({"one_step": "false", "lr_scheduler": "cosine"}, {"lr_scheduler"}),
        ({"one_step": "false", "warmup_proportion": "0.2"}, {"warmup_proportion"}),
        ({"theta": "2", "use_att": "false", "use_rep": "false"}, {"theta"}),
        ({"pkd": "true", "count_padding": "true"}, {"count_padding"}),
        ({"mapping": "skip", "use_emd": "true"}, {"use_emd"}),
        ({"mapping": "uniform", "use_emd": "false"}, set()),
        ({"data_dir": "glue", "train_file": "x.csv"}, {"data_dir"}),
        ({"beta": "2"}, set()),
    ],
)  # fmt: skip
def test_values_without_effect_are_warned_about(flags: dict[str, str], names: set[str]) -> None:
    warnings = resolve(DistillConfig, flags=flags).warnings
    assert {warning.split()[0] for warning in warnings} == names


@pytest.mark.parametrize("name", ["per_gpu_train_batch_size", "per-device-train-batch-size"])
def test_the_per_gpu_batch_counts_one_forward_and_ours_a_step(name: str) -> None:
    flags = {name: "8", "gradient_accumulation_steps": "4"}
    assert resolve(FinetuneConfig, flags=flags).config.train_batch_size == 32
    ours = {"train_batch_size": "8", "gradient_accumulation_steps": "4"}
    assert resolve(FinetuneConfig, flags=ours).config.train_batch_size == 8
    # The value that wins counts, not one that it overrules.
    assert resolve(FinetuneConfig, flags=ours, file={name: 2}).config.train_batch_size == 8


def test_tinybert_against_all_it_stands_for_is_refused() -> None:
    flags = {"tinybert": "true", "one_step": "true", "use_emd": "true", "new_pred_loss": "true"}
    with pytest.raises(UserError, match="all three are given as true"):
        resolve(DistillConfig, flags=flags)


def test_the_published_optimiser_takes_adams_betas() -> None:
    chosen = optimizer_choice(DistillConfig(optimizer="bert_adam", trainer_args={"adam_beta1": 0.8}))
    assert chosen is not None
    assert chosen[1]["betas"] == (0.8, 0.999)


@pytest.mark.parametrize(
    "trainer_args",
    [{"report_to": "no-such-tracker"}, {"lr_scheduler_kwargs": {"bogus": 1}}, {"dataloader_prefetch_factor": 2}],
)
def test_what_the_engine_cannot_take_is_one_line_before_anything_is_written(
    trainer_args: dict[str, Any], files: dict[str, str], teacher: str, tmp_path: Path
) -> None:
    config = quick_distill(tmp_path / "out", **files, lr_scheduler="cosine", trainer_args=trainer_args)
    with pytest.raises(UserError, match="the engine refuses these settings") as error:
        distill(teacher, None, config=config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "run.json").exists()


def test_whole_scores_in_the_validation_file_are_scores(words: BertTokenizerFast, tmp_path: Path) -> None:
    rows = [(text, f"{i % 9 / 2}") for i, (text, _) in enumerate(sentences(40, seed=1))]
    whole = [(text, str(i % 3)) for i, (text, _) in enumerate(sentences(16, seed=2))]
    encoder = save(tiny("bert", layers=1), words, tmp_path / "encoder")
    config = quick_finetune(
        tmp_path / "out",
        train_file=write_csv(tmp_path / "train.csv", rows),
        validation_file=write_csv(tmp_path / "validation.csv", whole),
    )
    metrics = finetune(str(encoder), None, config=config).metrics
    assert metrics["metric"] == "spearmanr"
    assert -1.0 <= metrics["model"]["spearmanr"] <= 1.0


@pytest.mark.parametrize(
    ("changes", "regression", "wanted"),
    [
        ({}, False, True),
        ({"alpha": 1.0}, False, False),
        ({"mapping": "none"}, False, True),
        ({"new_pred_loss": False}, True, True),
        ({"new_pred_loss": False, "alpha": 0.5}, False, False),
        ({"one_step": False, "alpha": 0.5}, False, False),
    ],
)
def test_labels_are_asked_for_where_a_loss_uses_them(changes: dict[str, Any], regression: bool, wanted: bool) -> None:
    assert DistillConfig(**changes).needs_labels(regression=regression) is wanted


def test_the_check_of_the_teacher_sees_the_whole_validation_file(
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bert_emd.training.distill.TEACHER_ROWS", 4)
    rows = sorted(sentences(16, seed=2), key=lambda row: row[1])
    sorted_file = write_csv(tmp_path / "sorted.csv", rows)
    config = quick_distill(tmp_path / "out", **(files | {"validation_file": sorted_file}), strict=True)
    distill(teacher, None, config=config)  # the first four rows are of one class, on which nothing beats the trivial


def test_the_callers_tokenizer_keeps_its_length(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    own = BertTokenizerFast.from_pretrained(teacher)
    own.model_max_length = 77
    result = distill(teacher, None, tokenizer=own, config=quick_distill(tmp_path / "out", **files))
    assert (own.model_max_length, result.tokenizer.model_max_length) == (77, 24)


def test_evaluate_scores_every_file_it_is_given(teacher: str, files: dict[str, str]) -> None:
    both = EvaluateConfig(
        model_name_or_path=teacher, validation_file=files["validation_file"], test_file=files["test_file"],
        max_seq_length=24, no_cuda=True,
    )  # fmt: skip
    result = evaluate(both)
    assert result["rows"] == {"validation": 16, "test": 16}
    assert {"accuracy", "f1_macro"} == result["validation"].keys() == result["test"].keys()


def test_a_folder_that_cannot_be_made_is_the_users_mistake(files: dict[str, str], teacher: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output_dir .* cannot be made: .*; name another folder"):
        distill(teacher, None, config=quick_distill(tmp_path / "file" / "out", **files))


def test_a_list_is_no_data_set(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the training data are a list; pass a path or a datasets\.Dataset"):
        distill(teacher, [{"text": "a"}], config=quick_distill(tmp_path / "out"))  # type: ignore[arg-type]


def test_one_text_column_here_and_two_there(files: dict[str, str], teacher: str, tmp_path: Path) -> None:
    pairs = write_csv(tmp_path / "pairs.csv", [("a", "b", "bad"), ("c", "d", "good")], ("text", "text_pair", "label"))
    options = {**files, "validation_file": pairs}
    with pytest.raises(UserError, match=r"train\.csv has one text column, .*pairs\.csv two"):
        distill(teacher, None, config=quick_distill(tmp_path / "out", **options))


def test_float16_asks_for_a_gpu(files: dict[str, str], teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        distill(teacher, None, config=quick_distill(tmp_path / "out", **files, fp16=True))


def test_the_engine_says_nothing_beside_our_own_lines(
    files: dict[str, str], teacher: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    distill(teacher, None, config=quick_distill(tmp_path / "out", **files, max_steps=2))
    written = capfd.readouterr()
    for text in ("Writing model shards", "Loading weights", "LOAD REPORT"):
        assert text not in written.out + written.err
