"""Matrices of a frozen model in the precision of autocast: the same numbers, and the model as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from tiny_encoders import ARCHITECTURES, padded_batch, tiny
from transformers import AutoConfig, AutoModelForMaskedLM

from bert_emd.models import SixteenBitMatrices


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_autocast_gives_the_same_numbers(kind: str) -> None:
    model = tiny(kind).eval().requires_grad_(False)
    before = {name: (tensor, tensor.clone()) for name, tensor in model.named_parameters()}
    batch = padded_batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(**batch, output_hidden_states=True)
        matrices = SixteenBitMatrices(model, torch.bfloat16)
        found = model(**batch, output_hidden_states=True)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.float32}
    assert torch.equal(found.logits, expected.logits)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(one, other)
    matrices.restore()
    for name, parameter in model.named_parameters():
        tensor, values = before[name]
        assert parameter is tensor
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, values)


def test_a_matrix_with_another_use_stays() -> None:
    config = AutoConfig.for_model(
        "bert", vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = AutoModelForMaskedLM.from_config(config).eval().requires_grad_(False)
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table
    SixteenBitMatrices(model, torch.bfloat16)
    assert table.dtype == torch.float32
    assert model.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
