"""Configuration: one typed, keyword-only dataclass a command.

Every field is at once a command-line flag (with ``-`` or ``_``), a key of ``--config run.yaml`` and an argument in
Python. The reference's names are kept. Values are checked when the dataclass is made, so that a bad one is refused
before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bert_emd.errors import UserError
from bert_emd.method import CostScale
from bert_emd.training.checked import CheckedConfig, opt
from bert_emd.training.distill_checks import (
    STUDENT_SHAPE,
    TINYBERT_SETTINGS,
    check_distillation,
    tinybert_switches,
)
from bert_emd.training.shared import (
    CLS_LEAVES_OUT,
    COMMON_CHOICES,
    DATA,
    METHOD,
    OUTPUT,
    STUDENT,
    TRAINING,
    MachineFields,
    MatchingFields,
    Schedule,
    SelectOn,
    StudentFrom,
    StudentInit,
    TrainFields,
)

__all__ = [
    "CLS_LEAVES_OUT",
    "DATA",
    "METHOD",
    "OUTPUT",
    "STUDENT",
    "STUDENT_SHAPE",
    "TRAINING",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "RunConfig",
    "SelectOn",
    "StudentFrom",
    "StudentInit",
    "opt",
]


@dataclass(frozen=True, kw_only=True)
class TaskFields(CheckedConfig):
    """Which labelled data a command reads."""

    COMMON_CHOICES: ClassVar[dict[str, Any]] = COMMON_CHOICES

    # fmt: off
    task_name: str | None = opt(None, "a GLUE task: CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE or WNLI; without it your own files", group=DATA)
    data_dir: str | None = opt(None, "the task's folder of TSV files, the folder above it, or a local copy of the hub's nyu-mll/glue (default: the hub)", group=DATA)
    validation_file: str | None = opt(None, "your own validation data (default: every tenth row of the training data is held out)", group=DATA)
    test_file: str | None = opt(None, "your own test data; with it the score is reported there, and the checkpoint still chosen on the validation data", group=DATA)
    text_columns: tuple[str, ...] | None = opt(None, "the one or two text columns, separated by a comma (default: guessed from the usual names)", group=DATA)
    label_column: str | None = opt(None, "the label column (default: label)", group=DATA)
    label_names: tuple[str, ...] | None = opt(None, "the names of the classes in the model's order, for a model whose labels are only called LABEL_0, LABEL_1, …", group=DATA)
    regression: bool | None = opt(None, "whether the labels are numbers to be predicted (default: seen from the data)", group=DATA)
    overwrite_cache: bool = opt(False, "fetch a hub data set anew", group=DATA)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_columns is not None and len(self.text_columns) not in (1, 2):
            raise UserError(f"text_columns names {len(self.text_columns)} columns; name one or two")
        if self.task_name is not None:
            # A task brings its files, columns and labels; a mixture would silently leave one of the two out.
            for name in ("train_file", "validation_file", "test_file", "text_columns", "label_column", "regression"):
                if getattr(self, name, None) is not None:
                    raise UserError(
                        f"task_name {self.task_name} and {name} exclude each other; name a task or your own files"
                    )


@dataclass(frozen=True, kw_only=True)
class DataConfig(MachineFields, TaskFields):
    """Which data a command reads, and how it runs a model over it."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainFields, DataConfig):
    """What fine-tuning and distillation share."""

    WITH_PRESETS: ClassVar[bool] = True

    # fmt: off
    train_file: str | None = opt(None, "your own training data: .csv, .tsv or .jsonl with a text column (or two) and a label column", group=DATA)
    select_on: SelectOn = opt("dev", "which rows choose the best checkpoint: dev, the validation rows that scores are reported on too (optimistic), or holdout, a tenth of the training rows (stratified, always the same) left out of training, where no test_file is reported on", group=DATA)
    pad_to_max_length: bool = opt(False, "pad every batch to max_seq_length instead of to its longest row", group=DATA)

    early_stopping: int | None = opt(None, "stop after this many evaluations without a better score (default: never)", group=TRAINING)
    group_by_length: bool = opt(True, "put rows of like length into one batch, which saves padding", group=TRAINING)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "early_stopping")

    def without_effect(self) -> dict[str, str]:
        """The fields that have no part under the other values, each with the reason."""
        from bert_emd.training.effects import of_run

        return of_run(self)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DataConfig):
    """`bert-emd evaluate` and `bert-emd predict`: a saved model on given data."""

    # fmt: off
    model_name_or_path: str | None = opt(None, "the model: a folder or a hub id", group=DATA)
    validation_file: str | None = opt(None, "your own labelled data", group=DATA)
    test_file: str | None = opt(None, "your own test data", group=DATA)
    # None only here: a model that was trained brings its length, one that is to be trained does not.
    max_seq_length: int | None = opt(None, "longer inputs are truncated to this many tokens (default: as the model was trained)", group=DATA)  # type: ignore[assignment]
    output_dir: str | None = opt(None, "where the scores (evaluate, optional) or the predictions (predict) go", group=OUTPUT)
    overwrite_output_dir: bool = opt(False, "replace earlier scores or predictions in output_dir", group=OUTPUT)
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """`bert-emd finetune`: a classifier from a pretrained encoder, the teacher of a later distillation."""

    # fmt: off
    model_name_or_path: str | None = opt(None, "the encoder to fine-tune: a folder or a hub id", group=DATA)
    model_type: str | None = opt(None, "the encoder's architecture (bert, roberta, …); checked against the model when given", group=DATA)
    config_name: str | None = opt(None, "another configuration than the model's own", group=DATA)
    tokenizer_name: str | None = opt(None, "another tokenizer than the model's own", group=DATA)
    do_train: bool = opt(False, "train (the default when none of do_train, do_eval, do_predict is given)", group=TRAINING)
    do_eval: bool = opt(False, "without do_train: only evaluate model_name_or_path on the validation data", group=TRAINING)
    do_predict: bool = opt(False, "write predictions for the test data as well", group=TRAINING)
    evaluate_during_training: bool = opt(False, "evaluate at every logging step unless eval_step says otherwise", group=TRAINING)
    eval_all_checkpoints: bool = opt(False, "keep every checkpoint and report each one's score", group=TRAINING)
    local_rank: int = opt(-1, "set by launchers; use torchrun", group=TRAINING)
    learning_rate: float = opt(2e-5, "the peak learning rate", group=TRAINING)
    num_train_epochs: float = opt(4.0, "passes over the training data", group=TRAINING)
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class DistillConfig(RunConfig, MatchingFields):
    """`bert-emd distill`: a small student from a fine-tuned teacher."""

    # alpha, beta, cost_scale, learning_rate, num_train_epochs, and mapping in `MatchingFields`, are what
    # docs/results/recipe.md found.
    # fmt: off
    student_from: StudentFrom = opt("teacher", "whose layers are copied: the fine-tuned teacher's, or those of the pretrained encoder it came from", group=STUDENT)
    pretrained_model: str | None = opt(None, "that encoder: a folder or a hub id (default: the one that the teacher's run.json names)", group=STUDENT)
    no_pretrain: bool = opt(False, "take only the shape of student_model and fresh weights", group=STUDENT)

    alpha: float = opt(0.5, "the teacher's part in the prediction loss, the labels' is 1 - alpha; with 1 the training data need no labels", group=METHOD)
    beta: float = opt(0.3, "weight of the intermediate losses", group=METHOD)
    theta: float = opt(1.0, "weight of the mapping within them, against the embeddings", group=METHOD)
    T: float = opt(1.0, "temperature of the prediction loss", group=METHOD)
    cost_scale: CostScale = opt("relative", "relative divides each pair's cost by the teacher layer's own mean square, so that one beta means the same on every encoder; absolute: as published", group=METHOD)
    count_padding: bool = opt(False, "count padded positions in the means, as the published numbers did; pads to max_seq_length", group=METHOD)
    one_step: bool = opt(True, "all losses at once; false: the intermediate losses alone, constant learning rate", group=METHOD)
    schedule: Schedule = opt("one-step", "one-step: all losses at once; two-stage: the intermediate losses first, then the prediction loss, each with an optimiser of its own", group=METHOD)
    intermediate_epochs: float = opt(10.0, "two-stage: passes of the first stage; num_train_epochs are the second's", group=TRAINING)
    intermediate_learning_rate: float = opt(5e-5, "two-stage: the first stage's learning rate, which is constant", group=TRAINING)
    intermediate_max_steps: int | None = opt(None, "two-stage: stop the first stage after this many steps (default: as max_steps)", group=TRAINING)
    pred_distill: bool = opt(False, "the prediction loss alone, with linear warm-up and decay", group=METHOD)
    new_pred_loss: bool = opt(True, "false: soft loss times T²/2 without alpha, regression on the labels", group=METHOD)
    reduce_T: float = opt(1.0, "divides the soft loss", group=METHOD)
    use_emd: bool | None = opt(None, "the reference's switch: true: mapping emd; false: mapping uniform (default: as mapping says)", group=METHOD)
    tinybert: bool = opt(False, "TinyBERT's first stage: one_step, use_emd and new_pred_loss false, absolute costs at 5e-5; with pred_distill its second one, with schedule two-stage both", group=METHOD)
    pkd: bool = opt(False, "the PKD baseline: mapping skip with the normalised [CLS] loss", group=METHOD)
    learning_rate: float = opt(1.5465e-4, "the peak learning rate", group=TRAINING)
    num_train_epochs: float = opt(6.0, "passes over the training data", group=TRAINING)
    cache_teacher: bool = opt(False, "keep the teacher's outputs for these data on disk, in 16 bits: built in the first epoch, read in the later ones and by later runs", group=TRAINING)
    teacher_cache_dir: str | None = opt(None, "where they are kept (default: teacher-outputs in cache_dir, or in ~/.cache/bert-emd)", group=TRAINING)
    aug_train: bool = opt(False, "train on the augmented file beside the training data: the task's train_aug.tsv, or NAME_aug beside your train_file, as `bert-emd augment` writes them", group=DATA)
    aug_file: str | None = opt(None, "train on this augmented file of the training data", group=DATA)
    do_eval: bool = opt(False, "only evaluate student_model on the validation data", group=TRAINING)
    do_predict: bool = opt(False, "only write student_model's predictions for the test data", group=TRAINING)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tinybert and self.one_step and self.use_emd is not False and self.new_pred_loss:
            # A frozen dataclass cannot tell a default from a value that was given, and all three given as true
            # would contradict the switch.
            for name, value in tinybert_switches(self.pred_distill, self.schedule).items():
                object.__setattr__(self, name, value)
            for name, value in TINYBERT_SETTINGS.items():
                if getattr(self, name) == getattr(type(self), name):
                    object.__setattr__(self, name, value)
        self._between(0, 1, "alpha")
        self._at_least(0, "beta", "theta")
        self._above_zero("T", "reduce_T", "intermediate_epochs", "intermediate_learning_rate")
        self._check_together()

    def _check_together(self) -> None:
        check_distillation(self)

    @property
    def augmented(self) -> str | bool:
        """The augmented file to train on; True is the one beside the training data."""
        return self.aug_file or self.aug_train

    @property
    def effective_mapping(self) -> str:
        """The mapping after the reference's switches."""
        if self.pred_distill and self.mapping != "none":
            return "kd"
        if self.pkd:
            return "pkd"
        if self.use_emd is not None and self.mapping in ("emd", "uniform"):
            return "emd" if self.use_emd else "uniform"
        return self.mapping

    @property
    def effective_alpha(self) -> float:
        """Without a teacher only the labels are left."""
        return 0.0 if self.effective_mapping == "none" else self.alpha

    @property
    def steps_of_intermediate(self) -> int:
        """``max_steps`` of the first of two stages."""
        return self.max_steps if self.intermediate_max_steps is None else self.intermediate_max_steps

    def needs_labels(self, *, regression: bool) -> bool:
        """Whether training uses the label column, for a teacher that predicts classes or a number."""
        if not self.one_step:
            return False
        if self.effective_mapping != "none" and not self.new_pred_loss:
            return regression
        return self.effective_alpha < 1
