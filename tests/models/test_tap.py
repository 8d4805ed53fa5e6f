"""The tap: what it captures is what the model uses, and the model does not notice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import ARCHITECTURES, padded_batch, tiny
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_emd.method import Needs
from bert_emd.models import Tap
from bert_emd.models.tap import HOOKED

THROUGH_INTERFACE = [kind for kind in ARCHITECTURES if kind not in HOOKED]
ALL = Needs(embedding=True, hidden=True, attention=True, values=True)


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The transformer blocks in the order in which they run, found by the class that has an attention inside."""
    kind = model.config.model_type
    base = model.base_model
    if kind == "albert":
        return [base.encoder.albert_layer_groups[0].albert_layers[0]] * model.config.num_hidden_layers
    if kind == "distilbert":
        return list(base.transformer.layer)
    if kind == "modernbert":
        return list(base.layers)
    return list(base.encoder.layer)


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    """All that tapping could leave behind: the attributes and hooks of every module, and the implementation."""
    found: dict[str, Any] = {"implementation": model.config._attn_implementation}
    for name, module in model.named_modules():
        found[name] = sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks)
    return found


@pytest.mark.parametrize("rows", [(9, 5, 3), (6, 6)], ids=["padded", "unpadded"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_tapped_logits_and_states_equal_untapped_ones_bit_for_bit(kind: str, rows: tuple[int, ...]) -> None:
    model, batch = tiny(kind), padded_batch(rows)
    plain = model(**batch, output_hidden_states=True)
    with Tap(model, ALL) as tap:
        outputs, features = tap(**batch)
        again, _ = tap(**batch)
    assert torch.equal(outputs.logits, plain.logits)
    assert torch.equal(again.logits, plain.logits)
    assert features.embedding is not None
    assert torch.equal(features.embedding, plain.hidden_states[0])
    assert len(features.hidden) == len(features.attention) == len(features.values) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(features.hidden, plain.hidden_states[1:], strict=True))
    assert plain.logits.std() > 1e-3  # different rows differ, so equality says something


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_padding_changes_no_logits_while_tapped(kind: str) -> None:
    """A lost mask would pass the comparison above if the plain model had lost it too."""
    model, batch = tiny(kind), padded_batch((9, 5))
    short = {name: tensor[1:, :5] for name, tensor in batch.items()}
    with Tap(model, Needs(attention=True)) as tap:
        padded = tap(**batch)[0].logits[1]
        alone = tap(**short)[0].logits[0]
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_states_are_the_outputs_of_the_embeddings_and_of_the_blocks(kind: str) -> None:
    model, batch = tiny(kind), padded_batch()
    entered: list[Tensor] = []
    left: list[Tensor] = []

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        left.append(output if isinstance(output, Tensor) else output[0])

    handles = []
    for block in dict.fromkeys(blocks(model)):
        handles += [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
    with Tap(model, ALL) as tap:
        _, features = tap(**batch)
    for handle in handles:
        handle.remove()
    assert features.embedding is not None
    assert torch.equal(features.embedding, entered[0])
    if kind == "modernbert":  # a last norm stands after the blocks; Transformers reports the state behind it
        left[-1] = model.base_model.final_norm(left[-1])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(features.hidden, left, strict=True))


@pytest.mark.parametrize("kind", THROUGH_INTERFACE)
def test_captured_queries_and_keys_give_the_eager_attention(kind: str) -> None:
    model, batch = tiny(kind), padded_batch()
    with Tap(model, Needs(attention=True)) as tap:
        _, features = tap(**batch)
    model.set_attn_implementation("eager")
    expected = model(**batch, output_attentions=True).attentions
    kept = batch["attention_mask"].bool()
    assert len(expected) == len(features.attention) == 3
    for layer, ((query, key), weights) in enumerate(zip(features.attention, expected, strict=True)):
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(~kept[:, None, None, :], -math.inf)
        if kind == "modernbert" and model.config.layer_types[layer] == "sliding_attention":
            positions = torch.arange(scores.shape[-1])
            outside = (positions[:, None] - positions[None, :]).abs() > model.config.local_attention // 2
            scores = scores.masked_fill(outside, -math.inf)
        rows = kept[:, None, :, None]  # what a padded query attends to is never used, and may be nothing at all
        torch.testing.assert_close((scores.softmax(-1) * rows).nan_to_num(), weights * rows, rtol=0, atol=1e-6)
        assert (weights * rows).std() > 1e-3


@pytest.mark.parametrize("kind", sorted(HOOKED))
def test_hooked_models_give_their_own_projections_of_every_block(kind: str) -> None:
    """Q, K and V of MPNet and DeBERTa, recomputed from each block's input; on a second batch as well."""
    model = tiny(kind)
    names = HOOKED[kind]
    for batch in (padded_batch(), padded_batch((7, 4), seed=8)):
        if "tap" not in locals():
            tap = Tap(model, ALL).attach()
        _, features = tap(**batch)
        inputs = [features.embedding, *features.hidden[:-1]]
        for state, block, (query, key), value in zip(
            inputs, blocks(model), features.attention, features.values, strict=True
        ):
            attention = next(m for m in block.modules() if hasattr(m, names[0]))
            for captured, name in zip((query, key, value), names, strict=True):
                flat = getattr(attention, name)(state)
                batch_size, length, width = flat.shape
                by_hand = torch.stack([flat[..., h * 8 : (h + 1) * 8] for h in range(width // 8)], dim=1)
                assert captured.shape == (batch_size, 2, length, 8)
                torch.testing.assert_close(captured, by_hand, rtol=0, atol=1e-6)
    assert tap.note is not None
    assert kind in tap.note
    tap.detach()


def test_models_of_the_interface_need_no_note() -> None:
    assert Tap(tiny("bert"), ALL).note is None


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_detaching_leaves_the_model_as_it_was(kind: str, tmp_path: Path) -> None:
    model, batch = tiny(kind), padded_batch()
    model(**batch, output_hidden_states=True)  # Transformers keeps hooks of its own from the first such call on
    before = snapshot(model)
    model.save_pretrained(tmp_path / "before")
    tap = Tap(model, ALL).attach()
    tap(**batch)
    model.save_pretrained(tmp_path / "while_tapped")
    tap.detach()
    tap.detach()  # doing it twice does no harm
    model.save_pretrained(tmp_path / "after")
    assert snapshot(model) == before
    texts = [(tmp_path / name / "config.json").read_text() for name in ("before", "while_tapped", "after")]
    assert texts[0] == texts[1] == texts[2]
    assert "bert_emd" not in texts[0]


def test_the_model_is_restored_after_an_error_too() -> None:
    model = tiny("bert")
    model(**padded_batch(), output_hidden_states=True)
    before = snapshot(model)
    with pytest.raises(IndexError), Tap(model, ALL) as tap:
        tap(input_ids=torch.tensor([[10**6]]))
    assert snapshot(model) == before
    assert tap._captured == []


def test_nothing_is_captured_outside_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("bert"), padded_batch()
    seen: list[int] = []
    original = Tap._record
    monkeypatch.setattr(Tap, "_record", lambda self, q, k, v: (seen.append(1), original(self, q, k, v))[1])
    with Tap(model, Needs(attention=True)) as tap:
        model(**batch)
        assert seen == []
        tap(**batch)
        assert len(seen) == 3
        model(**batch)
    model(**batch)
    assert len(seen) == 3
    assert tap._captured == []


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_no_attention_output_is_asked_for_and_the_kernel_stays(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny("bert"), padded_batch()
    model.set_attn_implementation(implementation)
    asked: list[Any] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    calls: list[int] = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), kernel(*a, **k))[1]
    )
    with Tap(model, Needs(attention=True)) as tap:
        outputs, _ = tap(**batch)
    assert outputs.attentions is None
    assert all(not kwargs.get("output_attentions") for kwargs in asked)
    assert len(calls) == (3 if implementation == "sdpa" else 0)
    model.set_attn_implementation(implementation)
    assert torch.equal(model(**batch).logits, outputs.logits)


def test_only_what_is_needed_is_supplied() -> None:
    model, batch = tiny("bert"), padded_batch()
    before = snapshot(model)
    with Tap(model, Needs(hidden=True)) as tap:
        assert snapshot(model) == before  # hidden states need no tap at all
        outputs, features = tap(**batch)
    assert features.attention == features.values == []
    assert features.embedding is None
    assert len(features.hidden) == 3
    with Tap(model, Needs(attention=True)) as tap:
        outputs, features = tap(**batch)
    assert outputs.hidden_states is None
    assert features.hidden == features.values == []
    assert len(features.attention) == 3


def test_a_scale_of_the_models_own_goes_into_the_query() -> None:
    """With `scaling` s the model attends by s·Q Kᵀ, and that is what Q Kᵀ/√d of the captured tensors must be."""
    model, batch = tiny("bert"), padded_batch((6, 6))
    raw: list[tuple[Tensor, Tensor]] = []
    for layer in model.base_model.encoder.layer:
        attention = layer.attention.self
        attention.scaling = 0.123
        attention.query.register_forward_hook(lambda _, __, out: raw.append((out.detach(), out.detach())))
        attention.key.register_forward_hook(lambda _, __, out: raw.append((raw.pop()[0], out.detach())))
    plain = model(**batch).logits
    raw.clear()
    with Tap(model, Needs(attention=True)) as tap:
        outputs, features = tap(**batch)
    assert torch.equal(outputs.logits, plain)
    for (query, key), (flat_query, flat_key) in zip(features.attention, raw, strict=True):
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            expected = 0.123 * flat_query[..., part] @ flat_key[..., part].transpose(1, 2)
            actual = query[:, head] @ key[:, head].transpose(1, 2) / math.sqrt(8)
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def loss_and_gradients(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Any]:
    """A loss on everything that is captured, and its gradients."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.zero_grad()
    with Tap(model, ALL) as tap:
        outputs, features = tap(**batch)
        loss = outputs.logits.square().sum()
        for (query, key), value, state in zip(features.attention, features.values, features.hidden, strict=True):
            loss = loss + (query @ key.transpose(-1, -2)).square().mean() + value.square().mean() + state[..., 0].mean()
        loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, features


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in ("albert", "mpnet")])  # not supported
def test_checkpointing_gives_the_same_loss_and_gradients(kind: str) -> None:
    batch = padded_batch()
    model = tiny(kind)
    plain_loss, plain, _ = loss_and_gradients(model, batch)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_activation_checkpointing
    loss, gradients, features = loss_and_gradients(model, batch)
    assert len(features.attention) == 3
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max() + 1))


@pytest.mark.parametrize("kind", ["bert", "modernbert", "mpnet", "deberta-v2"])
def test_gradients_flow_through_captured_queries_and_keys(kind: str) -> None:
    """The directional derivative of a loss on Q and K of the last block alone, against a finite difference."""
    model, batch = tiny(kind), padded_batch((6, 6))  # no padding: torch leaves the gradient of its embedding out
    model = model.double()
    direction: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        direction[name] = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        query, key = tap(**batch)[1].attention[-1]
        return (query @ key.transpose(-1, -2)).square().mean()

    with Tap(model, Needs(attention=True)) as tap:
        names = list(direction)
        found = torch.autograd.grad(loss(), list(model.parameters()), allow_unused=True)
        slope = sum(float((g * direction[n]).sum()) for n, g in zip(names, found, strict=True) if g is not None)
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.add_(direction[name], alpha=step)
                values.append(float(loss()))
    # Some models rotate or scale in float32 whatever their own precision, which limits what a difference can show.
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=2e-3)
    assert abs(slope) > 1e-6


def test_an_architecture_that_hides_its_attention_is_refused_in_one_line() -> None:
    from transformers import FNetConfig, FNetForSequenceClassification

    model = FNetForSequenceClassification(
        FNetConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, intermediate_size=32, max_position_embeddings=40)
    ).eval()
    with pytest.raises(ValueError, match=r"fnet.*cannot be tapped.*--use_att false") as error:  # noqa: SIM117
        with Tap(model, Needs(attention=True)) as tap:
            tap(input_ids=torch.tensor([[2, 7, 3]]))
    assert "\n" not in str(error.value)


def test_config_of_a_tapped_model_saved_to_disk_has_no_name_of_ours(tmp_path: Path) -> None:
    model = tiny("modernbert")
    with Tap(model, Needs(attention=True)):
        model.config.save_pretrained(tmp_path)
    assert not [
        key for key, value in json.loads((tmp_path / "config.json").read_text()).items() if "emd" in f"{key}{value}"
    ]
