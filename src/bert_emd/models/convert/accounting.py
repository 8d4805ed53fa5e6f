"""What becomes of every variable of a checkpoint, settled before any of it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification

from bert_emd.errors import UserError
from bert_emd.models.convert.names import Names, tensorflow_names, torch_names
from bert_emd.models.convert.source import Source
from bert_emd.models.convert.weights import Weights

__all__ = ["Accounts", "Variable", "account"]

WORDS = "bert.embeddings.word_embeddings.weight"
_TIED = "cls.predictions.decoder.weight"
_HEADS = ("cls.predictions.", "cls.seq_relationship.", "classifier.")
_FEW = 3


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable of the checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    becomes: str | None = None
    """Its name in Transformers; None where it is left out."""
    transposed: bool = False
    left_out: str | None = None
    """What it is, where it is left out."""
    unknown: bool = False


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Every variable of a checkpoint, and what the model lacks."""

    variables: tuple[Variable, ...]
    missing: tuple[str, ...]
    """Tensors of the model that are not in the checkpoint."""
    architecture: str
    """The class of Transformers that has all of its heads."""

    @property
    def converted(self) -> list[Variable]:
        """Those that go into the model."""
        return [variable for variable in self.variables if variable.becomes is not None]


def account(
    source: Source, weights: Weights, config: BertConfig, *, allow_unknown: bool = False, allow_missing: bool = False
) -> Accounts:
    """Settle what becomes of each variable.

    Args:
        source: the checkpoint, for messages.
        weights: what it holds.
        config: the model that it should be.
        allow_unknown: leave variables out that the model has no place for, instead of refusing the checkpoint.
        allow_missing: convert although the model has tensors that the checkpoint lacks.

    Raises:
        UserError: a variable is unknown, missing or of another shape than the configuration says.
    """
    names = tensorflow_names(weights.shapes) if source.kind == "tensorflow" else torch_names(weights.shapes)
    shapes = _model_shapes(config, source)
    if classes := [name for name, becomes in names.becomes.items() if becomes == "classifier.weight"]:
        rows = weights.shapes[classes[0]][:1]
        shapes |= {name: (*rows, *shapes[name][1:]) for name in ("classifier.weight", "classifier.bias")}
    variables = [_variable(name, names, weights, shapes, source) for name in weights.shapes]
    if not any(variable.becomes for variable in variables):
        first = ", ".join(variable.name for variable in variables[:_FEW])
        raise UserError(f"{source.path} is not BERT: none of its {len(variables)} variables is ({first}, …)")
    _refuse_doubles(source, variables)
    variables = [_tied(variable, variables, weights) for variable in variables]
    unknown = [variable.name for variable in variables if variable.unknown]
    if unknown and not allow_unknown:
        raise UserError(
            f"{source.path} holds {_listed(unknown, 'variable')} that BERT has no place for; check that it is the "
            "right checkpoint, or leave them out with --allow_unknown"
        )
    found = {variable.becomes for variable in variables}
    missing = [name for name in shapes if name not in found and name != _TIED and _expected(name, found)]
    if missing and not allow_missing:
        raise UserError(
            f"{source.path} lacks {_listed(missing, 'tensor')} of the model that the configuration describes; take the "
            "configuration that belongs to it, or convert the rest with --allow_missing"
        )
    return Accounts(variables=tuple(variables), missing=tuple(missing), architecture=_architecture(found))


def _model_shapes(config: BertConfig, source: Source) -> dict[str, tuple[int, ...]]:
    """The tensors of an encoder with all the heads that a checkpoint may have."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with torch.device("meta"):
            for made in (BertForPreTraining(config), BertForSequenceClassification(config)):
                shapes |= {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    except Exception as error:  # whatever a value means that no model can be made with
        why = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise UserError(f"{source.path}: no model can be made by its configuration ({why}); mend it") from error
    shapes.pop("cls.predictions.decoder.bias")  # the same tensor as cls.predictions.bias
    return shapes


def _variable(
    name: str, names: Names, weights: Weights, shapes: dict[str, tuple[int, ...]], source: Source
) -> Variable:
    plain = Variable(name=name, shape=weights.shapes[name], dtype=weights.dtypes[name])
    if name in names.left_out:
        return replace(plain, left_out=names.left_out[name])
    becomes = names.becomes[name]
    if becomes not in shapes:
        return replace(plain, unknown=True, left_out="unknown")
    transposed = name in names.transposed
    shape = plain.shape[::-1] if transposed else plain.shape
    wanted = shapes[becomes]
    if shape != wanted:
        raise UserError(
            f"{source.path}: {name} has the shape {list(plain.shape)}, and by the configuration it should be "
            f"{list(wanted[::-1] if transposed else wanted)}; take the configuration that belongs to the checkpoint"
        )
    if "float" not in plain.dtype:
        raise UserError(f"{source.path}: {name} holds {plain.dtype} and no floating-point numbers; it is damaged")
    return replace(plain, becomes=becomes, transposed=transposed)


def _refuse_doubles(source: Source, variables: list[Variable]) -> None:
    first: dict[str, str] = {}
    for variable in variables:
        other = first.setdefault(variable.becomes or variable.name, variable.name)
        if variable.becomes is not None and other != variable.name:
            raise UserError(
                f"{source.path} holds both {other} and {variable.name}, which are the same tensor of the model; "
                "remove one of the two"
            )


def _tied(variable: Variable, variables: list[Variable], weights: Weights) -> Variable:
    """The masked-language model's last matrix is the word embeddings; stored a second time it must be the same."""
    if variable.becomes != _TIED:
        return variable
    words = next((other.name for other in variables if other.becomes == WORDS), None)
    if words is not None and torch.equal(weights.read(words), weights.read(variable.name)):
        return replace(variable, becomes=None, left_out="the word embeddings a second time")
    return replace(variable, becomes=None, unknown=True, left_out="unknown: not the word embeddings, as in BERT")


def _expected(name: str, found: set[str | None]) -> bool:
    """Whether a tensor of the model must be there: all of the encoder, and of a head if there is any of it."""
    head = next((head for head in _HEADS if name.startswith(head)), None)
    return head is None or any(other is not None and other.startswith(head) for other in found)


def _architecture(found: set[str | None]) -> str:
    words, following, classes = (any(name is not None and name.startswith(head) for name in found) for head in _HEADS)
    if classes:
        return "BertForSequenceClassification"
    if words and following:
        return "BertForPreTraining"
    if words:
        return "BertForMaskedLM"
    return "BertForNextSentencePrediction" if following else "BertModel"


def _listed(names: list[str], what: str) -> str:
    more = ", …" if len(names) > _FEW else ""
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({', '.join(names[:_FEW])}{more})"
