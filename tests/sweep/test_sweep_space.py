"""The search space: what is read, what is refused, and which combinations there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bert_emd import SweepConfig, UserError
from bert_emd.studies.sweep.asking import distributions, values_of
from bert_emd.studies.sweep.checks import check_space, planned_trials, space_of
from bert_emd.studies.sweep.search import plan_sweep
from bert_emd.studies.sweep.space import Choices, Range, read_space, split_assignments
from bert_emd.training.yaml_file import read_yaml


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("learning_rate", "1e-5..1e-3:log", Range(low=1e-5, high=1e-3, log=True)),
        ("learning-rate", " 1e-5 .. 1e-3 : log ", Range(low=1e-5, high=1e-3, log=True)),
        ("T", "1..8:int", Range(low=1, high=8, whole=True)),
        ("T", "1..8", Range(low=1.0, high=8.0)),
        ("train_batch_size", "8..64", Range(low=8, high=64, whole=True)),
        ("train_batch_size", "8..64:log:int", Range(low=8, high=64, whole=True, log=True)),
        ("alpha", "0..1:step=0.25", Range(low=0.0, high=1.0, step=0.25)),
        ("alpha", "0..1:step=0.3", Range(low=0.0, high=0.9, step=0.3)),
        ("weight_decay", "-0..0.1", Range(low=0.0, high=0.1)),
        ("beta", "0.1,1,10", Choices(options=(0.1, 1.0, 10.0))),
        ("beta", [0.1, 1, "10"], Choices(options=(0.1, 1.0, 10.0))),
        ("mapping", "emd,uniform, kd", Choices(options=("emd", "uniform", "kd"))),
        ("one_step", "true,no", Choices(options=(True, False))),
        ("rule", "ratio,softmax", Choices(options=("ratio", "softmax"))),
        ("early_stopping", "none,2", Choices(options=(None, 2))),
        ("student_layer_ids", "1,3/2,4", Choices(options=((1, 3), (2, 4)))),
        ("student_layer_ids", [[1, 3], [2, 4]], Choices(options=((1, 3), (2, 4)))),
        ("layer_map", "1:2,2:4/1:1,2:3", Choices(options=("1:2,2:4", "1:1,2:3"))),
        ("separate", "true,false", Choices(options=(True, False))),
        ("adam_beta2", "0.98,0.999", Choices(options=(0.98, 0.999))),
        ("T", {"low": 1, "high": 8, "int": True}, Range(low=1, high=8, whole=True)),
        ("learning_rate", {"low": "1e-5", "high": 0.001, "log": "yes"}, Range(low=1e-5, high=1e-3, log=True)),
        ("beta", {"choices": [1, 2]}, Choices(options=(1.0, 2.0))),
    ],
)
def test_what_is_read(name: str, given: Any, wanted: Any) -> None:
    found = read_space({name: given}).dimensions
    assert list(found.values()) == [wanted]
    assert list(found) == [{"learning-rate": "learning_rate", "separate": "seperate"}.get(name, name)]
    # What is shown is read as the same.
    again = read_space(dict.fromkeys(found, str(wanted)))
    assert list(again.dimensions.values()) == [wanted]


def test_words_of_the_command_line() -> None:
    assert split_assignments(["learning-rate=1e-5..1e-3:log", "beta=0.1,1"]) == {
        "learning_rate": "1e-5..1e-3:log",
        "beta": "0.1,1",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["beta"], "--space beta is no name=values"),
        (["=1,2"], "is no name=values"),
        (["beta=1,2", "beta=3,4"], "names beta twice"),
    ],
)
def test_words_that_are_no_space(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_assignments(words)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("learning_rat", "1e-5..1e-3", "did you mean learning_rate"),
        ("lr", "1e-5..1e-3", "did you mean learning_rate"),
        ("label_smoothing_factor", "0.1,0.2", "soft targets come from the teacher"),
        ("space", "1,2", "unknown key space"),
        ("seed", "1,2", "has had luck"),
        ("output_dir", "a,b", "cannot be searched"),
        ("train_file", "a,b", "scores of other data"),
        ("data_dir", "a,b", "scores of other data"),
        ("teacher_model", "a,b", "another teacher"),
        ("select_on", "dev,holdout", "scores of other data"),
        ("do_lower_case", "true,false", "cannot be searched"),
        ("eval_step", "1,2", "chances of a high score"),
        ("eval_steps", "1,2", "chances of a high score"),
        ("dataloader_num_workers", "0,1", "does not change what a student learns"),
        ("T", "8..1", "8 is above 1"),
        ("T", "2..2", "empty but for 2"),
        ("T", "..2", "lower end must be a number"),
        ("T", "1..", "upper end must be a number"),
        ("T", "1..nan", "upper end must be a number"),
        ("T", "1..inf", "upper end must be a number"),
        ("learning_rate", "0..1e-3:log", "must lie above 0"),
        ("T", "1..8:foo", "'foo' after a colon is not known"),
        ("T", "1..8:", "after a colon is not known"),
        ("T", "1..8:step=0", "step 0 must be above 0"),
        ("T", "1..8:step=9", "at most 7"),
        ("T", "1..8:int:step=0.5", "is no whole number"),
        ("T", "1..8:log:step=1", "exclude each other"),
        ("student_layers", "1.5..3", "must be a whole number"),
        ("mapping", "emd..uniform", "has no range"),
        ("one_step", "true..false", "has no range"),
        ("rule", "ratio,foo", "must be one of softmax"),
        ("one_step", "true,maybe", "must be true or false"),
        ("beta", "1", "one value only"),
        ("beta", "", "has an empty value"),
        ("beta", "1,,2", "has an empty value"),
        ("beta", [], "has an empty value"),
        ("beta", "1,1.0", "has 1 twice"),
        ("beta", "1,x", "must be a number"),
        ("T", {"low": 1}, "must have low and high"),
        ("T", {"low": 1, "high": 2, "hihg": 3}, "must have low and high"),
    ],
)
def test_what_is_refused(name: str, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_space({name: given})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        ({"mapping": "emd,foo"}, {}, "mapping=foo, which is refused: mapping must be one of"),
        ({"alpha": "0.5,2"}, {}, "alpha=2, which is refused: alpha must lie between 0 and 1"),
        ({"alpha": "0.5..1.5"}, {}, "alpha=1.5, which is refused"),
        ({"mapping": "kd,emd", "one_step": "true,false"}, {}, "one_step false trains the intermediate losses"),
        ({"adam_beta2": "0.9..1.5"}, {}, "adam_beta2=1.5"),
        ({"T_emd": "1,10"}, {"mapping": "emd"}, "T_emd is searched but has no effect in any trial: rule is ratio"),
        ({"beta": "1,10"}, {"mapping": "kd"}, "beta is searched but has no effect"),
        ({}, {}, "what should be searched"),
        ({"beta": "0.1..1"}, {"sampler": "grid"}, "sampler grid needs an end of values, and beta has none"),
        ({"train_batch_size": "1..1000", "student_layers": "1..300"}, {"sampler": "grid"}, "300,000 combinations"),
    ],
)
def test_spaces_that_are_no_search(space: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan_sweep(SweepConfig(space=space, **changes))
    assert "\n" not in str(caught.value)


def test_an_option_that_has_an_effect_in_some_trials_is_searched() -> None:
    plan = plan_sweep(SweepConfig(space={"rule": "ratio,softmax", "T_emd": "1,10"}, mapping="emd"))
    assert list(plan.space.dimensions) == ["rule", "T_emd"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "n_trials must be at least 1"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"sampler": "tp"}, "sampler must be one of tpe, random, grid"),
        ({"pruner": "hyper"}, "pruner must be one of median, none"),
        ({"objective": "mean"}, "objective must be one of best, last"),
        ({"space_preset": "papr"}, "space_preset must be one of paper"),
        ({"do_eval": True}, "leave it out"),
        ({"resume_from_checkpoint": "true"}, "goes on by itself"),
        ({"study_name": ""}, "study_name must not be empty"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SweepConfig(**options)


def test_a_space_file_and_who_wins(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("beta: [0.1, 1]\nT: 1..8\nlearning_rate: {low: 1e-5, high: 1e-3, log: true}\n")
    config = SweepConfig(space={"T": "1,2"}, space_file=str(path), space_preset="paper")
    space, notes = space_of(config, read_yaml(str(path), "--space_file"))
    assert space.described() == {"beta": "0.1,1", "T": "1,2", "learning_rate": "1e-05..0.001:log"}
    assert notes == ["T_emd is left out of the space: it has no effect (mapping is uniform)"]


def test_the_papers_grid() -> None:
    """The values of the table of best settings, read off by hand."""
    config = SweepConfig(space_preset="paper", mapping="emd", rule="double-softmax", sampler="grid")
    space, notes = space_of(config)
    assert {name: d.values() for name, d in space.dimensions.items()} == {
        "beta": [0.001, 0.005], "T_emd": [1, 5, 10], "T": [1, 3, 7], "learning_rate": [2e-5, 3e-5, 5e-5],
    }  # fmt: skip
    assert notes == []
    check_space(config, space)
    assert planned_trials(config, space) == 2 * 3 * 3 * 3


@pytest.mark.parametrize(
    ("space", "options", "planned"),
    [
        ({"beta": "1,2,3"}, {}, 3),
        ({"beta": "1,2,3"}, {"n_trials": 2}, 2),
        ({"beta": "1..2"}, {}, 20),
        ({"beta": "1..2"}, {"n_trials": 7}, 7),
        ({"beta": "1,2", "T": "1..3:int", "alpha": "0..1:step=0.5"}, {"sampler": "grid"}, 18),
    ],
)
def test_how_many_trials(space: dict[str, Any], options: dict[str, Any], planned: int) -> None:
    assert plan_sweep(SweepConfig(space=space, **options)).planned == planned


def test_in_optunas_terms_and_back() -> None:
    space = read_space({
        "learning_rate": "1e-5..1e-3:log", "T": "1..8:int", "alpha": "0..1:step=0.5", "student_layer_ids": "1,3/2,4",
        "early_stopping": "none,2",
    })  # fmt: skip
    assert distributions(space) == {
        "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
        "T": IntDistribution(1, 8),
        "alpha": FloatDistribution(0, 1, step=0.5),
        "student_layer_ids": CategoricalDistribution(["1,3", "2,4"]),
        "early_stopping": CategoricalDistribution([None, 2]),
    }
    values = values_of(space, {"T": 3, "student_layer_ids": "2,4", "early_stopping": None})
    assert values == {"T": 3, "student_layer_ids": (2, 4), "early_stopping": None}


def test_a_trials_configuration() -> None:
    config = SweepConfig(beta=3.0, trainer_args={"adam_beta1": 0.8}, output_dir="S", overwrite_output_dir=True)
    made = config.trial({"T": 2, "adam_beta2": 0.9}, "O")
    assert type(made).__name__ == "DistillConfig"
    assert (made.beta, made.T, made.output_dir, made.overwrite_output_dir) == (3.0, 2, "O", False)
    assert made.trainer_args == {"adam_beta1": 0.8, "adam_beta2": 0.9}
