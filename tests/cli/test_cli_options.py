"""The parser: every flag in every spelling, help in groups, and mistakes in one line."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from bert_emd.cli import augment, distill, evaluate, finetune, predict, quickstart, sweep
from bert_emd.cli.options import OptionParser
from bert_emd.errors import UserError
from bert_emd.studies.sweep.config import SweepConfig
from bert_emd.training.augment.config import AugmentConfig
from bert_emd.training.config import DistillConfig, EvaluateConfig, FinetuneConfig
from bert_emd.training.resolve import resolve

FINETUNE = """--model_type bert --model_name_or_path D --task_name MRPC --do_train --do_eval --do_lower_case
--data_dir glue/MRPC --max_seq_length 128 --per_gpu_train_batch_size 32 --learning_rate 2e-5 --num_train_epochs 4.0
--save_steps 2000 --output_dir O --evaluate_during_training --overwrite_output_dir --overwrite_cache --seed 42
--fp16 false --local_rank -1 --eval_all_checkpoints --no_cuda --cache_dir C --config_name D --tokenizer_name D
--adam_epsilon 1e-8 --max_grad_norm 1.0 --max_steps -1 --warmup_steps 0 --logging_steps 50
--gradient_accumulation_steps 1 --per_gpu_eval_batch_size 64 --weight_decay 0.0 --do_predict false"""

DISTILL = """--data_dir glue/MRPC --teacher_model T --student_model S --task_name mrpc --output_dir O
--max_seq_length 128 --train_batch_size 32 --eval_batch_size 64 --learning_rate 3e-5 --num_train_epochs 10
--eval_step 50 --beta 0.01
--theta 1 --alpha 1 --T 1 --T_emd 1 --seperate --use_emd true --update_weight True --one_step True
--pred_distill false --new_pred_loss true --use_att --use_rep --use_embedding --share_param true --no_pretrain false
--tinybert false --pkd false --do_lower_case --weight_decay 0.01 --warmup_proportion 0.1 --no_cuda --seed 42
--gradient_accumulation_steps 1 --reduce_T 1 --aug_train false"""

COMMANDS = {
    "finetune": (finetune, FinetuneConfig),
    "distill": (distill, DistillConfig),
    "evaluate": (evaluate, EvaluateConfig),
    "predict": (predict, EvaluateConfig),
    "quickstart": (quickstart, None),
    "sweep": (sweep, SweepConfig),
    "augment": (augment, AugmentConfig),
}


def parser_of(command: str) -> OptionParser:
    module, _ = COMMANDS[command]
    parser = OptionParser(f"bert-emd {command}", module.HELP, module.USAGE)
    module.add_arguments(parser)
    return parser


def parsed(command: str, line: str):
    flags = vars(parser_of(command).parse(shlex.split(line)))
    return resolve(COMMANDS[command][1], flags=flags)


def test_the_references_finetune_command():
    resolved = parsed("finetune", FINETUNE)
    assert resolved.config == FinetuneConfig(
        model_type="bert", model_name_or_path="D", task_name="MRPC", do_train=True, do_eval=True, do_lower_case=True,
        data_dir="glue/MRPC", max_seq_length=128, train_batch_size=32, learning_rate=2e-5, num_train_epochs=4.0,
        save_steps=2000, output_dir="O", evaluate_during_training=True, overwrite_output_dir=True,
        overwrite_cache=True, seed=42, fp16=False, local_rank=-1, eval_all_checkpoints=True, no_cuda=True,
        cache_dir="C", config_name="D", tokenizer_name="D", adam_epsilon=1e-8, max_grad_norm=1.0, max_steps=-1,
        warmup_steps=0, logging_steps=50, gradient_accumulation_steps=1, eval_batch_size=64, weight_decay=0.0,
    )  # fmt: skip
    assert resolved.sources["train_batch_size"] == "flag"
    assert resolved.sources["optimizer"] == "default"


def test_the_references_distil_command():
    resolved = parsed("distill", DISTILL)
    assert resolved.config == DistillConfig(
        data_dir="glue/MRPC", teacher_model="T", student_model="S", task_name="mrpc", output_dir="O",
        max_seq_length=128, train_batch_size=32, eval_batch_size=64, learning_rate=3e-5, num_train_epochs=10.0,
        eval_step=50, beta=0.01, theta=1.0, alpha=1.0, T=1.0, T_emd=1.0, seperate=True, use_emd=True,
        update_weight=True, one_step=True, pred_distill=False, new_pred_loss=True, use_att=True, use_rep=True,
        use_embedding=True, share_param=True, no_pretrain=False, tinybert=False, pkd=False, do_lower_case=True,
        weight_decay=0.01, warmup_proportion=0.1, no_cuda=True, seed=42, gradient_accumulation_steps=1, reduce_T=1.0,
        aug_train=False,
    )  # fmt: skip
    assert resolved.warnings == ["T_emd 1 has no effect: rule is ratio"]


@pytest.mark.parametrize(
    ("written", "value"),
    [("", True)]
    + [(text, True) for text in ("true", "True", "TRUE", "yes", "on", "1")]
    + [(text, False) for text in ("false", "False", "no", "off", "0")],
)
@pytest.mark.parametrize("name", ["share_param", "pkd", "regression"])
def test_truth_values_in_every_spelling(name, written, value):
    assert getattr(parsed("distill", f"--{name} {written} --beta 2").config, name) is value


def test_dashes_underscores_equals_signs_and_other_names():
    line = "--learning-rate 1e-4 --per-device-train-batch-size=8 --num_train-epochs 2 --separate --data-dir a-b_c"
    config = parsed("distill", line).config
    assert (config.learning_rate, config.train_batch_size, config.num_train_epochs) == (1e-4, 8, 2.0)
    assert config.seperate is True
    assert config.data_dir == "a-b_c"


def test_lists_and_the_engines_own_fields():
    line = "--student_layer_ids 1,3,6 --adam_beta1 0.8 --report_to tensorboard --lr-scheduler-kwargs '{\"power\": 2}'"
    config = parsed("distill", line).config
    assert config.student_layer_ids == (1, 3, 6)
    assert config.trainer_args == {"adam_beta1": 0.8, "report_to": "tensorboard", "lr_scheduler_kwargs": {"power": 2}}


def test_resuming_takes_no_value_true_or_a_path():
    for written, value in (("", "true"), ("True", "true"), ("false", None), ("O/checkpoint-3", "O/checkpoint-3")):
        assert parsed("distill", f"--resume_from_checkpoint {written} --seed 1").config.resume_from_checkpoint == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--learning_rat 1", "unknown flag --learning_rat; did you mean --learning_rate?"),
        ("--t-emd 1", "unknown flag --t_emd; did you mean --T_emd?"),
        ("--pre-set paper", "unknown flag --pre_set; did you mean --preset?"),
        ("--xyzzy", "unknown flag --xyzzy; --help lists the known ones"),
        ("--learn 1", "unknown flag --learn"),
        ("--label_smoothing_factor 0.1", "--label_smoothing_factor is not available: soft targets come from"),
        ("--learning_rate fast", "--learning_rate must be a number, not 'fast'"),
        ("--learning_rate inf", "--learning_rate must be a number, not 'inf'"),
        ("--seed 1.5", "--seed must be a whole number, not '1.5'"),
        ("--pkd maybe", "--pkd must be true or false, not 'maybe'"),
        ("--rule rati", "--rule must be one of softmax, double-softmax, ratio, fixed, not 'rati'"),
        ("--student_layer_ids 1,x", "--student_layer_ids must be whole numbers separated by commas, not '1,x'"),
        ("--alpha 2", "alpha must lie between 0 and 1, not 2.0"),
        ("--beta", "--beta needs a value"),
        ("--seed 1 mrpc", "nothing is expected where 'mrpc' stands"),
        ("--adam_beta1 x", "--adam_beta1 must be a number, not 'x'"),
        ("--do_train", "--do_train is an option of `bert-emd finetune`; leave it out here"),
        ("--lr 1e-4", "unknown flag --lr; did you mean --learning_rate?"),
        ("--log_level loud", "log_level must be one of debug, info"),
        ("--dataloader_num_workers -1", "dataloader_num_workers must be at least 0, not -1"),
        ("--eval_accumulation_steps 0", "eval_accumulation_steps must be at least 1, not 0"),
        ("--adam_beta1 2", "adam_beta1 must lie between 0 and 1 (1 excluded), not 2.0"),
        ("--activation_checkpointing_kwargs 5", "activation_checkpointing_kwargs must be a mapping"),
    ],
)
def test_mistakes_are_told_in_one_line_that_names_flag_and_value(line, message):
    with pytest.raises(UserError) as caught:
        parsed("distill", line)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_groups_and_every_own_flag(command):
    text = parser_of(command).format_help()
    cls = COMMANDS[command][1]
    assert text.startswith(f"usage: bert-emd {command} ")
    if cls is None:
        assert "--output_dir" in text
        return
    for f in dataclasses.fields(cls):
        assert f"--{f.name} " in text
    assert "data and models:" in text
    assert "output:" in text
    trains = command in ("finetune", "distill", "sweep")
    assert ("training:" in text) is trains
    assert ("--preset NAME" in text) is trains
    assert ("--adam_beta1 X" in text) is trains
    assert ("teacher and student:" in text) is (command in ("distill", "sweep"))
    assert ("method:" in text) is (command in ("distill", "sweep", "augment"))
    if trains:
        assert text.index("output:") < text.index("fields of transformers.TrainingArguments")
        assert "(default: 0.1)" in text
