"""Two stages in one command: what each trains, that a killed run ends as one that never stopped, and the switches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Stop, StopAfter, model_state, quick_distill, read
from tiny_encoders import same_tensors
from transformers import AutoModelForSequenceClassification

from bert_emd import DistillConfig, UserError, distill
from bert_emd.training import trainer as trainer_module
from bert_emd.training.outputs import complete_checkpoints
from bert_emd.training.resolve import resolve

TWO: dict[str, Any] = {
    "schedule": "two-stage", "mapping": "random", "intermediate_epochs": 2.0, "intermediate_learning_rate": 1e-3,
    "num_train_epochs": 2.0, "eval_step": 2, "save_steps": 3, "logging_steps": 1, "student_layers": 2,
    "trainer_args": {"disable_tqdm": True, "save_total_limit": 9},
}  # fmt: skip


def comparable(metrics: dict[str, Any]) -> Any:
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            times = ("train_seconds", "milliseconds_per_sentence")
            return {k: clean(v) for k, v in value.items() if k not in times}
        return [clean(v) for v in value] if isinstance(value, list) else value

    return clean(metrics)


@pytest.fixture(scope="module")
def straight(teacher: str, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("straight") / "student"
    return folder, distill(teacher, None, config=quick_distill(folder, **files, **TWO))


def log_of(folder: Path) -> list[dict[str, Any]]:
    checkpoint = complete_checkpoints(folder)[-1]
    return [entry for entry in read(checkpoint / "trainer_state.json")["log_history"] if "loss" in entry]


def test_the_intermediate_losses_come_first_and_the_prediction_loss_second(straight: tuple[Path, Any]) -> None:
    folder, _ = straight
    first, second = log_of(folder / "intermediate"), log_of(folder)
    assert [len(first), len(second)] == [10, 10]
    for entry in first:
        terms = {name for name in entry if name.startswith("loss_")}
        assert terms == {"loss_attention", "loss_hidden", "loss_embedding"}
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in terms), rel=1e-3)
        assert entry["learning_rate"] == 1e-3
    for entry in second:
        assert {name for name in entry if name.startswith("loss_")} == {"loss_prediction"}
    rates = [entry["learning_rate"] for entry in second]
    assert max(rates) == pytest.approx(2e-3)  # warm-up and decay begin anew
    assert rates[0] < max(rates) > rates[-1]


def test_what_two_stages_leave_behind(straight: tuple[Path, Any]) -> None:
    folder, result = straight
    metrics = read(folder / "metrics.json")
    assert [(s["stage"], s["last_step"], s["epochs"]) for s in metrics["stages"]] == [
        ("intermediate", 10, 2.0), ("prediction", 10, 2.0),
    ]  # fmt: skip
    assert metrics["last_step"] == 10
    assert 1 <= metrics["best_step"] <= 10
    assert metrics["train_seconds"] >= metrics["stages"][0]["train_seconds"]
    history = read(folder / "layer_mapping.json")
    assert history == result.mapping
    assert [entry["stage"] for entry in history] == ["intermediate"] * 10 + ["prediction"]
    assert [entry["step"] for entry in history] == [*range(1, 11), 10]
    # Nothing was evaluated in the first stage, so nothing of it can have been chosen.
    assert not (folder / "intermediate" / "best").exists()
    after_first = AutoModelForSequenceClassification.from_pretrained(folder / "intermediate")
    assert not torch.equal(after_first.classifier.weight, result.student.classifier.weight)


@pytest.mark.parametrize("crash_at", [2, 4, 9, 11, 15], ids=lambda n: f"step {n} of 20")
def test_a_killed_run_ends_as_one_that_never_stopped(
    crash_at: int, straight: tuple[Path, Any],
    teacher: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In the first stage before and after a checkpoint, and in the second before and after its first one."""
    folder = tmp_path / "student"
    stage, step = ("intermediate", crash_at) if crash_at <= 10 else ("prediction", crash_at - 10)
    original = trainer_module.EncoderTrainer.__init__

    def with_crash(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if (Path(self.args.output_dir).name == "intermediate") is (stage == "intermediate"):
            self.add_callback(StopAfter(step))

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.EncoderTrainer, "__init__", with_crash)
        with pytest.raises(Stop):
            distill(teacher, None, config=quick_distill(folder, **files, **TWO))
    assert not (folder / "metrics.json").exists()
    torch.manual_seed(999)
    again = {"resume_from_checkpoint": "true"} if crash_at != 2 else {"overwrite_output_dir": True}
    if crash_at == 2:
        with pytest.raises(UserError, match="no complete checkpoint"):
            distill(teacher, None, config=quick_distill(folder, **files, **TWO, resume_from_checkpoint="true"))
    resumed = distill(teacher, None, config=quick_distill(folder, **files, **TWO, **again))
    for part in (".", "last", "intermediate"):
        assert same_tensors(model_state(straight[0] / part), model_state(folder / part))
    assert comparable(resumed.metrics) == comparable(straight[1].metrics)
    assert resumed.mapping == straight[1].mapping


def test_going_back_to_the_first_stage_forgets_the_second(
    straight: tuple[Path, Any], teacher: str, files: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    distill(teacher, None, config=quick_distill(folder, **files, **TWO))
    back = str(folder / "intermediate" / "checkpoint-6")
    resumed = distill(teacher, None, config=quick_distill(folder, **files, **TWO, resume_from_checkpoint=back))
    assert same_tensors(model_state(straight[0]), model_state(folder))
    assert resumed.mapping == straight[1].mapping


def test_overwriting_removes_the_first_stage_too(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    quick = {**TWO, "intermediate_max_steps": 1, "max_steps": 2}
    distill(teacher, None, config=quick_distill(tmp_path / "a", **files, **quick))
    assert read(tmp_path / "a" / "metrics.json")["stages"][0]["last_step"] == 1
    (tmp_path / "a" / "intermediate" / "mine.txt").write_text("kept")
    again = quick_distill(tmp_path / "a", **files, mapping="kd", overwrite_output_dir=True)
    assert "stages" not in distill(teacher, None, config=again).metrics
    assert [path.name for path in (tmp_path / "a" / "intermediate").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"one_step": False}, "one_step false is one stage alone and schedule two-stage both; keep one"),
        ({"pred_distill": True}, "pred_distill is one stage alone and schedule two-stage both; keep one"),
        ({"mapping": "kd"}, "schedule two-stage trains the intermediate losses, but mapping kd has none"),
        ({"use_att": False, "use_rep": False, "use_embedding": False}, "schedule two-stage leaves nothing to learn"),
        ({"intermediate_epochs": 0.0}, "intermediate_epochs must be above 0"),
        ({"intermediate_max_steps": 0}, "intermediate_max_steps must be a positive number or -1"),
    ],
)
def test_contradictions_are_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DistillConfig(**{"schedule": "two-stage", "mapping": "uniform", **options})


# The reference's switches: what they were meant to do, down to the terms of the loss and the learning rate.
ALL = {"attention", "hidden", "embedding", "prediction"}
SWITCHES: dict[str, tuple[str, set[str], str, str]] = {
    "plain": ("", ALL, "uniform", "linear"),
    "emd": ("--use_emd", ALL, "emd", "linear"),
    "one step false": ("--use_emd true --one_step false", ALL - {"prediction"}, "emd", "constant"),
    "prediction": ("--pred_distill", {"prediction"}, "kd", "linear"),
    "prediction, paper": ("--pred_distill --lr_scheduler linear", {"prediction"}, "kd", "linear"),
    "no emd": ("--use_emd false", ALL, "uniform", "linear"),
    "no emd, two stages' first": ("--use_emd false --one_step false", ALL - {"prediction"}, "uniform", "constant"),
    "no attention": ("--use_emd --use_att false", ALL - {"attention"}, "emd", "linear"),
    "no states": ("--use_emd --use_rep false", ALL - {"hidden"}, "emd", "linear"),
    "no embeddings": ("--use_emd --use_embedding false", ALL - {"embedding"}, "emd", "linear"),
    "tinybert": ("--tinybert", ALL - {"prediction"}, "uniform", "constant"),
    "tinybert, its second stage": ("--tinybert --pred_distill", {"prediction"}, "kd", "linear"),
    "tinybert, in one step": ("--tinybert --one_step true", ALL, "uniform", "linear"),
    "pkd": ("--pkd", {"hidden", "prediction"}, "pkd", "linear"),
    "pkd, its losses alone": ("--pkd --one_step false", {"hidden"}, "pkd", "constant"),
}


@pytest.mark.parametrize("case", SWITCHES)
def test_the_references_switches(case: str, teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    text, terms, mapping, course = SWITCHES[case]
    words, flags = text.replace("--", "").split(), {}
    while words:
        name = words.pop(0)
        flags[name] = words.pop(0) if words and words[0] in ("true", "false", "linear") else "true"
    resolved = resolve(DistillConfig, flags=flags).config
    assert resolved.effective_mapping == mapping
    quick = quick_distill(
        tmp_path / "student",
        **files,
        mapping="uniform",
        max_steps=4,
        logging_steps=1,
        save_steps=4,
        beta=0.5,
        theta=3.0,
    )
    changed = {f.name: getattr(resolved, f.name) for f in dataclasses.fields(resolved) if f.name in flags}
    if "tinybert" in flags:
        changed |= {name: getattr(resolved, name) for name in ("one_step", "use_emd", "new_pred_loss")}
        assert resolved.learning_rate == 5e-5
        assert (resolved.use_emd, resolved.new_pred_loss) == (False, False)
    distill(teacher, None, config=dataclasses.replace(quick, **changed))
    for entry in log_of(tmp_path / "student"):
        found = {name.removeprefix("loss_"): value for name, value in entry.items() if name.startswith("loss_")}
        assert found.keys() == terms
        # beta and theta weigh the terms beside a prediction loss, and have no part without one.
        beta, theta = (0.5, 3.0) if "prediction" in terms else (1.0, 1.0)
        weights = {"attention": beta * theta, "hidden": beta * theta, "embedding": beta, "prediction": 1.0}
        assert entry["loss"] == pytest.approx(sum(weights[name] * value for name, value in found.items()), rel=2e-3)
    rates = [entry["learning_rate"] for entry in log_of(tmp_path / "student")]
    assert (len(set(rates)) == 1) is (course == "constant")


def test_the_prediction_stage_warms_up_and_decays_whatever_the_preset_says() -> None:
    flags = {"pred_distill": "true", "task_name": "mrpc", "student_layers": "4"}
    resolved = resolve(DistillConfig, flags=flags, preset="paper")
    assert (resolved.config.lr_scheduler, resolved.sources["lr_scheduler"]) == ("linear", "pred_distill")
    kept = resolve(DistillConfig, flags={**flags, "lr_scheduler": "constant"}, preset="paper")
    assert kept.config.lr_scheduler == "constant"


@pytest.mark.parametrize(
    ("task", "epochs"),
    [("mnli", 10), ("qqp", 10), ("qnli", 10), ("cola", 50), ("mrpc", 20), ("sst-2", 20), ("rte", 20), (None, 20)],
)
def test_preset_tinybert_is_its_task_distillation(task: str | None, epochs: int) -> None:
    resolved = resolve(DistillConfig, flags={"task_name": task} if task else {}, preset="tinybert")
    c = resolved.config
    assert (c.mapping, c.schedule, c.intermediate_epochs, c.num_train_epochs) == ("uniform", "two-stage", epochs, 3)
    assert (c.intermediate_learning_rate, c.learning_rate) == (5e-5, 3e-5)
    assert (c.alpha, c.cost_scale) == (1, "absolute")
    assert resolved.sources["schedule"] == "preset tinybert"


def test_one_stage_of_the_preset_alone() -> None:
    first = resolve(DistillConfig, flags={"one_step": "false"}, preset="tinybert").config
    assert (first.schedule, first.num_train_epochs, first.learning_rate) == ("one-step", 20, 5e-5)
    second = resolve(DistillConfig, flags={"pred_distill": "true"}, preset="tinybert").config
    assert (second.schedule, second.num_train_epochs, second.learning_rate) == ("one-step", 3, 3e-5)
    both = resolve(DistillConfig, flags={"tinybert": "true"}, preset="tinybert").config
    assert (both.schedule, both.one_step, both.new_pred_loss) == ("two-stage", True, False)
    in_python = DistillConfig(tinybert=True, schedule="two-stage")
    assert (in_python.one_step, in_python.effective_mapping) == (True, "uniform")


def test_preset_tinybert_is_for_distilling() -> None:
    from bert_emd import FinetuneConfig

    with pytest.raises(UserError, match="preset tinybert is a recipe for `bert-emd distill`"):
        resolve(FinetuneConfig, flags={}, preset="tinybert")
