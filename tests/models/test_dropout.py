"""Quick dropout: the right rate and factor, the attention of plain SDPA around it, and models left as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_encoders import ARCHITECTURES, padded_batch, tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from bert_emd.method import Needs
from bert_emd.models import Tap, attach_quick_dropout, quick_dropout
from bert_emd.models import dropout as quick
from bert_emd.models.dropout import QuickDropout, keep_or_drop

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def ones(shape: Any, p: float, dtype: torch.dtype) -> Tensor:
    """Factors that drop nothing."""
    return torch.ones(*shape, dtype=dtype)


class Drawn(TorchDispatchMode):
    """Counts the operations that torch's own dropout draws with."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))

    def count(self, *parts: str) -> int:
        return sum(any(part in name for part in parts) for name in self.names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_factor(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    factors = keep_or_drop((250, 400, 4), p, dtype)
    assert factors.shape == (250, 400, 4)
    assert factors.dtype == dtype
    kept = factors != 0
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 2**-16)
    assert factors[kept].unique().tolist() == pytest.approx([1 / (1 - p)], rel=2 * max(rounding, 2**-16 / (1 - p)))
    # Four values come from one draw of 64 bits: each of the four has the rate, and no two hang together.
    for lane in range(4):
        assert kept[..., lane].double().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / 1e5) ** 0.5)
    lanes = kept.double().reshape(-1, 4)
    assert torch.corrcoef(lanes.T).fill_diagonal_(0).abs().max() < 5 / 1e5**0.5
    neighbours = torch.stack([lanes[:-1, 3], lanes[1:, 0]])
    assert abs(torch.corrcoef(neighbours)[0, 1]) < 5 / 1e5**0.5


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 1, 3)])
def test_any_shape_and_the_generator(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    first = keep_or_drop(shape, 0.5, torch.float32)
    second = keep_or_drop((64,), 0.5, torch.float32)
    torch.manual_seed(1)
    assert torch.equal(keep_or_drop(shape, 0.5, torch.float32), first)
    assert torch.equal(keep_or_drop((64,), 0.5, torch.float32), second)
    assert not torch.equal(keep_or_drop((64,), 0.5, torch.float32), second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_the_layer_multiplies_and_so_does_its_gradient(dtype: torch.dtype, inplace: bool) -> None:
    layer = nn.Dropout(0.3, inplace=inplace)
    with quick_dropout(layer):
        assert isinstance(layer, QuickDropout)
        torch.manual_seed(2)
        source = torch.randn(7, 9, dtype=dtype)
        leaf = source.clone().requires_grad_()
        torch.manual_seed(3)
        output = layer(leaf * 1)
        torch.manual_seed(3)
        factors = keep_or_drop((7, 9), 0.3, dtype)
        assert torch.equal(output, source * factors)
        output.sum().backward()
        assert torch.equal(leaf.grad, factors)
        layer.eval()
        assert torch.equal(layer(source.clone()), source)
    assert type(layer) is nn.Dropout


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_rates_that_leave_nothing_to_chance_are_torchs(p: float) -> None:
    layer = nn.Dropout(p)
    with quick_dropout(layer):
        assert torch.equal(layer(torch.ones(8)), F.dropout(torch.ones(8), p))


@pytest.mark.parametrize("rows", [(9, 5, 3), (6, 6)], ids=["padded", "unpadded"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_where_nothing_is_dropped_a_training_pass_is_plain_sdpas(
    kind: str, rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attention, its scale and its mask, forward and backward, against the model as Transformers has it."""
    more = {"attention_dropout": 0.1, "mlp_dropout": 0.1, "embedding_dropout": 0.1} if kind == "modernbert" else {}
    model, batch = tiny(kind, **more).double(), padded_batch(rows)
    model.eval()
    plain = model(**batch).logits
    plain.square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.train()
    monkeypatch.setattr(quick, "keep_or_drop", ones)
    with quick_dropout(model), Drawn() as drawn:
        logits = model(**batch).logits
        logits.square().sum().backward()
    assert drawn.count("bernoulli", "dropout") == 0
    torch.testing.assert_close(logits, plain, rtol=1e-10, atol=1e-10)
    for name, parameter in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scaling", [None, 0.2])
@pytest.mark.parametrize("additive", [False, True])
def test_attention_drops_probabilities(additive: bool, scaling: float | None) -> None:
    """Against the formula, written out, with the same factors."""
    torch.manual_seed(4)
    query, key, value = (torch.randn(3, 2, 9, 8) for _ in range(3))
    keep = padded_batch((9, 5, 3))["attention_mask"].bool()[:, None, None, :]
    mask = torch.zeros(keep.shape).masked_fill(~keep, float("-inf")) if additive else keep
    torch.manual_seed(6)
    found, _ = quick._attention(nn.Identity(), query, key, value, mask, dropout=0.25, scaling=scaling)
    torch.manual_seed(6)
    factors = keep_or_drop((3, 2, 9, 9), 0.25, torch.float32)
    scores = (query @ key.mT * (scaling or 8**-0.5)).masked_fill(~keep, float("-inf"))
    torch.testing.assert_close(found, ((scores.softmax(-1) * factors) @ value).transpose(1, 2))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_evaluation_is_plain_to_the_bit_and_the_model_is_left_as_it_was(kind: str) -> None:
    model, batch = tiny(kind), padded_batch((9, 5, 3))
    model.eval()
    plain = model(**batch).logits
    before = [(name, type(module)) for name, module in model.named_modules()], model.config._attn_implementation
    with quick_dropout(model):
        assert torch.equal(model(**batch).logits, plain)
    assert before == ([(n, type(m)) for n, m in model.named_modules()], model.config._attn_implementation)
    assert torch.equal(model(**batch).logits, plain)


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = tiny("bert").train()
    with pytest.raises(IndexError), quick_dropout(model):
        model(input_ids=torch.full((1, 4), 10_000))
    assert model.config._attn_implementation == "sdpa"
    assert not any(isinstance(module, QuickDropout) for module in model.modules())


def test_it_may_be_attached_twice_and_under_a_tap() -> None:
    model, batch = tiny("bert"), padded_batch((9, 5, 3))
    model.train()
    undo = attach_quick_dropout(model)
    with Tap(model, Needs(attention=True)) as tap:
        with quick_dropout(model):
            torch.manual_seed(1)
            inner, features = tap(**batch)
        assert len(features.attention) == 3
        torch.manual_seed(1)
        with Drawn() as drawn:
            outer, _ = tap(**batch)
        assert drawn.count("bernoulli") == 0
        assert torch.equal(outer.logits, inner.logits)
    undo()
    assert model.config._attn_implementation == "sdpa"
    with Drawn() as drawn:
        model(**batch)
    assert drawn.count("bernoulli", "dropout") > 0


def test_recomputed_blocks_drop_the_same() -> None:
    """Gradient checkpointing draws anew in backward, from the same state."""

    def gradients(model: PreTrainedModel) -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(8)
        model(**padded_batch((9, 5, 3))).logits.square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model = tiny("bert")
    model.train()
    with quick_dropout(model):
        plain = gradients(model)
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        again = gradients(model)
    for ours, theirs in zip(again, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bfloat16_attention_is_as_near_as_torchs() -> None:
    """Under autocast, where nothing is dropped: the error against float64 is of the size of SDPA's own."""
    torch.manual_seed(9)
    query, key, value = (torch.randn(4, 2, 33, 32) for _ in range(3))
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double()).transpose(1, 2)
    low = [t.bfloat16() for t in (query, key, value)]
    rounded = F.scaled_dot_product_attention(*(t.double() for t in low)).transpose(1, 2)
    error = (rounded - exact).abs().max()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick, "keep_or_drop", ones)
        ours, _ = quick._attention(nn.Identity(), *low, None, dropout=0.1)
    assert (ours.double() - exact).abs().max() < 3 * error


@pytest.mark.parametrize("length", [1, 33, 256])
@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_attention_without_dropout_is_as_near_as_torchs(length: int, masked: bool) -> None:
    """Output and gradients: the error against float64 is of the size of what 16 bits of the input already cost."""
    torch.manual_seed(9)
    inputs = [torch.randn(2, 2, length, 32) for _ in range(3)]
    mask = torch.ones(2, 1, 1, length, dtype=torch.bool)
    mask[1, :, :, length // 2 + 1 :] = False

    def run(dtype: torch.dtype, attend: Any) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        output = attend(*leaves)
        output.double().square().sum().backward()
        return [output.detach().double(), *(leaf.grad.double() for leaf in leaves)]

    def sdpa(*qkv: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*qkv, attn_mask=mask if masked else None).transpose(1, 2)

    def ours(*qkv: Tensor) -> Tensor:
        return quick._attention(nn.Identity(), *qkv, mask if masked else None, dropout=0.0)[0]

    exact, torchs = run(torch.float64, sdpa), run(torch.bfloat16, sdpa)
    with Drawn() as drawn:
        found = run(torch.bfloat16, ours)
    assert drawn.count("scaled_dot_product") == 0
    for mine, theirs, truth in zip(found, torchs, exact, strict=True):
        assert (mine - truth).norm() <= 2 * (theirs - truth).norm() + 2**-9 * truth.norm()


def test_elsewhere_attention_without_dropout_is_sdpas_own() -> None:
    """Long rows, float32, and where nothing is trained."""

    def fused(query: Tensor, *, dropout: float = 0.0) -> bool:
        with Drawn() as drawn:
            quick._attention(nn.Identity(), query, query, query, None, dropout=dropout)
        return drawn.count("scaled_dot_product") > 0

    short, long = torch.randn(1, 2, 8, 32), torch.randn(1, 2, 257, 32)
    assert not fused(short.bfloat16().requires_grad_())
    assert fused(short.bfloat16())
    assert fused(short.clone().requires_grad_())
    assert fused(long.bfloat16().requires_grad_())
    assert not fused(long.bfloat16().requires_grad_(), dropout=0.1)
    with torch.no_grad():
        assert fused(short.bfloat16().requires_grad_())
