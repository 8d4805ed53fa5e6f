"""Precedence, names, types, presets and the table of the engine's fields."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml
from transformers import TrainingArguments

from bert_emd.errors import UserError
from bert_emd.training.config import DistillConfig, EvaluateConfig, FinetuneConfig
from bert_emd.training.presets import paper_preset
from bert_emd.training.resolve import resolve, spellings, with_sources_from_defaults
from bert_emd.training.trainer_fields import ACCEPTED, OURS, REFUSED, check_trainer_args

IDLE_BY_DEFAULT = {
    "intermediate_epochs": "schedule is one-step",
    "intermediate_learning_rate": "schedule is one-step",
}
IDLE_IN_EMD = {"state_loss": "mapping is emd"}


def from_yaml(text, cls=DistillConfig, **flags):
    return resolve(cls, flags=flags, file=yaml.safe_load(text))


def test_flag_wins_over_config_over_preset_over_default():
    resolved = resolve(
        DistillConfig,
        flags={"beta": "0.5"},
        file={"beta": 0.25, "T": 2, "student_layers": 4, "task_name": "mrpc"},
        preset="paper",
    )
    config, sources = resolved.config, resolved.sources
    assert (config.beta, sources["beta"]) == (0.5, "flag")
    assert (config.T, sources["T"]) == (2.0, "config")
    assert (config.T_emd, sources["T_emd"]) == (10.0, "preset paper")
    assert (config.adam_epsilon, sources["adam_epsilon"]) == (1e-8, "default")
    assert set(sources) == {f.name for f in dataclasses.fields(DistillConfig)}


def test_trainer_args_are_merged_entry_by_entry():
    resolved = resolve(
        DistillConfig,
        flags={"adam_beta1": "0.7", "run_name": "5"},
        file={"adam_beta1": 0.8, "trainer_args": {"adam_beta2": "0.9"}, "dataloader-num-workers": "2"},
    )
    expected = {"adam_beta1": 0.7, "adam_beta2": 0.9, "dataloader_num_workers": 2, "run_name": "5"}
    assert resolved.config.trainer_args == expected
    assert resolved.sources["trainer_args"] == "flag"
    assert resolved.trainer_sources == {
        "adam_beta1": "flag", "run_name": "flag", "adam_beta2": "config", "dataloader_num_workers": "config",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 1e-5", "learning_rate", 1e-5),  # YAML reads it as text
        ("learning-rate: 0.001", "learning_rate", 0.001),
        ("num_train_epochs: 3", "num_train_epochs", 3.0),
        ("seed: '5'", "seed", 5),
        ("max_steps: 1e3", "max_steps", 1000),
        ("seed: 7.0", "seed", 7),
        ("student_layer_ids: [1, 3, 6]", "student_layer_ids", (1, 3, 6)),
        ("student_layer_ids: 1,3,6", "student_layer_ids", (1, 3, 6)),
        ("student_layer_ids: 3", "student_layer_ids", (3,)),
        ("text_columns: [a, b]", "text_columns", ("a", "b")),
        ("text_columns: a, b", "text_columns", ("a", "b")),
        ("label_names: [0, 1]", "label_names", ("0", "1")),
        ("label_column: 3", "label_column", "3"),
        ("use_att: no", "use_att", False),
        ("use_att: 'no'", "use_att", False),
        ("use_att: 0", "use_att", False),
        ("separate: true", "seperate", True),
        ("per_gpu_train_batch_size: 8", "train_batch_size", 8),
        ("eval_step: null", "eval_step", None),
        ("warmup_steps: none", "warmup_steps", None),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", "true"),
        ("resume_from_checkpoint: false", "resume_from_checkpoint", None),
        ("task_name: mrpc", "task_name", "mrpc"),
    ],
)
def test_yaml_values_take_the_fields_type(text, name, value):
    resolved = from_yaml(text)
    found = getattr(resolved.config, name)
    assert found == value
    assert type(found) is type(value)
    assert resolved.sources[name] == "config"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: fast", "learning_rate in the config file must be a number, not 'fast'"),
        ("learning_rate: true", "learning_rate in the config file must be a number, not True"),
        ("learning_rate: null", "learning_rate in the config file must be a number, not None"),
        ("learning_rate: .nan", "learning_rate in the config file must be a number"),
        ("seed: 1.5", "seed in the config file must be a whole number, not 1.5"),
        ("use_att: 2", "use_att in the config file must be true or false, not 2"),
        ("rule: fast", "rule in the config file must be one of softmax, double-softmax, ratio, fixed, not 'fast'"),
        ("label_names: [no, yes]", "put it in quotes"),
        ("task_name: [mrpc]", "task_name in the config file must be text, not ['mrpc']"),
        ("student_layer_ids: []", "whole numbers separated by commas"),
        ("trainer_args: 3", "trainer_args in the config file must be a mapping"),
        ("bata: 1", "unknown key bata in the config file; did you mean beta?"),
        ("adam_beta3: 1", "did you mean adam_beta"),
        ("presett: paper", "did you mean preset?"),
        ("beta: 1\nBETA: 2", "unknown key BETA in the config file; did you mean beta?"),
        ("seperate: true\nseparate: false", "are the same option in the config file; keep one"),
        ("deepspeed: ds.json", "deepspeed is not available"),
        ("trainer_args: {seed: 1}", "seed does not belong in trainer_args: set seed itself"),
        ("trainer_args: {eval_steps: 1}", "set eval_step itself"),
        ("trainer_args: {adam_beta: 1}", "unknown field adam_beta in trainer_args; did you mean adam_beta"),
        ("trainer_args: {fsdp: full_shard}", "fsdp is not available"),
    ],
)
def test_bad_config_files(text, message):
    with pytest.raises(UserError) as caught:
        from_yaml(text)
    assert message in str(caught.value)


def test_a_field_of_another_command_is_unknown():
    with pytest.raises(UserError, match="unknown flag --adam_beta1"):
        resolve(EvaluateConfig, flags={"adam_beta1": "0.9"})
    with pytest.raises(UserError, match="--teacher_model is an option of `bert-emd distill`"):
        resolve(FinetuneConfig, flags={"teacher_model": "T"})


def test_values_without_effect_are_reported_and_warned_about_when_set():
    resolved = from_yaml("mapping: kd", T_emd="5", beta="1")
    assert resolved.unused["T_emd"] == "mapping is kd"
    assert resolved.warnings == [
        "beta 1 has no effect: mapping is kd",
        "T_emd 5 has no effect: mapping is kd",
    ]
    assert resolve(DistillConfig, flags={"T_emd": "5"}).warnings == ["T_emd 5 has no effect: mapping is uniform"]
    emd = resolve(DistillConfig, flags={"mapping": "emd", "T_emd": "5"})
    assert emd.warnings == ["T_emd 5 has no effect: rule is ratio"]
    assert emd.unused == {**IDLE_BY_DEFAULT, **IDLE_IN_EMD, "T_emd": "rule is ratio"}
    by_default = resolve(DistillConfig, flags={})
    of_emd = dict.fromkeys(("rule", "T_emd", "seperate", "update_weight"), "mapping is uniform")
    assert by_default.unused == {**IDLE_BY_DEFAULT, **of_emd}
    assert by_default.warnings == []
    assert resolve(EvaluateConfig, flags={}).unused == {}


def test_tinybert_implies_its_switches_unless_the_user_set_them():
    resolved = from_yaml("tinybert: true\nlearning_rate: 1e-4")
    config = resolved.config
    assert (config.one_step, config.use_emd, config.new_pred_loss) == (False, False, False)
    assert config.learning_rate == 1e-4
    assert config.effective_mapping == "uniform"
    assert resolved.sources["one_step"] == "tinybert"
    assert resolved.sources["learning_rate"] == "config"
    kept = resolve(DistillConfig, flags={"tinybert": "true", "one_step": "true"})
    assert kept.config.one_step is True
    assert (kept.config.learning_rate, kept.config.cost_scale) == (5e-5, "absolute")
    in_python = DistillConfig(tinybert=True)
    assert (in_python.learning_rate, in_python.cost_scale, in_python.one_step) == (5e-5, "absolute", False)
    assert (in_python.alpha, in_python.beta) == (kept.config.alpha, kept.config.beta) == (1, 1)
    assert DistillConfig(tinybert=True, learning_rate=1e-3).learning_rate == 1e-3
    assert kept.sources["learning_rate"] == "tinybert"
    off = resolve(DistillConfig, flags={"tinybert": "false"})
    assert off.config.one_step is True


def test_tinybert_wins_over_the_preset():
    flags = {"tinybert": "true", "task_name": "mrpc", "student_layers": "4"}
    resolved = resolve(DistillConfig, flags=flags, preset="paper")
    assert (resolved.config.learning_rate, resolved.sources["learning_rate"]) == (5e-5, "tinybert")
    assert resolved.config.rule == "double-softmax"


def test_sources_of_a_configuration_made_in_python():
    sources = with_sources_from_defaults(DistillConfig(beta=2.0, trainer_args={"adam_beta1": 0.8}))
    assert {name for name, source in sources.items() if source == "python"} == {"beta", "trainer_args"}
    assert sources["alpha"] == "default"


# Typed again from the paper's table: task, layers, beta, T_emd, T, learning rate, epochs, sequence length.
PUBLISHED = [
    ("CoLA", 4, 0.001, 5, 1, 2e-5, 50, 64),
    ("MNLI", 4, 0.005, 1, 3, 5e-5, 5, 128),
    ("MRPC", 4, 0.001, 10, 1, 2e-5, 20, 128),
    ("QQP", 4, 0.005, 1, 3, 2e-5, 10, 128),
    ("QNLI", 4, 0.005, 1, 3, 2e-5, 10, 128),
    ("RTE", 4, 0.005, 1, 1, 2e-5, 20, 128),
    ("SST-2", 4, 0.001, 1, 1, 2e-5, 8, 64),
    ("STS-B", 4, 0.005, 1, 1, 3e-5, 30, 128),
    ("CoLA", 6, 0.001, 1, 7, 2e-5, 50, 64),
    ("MNLI", 6, 0.005, 1, 1, 5e-5, 5, 128),
    ("MRPC", 6, 0.005, 1, 1, 2e-5, 20, 128),
    ("QQP", 6, 0.005, 1, 1, 2e-5, 10, 128),
    ("QNLI", 6, 0.001, 1, 1, 5e-5, 10, 128),
    ("RTE", 6, 0.005, 1, 1, 2e-5, 20, 128),
    ("SST-2", 6, 0.001, 1, 1, 2e-5, 8, 64),
    ("STS-B", 6, 0.005, 1, 1, 3e-5, 30, 128),
]


@pytest.mark.parametrize(("task", "layers", "beta", "t_emd", "t", "rate", "epochs", "length"), PUBLISHED)
def test_preset_paper_is_the_published_row(task, layers, beta, t_emd, t, rate, epochs, length):
    flags = {"task_name": task.lower().replace("-", ""), "student_layers": str(layers)}
    resolved = resolve(DistillConfig, flags=flags, preset="paper")
    c = resolved.config
    assert (c.beta, c.T_emd, c.T, c.learning_rate) == (beta, t_emd, t, rate)
    assert (c.num_train_epochs, c.max_seq_length) == (epochs, length)
    assert (c.alpha, c.theta, c.rule, c.weight_decay, c.max_grad_norm) == (1, 1, "double-softmax", 0.01, 1)
    assert (c.count_padding, c.pad_to_max_length, c.group_by_length) == (True, True, False)
    assert (c.lr_scheduler, c.optimizer, c.train_batch_size) == ("constant", "bert_adam", 32)
    assert (c.effective_mapping, c.cost_scale) == ("emd", "absolute")
    assert resolved.notes == []
    assert resolved.sources["beta"] == "preset paper"
    constant = dict.fromkeys(("warmup_proportion", "warmup_steps"), "lr_scheduler is constant")
    of_numbers = {"T": "the target is a number, and a temperature is for classes"} if task == "STS-B" else {}
    assert resolved.unused == {**IDLE_BY_DEFAULT, **IDLE_IN_EMD, **constant, **of_numbers}


@pytest.mark.parametrize(("layers", "row"), [(1, 4), (2, 4), (3, 4), (5, 6), (7, 6), (12, 6)])
def test_other_depths_take_the_nearer_class_and_say_so(layers, row):
    values, notes = paper_preset(DistillConfig, "MRPC", layers)
    assert values["T_emd"] == {4: 10.0, 6: 1.0}[row]
    assert len(notes) == 1
    assert f"those for {row} layers are used" in notes[0]


def model_folder(path, **config):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    return str(path)


def test_the_depth_is_found(tmp_path):
    teacher = model_folder(tmp_path / "teacher", num_hidden_layers=12)
    student = model_folder(tmp_path / "student", num_hidden_layers=4)
    distilled = model_folder(tmp_path / "distilled", model_type="distilbert", n_layers=6)

    def t_emd(**flags):
        return resolve(DistillConfig, flags={"task_name": "MRPC", **flags}, preset="paper").config.T_emd

    assert t_emd(teacher_model=teacher) == 1
    assert t_emd(teacher_model=teacher, student_layers="4") == 10
    assert t_emd(teacher_model=teacher, student_layer_ids="1,2,3,4,5") == 1
    assert t_emd(teacher_model=teacher, student_model=student) == 10
    assert t_emd(teacher_model=distilled) == 10


def test_an_unknown_depth_asks_for_student_layers(tmp_path):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "config.json").write_text("{")
    for flags in ({}, {"teacher_model": str(empty)}, {"student_model": str(broken)}, {"teacher_model": "./none"}):
        with pytest.raises(UserError, match="name --student_layers"):
            resolve(DistillConfig, flags={"task_name": "MRPC", **flags}, preset="paper")


def test_the_teachers_preset():
    resolved = resolve(FinetuneConfig, flags={"task_name": "sts-b"}, preset="paper")
    c = resolved.config
    assert (c.max_seq_length, c.train_batch_size, c.learning_rate, c.num_train_epochs) == (128, 32, 2e-5, 4.0)
    assert resolved.sources["learning_rate"] == "preset paper"


def test_the_preset_may_stand_in_the_file_and_the_flag_wins():
    resolved = from_yaml("preset: paper\ntask_name: RTE\nstudent_layers: 4")
    assert resolved.config.rule == "double-softmax"
    with pytest.raises(UserError, match="there is no preset 'other'"):
        resolve(DistillConfig, flags={}, file={"preset": "paper", "task_name": "RTE"}, preset="other")


@pytest.mark.parametrize("task", [None, "WNLI", "AX"])
@pytest.mark.parametrize("cls", [DistillConfig, FinetuneConfig])
def test_no_published_settings(cls, task):
    with pytest.raises(UserError, match="CoLA, MNLI, MRPC, SST-2, STS-B, QQP, QNLI, RTE"):
        paper_preset(cls, task, 4)
    with pytest.raises(UserError, match="training only"):
        paper_preset(EvaluateConfig, "RTE", 4)


def test_every_field_of_the_engine_is_classified_once():
    installed = {f.name for f in dataclasses.fields(TrainingArguments)}
    tables = [set(OURS), set(ACCEPTED), set(REFUSED)]
    assert installed - set().union(*tables) == set()
    assert len(set().union(*tables)) == sum(map(len, tables))


def test_what_is_ours_has_a_field_that_takes_the_engines_name():
    known = spellings(FinetuneConfig) | spellings(DistillConfig)
    for name, field in OURS.items():
        assert known[name] == field


def test_accepted_fields_are_in_the_installed_engine_and_do_not_hide_ours():
    assert not set(ACCEPTED) & (set(spellings(FinetuneConfig)) | set(spellings(DistillConfig)))
    assert all(text and not text.endswith(".") for text in (*ACCEPTED.values(), *REFUSED.values()))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_fields_are_refused_by_name(name):
    reason = f"{name} is not available: {REFUSED[name]}"
    with pytest.raises(UserError) as caught:
        check_trainer_args({name: 1})
    assert str(caught.value) == reason
    for cls in (FinetuneConfig, DistillConfig):
        with pytest.raises(UserError) as caught:
            resolve(cls, flags={name: "1"})
        assert str(caught.value) == f"--{reason}"


def test_trainer_args_take_the_engines_types():
    given = {
        "adam_beta1": "0.8", "report_to": "tensorboard,wandb", "tf32": "none", "skip_memory_metrics": "no",
        "lr_scheduler_kwargs": '{"power": 2}', "include_num_input_tokens_seen": "all", "ddp_timeout": "60",
    }  # fmt: skip
    assert check_trainer_args(given) == {
        "adam_beta1": 0.8, "report_to": ["tensorboard", "wandb"], "tf32": None, "skip_memory_metrics": False,
        "lr_scheduler_kwargs": {"power": 2}, "include_num_input_tokens_seen": "all", "ddp_timeout": 60,
    }  # fmt: skip
    assert check_trainer_args({"report_to": "none"}) == {"report_to": "none"}
    assert check_trainer_args({"include_num_input_tokens_seen": "true"}) == {"include_num_input_tokens_seen": True}
    with pytest.raises(UserError, match="dataloader_num_workers must be a whole number, not 'many'"):
        check_trainer_args({"dataloader_num_workers": "many"})


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"mapping": "emd", "use_emd": "false"}, "mapping emd has no effect: use_emd is false, so it is uniform"),
        ({"mapping": "emd", "pred_distill": "true"}, "mapping emd has no effect: pred_distill is set, so it is kd"),
        ({"mapping": "emd", "tinybert": "true"}, "mapping emd has no effect: use_emd is false, so it is uniform"),
        ({"mapping": "emd", "pkd": "true"}, "mapping emd has no effect: pkd is set, so it is pkd"),
        (
            {"mapping": "emd", "rule": "fixed", "update_weight": "true"},
            "update_weight true has no effect: rule is fixed",
        ),
        ({"mapping": "emd", "beta": "0", "rule": "softmax"}, "rule softmax has no effect: beta is 0"),
        (
            {"use_att": "false", "use_rep": "false", "use_embedding": "false", "beta": "2"},
            "beta 2 has no effect: use_att, use_rep and use_embedding are false",
        ),
        (
            {"student_hidden_size": "192", "student_init": "spread"},
            "student_init spread has no effect: the student is not made of a choice of the teacher's layers",
        ),
    ],
)
def test_a_value_that_another_one_overrules_is_warned_about(flags, told):
    assert told in resolve(DistillConfig, flags=flags).warnings


def test_the_switch_for_emd_and_another_mapping_are_a_contradiction():
    with pytest.raises(UserError, match="use_emd true means mapping emd, and mapping uniform is given too; keep one"):
        resolve(DistillConfig, flags={"mapping": "uniform", "use_emd": "true"})
    assert resolve(DistillConfig, flags={"use_emd": "true"}).config.effective_mapping == "emd"


def test_a_switch_for_a_mapping_wins_over_the_preset():
    flags = {"pkd": "true", "task_name": "mrpc", "student_layers": "4"}
    assert resolve(DistillConfig, flags=flags, preset="paper").config.effective_mapping == "pkd"


def test_the_switches_of_the_reference_alone_are_no_contradiction():
    assert resolve(DistillConfig, flags={"use_emd": "true", "update_weight": "true", "one_step": "true"}).warnings == []


def test_names_that_hold_a_comma_stand_in_double_quotes():
    config = resolve(DistillConfig, flags={"text_columns": '"Body, ""raw""", title'}).config
    assert config.text_columns == ('Body, "raw"', "title")


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        ({"task_name": "sts-b", "T": "4"}, True),
        ({"regression": "true", "train_file": "x.csv", "T": "4"}, True),
        ({"task_name": "mrpc", "T": "4"}, False),
        ({"train_file": "x.csv", "T": "4"}, False),
    ],
)
def test_a_temperature_for_numbers_is_said_to_have_no_effect(flags, warned):
    warnings = resolve(DistillConfig, flags=flags).warnings
    assert any("T" in text.split() and "temperature" in text for text in warnings) is warned
