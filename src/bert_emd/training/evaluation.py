"""Scores and predictions: one float32 pass over a model, by plain Transformers."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bert_emd.data import Examples, collator, encode, find_task, score, write_submission
from bert_emd.data.labels import listing
from bert_emd.errors import UserError
from bert_emd.models import label_names, load_classifier, load_tokenizer
from bert_emd.training.config import DataConfig, EvaluateConfig
from bert_emd.training.inputs import align, load_test, validation_splits
from bert_emd.training.outputs import make_folder, write_json, write_whole
from bert_emd.training.preflight import Preflight, positions

__all__ = ["Evaluator", "evaluate", "predict", "size_of", "timed"]

_LOG = logging.getLogger("bert_emd")
_TIMED_ROWS = 100
_LONGEST = 100_000


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Runs models over examples in float32."""

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int
    batch_size: int
    device: torch.device

    @classmethod
    def of(cls, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Evaluator:
        """As the configuration says."""
        device = torch.device("cuda" if torch.cuda.is_available() and not config.no_cuda else "cpu")
        return cls(
            tokenizer=tokenizer, max_seq_length=config.max_seq_length, batch_size=config.eval_batch_size, device=device
        )

    @torch.no_grad()
    def logits(self, model: PreTrainedModel, examples: Examples, *, show: str | None = None) -> np.ndarray:
        """[rows, classes] float32 in the order of the examples; batches are made of rows of like length.

        Args:
            model: the classifier.
            examples: the rows.
            show: with it, a progress bar under this title.
        """
        rows = self.encoded(examples)
        order = np.argsort(np.asarray(rows["length"]), kind="stable")[::-1]
        pad = collator(self.tokenizer)
        found: np.ndarray = np.empty((len(examples), model.config.num_labels), dtype=np.float32)
        model = model.eval().to(self.device)
        starts: Any = range(0, len(order), self.batch_size)
        for start in track(starts, show or "", transient=True, disable=not (show and sys.stdout.isatty())):
            chosen = order[start : start + self.batch_size]
            batch = pad([rows[int(i)] for i in chosen])
            inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
            found[chosen] = model(**inputs).logits.float().cpu().numpy()
        return found

    def encoded(self, examples: Examples) -> datasets.Dataset:
        """Token ids without labels, for a model would compute a loss from them."""
        rows, _ = encode(dataclasses.replace(examples, labels=None), self.tokenizer, self.max_seq_length)
        return rows

    def scores(self, model: PreTrainedModel, examples: Examples, *, show: str | None = None) -> dict[str, float]:
        """The task's metrics on labelled examples."""
        assert examples.labels is not None
        return score(examples.task, self.logits(model, examples, show=show), examples.labels)


def size_of(model: PreTrainedModel) -> dict[str, float]:
    """Parameters, and megabytes (10^6 bytes) of them in float32."""
    count = sum(p.numel() for p in model.parameters())
    return {"parameters": count, "megabytes": round(count * 4 / 1e6, 2)}


@torch.no_grad()
def timed(
    models: Sequence[PreTrainedModel], evaluator: Evaluator, examples: Examples, rows: int = _TIMED_ROWS
) -> list[float]:
    """Median milliseconds a sentence, one at a time, models interleaved so that both see the same machine."""
    chosen = examples.subset(range(min(rows, len(examples))))
    encoded = evaluator.encoded(chosen)
    pad = collator(evaluator.tokenizer)
    batches = [{k: v.to(evaluator.device) for k, v in pad([row]).items()} for row in encoded]
    taken: list[list[float]] = [[] for _ in models]
    for model in models:
        model.eval().to(evaluator.device)(**batches[0])
    for batch in batches:
        for model, times in zip(models, taken, strict=True):
            _wait(evaluator.device)
            start = time.perf_counter()
            model(**batch)
            _wait(evaluator.device)
            times.append(1e3 * (time.perf_counter() - start))
    return [round(statistics.median(times), 3) for times in taken]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """`bert-emd evaluate`: the scores of a saved model on validation data.

    Returns:
        task, metric, model, rows and, for each split, its scores; written to ``evaluation.json`` in ``output_dir``
        when one is given.

    Raises:
        UserError: a model or data that cannot be read, or that do not belong together.
    """
    _check_free(config, ["evaluation.json"])
    model, evaluator = _loaded(config)
    names = label_names(model.config)
    splits = {name: _aligned(rows, names) for name, rows in validation_splits(config, names).items()}
    first = next(iter(splits.values()))
    result: dict[str, Any] = {
        "task": first.task.name,
        "metric": first.task.main_metric,
        "model": config.model_name_or_path,
        "rows": {name: len(rows) for name, rows in splits.items()},
    }
    for name, rows in splits.items():
        if rows.labels is None:
            raise UserError(f"{rows.source} has no labels, so there is nothing to score; use `bert-emd predict`")
        result[name] = evaluator.scores(model, rows, show=f"evaluating {name}")
    if config.output_dir:
        write_json(make_folder(config.output_dir) / "evaluation.json", result)
    return result


def predict(config: EvaluateConfig) -> list[Path]:
    """`bert-emd predict`: a saved model's predictions for unlabelled data.

    For a GLUE task the test server's files (for MNLI matched, mismatched and, where its file is there, the
    diagnostic set); for your own file ``predictions.csv`` with index, prediction and, for classes, its probability.

    Returns:
        The files written.

    Raises:
        UserError: a model or data that cannot be read, or that do not belong together.
    """
    if not config.output_dir:
        raise UserError("where should the predictions go? Name a folder with --output_dir")
    model, evaluator = _loaded(config)
    names = label_names(model.config)
    task = find_task(config.task_name) if config.task_name is not None else None
    files = ["predictions.csv"] if task is None else [s.submission for s in task.splits if s.submission is not None]
    _check_free(config, files)
    splits = [(split, _aligned(rows, names)) for split, rows in load_test(config, names)]
    folder = make_folder(config.output_dir)
    written = []
    for split, rows in splits:
        logits = evaluator.logits(model, rows, show=f"predicting {rows.task.name} {split}")
        if config.task_name is None:
            written.append(_write_own(folder, rows, logits))
        else:
            written.append(write_submission(rows.task, split, logits, rows.task.label_names, rows.indices, folder))
    return written


def _check_free(config: EvaluateConfig, names: Sequence[str]) -> None:
    """Refuse to write over what an earlier command left."""
    if config.output_dir is None or config.overwrite_output_dir:
        return
    for name in names:
        if (Path(config.output_dir) / name).exists():
            raise UserError(
                f"{Path(config.output_dir) / name} is there already; name another folder, or replace it with "
                "--overwrite_output_dir"
            )


def _aligned(examples: Examples, names: tuple[str, ...] | None) -> Examples:
    found = align(examples, names)
    if found.assumed:
        _LOG.warning(
            "the model's labels have no names; they are taken to mean %s, in this order",
            listing(found.examples.task.label_names or ()),
        )
    return found.examples


def _write_own(folder: Path, examples: Examples, logits: np.ndarray) -> Path:
    names, text = examples.task.label_names, io.StringIO(newline="")
    writer = csv.writer(text)
    if names is None:
        writer.writerow(["index", "prediction"])
        writer.writerows(zip(examples.indices, (f"{z:.6g}" for z in logits[:, 0]), strict=True))
    else:
        probabilities = torch.softmax(torch.from_numpy(logits), -1).max(-1)
        writer.writerow(["index", "prediction", "probability"])
        for index, c, p in zip(examples.indices, probabilities.indices, probabilities.values, strict=True):
            writer.writerow([index, names[int(c)], f"{float(p):.4f}"])
    path = folder / "predictions.csv"
    write_whole(path, text.getvalue())
    return path


def _loaded(config: EvaluateConfig) -> tuple[PreTrainedModel, Evaluator]:
    if not config.model_name_or_path:
        raise UserError("which model? Name a folder or a hub id with --model_name_or_path")
    if config.task_name is not None:
        find_task(config.task_name)
    model, report = load_classifier(config.model_name_or_path, "the model", cache_dir=config.cache_dir)
    if report.fresh:
        raise UserError(
            f"the model {config.model_name_or_path} is not a fine-tuned classifier ({report.fresh[0]} is not in it); "
            "fine-tune it first with `bert-emd finetune`"
        )
    tokenizer = load_tokenizer(
        config.model_name_or_path, "the model", do_lower_case=config.do_lower_case, cache_dir=config.cache_dir
    )
    length = config.max_seq_length
    if length is None:
        # What our own folders say; elsewhere the tokenizer may name a number beyond all bounds.
        own = min(tokenizer.model_max_length, positions(model) or _LONGEST)
        length = own if own < _LONGEST else DataConfig().max_seq_length
    Preflight(strict=True).length("model", model, length)
    return model, Evaluator.of(dataclasses.replace(config, max_seq_length=length), tokenizer)
