"""The loss of a batch, against plain loops over plain Transformers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from tiny_encoders import padded_batch, same_tensors, tiny
from torch import Tensor
from transformers import PreTrainedModel

from bert_emd import UserError
from bert_emd.method import MappingOptions, build_mapping
from bert_emd.training.distiller import Distiller, LossOptions

LABELS = torch.tensor([1, 0, 1])


def quiet(**changes: Any) -> PreTrainedModel:
    """A model without dropout, so that training mode computes what evaluation does."""
    return tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes)


def teacher_of(**changes: Any) -> PreTrainedModel:
    return quiet(**{"layers": 4, "seed": 1, **changes})


def student_of(**changes: Any) -> PreTrainedModel:
    return quiet(**{"layers": 2, "seed": 2, **changes})


def distiller_of(
    student: PreTrainedModel, teacher: PreTrainedModel | None, name: str | None = "emd", *,
    terms: dict[str, bool] | None = None, rule: str = "ratio", joint: bool = True,
    projection: bool = False, share: bool = True, **options: Any,
) -> Distiller:  # fmt: skip
    mapping = None
    if name is not None and teacher is not None:
        mapping = build_mapping(name, MappingOptions(
            num_student=student.config.num_hidden_layers, num_teacher=teacher.config.num_hidden_layers,
            rule=rule, joint=joint, **(terms or {}),
        ))  # fmt: skip
    made = Distiller(student, teacher, mapping, LossOptions(**options), projection=projection, share_projection=share)
    made.train()
    made.attach()
    return made


# The reference: nothing but Transformers' outputs, loops and a linear program.


def seen(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Logits, hidden states (the embeddings first) and each layer's queries and keys [B, H, L, d]."""
    outputs = model(**batch, output_hidden_states=True)
    pairs = []
    for layer, state in zip(model.bert.encoder.layer, outputs.hidden_states, strict=False):
        attention = layer.attention.self
        heads = model.config.num_attention_heads
        parts = [linear(state).chunk(heads, dim=-1) for linear in (attention.query, attention.key)]
        pairs.append((torch.stack(parts[0], 1), torch.stack(parts[1], 1)))
    return outputs.logits, list(outputs.hidden_states), pairs


def hidden_cost(s: Tensor, t: Tensor, kept: Tensor) -> Tensor:
    total, count = torch.zeros(()), 0
    for b in range(len(s)):
        for p in range(s.shape[1]):
            if kept[b, p]:
                total = total + (s[b, p] - t[b, p]).square().sum()
                count += s.shape[2]
    return total / count


def score_matrices(query: Tensor, key: Tensor, b: int, average: bool, zeroed: Tensor | None) -> list[Tensor]:
    scores = [query[b, h] @ key[b, h].T / math.sqrt(query.shape[-1]) for h in range(query.shape[1])]
    if zeroed is not None:
        scores = [matrix * zeroed[b].float()[None, :] for matrix in scores]
    return [sum(scores) / len(scores)] if average else scores  # type: ignore[list-item]


def attention_cost(s: tuple[Tensor, Tensor], t: tuple[Tensor, Tensor], kept: Tensor, zeroed: Tensor | None) -> Tensor:
    average = s[0].shape[1] != t[0].shape[1]
    total, count = torch.zeros(()), 0
    for b in range(len(s[0])):
        for ours, theirs in zip(
            score_matrices(*s, b, average, zeroed), score_matrices(*t, b, average, zeroed), strict=True
        ):
            for p in range(len(ours)):
                for q in range(len(ours)):
                    if kept[b, p] and kept[b, q]:
                        total = total + (ours[p, q] - theirs[p, q]) ** 2
                        count += 1
    return total / count


def plan_of(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    m, n = cost.shape
    rows = [np.kron(np.eye(m)[i], np.ones(n)) for i in range(m)]
    columns = [np.kron(np.ones(m), np.eye(n)[j]) for j in range(n)]
    found = linprog(
        cost.ravel() / cost.max(), A_eq=np.array(rows + columns), b_eq=np.concatenate([a, b]), method="highs"
    )
    return found.x.reshape(m, n)


def ratio_step(cost: np.ndarray, plan: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c_s, c_t = (cost * plan).sum(1) / a, (cost * plan).sum(0) / b
    return (1 / c_s) / (1 / c_s).sum(), (1 / c_t) / (1 / c_t).sum()


class Reference:
    """The earth mover's loss of one batch after another, with its layer weights."""

    def __init__(self, m: int, n: int, terms: tuple[str, ...], joint: bool = True) -> None:
        self.weights = {term: (np.full(m, 1 / m), np.full(n, 1 / n)) for term in terms}
        self.joint = joint

    def __call__(self, costs: dict[str, list[list[Tensor]]]) -> dict[str, Tensor]:
        losses, moved = {}, {}
        for term, cost in costs.items():
            values = np.array([[float(c.detach()) for c in row] for row in cost])
            plan = plan_of(values, *self.weights[term])
            losses[term] = sum(plan[i, j] * c for i, row in enumerate(cost) for j, c in enumerate(row))
            moved[term] = ratio_step(values, plan, *self.weights[term])
        if self.joint and len(moved) == 2:
            mean = tuple((one + two) / 2 for one, two in zip(moved["attention"], moved["hidden"], strict=True))
            moved = dict.fromkeys(moved, mean)
        self.weights |= moved
        return losses


def all_costs(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: dict[str, Tensor], terms: tuple[str, ...],
    project: list[Any] | None = None, count_padding: bool = False,
) -> tuple[dict[str, list[list[Tensor]]], Tensor, Tensor, Tensor]:  # fmt: skip
    """Costs by term, the embedding loss, and both models' logits."""
    logits, states, pairs = seen(student, batch)
    with torch.no_grad():
        teacher_logits, teacher_states, teacher_pairs = seen(teacher, batch)
    if project is not None:
        states = [project[i % len(project)](state) for i, state in enumerate(states)]
    mask = batch["attention_mask"].bool()
    kept = torch.ones_like(mask) if count_padding else mask
    zeroed = mask if count_padding else None
    costs: dict[str, list[list[Tensor]]] = {}
    if "attention" in terms:
        costs["attention"] = [[attention_cost(s, t, kept, zeroed) for t in teacher_pairs] for s in pairs]
    if "hidden" in terms:
        costs["hidden"] = [[hidden_cost(s, t, kept) for t in teacher_states[1:]] for s in states[1:]]
    return costs, hidden_cost(states[0], teacher_states[0], kept), logits, teacher_logits


def soft(logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    total, count = torch.zeros(()), 0
    for z, t in zip(logits, teacher_logits, strict=True):
        p = [math.exp(float(x.detach()) / T) for x in t]
        log_norm = torch.log(sum(torch.exp(x / T) for x in z))  # type: ignore[arg-type]
        for c in range(len(z)):
            total = total - p[c] / sum(p) * (z[c] / T - log_norm)
            count += 1
    return total / count


def hard(logits: Tensor, labels: Tensor) -> Tensor:
    return sum(torch.logsumexp(z, 0) - z[y] for z, y in zip(logits, labels, strict=True)) / len(logits)  # type: ignore[return-value]


def gradients(module: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(
    distiller: Distiller, batch: dict[str, Tensor], expected: Tensor, labels: Tensor | None = LABELS
) -> None:
    """Loss and all gradients. The reference's own graph must be made before, as the weights move with the forward."""
    reference = gradients(distiller, expected)
    loss = distiller(**batch, labels=labels)["loss"]
    actual = gradients(distiller, loss)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert actual.keys() == reference.keys()
    for name, gradient in reference.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-3, atol=2e-5 * float(gradient.abs().max()) + 1e-6)


BOTH = ("attention", "hidden")


@pytest.mark.parametrize(
    "opt",
    [
        {},
        {"alpha": 0.3, "beta": 0.05, "theta": 2.5, "temperature": 3.0},
        {"alpha": 0.0, "beta": 1.5},
        {"beta": 0.0, "temperature": 2.0, "reduce_T": 4.0},
        {"theta": 0.0, "beta": 0.5},
    ],
)
def test_the_total_is_beta_theta_alpha_and_temperature_by_the_formula(opt: dict[str, float]) -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch()
    distiller = distiller_of(student, teacher, **opt)
    reference = Reference(2, 4, BOTH)
    for rows, seed in (((9, 5, 3), 5), ((6, 6, 4), 6)):  # a second batch meets weights that have moved
        batch = padded_batch(rows, seed)
        costs, embedding, logits, teacher_logits = all_costs(student, teacher, batch, BOTH)
        losses = reference(costs)
        alpha, beta, theta = opt.get("alpha", 1.0), opt.get("beta", 1.0), opt.get("theta", 1.0)
        T = opt.get("temperature", 1.0)
        expected = beta * (theta * (losses["attention"] + losses["hidden"]) + embedding)
        expected = expected + alpha * T**2 / opt.get("reduce_T", 1.0) * soft(logits, teacher_logits, T)
        expected = expected + (1 - alpha) * hard(logits, LABELS)
        assert_same(distiller, batch, expected)
    found = distiller.mapping.layer_weights()
    for term in BOTH:
        np.testing.assert_allclose(found[f"{term}_student"], reference.weights[term][0], rtol=1e-4)
        np.testing.assert_allclose(found[f"{term}_teacher"], reference.weights[term][1], rtol=1e-4)
    assert max(found["hidden_teacher"]) - min(found["hidden_teacher"]) > 1e-3


def test_separate_weights_move_apart() -> None:
    student, teacher = student_of(), teacher_of()
    distiller, reference = distiller_of(student, teacher, joint=False), Reference(2, 4, BOTH, joint=False)
    for seed in (5, 6):
        batch = padded_batch(seed=seed)
        costs, embedding, logits, teacher_logits = all_costs(student, teacher, batch, BOTH)
        losses = reference(costs)
        assert_same(
            distiller, batch, losses["attention"] + losses["hidden"] + embedding + soft(logits, teacher_logits, 1)
        )
    found = distiller.mapping.layer_weights()
    np.testing.assert_allclose(found["attention_teacher"], reference.weights["attention"][1], rtol=1e-4)
    np.testing.assert_allclose(found["hidden_teacher"], reference.weights["hidden"][1], rtol=1e-4)
    assert not np.allclose(found["attention_teacher"], found["hidden_teacher"], rtol=1e-3)


def test_one_step_false_is_the_intermediate_losses_without_beta_and_theta() -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch()
    distiller = distiller_of(student, teacher, one_step=False, beta=0.01, theta=7.0, alpha=0.5)
    costs, embedding, _, _ = all_costs(student, teacher, batch, BOTH)
    losses = Reference(2, 4, BOTH)(costs)
    assert_same(distiller, batch, losses["attention"] + losses["hidden"] + embedding, labels=None)


@pytest.mark.parametrize("switched_off", ["attention", "hidden", "embedding"])
def test_each_term_can_be_switched_off(switched_off: str) -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch()
    distiller = distiller_of(student, teacher, terms={switched_off: False})
    terms = tuple(term for term in BOTH if term != switched_off)
    costs, embedding, logits, teacher_logits = all_costs(student, teacher, batch, terms)
    expected = sum(Reference(2, 4, terms)(costs).values()) + soft(logits, teacher_logits, 1)
    assert_same(distiller, batch, expected if switched_off == "embedding" else expected + embedding, labels=None)


@pytest.mark.parametrize("published", [True, False])
def test_without_a_mapping_the_prediction_loss_is_left(published: bool) -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch()
    distiller = distiller_of(student, teacher, None, alpha=0.7, temperature=2.0, published=published)
    logits, teacher_logits = seen(student, batch)[0], seen(teacher, batch)[0].detach()
    expected = 0.7 * 4 * soft(logits, teacher_logits, 2.0) + 0.3 * hard(logits, LABELS)
    assert_same(distiller, batch, expected if published else 4 / 2 * soft(logits, teacher_logits, 2.0))
    assert distiller.projection is None


def test_without_a_teacher_the_labels_are_left() -> None:
    student, batch = student_of(), padded_batch()
    assert_same(distiller_of(student, None), batch, hard(seen(student, batch)[0], LABELS))


def test_a_number_is_learnt_by_squared_errors() -> None:
    student, teacher, batch = student_of(labels=None), teacher_of(labels=None), padded_batch()
    scores = torch.tensor([0.5, 3.0, 4.2])
    logits, teacher_logits = seen(student, batch)[0], seen(teacher, batch)[0].detach()
    to_teacher = sum((z - t) ** 2 for z, t in zip(logits[:, 0], teacher_logits[:, 0], strict=True)) / 3
    to_labels = sum((z - y) ** 2 for z, y in zip(logits[:, 0], scores, strict=True)) / 3
    distiller = distiller_of(student, teacher, None, alpha=0.25, temperature=5.0)
    assert_same(distiller, batch, 0.25 * to_teacher + 0.75 * to_labels, labels=scores)


def test_uniform_sums_the_pairs_of_tinybert() -> None:
    """With 3 of 4 layers: student 1, 2, 3 from teacher 2, 3, 4."""
    student, teacher, batch = student_of(layers=3), teacher_of(), padded_batch()
    costs, embedding, logits, teacher_logits = all_costs(student, teacher, batch, BOTH)
    pairs = [(0, 1), (1, 2), (2, 3)]
    expected = sum(costs[term][i][j] for term in BOTH for i, j in pairs) * 0.5 + 0.5 * embedding
    expected = expected + soft(logits, teacher_logits, 1)
    assert_same(distiller_of(student, teacher, "uniform", beta=0.5), batch, expected, labels=None)


def test_pkd_compares_normalised_first_states_of_all_but_the_last_layer() -> None:
    student, teacher, batch = student_of(layers=3), teacher_of(), padded_batch()
    logits, states, _ = seen(student, batch)
    teacher_logits, teacher_states, _ = (x for x in seen(teacher, batch))
    total = torch.zeros(())
    for i, j in ((1, 2), (2, 3)):
        for b in range(3):
            s, t = states[i][b, 0], teacher_states[j][b, 0].detach()
            total = total + (s / s.norm() - t / t.norm()).square().sum() / 3 / 2
    expected = 0.3 * total + soft(logits, teacher_logits.detach(), 1)
    assert_same(distiller_of(student, teacher, "pkd", beta=0.3), batch, expected, labels=None)


def test_padding_counts_when_asked_and_its_keys_score_zero() -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch()
    results = {}
    for count_padding in (True, False):
        costs, embedding, logits, teacher_logits = all_costs(student, teacher, batch, BOTH, count_padding=count_padding)
        losses = Reference(2, 4, BOTH)(costs)
        expected = losses["attention"] + losses["hidden"] + embedding + soft(logits, teacher_logits, 1)
        results[count_padding] = float(expected.detach())
        distiller = distiller_of(student, teacher, count_padding=count_padding)
        assert_same(distiller, batch, expected, labels=None)
        distiller.detach()
    assert abs(results[True] - results[False]) > 0.01


def test_a_batch_without_a_mask_keeps_every_position() -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch((6, 6, 6))
    distiller = distiller_of(student, teacher, rule="fixed")
    one = distiller(**batch)["loss"]
    assert float(distiller(input_ids=batch["input_ids"])["loss"].detach()) == pytest.approx(
        float(one.detach()), rel=1e-6
    )


@pytest.mark.parametrize("share", [True, False], ids=["one projection", "one a layer"])
def test_a_narrower_student_is_projected_and_the_projection_learns(share: bool) -> None:
    student, teacher, batch = student_of(width=12, heads=3), teacher_of(), padded_batch()
    distiller = distiller_of(student, teacher, share=share)
    assert len(distiller.projection) == (1 if share else 3)
    project = list(distiller.projection)
    assert {(p.in_features, p.out_features) for p in project} == {(12, 16)}
    costs, embedding, logits, teacher_logits = all_costs(student, teacher, batch, BOTH, project)
    losses = Reference(2, 4, BOTH)(costs)
    expected = losses["attention"] + losses["hidden"] + embedding + soft(logits, teacher_logits, 1)
    assert_same(distiller, batch, expected, labels=None)
    for p in project:
        assert p.weight.grad.abs().sum() > 0
        assert p.bias.grad.abs().sum() > 0


def test_a_projection_asked_for_between_equal_widths_starts_as_doing_nothing() -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch()
    without = distiller_of(student, teacher)
    expected = without(**batch)["loss"]
    without.detach()
    with_it = distiller_of(student, teacher, projection=True)
    loss = with_it(**batch)["loss"]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    loss.backward()
    assert with_it.projection[0].weight.grad.abs().sum() > 0
    assert without.projection is None


def test_no_projection_where_no_states_are_compared() -> None:
    student, teacher = student_of(width=12, heads=3), teacher_of()
    assert distiller_of(student, teacher, terms={"hidden": False, "embedding": False}).projection is None


def test_the_teacher_is_no_part_of_the_module_and_never_trained() -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch()
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distiller = distiller_of(student, teacher)
    distiller.train()
    distiller(**batch)["loss"].backward()
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert same_tensors(teacher.state_dict(), before)
    own = {id(parameter) for parameter in distiller.parameters()}
    assert own == {id(parameter) for parameter in student.parameters()}
    assert not [name for name in distiller.state_dict() if not name.startswith(("student.", "mapping."))]


def test_evaluation_is_the_student_alone() -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch()
    distiller = distiller_of(student, teacher).eval()
    calls: list[int] = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    weights = distiller.mapping.layer_weights()
    outputs = distiller(**batch, labels=LABELS)
    assert torch.equal(outputs["logits"], student(**batch).logits)
    assert float(outputs["loss"].detach()) == pytest.approx(float(hard(outputs["logits"], LABELS).detach()), rel=1e-6)
    assert "loss" not in distiller(**batch)
    assert calls == []
    assert distiller.mapping.layer_weights() == weights


def test_the_logged_means_are_those_of_the_terms() -> None:
    student, teacher = student_of(), teacher_of()
    distiller = distiller_of(student, teacher, rule="fixed", beta=0.1)
    sums: dict[str, float] = {}
    for seed in (5, 6):
        batch = padded_batch(seed=seed)
        costs, embedding, logits, teacher_logits = all_costs(student, teacher, batch, BOTH)
        losses = Reference(2, 4, BOTH)(costs) | {"embedding": embedding, "prediction": soft(logits, teacher_logits, 1)}
        sums = {name: sums.get(name, 0.0) + float(value.detach()) for name, value in losses.items()}
        distiller(**batch)
    means = distiller.pop_means()
    assert means == {name: pytest.approx(total / 2, rel=1e-5) for name, total in sums.items()}
    assert distiller.pop_means() == {}


def test_costs_that_are_no_longer_finite_are_told_in_one_line() -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch()
    distiller = distiller_of(student, teacher)
    with torch.no_grad():
        student.bert.encoder.layer[0].output.dense.weight.fill_(math.nan)
    with pytest.raises(UserError, match="training diverged; lower --learning_rate"):
        distiller(**batch)


def test_checkpointing_gives_the_same_loss_and_gradients_and_refuses_the_old_form() -> None:
    student, teacher, batch = student_of(), teacher_of(), padded_batch()
    plain = distiller_of(student, teacher)
    loss = plain(**batch)["loss"]
    expected = gradients(plain, loss)
    plain.detach()
    saving = distiller_of(student, teacher)
    with pytest.raises(UserError, match="use_reentrant"):
        saving.activation_checkpointing_enable({"use_reentrant": True})
    saving.activation_checkpointing_enable()
    assert student.is_activation_checkpointing
    again = saving(**batch)["loss"]
    actual = gradients(saving, again)
    assert float(again.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-5, atol=1e-6 * float(1 + gradient.abs().max()))


def test_a_student_that_cannot_recompute_its_blocks_is_told_in_one_line() -> None:
    distiller = distiller_of(tiny("albert", layers=2), tiny("albert", layers=2, seed=5))
    with pytest.raises(UserError, match="albert model cannot recompute its blocks"):
        distiller.activation_checkpointing_enable()
