"""The distilling trainer for encoders without a head: every row once, held-out losses, exact resume."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bert_emd.errors import UserError
from bert_emd.training.distiller import Distiller
from bert_emd.training.general.rows import EpochBatches, Rows, batch_of
from bert_emd.training.trainer import DistillTrainer

__all__ = ["GeneralTrainer", "held_out_losses"]


class GeneralTrainer(DistillTrainer):
    """Trains on `Rows` and evaluates the intermediate losses on held-out ones.

    Each process takes its own part of every epoch by itself (see `EpochBatches`), so the engine shards nothing.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(data_collator=batch_of, **kwargs)
        args = self.args
        assert self.train_dataset is not None
        self.batches = EpochBatches(
            len(self.train_dataset),
            args.per_device_train_batch_size,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            process=args.process_index,
            processes=args.world_size,
        )
        if not len(self.batches):
            raise UserError(
                f"{len(self.train_dataset)} sequences are too few for {args.world_size} processes; start fewer"
            )
        self.add_callback(_EpochOrder(self.batches))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The engine's own version would share batches out once more."""
        args = self.args
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            in_order=args.dataloader_in_order,
        )

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """The held-out losses, in float32."""
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measure().items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self) -> dict[str, float]:
        """The losses of the student as it is on the held-out rows; see `held_out_losses`."""
        assert isinstance(self.eval_dataset, Rows)
        return held_out_losses(self.distiller, self.eval_dataset, self.args.per_device_eval_batch_size)

    @property
    def course(self) -> list[dict[str, Any]]:
        """The held-out losses by step, those before a checkpoint that was resumed from too."""
        entries = (entry for entry in self.state.log_history if "eval_loss" in entry)
        return [{name.removeprefix("eval_"): value for name, value in entry.items()} for entry in entries]


class _EpochOrder(TrainerCallback):
    """Tells the order of the rows which epoch begins; the engine does not reach a loader that is not its own."""

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the engine."""
        self.batches.set_epoch(int(state.epoch or 0))


def held_out_losses(distiller: Distiller, rows: Rows, batch_size: int) -> dict[str, float]:
    """The intermediate losses on rows, and their sum as ``loss``: means over batches, weighted by their tokens.

    Both models must be tapped. Of several processes each goes through all rows, in step with the others.

    Args:
        distiller: student, teacher and mapping; layer weights stay as they are.
        rows: what is measured on.
        batch_size: rows at a time.
    """
    device = next(distiller.student.parameters()).device
    training = distiller.training
    distiller.eval()
    sums: dict[str, float] = {}
    total = 0
    try:
        for start in range(0, len(rows), batch_size):
            batch = batch_of(rows.__getitems__(range(start, min(start + batch_size, len(rows)))))
            tokens = int(batch["attention_mask"].sum())
            with torch.autocast(device.type, enabled=False):
                terms = distiller.held_out(**{name: tensor.to(device) for name, tensor in batch.items()})
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value) * tokens
            total += tokens
    finally:
        distiller.train(training)
    means = {name: value / max(1, total) for name, value in sums.items()}
    return {"loss": sum(means.values()), **means}
