"""The configuration of a search: all of a distillation's, and how to search."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bert_emd.errors import UserError
from bert_emd.training.config import DistillConfig, opt
from bert_emd.training.trainer_fields import check_trainer_args

__all__ = ["SweepConfig"]

Objective = Literal["best", "last"]
Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "none"]
SpacePreset = Literal["paper"]
SWEEP = "sweep"


@dataclass(frozen=True, kw_only=True)
class SweepConfig(DistillConfig):
    """`bert-emd sweep`: a search over options of `distill`; the other options hold for every trial."""

    CHOICES: ClassVar[dict[str, Any]] = {
        "Objective": Objective, "Sampler": Sampler, "Pruner": Pruner, "SpacePreset": SpacePreset,
    }  # fmt: skip

    # fmt: off
    space: dict[str, Any] = opt({}, "what is searched: learning_rate=1e-5..1e-3:log beta=0.1,1,10 T=1..8:int; several values of lists are parted by a slash: student_layer_ids=2,4,6/1,3,6", group=SWEEP)
    space_file: str | None = opt(None, "the same as a YAML file of lines like `beta: [0.1, 1, 10]` or `T: 1..8`; --space wins over it", group=SWEEP)
    space_preset: SpacePreset | None = opt(None, "paper: every value of beta, T_emd, T and learning_rate that stands in the published best settings (with --preset paper for the published method); the other two win over it", group=SWEEP)
    objective: Objective = opt("best", "a trial's score, on the data that choose its checkpoint: of the best student (the one that distill saves) or of the last", group=SWEEP)
    sampler: Sampler = opt("tpe", "tpe learns from the trials so far; random; grid takes every combination (no ranges without a step)", group=SWEEP)
    pruner: Pruner = opt("median", "median stops a trial that does worse than half of the earlier ones did at the same evaluation; none", group=SWEEP)
    n_trials: int | None = opt(None, "stop when so many trials are done, pruned and failed ones among them (default: 20, of a grid all)", group=SWEEP)
    timeout: float | None = opt(None, "start no trial after so many seconds", group=SWEEP)
    startup_trials: int = opt(5, "so many trials are drawn at random before tpe learns, and are finished before the median prunes", group=SWEEP)
    pruner_warmup: int = opt(1, "no trial is pruned before it has had more evaluations than this", group=SWEEP)
    storage: str | None = opt(None, "where the study is kept: a file or a database URL as SQLAlchemy has them (default: study.db in output_dir)", group=SWEEP)
    study_name: str = opt("sweep", "its name there", group=SWEEP)
    jobs: int = opt(1, "processes that work on trials side by side", group=SWEEP)
    keep_models: bool = opt(False, "keep every trial's student (default: only the best trial's)", group=SWEEP)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "n_trials", "jobs", "startup_trials")
        self._at_least(0, "pruner_warmup")
        self._above_zero("timeout")
        if not self.study_name:
            raise UserError("study_name must not be empty")
        for name in ("do_eval", "do_predict"):
            if getattr(self, name):
                raise UserError(f"{name} runs one student; a sweep trains many, so leave it out")
        if self.resume_from_checkpoint is not None:
            raise UserError("a sweep goes on by itself when it is started again; leave resume_from_checkpoint out")

    def _check_together(self) -> None:
        """Options that a value of the space may yet bring together are checked with each value, in `trial`."""
        if not (self.space or self.space_file or self.space_preset):
            super()._check_together()

    def trial(self, values: dict[str, Any], output_dir: str | None = None) -> DistillConfig:
        """Return the configuration of a distillation with these values; the engine's fields among them too.

        Raises:
            UserError: these values do not go together.
        """
        fields = {f.name for f in dataclasses.fields(DistillConfig)}
        settings = {name: getattr(self, name) for name in fields}
        settings |= {name: value for name, value in values.items() if name in fields}
        extra = {name: value for name, value in values.items() if name not in fields}
        settings |= {"trainer_args": check_trainer_args(self.trainer_args | extra), "output_dir": output_dir}
        return DistillConfig(**settings | {"overwrite_output_dir": False})
