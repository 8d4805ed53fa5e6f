"""From our configuration to the engine's `TrainingArguments`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler

from bert_emd.errors import UserError
from bert_emd.training.config import RunConfig
from bert_emd.training.shared import TrainFields
from bert_emd.training.trainer_fields import check_trainer_args

__all__ = ["engine_errors", "optimizer_choice", "training_arguments"]


def training_arguments(
    config: TrainFields,
    folder: Path,
    *,
    main_metric: str | None,
    constant_lr: bool = False,
    evaluates: bool | None = None,
) -> TrainingArguments:
    """The engine's arguments for a run.

    Args:
        config: the resolved configuration.
        folder: the output folder.
        main_metric: the metric that chooses the best checkpoint; None where none is chosen.
        constant_lr: the learning rate stays constant whatever the configuration says (intermediate stage).
        evaluates: whether there are evaluations; None: where a checkpoint is chosen.

    Raises:
        UserError: a field that is not accepted, or settings that the engine refuses.
    """
    grouped = isinstance(config, RunConfig) and config.group_by_length
    evaluates = main_metric is not None if evaluates is None else evaluates
    # Below 1 the engine reads warmup_steps as a part of all steps.
    warmup = config.warmup_steps if config.warmup_steps is not None else min(config.warmup_proportion, 0.999999)
    ours: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": config.train_batch_size // config.gradient_accumulation_steps,
        "per_device_eval_batch_size": config.eval_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "lr_scheduler_type": "constant" if constant_lr else config.lr_scheduler,
        "warmup_steps": warmup,
        "weight_decay": config.weight_decay,
        "adam_epsilon": config.adam_epsilon,
        "max_grad_norm": config.max_grad_norm,
        "eval_strategy": "no" if not evaluates else "epoch" if config.eval_step is None else "steps",
        "save_strategy": "epoch" if config.save_steps is None else "steps",
        "logging_steps": config.logging_steps,
        "bf16": config.bf16,
        "fp16": config.fp16,
        # The engine allows bf16 autocast on a CPU only when it is told to stay there; other accelerators than CUDA lack
        # the float64 that costs are summed in.
        "use_cpu": config.no_cuda or not torch.cuda.is_available(),
        "seed": config.seed,
        "metric_for_best_model": main_metric,
        "greater_is_better": True,
        "train_sampling_strategy": "group_by_length" if grouped else "random",
        # The collator drops what the models do not take; the engine would drop the lengths before grouping by them.
        "remove_unused_columns": False,
        "restore_callback_states_from_checkpoint": True,
        # The engine's filter hides a diverged loss and waits for the device at every step.
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "save_total_limit": 1,
    }
    if config.fp16 and ours["use_cpu"]:
        raise UserError("fp16 needs a GPU; leave it out, or use bf16")
    if config.eval_step is not None and evaluates:
        ours["eval_steps"] = config.eval_step
    if config.save_steps is not None:
        ours["save_steps"] = config.save_steps
    with engine_errors():
        arguments = TrainingArguments(**(ours | check_trainer_args(config.trainer_args)))
        # The engine builds its schedule only after the first files are written; a dummy shows now whether it can.
        get_scheduler(
            arguments.lr_scheduler_type,
            torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0),
            num_warmup_steps=1,
            num_training_steps=2,
            scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
        )
    if arguments.n_gpu > 1:
        # Without a launcher the engine would use nn.DataParallel, whose replicas lose the layer weights.
        arguments._n_gpu = 1
    if arguments.device.type == "cpu" and "dataloader_pin_memory" not in config.trainer_args:
        arguments.dataloader_pin_memory = False
    return arguments


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn what the engine says against its settings into one line for the user."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"the engine refuses these settings: {' '.join(str(error).split())}") from error


def optimizer_choice(config: TrainFields) -> tuple[type, dict[str, Any]] | None:
    """The optimiser where it is not the engine's own AdamW."""
    if config.optimizer == "adamw":
        return None
    from bert_emd.training.optimizer import BertAdam

    betas = tuple(
        config.trainer_args.get(name, default) for name, default in (("adam_beta1", 0.9), ("adam_beta2", 0.999))
    )
    return BertAdam, {"lr": config.learning_rate, "eps": config.adam_epsilon, "betas": betas}
