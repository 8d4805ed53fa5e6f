"""What a checkpoint's variables are called in Transformers, and which of them are no weights of the model.

A TensorFlow name is a path of scopes (``bert/encoder/layer_0/output/dense/kernel``); in Transformers the scopes are the
same, and only the last part has another word. So there is one rule and no list: whether what it gives exists is for the
model to say.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

__all__ = ["Names", "tensorflow_names", "torch_names"]

_TF_LAST: Mapping[str, str] = MappingProxyType({
    "kernel": "weight", "gamma": "weight", "beta": "bias", "output_weights": "weight", "output_bias": "bias",
    "word_embeddings": "word_embeddings.weight", "position_embeddings": "position_embeddings.weight",
    "token_type_embeddings": "token_type_embeddings.weight",
})  # fmt: skip
# What Google's run_classifier.py calls its head has no scope.
_TF_HEAD: Mapping[str, str] = MappingProxyType(
    {"output_weights": "classifier.weight", "output_bias": "classifier.bias"}
)
_STEP = "the step counter"
_STATE = "state of the optimiser"
_TF_STATE: Mapping[str, str] = MappingProxyType(
    {"global_step": _STEP, "beta1_power": _STATE, "beta2_power": _STATE, "loss_scale": _STATE}
)
_BERT_MODULES = ("embeddings.", "encoder.", "pooler.")
_FIT = re.compile(r"fit_dense(s\.\d+)?\.(weight|bias)")


class Names:
    """The names of a checkpoint's variables.

    Attributes:
        becomes: each variable's name in Transformers, with a `BertForPreTraining` in mind.
        transposed: the variables whose two dimensions change places.
        left_out: the variables that belong to no encoder, each with what it is.
    """

    def __init__(self) -> None:
        self.becomes: dict[str, str] = {}
        self.transposed: set[str] = set()
        self.left_out: dict[str, str] = {}


def tensorflow_names(variables: Collection[str]) -> Names:
    """The names of a TensorFlow 1 checkpoint, as Google's BERT writes it.

    >>> names = tensorflow_names(["bert/encoder/layer_3/output/dense/kernel", "global_step"])
    >>> names.becomes, names.transposed, names.left_out
    ({'bert/encoder/layer_3/output/dense/kernel': 'bert.encoder.layer.3.output.dense.weight'}, \
{'bert/encoder/layer_3/output/dense/kernel'}, {'global_step': 'the step counter'})
    """
    names, known = Names(), set(variables)
    for variable in variables:
        scope, _, last = variable.rpartition("/")
        if scope in known:
            # An optimiser keeps what it knows of a variable below that variable's own name.
            names.left_out[variable] = f"the optimiser's {last}"
        elif variable in _TF_STATE:
            names.left_out[variable] = _TF_STATE[variable]
        elif not scope:
            names.becomes[variable] = _TF_HEAD.get(variable, variable)
        else:
            path = re.sub(r"\blayer_(\d+)\b", r"layer.\1", scope).replace("/", ".")
            names.becomes[variable] = f"{path}.{_TF_LAST.get(last, last)}"
            if last == "kernel":
                names.transposed.add(variable)
    return names


def torch_names(variables: Iterable[str]) -> Names:
    """The names of an old PyTorch file: gamma and beta, DataParallel's prefix, an encoder alone, TinyBERT's students.

    >>> torch_names(["module.bert.pooler.dense.bias", "fit_denses.0.bias"]).becomes
    {'module.bert.pooler.dense.bias': 'bert.pooler.dense.bias'}
    """
    names, variables = Names(), list(variables)
    plain = {variable: variable.removeprefix("module.") for variable in variables}
    bare = not any(name.startswith("bert.") for name in plain.values())
    for variable, name in plain.items():
        if _FIT.fullmatch(name):
            names.left_out[variable] = "TinyBERT's projection to its teacher's width"
        elif name.endswith("embeddings.position_ids"):
            names.left_out[variable] = "the numbers of the positions"
        elif name == "cls.predictions.decoder.bias":
            names.left_out[variable] = "cls.predictions.bias a second time"
        else:
            name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
            names.becomes[variable] = f"bert.{name}" if bare and name.startswith(_BERT_MODULES) else name
    return names
