"""What becomes of each field of ``transformers.TrainingArguments``: ours, accepted, or refused with the reason.

One table for the command line, ``--config`` files and ``trainer_args`` in Python. A field that stands in none of the
three is unknown, so a new Transformers cannot slip one in unseen (a test compares the table with the installed one).
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bert_emd.errors import UserError
from bert_emd.training.values import convert, nearest

__all__ = ["ACCEPTED", "OURS", "REFUSED", "check_trainer_args", "trainer_type"]

OURS: Mapping[str, str] = MappingProxyType({
    name: name
    for name in (
        "output_dir", "num_train_epochs", "max_steps", "learning_rate", "warmup_steps", "weight_decay",
        "adam_epsilon", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "logging_steps", "save_steps",
        "seed", "label_names", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank",
        "overwrite_output_dir", "group_by_length", "torch_compile",
    )
} | {
    "per_device_train_batch_size": "train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "lr_scheduler_type": "lr_scheduler",
    "warmup_ratio": "warmup_proportion",
    "eval_steps": "eval_step",
    "use_cpu": "no_cuda",
})  # fmt: skip
"""The engine's name of what is a field of our own configuration: the name there."""

ACCEPTED: Mapping[str, str] = MappingProxyType({
    "adam_beta1": "Adam's decay rate of the mean gradient",
    "adam_beta2": "Adam's decay rate of the mean squared gradient",
    "lr_scheduler_kwargs": "further arguments of the learning rate's course, as JSON",
    "activation_checkpointing": "save memory by computing activations twice",
    "activation_checkpointing_kwargs": "further arguments of activation checkpointing, as JSON",
    "gradient_checkpointing": "the older name of activation_checkpointing",
    "gradient_checkpointing_kwargs": "the older name of activation_checkpointing_kwargs",
    "tf32": "TF32 matrix products on NVIDIA GPUs",
    "torch_empty_cache_steps": "empty the GPU's memory cache every so many steps",
    "logging_first_step": "log the first step as well",
    "logging_nan_inf_filter": "leave NaN and infinite losses out of the logged means",
    "log_on_each_node": "log on every machine, not only on the first",
    "log_level": "the engine's log level",
    "log_level_replica": "the engine's log level in the other processes",
    "include_num_input_tokens_seen": "count the tokens seen: all, non_padding or no",
    "disable_tqdm": "no progress bars",
    "report_to": "where the losses are reported too: tensorboard, wandb, trackio, …",
    "run_name": "the run's name there",
    "project": "the project's name there (Trackio)",
    "trackio_space_id": "the Space to which Trackio reports",
    "trackio_bucket_id": "the bucket of Trackio's Space",
    "trackio_static_space_id": "the static Space over Trackio's bucket",
    "eval_on_start": "evaluate before the first step as well",
    "eval_delay": "no evaluation before this many epochs or steps",
    "eval_accumulation_steps": "move predictions to the CPU every so many evaluation batches",
    "save_total_limit": "keep at most this many checkpoints",
    "save_only_model": "checkpoints without the optimiser's state (they cannot be resumed)",
    "save_on_each_node": "write checkpoints on every machine, not only on the first",
    "enable_jit_checkpoint": "write a checkpoint when the process is told to end (SIGTERM)",
    "ignore_data_skip": "on resuming, start the epoch's data from its beginning",
    "full_determinism": "deterministic kernels, slower",
    "data_seed": "seeds the order of the data (default: as seed)",
    "dataloader_num_workers": "processes that prepare batches",
    "dataloader_pin_memory": "pin batches in memory for the way to the GPU",
    "dataloader_persistent_workers": "keep those processes between epochs",
    "dataloader_prefetch_factor": "batches that each of them prepares ahead",
    "dataloader_multiprocessing_context": "how they are started: fork, spawn or forkserver",
    "dataloader_in_order": "take their batches in order",
    "ddp_backend": "the backend between processes: nccl, gloo, …",
    "ddp_timeout": "seconds that processes wait for each other",
    "ddp_bucket_cap_mb": "bucket size of DistributedDataParallel",
    "ddp_broadcast_buffers": "broadcast buffers in DistributedDataParallel",
    "ddp_find_unused_parameters": "let DistributedDataParallel search for unused parameters",
    "ddp_static_graph": "tell DistributedDataParallel that the graph never changes",
    "debug": "the engine's debugging aids: underflow_overflow",
    "skip_memory_metrics": "leave out the memory profile (it is slow)",
})  # fmt: skip
"""Fields that are passed on to the engine, each with its line in ``--help``."""

_BEST = "the best student by the task's main metric is always kept"
_UPLOAD = "upload the finished folder with `hf upload`"
_SHARDED = "a student and its teacher fit on one GPU; use torchrun to train on several"
_FLOAT32 = "reported scores are float32; use bf16 or fp16 for training alone"
_COMPILE = "torch_compile uses torch.compile's own defaults"
_OPTIM = "use optimizer: adamw or bert_adam"
_WHOLE = "scores need the predictions of the whole split"
_LIGER = "its kernels go around the attention that is matched"

REFUSED: Mapping[str, str] = MappingProxyType({
    "label_smoothing_factor": "soft targets come from the teacher",
    "optim": _OPTIM, "optim_args": _OPTIM, "optim_target_modules": _OPTIM,
    "average_tokens_across_devices": "losses are means over rows, not over generated tokens",
    "bf16_full_eval": _FLOAT32, "fp16_full_eval": _FLOAT32,
    "torch_compile_backend": _COMPILE, "torch_compile_mode": _COMPILE,
    "use_liger_kernel": _LIGER, "liger_kernel_config": _LIGER,
    "use_cache": "an encoder has no cache of earlier tokens",
    "neftune_noise_alpha": "the noise would be matched with the teacher's embeddings",
    "auto_find_batch_size": "the batch size is part of the recipe; raise gradient_accumulation_steps instead",
    "accelerator_config": "train_batch_size and gradient_accumulation_steps say how batches are made",
    "logging_strategy": "use logging_steps",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "eval_strategy": "use eval_step (default: once an epoch)",
    "save_strategy": "use save_steps (default: once an epoch)",
    "train_sampling_strategy": "use group_by_length",
    "length_column_name": "lengths are counted here; use group_by_length",
    "prediction_loss_only": "the score of every evaluation is needed to keep the best student",
    "eval_do_concat_batches": _WHOLE, "eval_use_gather_object": _WHOLE, "batch_eval_metrics": _WHOLE,
    "include_for_metrics": "the metrics are the task's own",
    "remove_unused_columns": "the columns are chosen by text_columns and label_column",
    "dataloader_drop_last": "it would leave rows out of the evaluation too",
    "load_best_model_at_end": _BEST, "metric_for_best_model": _BEST, "greater_is_better": _BEST,
    "restore_callback_states_from_checkpoint": "resume_from_checkpoint restores all that a run needs",
    "fsdp": _SHARDED, "fsdp_config": _SHARDED, "deepspeed": _SHARDED, "parallelism_config": _SHARDED,
    "push_to_hub": _UPLOAD, "hub_token": _UPLOAD, "hub_private_repo": _UPLOAD, "hub_model_id": _UPLOAD,
    "hub_strategy": _UPLOAD, "hub_always_push": _UPLOAD, "hub_revision": _UPLOAD,
})  # fmt: skip
"""Fields that would break a promise of ours or do nothing, each with the reason."""

_AT_LEAST: Mapping[str, int] = MappingProxyType({
    "dataloader_num_workers": 0, "dataloader_prefetch_factor": 1, "eval_accumulation_steps": 1, "eval_delay": 0,
    "save_total_limit": 1, "torch_empty_cache_steps": 1, "ddp_timeout": 1, "ddp_bucket_cap_mb": 1, "data_seed": 0,
})  # fmt: skip
_LEVELS = ("debug", "info", "warning", "error", "critical", "passive")
_ONE_OF: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "log_level": _LEVELS, "log_level_replica": _LEVELS,
    "include_num_input_tokens_seen": ("all", "non_padding", "no", "True", "False"),
})  # fmt: skip


def check_trainer_args(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` with every value in the type that ``TrainingArguments`` declares.

    Raises `UserError` for a field that is ours (with our name), refused (with the reason) or unknown (with the
    nearest name), and for a value of another type.
    """
    checked = {}
    for name, value in given.items():
        if name in OURS:
            raise UserError(f"{name} does not belong in trainer_args: set {OURS[name]} itself")
        if name in REFUSED:
            raise UserError(f"{name} is not available: {REFUSED[name]}")
        if name not in ACCEPTED:
            close = nearest(name, ACCEPTED)
            raise UserError(f"unknown field {name} in trainer_args" + (f"; did you mean {close}?" if close else ""))
        checked[name] = convert(value, trainer_type(name), name)
        _check_range(name, checked[name])
    return checked


def _check_range(name: str, value: Any) -> None:
    """Refuse what the engine would stumble over in the middle of a run."""
    if value is None:
        return
    if name in _AT_LEAST and isinstance(value, (int, float)) and value < _AT_LEAST[name]:
        raise UserError(f"{name} must be at least {_AT_LEAST[name]}, not {value}")
    if name in ("adam_beta1", "adam_beta2") and not 0 <= value < 1:
        raise UserError(f"{name} must lie between 0 and 1 (1 excluded), not {value}")
    if name in _ONE_OF and str(value) not in _ONE_OF[name]:
        raise UserError(f"{name} must be one of {', '.join(_ONE_OF[name])}, not {value!r}")
    if name.endswith("_kwargs") and not isinstance(value, Mapping):
        raise UserError(f'{name} must be a mapping like {{"name": 1}}, not {value!r}')


def trainer_type(name: str) -> Any:
    """Return the type that the installed ``TrainingArguments`` declares for a field.

    Raises `UserError` where the installed version has no such field.
    """
    import transformers

    hints = typing.get_type_hints(transformers.TrainingArguments)
    if name not in hints:
        raise UserError(f"the installed transformers {transformers.__version__} has no option {name}; leave it out")
    return hints[name]
