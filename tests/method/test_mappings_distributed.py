"""Two processes with unequal numbers of kept tokens do what one process does with the whole batch."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bert_emd.method import Features, MappingOptions, build_mapping

M, N, WIDTH, HEADS = 2, 4, 8, 2
# Tokens of the five texts; the first three go to the first process. Where each process has texts of one length, it
# needs no mask of its own.
LENGTHS = {True: [9, 7, 8, 2, 3], False: [9, 9, 9, 4, 4]}
SHARES = [slice(0, 3), slice(3, 5)]
STEPS = 3

# What runs, by name: a mapping, its options, whether the two processes have masks.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "emd": ("emd", {}, True),
    "emd-double-softmax-separate": ("emd", {"rule": "double-softmax", "joint": False}, True),
    "emd-no-mask": ("emd", {}, False),
    "emd-hidden": ("emd", {"attention": False, "embedding": False}, True),
    "emd-embedding": ("emd", {"attention": False, "hidden": False}, True),
    "uniform": ("uniform", {}, True),
    "uniform-no-mask": ("uniform", {}, False),
    "pkd": ("pkd", {}, True),
    "emd-relative": ("emd", {"cost_scale": "relative"}, True),
    "all-to-one-relative": ("all-to-one", {"cost_scale": "relative"}, True),
    "random-relative-no-mask": ("random", {"cost_scale": "relative"}, False),
    "last-cls": ("last", {"state_loss": "cls"}, True),
    "manual": ("manual", {"layer_map": "1:2,2:4,2:1"}, True),
    "minilm": ("minilm", {}, True),
    "minilm-no-mask": ("minilm", {}, False),
}


class Student(nn.Module):
    """One small linear layer a tensor, and the mapping beside them, as in training."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        super().__init__()
        self.mapping = build_mapping(name, MappingOptions(num_student=M, num_teacher=N, **settings))
        needs = self.mapping.needs
        layers = self.mapping.student_needs.layers
        keys = ["embedding"] * needs.embedding + ["query", "key"] * needs.attention + ["value"] * needs.values
        keys += [f"hidden{i}" for i in (range(M) if layers is None else layers)] * needs.hidden
        generator = torch.Generator().manual_seed(1)
        self.weights = nn.ParameterDict(
            {k: nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / WIDTH) for k in keys}
        )
        self.record: dict[str, Any] = {}

    def forward(self, inputs: Tensor, teacher: Features, mask: Tensor | None) -> Tensor:
        def applied(key: str) -> Tensor:
            return inputs @ self.weights[key] if key in self.weights else inputs

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        student = Features(
            embedding=applied("embedding"),
            hidden=[applied(f"hidden{i}") for i in range(M)],
            attention=[(split((i + 1) * applied("query")), split(applied("key"))) for i in range(M)],
            values=[split(applied("value")) for _ in range(M)],
        )
        loss = self.mapping(student, teacher, mask)
        self.record = loss.record
        return torch.stack(
            [t for t in (loss.attention, loss.hidden, loss.relation, loss.embedding) if t is not None]
        ).sum()


def batch(step: int, texts: slice, masked: bool) -> tuple[Tensor, Features, Tensor | None]:
    """These texts of the step's batch, padded to their own longest."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.tensor(LENGTHS[masked])
    longest, own = int(lengths.max()), int(lengths[texts].max())

    def draw() -> Tensor:
        return torch.randn(len(lengths), longest, WIDTH, generator=generator, dtype=torch.float64)

    layers = [(1 + j / 2) * draw()[texts, :own] for j in range(N + 2)]
    inputs, embedding, hidden = layers[0], layers[1], layers[2:]
    heads = [layer.unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in hidden]
    teacher = Features(
        embedding=embedding,
        hidden=hidden,
        attention=[(heads[j], heads[(j + 1) % N]) for j in range(N)],
        values=[heads[(j + 2) % N] for j in range(N)],
    )
    mask = torch.arange(own) < lengths[texts][:, None]
    return inputs, teacher, None if mask.all() else mask


def train(case: str, texts: slice, parallel: bool) -> list[dict[str, Any]]:
    """Gradients, plans, costs and layer weights of some steps; the parameters stay as they are."""
    name, settings, masked = CASES[case]
    student = Student(name, settings).train()
    model: nn.Module = DistributedDataParallel(student) if parallel else student
    steps = []
    for step in range(STEPS):
        student.zero_grad()
        loss = model(*batch(step, texts, masked))
        loss.backward()
        steps.append(
            {
                "loss": loss.detach(),
                "gradients": {key: weight.grad.clone() for key, weight in student.weights.items()},
                "record": {
                    f"{term}_{what}": torch.as_tensor(value)
                    for term, entry in student.record.items()
                    for what, value in entry.items()
                },
                "layer_weights": {
                    key: torch.tensor(value, dtype=torch.float64)
                    for key, value in student.mapping.layer_weights().items()
                },
            }
        )
    return steps


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(SHARES))
    results = {case: train(case, SHARES[rank], parallel=True) for case in CASES}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes computed."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":  # a machine without a network still has its loopback
            patch.setenv("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
        mp.spawn(worker, args=(str(folder),), nprocs=len(SHARES))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(SHARES))]


@pytest.mark.parametrize("case", CASES)
def test_both_processes_have_the_same_plans_and_weights(results: list[dict[str, Any]], case: str) -> None:
    first, second = (result[case] for result in results)
    for ours, theirs in zip(first, second, strict=True):
        for what in ("record", "layer_weights", "gradients"):
            assert ours[what].keys() == theirs[what].keys()
            for key in ours[what]:
                torch.testing.assert_close(ours[what][key], theirs[what][key], rtol=0, atol=0, equal_nan=True)
        assert ours["loss"] != theirs["loss"]  # they did see different texts


@pytest.mark.parametrize("case", CASES)
def test_together_they_equal_one_process_with_the_whole_batch(results: list[dict[str, Any]], case: str) -> None:
    whole = train(case, slice(None), parallel=False)
    for step, expected in enumerate(whole):
        ours = [result[case][step] for result in results]
        mean = (ours[0]["loss"] + ours[1]["loss"]) / 2
        torch.testing.assert_close(mean, expected["loss"], rtol=1e-6, atol=0)
        for what in ("gradients", "record", "layer_weights"):
            assert expected[what].keys() == ours[0][what].keys()
            for key, value in expected[what].items():
                tolerance = 1e-5 * value.nan_to_num().abs().max().item()
                torch.testing.assert_close(ours[0][what][key], value, rtol=0, atol=tolerance, equal_nan=True)
        assert expected["gradients"]
        assert all(gradient.abs().max() > 0 for gradient in expected["gradients"].values())


def test_the_weights_did_move(results: list[dict[str, Any]]) -> None:
    weights = results[0]["emd"][-1]["layer_weights"]
    assert set(weights) == {"attention_student", "attention_teacher", "hidden_student", "hidden_teacher"}
    assert all(value.max() > value.min() + 1e-3 for value in weights.values())
