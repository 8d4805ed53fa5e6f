"""The configuration of a comparison: what its axes are, and the options that hold for all of its runs."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bert_emd.data import find_task
from bert_emd.errors import UserError
from bert_emd.training.config import TRAINING, DistillConfig, FinetuneConfig, SelectOn, StudentFrom, opt
from bert_emd.training.resolve import spellings, unknown_name
from bert_emd.training.trainer_fields import ACCEPTED
from bert_emd.training.values import convert
from bert_emd.training.yaml_file import read_yaml

__all__ = [
    "COMPARE",
    "NOT_SHARED",
    "TEACHER_PREFIX",
    "CompareConfig",
    "option_name",
    "recipe_options",
    "teacher_fields",
]

COMPARE = "compare"
TEACHER_PREFIX = "teacher_"

NOT_SHARED: Mapping[str, str] = MappingProxyType({
    "seed": "--seeds are the students', --teacher_seed is the teacher's",
    "mapping": "--methods names the mappings",
    "use_emd": "--methods names the mappings",
    "overwrite_output_dir": "finished runs are kept; for new ones name another --output_dir",
    "resume_from_checkpoint": "the same command again goes on by itself",
    "do_eval": "every student is evaluated",
    "do_predict": "use `bert-emd predict` with a student's folder",
})  # fmt: skip
"""Options of `distill` that a comparison sets itself, each with what to do instead."""

_NOT_OF_A_RECIPE = frozenset({
    "task_name", "data_dir", "train_file", "validation_file", "test_file", "text_columns", "label_column",
    "label_names", "regression", "select_on", "teacher_model", "student_model", "pretrained_model", "student_from",
    "student_layers", "cache_dir", "overwrite_cache", "cache_teacher", "teacher_cache_dir", "no_cuda",
    "eval_batch_size",
})  # fmt: skip
_TEACHER_SHORT: Mapping[str, str] = MappingProxyType({"epochs": "num_train_epochs", "batch_size": "train_batch_size"})
_NOT_TEACHERS = ("do_train", "do_eval", "do_predict", "evaluate_during_training", "eval_all_checkpoints", "local_rank")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """`bert-emd compare`: methods x seeds x tasks x depths."""

    # fmt: off
    methods: tuple[str, ...] = opt((), "what is compared: names of mappings, kd and none, with options of their own and the students' start behind them: none,kd,emd+rule=softmax+beta=10,uniform+preset=tinybert,emd@pretrained (a method that holds a comma in double quotes)", group=COMPARE)
    seeds: tuple[int, ...] = opt((1, 2, 3), "the students' seeds", group=COMPARE)
    task_name: tuple[str, ...] | None = opt(None, "the GLUE tasks; without them your own files", group=COMPARE)
    student_layers: tuple[int, ...] | None = opt(None, "the students' depths (default: half of the teacher's)", group=COMPARE)
    student_from: StudentFrom = opt("teacher", "the start that the methods share: layers of the fine-tuned teacher, or of the pretrained encoder it came from; one method's own: emd@pretrained", group=COMPARE)
    both_starts: bool = opt(True, "show none and kd from both starts, for a student copied from its teacher is not untaught; false: from the shared one alone", group=COMPARE)
    model_name_or_path: str | None = opt(None, "the encoder from which one teacher a task is fine-tuned", group=COMPARE)
    teacher_model: tuple[str, ...] | None = opt(None, "a ready teacher instead: a folder or hub id; of several tasks TASK=FOLDER,TASK=FOLDER", group=COMPARE)
    select_on: SelectOn = opt("holdout", "which rows choose a checkpoint: holdout, a tenth of the training rows (stratified, the same for every method, left out of the teacher's training too), where there is no test_file; or dev, the validation rows that scores are reported on, as usual and optimistic", group=COMPARE)
    jobs: int = opt(1, "runs at a time; the CPU's threads are divided among them", group=COMPARE)
    keep_checkpoints: bool = opt(False, "keep finished runs' checkpoints and best/ (default: only the best and the last model)", group=COMPARE)
    recipe: str | None = opt(None, "a YAML file with options of distill for all students, such as a search's best.yaml; its data, models, mapping and seed are left out, and flags win over it", group=COMPARE)
    preset: str | None = opt(None, "published settings for all runs instead of our defaults: paper (for one method: emd+preset=paper, uniform+preset=tinybert)", group=COMPARE)
    output_dir: str | None = opt(None, "where runs and tables go; the same command again skips what is done there and goes on with the rest", group=COMPARE)
    options: dict[str, Any] = opt({}, "any other option of distill, for all students", group="")
    teacher_options: dict[str, Any] = opt({}, "training options of finetune, for the teachers", group="")
    # fmt: on

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            if (value := getattr(self, f.name)) != f.default:
                object.__setattr__(self, f.name, convert(value, hints[f.name], f.name))
        object.__setattr__(self, "options", {option_name(n): v for n, v in self.options.items()})
        if own := [name for name in self.options if name in hints]:
            raise UserError(f"options: {own[0]} is a field of the comparison itself; set it there")
        if self.recipe is not None:
            try:
                found = recipe_options(read_yaml(self.recipe, "--recipe"))
            except UserError as error:
                named = str(error).startswith("--recipe")
                raise error if named else UserError(f"--recipe {self.recipe}: {error}") from None
            object.__setattr__(self, "options", found | self.options)
        object.__setattr__(self, "teacher_options", {_teacher_name(n): v for n, v in self.teacher_options.items()})
        if not self.methods:
            raise UserError("which methods? Name them with --methods, such as none,kd,uniform,emd")
        if not self.output_dir:
            raise UserError("where should the results go? Name a new folder with --output_dir")
        if self.jobs < 1:
            raise UserError(f"jobs must be at least 1, not {self.jobs}")
        for name, values in (("seeds", self.seeds), ("student_layers", self.student_layers or ())):
            if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
                raise UserError(f"{name} names {twice[0]} twice; leave one out")
        if bad := [seed for seed in self.seeds if not 0 <= seed < 2**32]:
            raise UserError(f"seeds must lie between 0 and 2**32 - 1, not {bad[0]}")
        if bad := [layers for layers in self.student_layers or () if layers < 1]:
            raise UserError(f"student_layers must be at least 1, not {bad[0]}")
        if self.task_name is not None:
            tasks = tuple(find_task(name).name for name in self.task_name)
            if len(set(tasks)) < len(tasks):
                raise UserError(f"task_name names a task twice ({', '.join(tasks)}); leave one out")
            object.__setattr__(self, "task_name", tasks)
        elif not self.options.get("train_file"):
            raise UserError("there is no data; name GLUE tasks with --task_name, or your own file with --train_file")


def option_name(name: str, *, prefix: str = "") -> str:
    """The name of an option of `distill` as its field has it.

    Raises:
        UserError: there is none of this name, or a comparison sets it itself.
    """
    key = str(name).replace("-", "_")
    field = spellings(DistillConfig).get(key, key)
    if field in NOT_SHARED:
        raise UserError(f"{prefix}{name} is not an option of a comparison: {NOT_SHARED[field]}")
    if field in ACCEPTED or field in spellings(DistillConfig):
        return field
    raise unknown_name(DistillConfig, key, prefix=prefix)


def recipe_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration of `distill` sets for the students of a comparison.

    Left out is what a comparison has of its own (data, models, the mapping, the seed, folders), and what is our default.

    Raises:
        UserError: an unknown name, or a value that does not fit.
    """
    hints, defaults = typing.get_type_hints(DistillConfig), DistillConfig()
    found: dict[str, Any] = {}
    for written, value in values.items():
        key = str(written).replace("-", "_")
        field = spellings(DistillConfig).get(key, key)
        if field in NOT_SHARED or field in _NOT_OF_A_RECIPE:
            continue
        name = option_name(written)
        if name not in hints or (value is not None and convert(value, hints[name], name) != getattr(defaults, name)):
            found[name] = value
    return found


def teacher_fields() -> list[dataclasses.Field[Any]]:
    """The options of fine-tuning that may be set for the teachers, with the prefix ``teacher_``."""
    fields = [f for f in dataclasses.fields(FinetuneConfig) if f.metadata["group"] == TRAINING]
    return [f for f in fields if f.name not in (*_NOT_TEACHERS, "trainer_args")]


def _teacher_name(name: str) -> str:
    key = str(name).replace("-", "_").removeprefix(TEACHER_PREFIX)
    key = spellings(FinetuneConfig).get(_TEACHER_SHORT.get(key, key), key)
    if key not in {f.name for f in teacher_fields()}:
        raise unknown_name(FinetuneConfig, key, prefix=TEACHER_PREFIX)
    return key
