"""Checks before the first step: mistakes that silently destroy a student, one line a finding."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bert_emd.data import Examples, trivial_score
from bert_emd.data.labels import listing
from bert_emd.errors import UserError
from bert_emd.models import LoadReport

__all__ = ["TEACHER_ROWS", "Preflight", "positions"]

_LOG = logging.getLogger("bert_emd")
_MANY_TRUNCATED = 0.1
TEACHER_ROWS = 1000


def positions(model: PreTrainedModel) -> int | None:
    """How many tokens a model's table of positions has room for; None without such a table."""
    for name, module in model.named_modules():
        if name.endswith("embeddings.position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding token's.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


class Preflight:
    """Refuses what cannot work and warns of what probably should not be.

    Args:
        strict: turn warnings into refusals.
    """

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.findings: list[str] = []

    def fine(self, text: str) -> None:
        """Note a check that passed."""
        self.findings.append(text)
        _LOG.info("check: %s", text)

    def warn(self, text: str) -> None:
        """Warn, or refuse in strict mode."""
        if self.strict:
            raise UserError(f"{text} (refused by --strict)")
        self.findings.append(f"warning: {text}")
        _LOG.warning("%s", text)

    def weights(self, what: str, name: str, report: LoadReport, *, needs_head: bool = True) -> None:
        """Every weight must have come from its folder, the head's too where a trained one is needed."""
        if report.encoder_fresh:
            raise UserError(
                f"{what} {name}: {len(report.encoder_fresh)} weights did not load ({report.encoder_fresh[0]}, …); "
                "its config.json does not fit its weights"
            )
        if needs_head and report.fresh:
            raise UserError(
                f"{what} {name} has no trained classifier ({(report.head_fresh or report.fresh)[0]} is not in it); "
                "fine-tune it first with `bert-emd finetune`"
            )
        self.fine(
            f"{what}: {'' if report.fresh else 'all '}{report.loaded} tensors loaded"
            + (f", {len(report.ignored)} ignored" if report.ignored else "")
            + (f", fresh: {', '.join(report.fresh)}" if report.fresh else "")
        )

    def labels(self, names: tuple[str, ...] | None, assumed: bool) -> None:
        """Label names of model and data, already matched by name."""
        if names is None:
            self.fine("labels: a number (regression)")
        elif assumed:
            self.warn(
                f"the teacher's labels have no names (LABEL_0, …); they are taken to mean {listing(names)}, "
                "in this order"
            )
        else:
            self.fine(f"labels agree by name: {listing(names)}")

    def vocabulary(
        self,
        tokenizer: PreTrainedTokenizerBase,
        models: Mapping[str, PreTrainedModel],
        other: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """All models read the ids of one tokenizer, so they need its vocabulary; ``other`` is the student's own."""
        if other is not None and other.get_vocab() != tokenizer.get_vocab():
            ours, theirs = tokenizer.get_vocab(), other.get_vocab()
            differing = sum(ours.get(token) != i for token, i in theirs.items()) + len(ours.keys() - theirs.keys())
            raise UserError(
                f"teacher and student have different vocabularies ({len(ours)} and {len(theirs)} tokens, {differing} "
                "differ); take a student with the teacher's tokenizer"
            )
        for what, model in models.items():
            rows = model.get_input_embeddings().num_embeddings
            if rows < len(tokenizer):
                raise UserError(
                    f"the {what}'s vocabulary has {rows} tokens but the tokenizer makes {len(tokenizer)}; "
                    "take one that belongs to it"
                )
        self.fine(f"vocabulary: {len(tokenizer)} tokens")

    def length(self, what: str, model: PreTrainedModel, max_seq_length: int) -> None:
        """A model with a table of positions reads no more tokens than the table has rows."""
        limit = positions(model)
        if limit is not None and max_seq_length > limit:
            raise UserError(
                f"the {what} reads at most {limit} tokens, fewer than max_seq_length {max_seq_length}; "
                f"set --max_seq_length {limit}"
            )

    def truncation(self, truncated: int, total: int, max_seq_length: int) -> None:
        """Texts longer than the model is shown."""
        if truncated > _MANY_TRUNCATED * total:
            self.warn(
                f"{truncated} of {total} training rows ({truncated / total:.0%}) are longer than {max_seq_length} "
                "tokens and truncated; raise --max_seq_length"
            )
        else:
            self.fine(f"truncation: {truncated} of {total} training rows exceed {max_seq_length} tokens")

    def teacher_score(self, scores: dict[str, float], train: Examples, rows: Examples) -> None:
        """The teacher must be above the trivial predictor, or there is nothing to learn from it."""
        assert rows.labels is not None
        metric = rows.task.main_metric
        known = train.labels if train.labels is not None else rows.labels
        trivial = trivial_score(rows.task, known, rows.labels)[metric]
        text = (
            f"the teacher's {metric} on {len(rows)} validation rows is {scores[metric]:.4f}, "
            f"the trivial predictor's {trivial:.4f}"
        )
        if scores[metric] <= trivial:
            self.warn(f"{text}: it has learnt nothing, or its labels mean something else")
        else:
            self.fine(text)
