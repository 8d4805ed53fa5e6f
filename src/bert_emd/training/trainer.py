"""`transformers.Trainer` as this project needs it: whole checkpoints, the best model kept, exact resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from bert_emd.errors import UserError
from bert_emd.models import quick_dropout, quiet
from bert_emd.training.best import BestKeeper, best_checkpoint
from bert_emd.training.config import DistillConfig
from bert_emd.training.distiller import Distiller, LossOptions
from bert_emd.training.host import keep_freed_memory
from bert_emd.training.mapping import make_mapping, shape_of
from bert_emd.training.outputs import write_json
from bert_emd.training.teacher_cache import default_directory, open_cache

__all__ = ["BestKeeper", "DistillTrainer", "EncoderTrainer", "best_checkpoint"]

_LOG = logging.getLogger("bert_emd")
_STATE_FILE = "distiller.safetensors"
_HISTORY_FILE = "layer_mapping.json"
_LARGE_WEIGHT = 0.5


class EncoderTrainer(Trainer):
    """Trains a classifier; checkpoints are plain Hugging Face folders with the engine's state beside them."""

    def __init__(self, *args: Any, early_stopping: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Classifiers take **kwargs, which the engine mistakes for a loss already divided by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        if self.args.metric_for_best_model is not None:
            self.add_callback(BestKeeper(self))
        if early_stopping is not None:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience=early_stopping))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the engine does it, with memory kept between steps and quick dropout on a CPU."""
        if self.args.device.type == "cpu":
            keep_freed_memory()
        with self._made_ready():
            return super().train(*args, **kwargs)

    @contextmanager
    def _made_ready(self) -> Iterator[None]:
        """What training needs of the models; afterwards they are as they were."""
        with quick_dropout(self.product):
            yield

    @property
    def product(self) -> PreTrainedModel:
        """The model that is saved."""
        model: PreTrainedModel = self.accelerator.unwrap_model(self.model)
        return model

    def save_product(self, folder: Path) -> None:
        """Write the model and its tokenizer as a plain Hugging Face folder."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            self.product.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # The engine's own version pickles its arguments and writes a wrapper's weights under names of ours.
        if self.args.should_save:
            self.save_product(Path(output_dir or self.args.output_dir))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return _EpochLengthSampler(size, lengths=list(dataset["length"]), seed=seed)


class _EpochLengthSampler(LengthGroupedSampler):
    """Batches of like length whose order depends on seed and epoch alone, so that a resumed run sees the same."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the engine before each epoch."""
        self.generator.manual_seed(self.seed + 1_000_003 * epoch)


class DistillTrainer(EncoderTrainer):
    """A `transformers.Trainer` that distils.

    Args:
        teacher: the fine-tuned teacher; None trains on the labels alone.
        student: the model to train.
        config: which losses and mapping; its data and training fields play no part here, ``args`` does.
        kwargs: what `transformers.Trainer` takes: args, train_dataset, eval_dataset, data_collator,
            processing_class, compute_metrics, …
    """

    def __init__(
        self,
        *,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None = None,
        config: DistillConfig | None = None,
        **kwargs: Any,
    ) -> None:
        config = config if config is not None else DistillConfig()
        name = config.effective_mapping
        if student is teacher:
            raise UserError("teacher and student are one and the same model; copy it first")
        if name == "none":
            teacher = None
        if kwargs.get("args") is not None:
            # The projection is fresh, and a seed should mean the same numbers.
            set_seed(kwargs["args"].seed)
        mapping = None
        if teacher is not None and name != "kd":
            seed = kwargs["args"].seed if kwargs.get("args") is not None else config.seed
            mapping = make_mapping(config, shape_of(student.config), shape_of(teacher.config), seed=seed)
        distiller = Distiller(
            student,
            teacher,
            mapping,
            LossOptions(
                alpha=config.effective_alpha,
                beta=config.beta,
                theta=config.theta,
                temperature=config.T,
                reduce_T=config.reduce_T,
                published=config.new_pred_loss,
                one_step=config.one_step,
                count_padding=config.count_padding,
            ),
            projection=config.projection,
            share_projection=config.share_param,
        )
        self.history: list[dict[str, Any]] = []
        self._warned_of_weight = False
        caching = config.cache_teacher and teacher is not None
        if caching:
            rows: Any = kwargs.get("train_dataset")
            if not {"input_ids", "attention_mask"} <= set(getattr(rows, "column_names", ())):
                raise UserError(
                    "cache_teacher needs train_dataset to be a datasets.Dataset of input_ids and attention_mask"
                )
            kwargs["train_dataset"] = rows.add_column("rows", list(range(len(rows))))
        super().__init__(model=distiller, **kwargs)
        self.add_callback(_EpochTeller(distiller))
        if caching:
            self._open_cache(config)
        if config.torch_compile:
            distiller.compile()

    def _open_cache(self, config: DistillConfig) -> None:
        precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"
        directory = Path(config.teacher_cache_dir) if config.teacher_cache_dir else default_directory(config.cache_dir)
        tap, dataset = self.distiller.teacher_tap, self.train_dataset
        assert tap is not None
        # Of several processes the first makes it, the others find it.
        with self.args.main_process_first(desc="teacher's outputs"):
            self.distiller.cache = open_cache(
                directory, tap, dataset, self.data_collator([dataset[0]]), precision, self.args.device
            )

    @property
    def distiller(self) -> Distiller:
        """The module that holds student, projection and mapping."""
        distiller: Distiller = self.accelerator.unwrap_model(self.model)
        return distiller

    @property
    def product(self) -> PreTrainedModel:
        return self.distiller.student

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train with both models tapped; afterwards they are as they were."""
        output = super().train(*args, **kwargs)
        self._remember()
        return output

    @contextmanager
    def _made_ready(self) -> Iterator[None]:
        self.distiller.attach()
        try:
            yield
        finally:
            self.distiller.detach()
            if self.distiller.cache is not None:
                self.distiller.cache.close()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self._check_weights()
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The engine's log with the mean of every loss term; keeps costs, plans and weights for the record."""
        if "loss" in logs:
            # Each process has seen its own rows; like the loss, the terms are the mean over all of them.
            means = self.distiller.pop_means()
            whole = self.accelerator.reduce(torch.tensor(list(means.values()), device=self.args.device), "mean")
            logs |= {f"loss_{name}": value for name, value in zip(means, whole.tolist(), strict=True)}
            self._remember()
        super().log(logs, *args, **kwargs)

    def _remember(self) -> None:
        mapping = self.distiller.mapping
        if mapping is None or not self.distiller.record:
            return
        if self.history and self.history[-1]["step"] == self.state.global_step:
            return
        entry: dict[str, Any] = {"step": self.state.global_step, "epoch": self.state.epoch}
        for term, values in self.distiller.record.items():
            entry[term] = {name: _rows(value) for name, value in values.items()}
        self.history.append(entry | {"weights": mapping.layer_weights()})

    def _check_weights(self) -> None:
        mapping = self.distiller.mapping
        if mapping is None or self._warned_of_weight:
            return
        for name, weights in mapping.layer_weights().items():
            # Of two layers one always has half or more.
            if len(weights) > 2 and max(weights) > _LARGE_WEIGHT:
                layer = weights.index(max(weights)) + 1
                _LOG.warning(
                    "step %d: layer %d has %.3f of the %s weight, so the other layers learn less; "
                    "--rule double-softmax keeps the weights closer together",
                    self.state.global_step + 1, layer, max(weights), name.replace("_", " "),
                )  # fmt: skip
                self._warned_of_weight = True
                return

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        own = {name: t for name, t in self.distiller.state_dict().items() if not name.startswith("student.")}
        safetensors.torch.save_file(own, folder / _STATE_FILE)
        write_json(folder / _HISTORY_FILE, self.history)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._load_state(folder)
        if (folder / _HISTORY_FILE).is_file():
            self.history = json.loads((folder / _HISTORY_FILE).read_text(encoding="utf-8"))

    def _load_best_model(self) -> None:
        # The engine's own version looks for the wrapper's names in the student's file.
        self._load_state(Path(str(self.state.best_model_checkpoint)))

    def _load_state(self, folder: Path) -> None:
        try:
            weights = safetensors.torch.load_file(folder / "model.safetensors")
            state = {f"student.{name}": tensor for name, tensor in weights.items()}
            state |= safetensors.torch.load_file(folder / _STATE_FILE)
            self.distiller.load_state_dict(state)
        except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{folder} is not a checkpoint of this student and mapping: {why}; start anew") from error


class _EpochTeller(TrainerCallback):
    """Tells the mapping which epoch begins."""

    def __init__(self, distiller: Distiller) -> None:
        self.mapping = distiller.mapping

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the engine."""
        if self.mapping is not None:
            self.mapping.start_epoch(int(state.epoch or 0))


def _rows(value: Any) -> list[list[float | None]]:
    """A matrix for JSON, which has no NaN: costs that a mapping does not compute are null."""
    return [[None if x != x else float(x) for x in row] for row in value]
