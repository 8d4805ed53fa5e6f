"""The path of a batch: through teacher and student, their layers, the mapping and the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_emd.errors import UserError
from bert_emd.method import Features, Mapping, MappingLoss, Needs, Projected, hard_loss, prediction_loss
from bert_emd.models import SixteenBitMatrices, Tap, attach_quick_dropout
from bert_emd.training.teacher_cache import TeacherCache

__all__ = ["Distiller", "LossOptions"]

_TERMS = ("attention", "hidden", "relation", "embedding")


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """How the terms are added up: L = beta (theta (L_att + L_hid + L_rel) + L_emb) + L_pred."""

    alpha: float = 1.0
    beta: float = 1.0
    theta: float = 1.0
    temperature: float = 1.0
    reduce_T: float = 1.0
    published: bool = True
    """False: the reference's ``new_pred_loss false``."""
    one_step: bool = True
    """False: the intermediate terms alone, without beta and theta."""
    count_padding: bool = False
    """Count padded positions in the means; a padded key's score is zero."""


class Distiller(nn.Module):
    """Student, projection and mapping in one module whose forward returns the loss.

    So the engine's data parallelism, mixed precision, accumulation and checkpoints apply to all of it. The teacher is
    kept outside the module tree: it is never trained, saved or put into training mode.

    Args:
        student: the model to train.
        teacher: the fine-tuned teacher; None trains on the labels alone.
        mapping: which layers learn from which; None is the prediction loss alone.
        options: how the losses are added up.
        projection: train a projection even where the widths agree.
        share_projection: one for all layers and the embeddings, or one for each.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        mapping: Mapping | None,
        options: LossOptions,
        *,
        projection: bool = False,
        share_projection: bool = True,
    ) -> None:
        super().__init__()
        self.student = student
        self.mapping = mapping
        self.options = options
        self._teacher = (teacher,)  # a tuple hides it from the module tree
        if teacher is not None:
            self._teacher_was = teacher.training, [p.requires_grad for p in teacher.parameters()]
            teacher.eval().requires_grad_(False)
        needs = mapping.student_needs if mapping is not None else Needs()
        self.projection = None
        if teacher is not None and needs.states:
            narrow, wide = student.config.hidden_size, teacher.config.hidden_size
            if narrow != wide or projection:
                count = 1 if share_projection else student.config.num_hidden_layers + 1
                self.projection = nn.ModuleList(_projection(narrow, wide) for _ in range(count))
        self.student_tap = Tap(student, needs)
        self._undo_dropout: Callable[[], None] | None = None
        wanted = mapping.teacher_needs if mapping is not None else Needs()
        self.teacher_tap = Tap(teacher, wanted) if teacher is not None else None
        self._matrices: SixteenBitMatrices | None = None
        self.cache: TeacherCache | None = None
        self.record: dict[str, Any] = {}
        self.sums: dict[str, Tensor] = {}
        self.batches = 0

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The teacher, or None."""
        return self._teacher[0]

    def attach(self) -> None:
        """Start tapping both models, the student with quick dropout; `detach` leaves them as they were."""
        if self._undo_dropout is None:
            self._undo_dropout = attach_quick_dropout(self.student)  # before the tap, which then goes around it
        self.student_tap.attach()
        if self.teacher_tap is not None:
            self.teacher_tap.attach()
            self.teacher_tap.model.eval().requires_grad_(False)

    def detach(self) -> None:
        """Stop tapping."""
        self.student_tap.detach()
        if self._undo_dropout is not None:
            self._undo_dropout()
            self._undo_dropout = None
        if self.teacher_tap is not None:
            self.teacher_tap.detach()
            self._restore_precision()
            teacher, (training, wanted) = self.teacher_tap.model, self._teacher_was
            teacher.train(training)
            for parameter, requires_grad in zip(teacher.parameters(), wanted, strict=True):
                parameter.requires_grad_(requires_grad)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **more: Any
    ) -> None:
        """Recompute the student's blocks in backward; the tap needs the form that keeps the graph."""
        options = {"use_reentrant": False} | (activation_checkpointing_kwargs or {})
        if options["use_reentrant"]:
            raise UserError("gradient checkpointing with use_reentrant hides the layers from the mapping; leave it out")
        if not self.student.supports_gradient_checkpointing:
            kind = self.student.config.model_type
            raise UserError(f"a {kind} model cannot recompute its blocks; leave activation_checkpointing out")
        if hasattr(self.student, "activation_checkpointing_enable"):
            self.student.activation_checkpointing_enable(activation_checkpointing_kwargs=options, **more)
        else:
            self.student.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """The name that earlier versions of the engine call."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch and the student's logits; in evaluation the hard loss, and no teacher is run.

        An encoder without a head is trained by its intermediate losses, and has no logits; `held_out` measures it.

        ``rows`` says which examples of the data set these are, for the cache of the teacher's outputs.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if not self.training:
            logits = self.student(**inputs).logits
            return {"logits": logits} if labels is None else {"loss": hard_loss(logits, labels), "logits": logits}
        if self.teacher_tap is None:
            logits = self.student_tap(**inputs)[0].logits
            return {"loss": self._noted(prediction=hard_loss(logits, labels)), "logits": logits}  # type: ignore[arg-type]

        teacher_logits, teacher_features = self._teach(inputs, rows)
        outputs, features = self.student_tap(**inputs)
        opt = self.options
        loss = torch.zeros((), dtype=torch.float32, device=input_ids.device)
        if self.mapping is not None:
            terms = self._matched(features, teacher_features, attention_mask)
            self.record = terms.record
            loss = loss + self._intermediate(terms)
        if opt.one_step:
            prediction = prediction_loss(
                outputs.logits,
                teacher_logits,
                labels,
                alpha=opt.alpha,
                temperature=opt.temperature,
                reduce_T=opt.reduce_T,
                published=opt.published,
            )
            loss = loss + self._noted(prediction=prediction)
        logits = _logits(outputs)
        return {"loss": loss} if logits is None else {"loss": loss, "logits": logits}

    @torch.no_grad()
    def held_out(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """The intermediate terms of a batch as they stand: both models are tapped, nothing is noted or moves.

        Called in evaluation mode (``eval()``), in the precision that is on.
        """
        assert self.mapping is not None
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        _, teacher_features = self._teach(inputs, None)
        _, features = self.student_tap(**inputs)
        return _terms(self._matched(features, teacher_features, attention_mask))

    def _teach(self, inputs: dict[str, Any], rows: Sequence[int] | None) -> tuple[Any, Features]:
        """The teacher's logits and features, from the cache where it has them all."""
        assert self.teacher_tap is not None
        mask = inputs["attention_mask"]
        cache = self.cache if rows is not None else None
        if cache is not None and cache.has(rows or ()):
            logits, kept = cache.load(rows or (), mask)
            return logits, kept.spread(self.teacher_tap.needs.layers)
        device = inputs["input_ids"].device
        with torch.no_grad():
            self.teacher_tap.model.to(device)
            self._match_precision(device.type)
            outputs, features = self.teacher_tap(**inputs)
        if cache is not None:
            cache.store(rows or (), mask, outputs.logits, features)
            if cache.layout.scores and cache.has(rows or ()):
                # Scores that were made to be kept are not made again, and every epoch sees the same.
                logits, kept = cache.load(rows or (), mask)
                return logits, kept.spread(self.teacher_tap.needs.layers)
        return _logits(outputs), features

    def _match_precision(self, device: str) -> None:
        """Under autocast the teacher's matrices are kept in 16 bits, elsewhere as they are."""
        wanted = torch.is_autocast_enabled(device)
        if wanted and self._matrices is None and self.teacher is not None:
            self._matrices = SixteenBitMatrices(self.teacher, torch.get_autocast_dtype(device))
        elif not wanted:
            self._restore_precision()

    def _restore_precision(self) -> None:
        if self._matrices is not None:
            self._matrices.restore()
            self._matrices = None

    def compile(self, *_: Any, **__: Any) -> None:
        """Compile both models; the mapping around them stays as it is."""
        self.student_tap.compile()
        if self.teacher_tap is not None:
            self.teacher_tap.compile()

    def _matched(self, student: Features, teacher: Features, mask: Tensor | None) -> MappingLoss:
        """What the mapping makes of both models' features on a batch."""
        assert self.mapping is not None
        self._project(student)
        if self.options.count_padding and "count_padding" in self.mapping.uses:
            _zero_padded_keys(student, teacher, mask)
            mask = None  # every position is in the means
        try:
            terms: MappingLoss = self.mapping(student, teacher, mask)
        except ValueError as error:
            if "not finite" not in str(error):
                raise
            raise UserError("the costs are no longer finite: training diverged; lower --learning_rate") from error
        return terms

    def _intermediate(self, terms: MappingLoss) -> Tensor:
        opt = self.options
        beta, theta = (opt.beta, opt.theta) if opt.one_step else (1.0, 1.0)
        weights = dict.fromkeys(_TERMS, beta * theta) | {"embedding": beta}
        found = _terms(terms)
        self._noted(**found)
        return sum((weights[name] * value for name, value in found.items()), torch.zeros((), device=_device(found)))

    def _project(self, features: Features) -> None:
        """Student states into the teacher's width: one projection for all, or the embeddings' and each layer's own."""
        if self.projection is None:
            return
        layers = [self.projection[i % len(self.projection)] for i in range(len(features.hidden) + 1)]
        # Layers that the mapping does not look at hold None.
        features.embedding, *features.hidden = (
            None if state is None else Projected(state, layer.weight, layer.bias)  # type: ignore[arg-type]
            for layer, state in zip(layers, (features.embedding, *features.hidden), strict=True)
        )

    def _noted(self, **terms: Tensor) -> Tensor:
        """Keep sums of the terms for the log, without waiting for the device; returns the last term."""
        for name, term in terms.items():
            value = term.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        if "prediction" in terms or not self.options.one_step:
            self.batches += 1
        return next(reversed(terms.values())) if terms else torch.zeros(())

    def pop_means(self) -> dict[str, float]:
        """The mean of each term since the last call."""
        means = {name: float(total) / max(1, self.batches) for name, total in self.sums.items()}
        self.sums, self.batches = {}, 0
        return means


def _logits(outputs: Any) -> Tensor | None:
    """None of an encoder without a head."""
    return getattr(outputs, "logits", None)


def _terms(loss: MappingLoss) -> dict[str, Tensor]:
    return {name: getattr(loss, name) for name in _TERMS if getattr(loss, name) is not None}


def _projection(narrow: int, wide: int) -> nn.Linear:
    layer = nn.Linear(narrow, wide)
    if narrow == wide:
        # Asked for where none is needed: it starts as doing nothing, so a copied student is not disturbed.
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


def _zero_padded_keys(student: Features, teacher: Features, mask: Tensor | None) -> None:
    """The published form: a padded key's score counts as zero."""
    if mask is None:
        return
    for features in (student, teacher):
        keep = mask[:, None, :, None]
        features.attention = [pair and (pair[0], pair[1] * keep.to(pair[1].dtype)) for pair in features.attention]


def _device(terms: dict[str, Tensor]) -> torch.device:
    return next(iter(terms.values())).device if terms else torch.device("cpu")
