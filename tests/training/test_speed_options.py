"""What makes a run fast: its flags do what they say, and the results stay the same."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import model_state, quick_distill, quick_finetune, read
from tiny_encoders import padded_batch, tiny

from bert_emd import DistillConfig, FinetuneConfig, UserError, distill, finetune
from bert_emd.method import Needs
from bert_emd.method.transfer import HostCopy
from bert_emd.models import Tap
from bert_emd.training import host
from bert_emd.training.arguments import training_arguments
from bert_emd.training.config import RunConfig
from bert_emd.training.resolve import resolve


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to have a processor with the given capabilities."""

    def pretend(**capabilities: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return pretend


class TestBf16:
    def test_is_the_default_where_the_machine_has_it(self, machine: Any) -> None:
        machine(avx512_bf16=True)
        assert DistillConfig().bf16 is True
        assert FinetuneConfig(fp16=True).bf16 is False
        machine(avx2=True, avx512_bf16=False)
        assert DistillConfig().bf16 is False
        assert DistillConfig(bf16=True).bf16 is True

    @pytest.mark.parametrize("flags", [{"no_bf16": "false"}, {"bf16": "false"}])
    def test_can_be_stopped(self, machine: Any, flags: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        from bert_emd.cli.options import OptionParser, add_config_arguments

        machine(avx512_bf16=True)
        parser = OptionParser("bert-emd distill", "")
        add_config_arguments(parser, DistillConfig)
        words = ["--no-bf16"] if "no_bf16" in flags else ["--bf16", "false"]
        given = vars(parser.parse(words))
        assert given == {"bf16": "false"}
        assert resolve(DistillConfig, flags=given).config.bf16 is False

    def test_every_switch_has_its_opposite(self) -> None:
        from bert_emd.cli.options import OptionParser, add_config_arguments

        parser = OptionParser("bert-emd distill", "")
        add_config_arguments(parser, DistillConfig)
        assert vars(parser.parse(["--no-use-att", "--no_group_by_length"])) == {
            "use_att": "false", "group_by_length": "false",
        }  # fmt: skip

    def test_reaches_the_engine(self, machine: Any, tmp_path: Path) -> None:
        machine(avx512_bf16=True)
        for config in (RunConfig(no_cuda=True), RunConfig(no_cuda=True, bf16=False)):
            assert training_arguments(config, tmp_path, main_metric="accuracy").bf16 is config.bf16

    def test_what_is_reported_is_float32_all_the_same(
        self, teacher: str, files: dict[str, str], tmp_path: Path
    ) -> None:
        """The saved weights are float32, and the report is the same as a float32 pass over them."""
        from bert_emd.training.evaluation import Evaluator

        seen: list[torch.dtype] = []
        original = Evaluator.logits

        def spied(self: Evaluator, model: Any, *args: Any, **kwargs: Any) -> Any:
            found = original(self, model, *args, **kwargs)
            seen.append(model(**padded_batch()).logits.dtype)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Evaluator, "logits", spied)
            distill(teacher, None, config=quick_distill(tmp_path / "out", **files, bf16=True))
        assert set(seen) == {torch.float32}
        assert {t.dtype for t in model_state(tmp_path / "out").values()} == {torch.float32}
        assert read(tmp_path / "out" / "run.json")["config"]["bf16"] is True


def without_dropout(teacher: str, folder: Path) -> str:
    """The same teacher; a compiled model draws what it drops by itself, and so other values than a plain one."""
    shutil.copytree(teacher, folder)
    settings = read(folder / "config.json")
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


class TestCompilation:
    @pytest.fixture(autouse=True)
    def _without_a_c_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Everything of torch.compile but the machine code, which takes minutes."""
        torch._dynamo.reset()
        original = torch.compile
        monkeypatch.setattr(torch, "compile", functools.partial(original, backend="eager"))
        monkeypatch.setattr(
            torch.nn.Module, "compile", lambda module, **options: setattr(
                module, "_compiled_call_impl", original(module._call_impl, backend="eager", **options)
            ),
        )  # fmt: skip

    @pytest.mark.parametrize("kind", ["bert", "mpnet"])
    def test_a_compiled_model_is_tapped_like_a_plain_one(self, kind: str) -> None:
        model, needs = tiny(kind), Needs(embedding=True, hidden=True, attention=True)
        plain, compiled = Tap(model, needs), Tap(model, needs)
        compiled.compile()
        for rows in ((9, 5, 3), (9, 5, 3), (12, 4, 4)):
            batch = padded_batch(rows)
            with plain:
                truth, expected = plain(**batch)
            with compiled:
                found, features = compiled(**batch)
            torch.testing.assert_close(found.logits, truth.logits)
            assert len(features.attention) == len(expected.attention) == 3
            for pairs in zip(features.attention, expected.attention, strict=True):
                for ours, theirs in zip(*pairs, strict=True):
                    torch.testing.assert_close(ours, theirs)
            for ours, theirs in zip(features.hidden, expected.hidden, strict=True):
                torch.testing.assert_close(ours, theirs)

    def test_the_layers_are_one_graph(self) -> None:
        """A break in every layer would leave nothing of the gain."""
        torch._dynamo.utils.counters.clear()
        tap = Tap(tiny("bert"), Needs(hidden=True, attention=True))
        tap.compile()
        with tap:
            tap(**padded_batch())
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
            tap(**padded_batch())
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]

    def test_a_run_ends_where_a_plain_one_does(self, teacher: str, files: dict[str, str], tmp_path: Path) -> None:
        teacher = without_dropout(teacher, tmp_path / "teacher")
        options = {**files, "bf16": False, "num_train_epochs": 1.0, "learning_rate": 1e-3}
        plain = distill(teacher, None, config=quick_distill(tmp_path / "plain", **options))
        run = distill(teacher, None, config=quick_distill(tmp_path / "compiled", **options, torch_compile=True))
        for ours, truth in zip(run.mapping, plain.mapping, strict=True):
            np.testing.assert_allclose(ours["hidden"]["cost"], truth["hidden"]["cost"], rtol=1e-3, atol=1e-5)
        state = model_state(tmp_path / "compiled" / "last")
        for name, tensor in model_state(tmp_path / "plain" / "last").items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=2e-3)

    def test_fine_tuning_too(self, teacher: str, files: dict[str, str], tmp_path: Path) -> None:
        finetune(teacher, None, config=quick_finetune(tmp_path / "out", **files, torch_compile=True, max_steps=2))
        assert read(tmp_path / "out" / "metrics.json")["last_step"] == 2

    def test_its_details_are_refused_with_the_reason(self) -> None:
        with pytest.raises(UserError, match="torch_compile_mode is not available: torch_compile uses"):
            resolve(DistillConfig, flags={"torch_compile_mode": "max-autotune"})


@pytest.mark.slow
def test_machine_code_too(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    teacher = without_dropout(teacher, tmp_path / "teacher")
    options = {**files, "bf16": False, "max_steps": 3}
    plain = distill(teacher, None, config=quick_distill(tmp_path / "plain", **options))
    run = distill(teacher, None, config=quick_distill(tmp_path / "compiled", **options, torch_compile=True))
    np.testing.assert_allclose(run.mapping[-1]["hidden"]["cost"], plain.mapping[-1]["hidden"]["cost"], rtol=1e-3)


def test_evaluation_takes_rows_by_length(teacher: str, files: dict[str, str], tmp_path: Path) -> None:
    from bert_emd.training import distill as module

    seen: list[list[int]] = []
    original = module.DistillTrainer

    class Spy(original):  # type: ignore[misc, valid-type]
        def __init__(self, **kwargs: Any) -> None:
            seen.append(list(kwargs["eval_dataset"]["length"]))
            super().__init__(**kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DistillTrainer", Spy)
        distill(teacher, None, config=quick_distill(tmp_path / "out", **files, max_steps=1))
    assert seen[0] == sorted(seen[0])
    assert len(set(seen[0])) > 1


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(name: int, value: int) -> int:
            asked.append((name, value))
            return 1

    monkeypatch.setattr(host.ctypes, "CDLL", lambda _: Library())
    assert host.keep_freed_memory()
    assert {name for name, _ in asked} == {-1, -2, -3}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    monkeypatch.setattr(host.ctypes, "CDLL", lambda _: object())
    assert not host.keep_freed_memory()


def test_one_copy_brings_all_costs() -> None:
    tensors = [torch.rand(2, 3), torch.rand(4, dtype=torch.float64), torch.rand(())]
    for found, tensor in zip(HostCopy(tensors).wait(), tensors, strict=True):
        np.testing.assert_array_equal(found, tensor.double().numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts how often a GPU is waited for")
def test_a_step_waits_for_the_gpu_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the costs. The event it waits on is not counted by the debug mode, and nothing else may be."""
    import warnings

    from bert_emd.method import build_mapping
    from bert_emd.method.mappings import MappingOptions
    from bert_emd.training.distiller import Distiller, LossOptions

    mapping = build_mapping("emd", MappingOptions(num_student=2, num_teacher=3))
    distiller = Distiller(tiny("bert", layers=2), tiny("bert", layers=3), mapping, LossOptions()).cuda().train()
    distiller.attach()
    batch = {name: tensor.cuda() for name, tensor in padded_batch((60, 60, 30)).items()}
    distiller(**batch)["loss"].backward()
    waited: list[int] = []
    original = HostCopy.wait
    monkeypatch.setattr(HostCopy, "wait", lambda self: waited.append(1) or original(self))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            distiller(**batch)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waited == [1]
    assert not [str(w.message) for w in caught if "synchronizing" in str(w.message)]
