"""What a comparison refuses before anything runs, what it resolves, and the command line around it."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import compare_data
import pytest
import yaml
from compare_data import config

from bert_emd import CompareConfig, UserError
from bert_emd.cli.main import main
from bert_emd.cli.options import OptionParser
from bert_emd.studies.compare.plan import make_plan
from bert_emd.studies.compare.process import command_of, environments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("none", "nothing")}, "method 'nothing': mapping must be one of .*, not 'nothing'"),
        ({"methods": ("none", "none")}, "methods names none twice"),
        ({"methods": ("emd", "emd+rule=ratio")}, "emd and emd\\+rule=ratio are one and the same"),
        ({"methods": ("emd+rule=hard",)}, "rule.* must be one of .*'hard'"),
        ({"methods": ("pkd",), "student_layers": (2, 1)}, "'pkd', 1 layer: .* needs a student of 2 layers"),
        ({"methods": ("kd", "skip"), "student_layers": (1,)}, "'skip', 1 layer: .* needs a student of 2 layers"),
        ({"methods": ("last",), "student_layers": (1,)}, "'last', 1 layer: .* needs a student of 2 layers"),
        ({"methods": ("manual",)}, "mapping manual needs its pairs"),
        ({"methods": ("manual+layer_map=1:2,2:5",)}, "layer_map names teacher layer 5, .* layers are 1 to 4"),
        ({"methods": ("manual+layer_map=1:2,3:4",)}, "layer_map names student layer 3, .* layers are 1 to 2"),
        ({"methods": ("2:4",)}, "one that holds a comma goes in double quotes"),
        ({"methods": ("minilm+relation_heads=5",)}, "relation_heads 5 must divide both widths"),
        ({"methods": ("minilm+relation_layer=5",)}, "relation_layer 5 is no teacher layer"),
        ({"methods": ("emd+student_from=pretrained",)}, "written behind it: emd@teacher or emd@pretrained"),
        ({"methods": ("none+preset=tinybert",)}, "mapping none has none"),
        ({"student_from": "nowhere"}, "student_from must be one of teacher, pretrained"),
        ({"methods": ()}, "which methods"),
        ({"seeds": (1, 2, 1)}, "seeds names 1 twice"),
        ({"seeds": (-1,)}, "seeds must lie between"),
        ({"student_layers": (5,)}, "students of 5 layers are deeper than the teacher of 4"),
        ({"student_layers": (0,)}, "student_layers must be at least 1"),
        ({"student_layers": (2, 2)}, "student_layers names 2 twice"),
        ({"task_name": ("CoLA", "cola")}, "names a task twice"),
        ({"task_name": ("Cola2",)}, "did you mean CoLA"),
        ({"task_name": ("RTE",)}, "no train.tsv .*for RTE"),
        ({"task_name": None}, "there is no data"),
        ({"model_name_or_path": None}, "which teacher"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"output_dir": None}, "--output_dir"),
        ({"options": {"learning_rat": 1}}, "unknown key learning_rat; did you mean learning_rate"),
        ({"options": {"learning_rate": "fast"}}, "learning_rate must be a number"),
        ({"options": {"seed": 3}}, "seed is not an option of a comparison: --seeds"),
        ({"options": {"train_file": "x.csv"}}, "exclude each other"),
        ({"options": {"select_on": "dev"}}, "select_on is a field of the comparison itself"),
        ({"teacher_options": {"learning_rat": 1}}, "did you mean teacher_learning_rate"),
        ({"teacher_model": ("CoLA",), "task_name": ("CoLA", "SST-2")}, "one teacher for 2 tasks"),
        ({"teacher_model": ("RTE=x",)}, "RTE, which is none of the tasks"),
        ({"select_on": "test"}, "select_on must be one of dev, holdout"),
        ({"preset": "papers"}, "there is no preset 'papers'"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_runs(data, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        make_plan(config(tmp_path / "out", data, **changes))
    assert not (tmp_path / "out").exists()


def test_methods_that_are_one_and_the_same_for_one_of_the_tasks_only(data, tmp_path):
    rows = compare_data.sentences(40, 3)
    head = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"]
    lines = [[str(i), *"gfyoab", text, text, f"{y + i / 40:.2f}"] for i, (text, y) in enumerate(rows)]
    own = tmp_path / "glue"
    compare_data.glue(own)
    (own / "STS-B").mkdir()
    for name in ("train", "dev"):
        text = "\n".join("\t".join(line) for line in [head, *lines])
        (own / "STS-B" / f"{name}.tsv").write_text(text + "\n")
    asked = {"methods": ("kd", "kd+T=2"), "options": {"data_dir": str(own)}}
    # A temperature has no part where the target is a number.
    with pytest.raises(UserError, match="kd and kd\\+T=2 are one and the same"):
        make_plan(config(tmp_path / "out", data, task_name=("STS-B",), **asked))
    assert len(make_plan(config(tmp_path / "out", data, task_name=("STS-B", "CoLA"), **asked)).students) == 2 * 2 * 2


def test_ready_teachers_leave_nothing_to_fine_tune(data, tmp_path):
    ready = {"task_name": ("CoLA", "SST-2"), "teacher_model": (f"cola={data['encoder']}",)}
    plan = make_plan(config(tmp_path / "out", data, **ready))
    assert [run.task for run in plan.teachers] == ["SST-2"]
    with pytest.raises(UserError, match="no teacher for SST-2"):
        make_plan(config(tmp_path / "out", data, **ready, model_name_or_path=None))
    with pytest.raises(UserError, match="model_name_or_path has no use"):
        make_plan(config(tmp_path / "out", data, teacher_model=(data["encoder"],)))
    with pytest.raises(UserError, match="teacher_learning_rate has no use"):
        make_plan(config(tmp_path / "out", data, teacher_model=(data["encoder"],), model_name_or_path=None,
                         teacher_options={"learning_rate": 1e-4}))  # fmt: skip


def rows(plan):
    """Each row's start and what a student of it is made from, in the order of the tables."""
    return {run.method.spec: (run.config.student_from, run.config.pretrained_model) for run in plan.students}


def test_none_and_kd_are_shown_from_both_starts(data, tmp_path):
    made = config(tmp_path / "out", data, methods=("none", "kd", "emd"), seeds=(1,), both_starts=True)
    plan = make_plan(made)
    here, there = ("teacher", None), ("pretrained", data["encoder"])
    assert rows(plan) == {
        "none": here, "none@pretrained": there, "kd": here, "kd@pretrained": there, "emd": here,
    }  # fmt: skip
    assert list(rows(plan)) == ["none", "none@pretrained", "kd", "kd@pretrained", "emd"]
    assert plan.notes == [
        "`none` and `kd` are shown from both starts: a student that is copied from its teacher is not untaught."
    ]
    # The other way round, and with rows that were written out.
    changed = {"methods": ("none", "kd+T=2", "kd@pretrained", "emd"), "student_from": "pretrained"}
    plan = make_plan(config(tmp_path / "out", data, seeds=(1,), both_starts=True, **changed))
    assert rows(plan) == {
        "none": there, "none@teacher": here, "kd+T=2": there, "kd@pretrained": there, "emd": there,
    }  # fmt: skip
    # Fresh students have no start that could be another one.
    plan = make_plan(config(tmp_path / "out", data, both_starts=True, options={"student_init": "fresh"}))
    assert list(rows(plan)) == ["none", "kd"]


def test_both_starts_with_a_ready_teacher_need_to_know_its_encoder(data, tmp_path):
    ready = {"teacher_model": (data["encoder"],), "model_name_or_path": None, "both_starts": True}
    plan = make_plan(config(tmp_path / "out", data, **ready))
    assert list(rows(plan)) == ["none", "kd"]
    assert len(plan.notes) == 1
    assert "not shown from the pretrained encoder too" in plan.notes[0]
    assert "--pretrained_model" in plan.notes[0]
    for known in ({"options": {"pretrained_model": data["encoder"]}}, {"model_name_or_path": data["encoder"]}):
        plan = make_plan(config(tmp_path / "out", data, **(ready | known)))
        assert rows(plan)["none@pretrained"] == ("pretrained", data["encoder"])
        assert plan.teachers == []
    # Where it is asked for, an encoder that is not known is an error.
    with pytest.raises(UserError, match="no record of where it came from"):
        make_plan(config(tmp_path / "out", data, **(ready | {"methods": ("kd@pretrained",)})))


def test_a_rows_own_preset_wins_over_what_is_set_for_all(data, tmp_path):
    options = {"num_train_epochs": 7, "max_seq_length": 24}
    methods = ("emd", "uniform+preset=tinybert+learning_rate=1e-3", "emd+preset=paper")
    plan = make_plan(config(tmp_path / "out", data, methods=methods, seeds=(1,), options=options))
    ours, tinybert, paper = (run.config for run in plan.students)
    assert (ours.num_train_epochs, ours.max_seq_length, ours.schedule) == (7, 24, "one-step")
    # The published recipes for CoLA.
    assert (tinybert.schedule, tinybert.mapping) == ("two-stage", "uniform")
    assert (tinybert.intermediate_epochs, tinybert.num_train_epochs, tinybert.learning_rate) == (50, 3, 1e-3)
    assert (paper.rule, paper.beta, paper.T_emd, paper.num_train_epochs, paper.max_seq_length) == (
        "double-softmax", 0.001, 5, 50, 64,
    )  # fmt: skip
    assert plan.teachers[0].config.num_train_epochs == 4
    assert [run.arguments[1:3] for run in plan.students[1:]] == [("--preset", "tinybert"), ("--preset", "paper")]


def test_every_cell_is_planned_with_its_options(data, tmp_path):
    plan = make_plan(config(
        tmp_path / "out", data, methods=("none", "emd+rule=softmax+beta=3"), seeds=(4, 2), student_layers=(3, 2),
        task_name=("CoLA", "sst-2"), options={"beta": 2, "learning-rate": "1e-3", "adam_beta2": 0.98},
        teacher_options={"teacher_learning_rate": 5e-4, "epochs": 2, "seed": 9},
    ))  # fmt: skip
    assert len(plan.students) == 2 * 2 * 2 * 2
    assert [run.seed for run in plan.students] == [4] * 8 + [2] * 8
    assert {(run.task, run.layers) for run in plan.students} == {(t, n) for t in ("CoLA", "SST-2") for n in (3, 2)}
    for run in plan.students:
        special = run.method.name == "emd"
        assert (run.config.beta, run.config.rule) == ((3, "softmax") if special else (2, "ratio"))
        assert (run.config.learning_rate, run.config.trainer_args) == (1e-3, {"adam_beta2": 0.98})
        assert (run.config.student_layers, run.config.seed, run.config.select_on) == (run.layers, run.seed, "holdout")
    assert [(r.config.learning_rate, r.config.num_train_epochs, r.seed) for r in plan.teachers] == [(5e-4, 2, 9)] * 2
    assert [r.config.select_on for r in plan.teachers] == ["holdout"] * 2
    assert len({run.folder for run in plan.students}) == 16
    assert [task.selection_rows for task in plan.tasks] == [6, 6]


def test_the_command_of_a_cell_makes_the_same_configuration(data, tmp_path):
    from bert_emd.cli import distill
    from bert_emd.cli.common import resolve_args
    from bert_emd.training.config import DistillConfig

    plan = make_plan(config(
        tmp_path / "out with a space", data, methods=("emd+seperate=true+lr_scheduler_kwargs={}",),
        options={"use_att": False, "max_seq_length": 24, "report_to": "none", "text_columns": None},
    ))  # fmt: skip
    run = plan.students[0]
    words = shlex.split(command_of(run))
    assert words[:2] == ["bert-emd", "distill"]
    parser = OptionParser(prog="x", description="")
    distill.add_arguments(parser)
    assert resolve_args(DistillConfig, parser.parse(words[2:])).config == run.config


def test_half_of_the_layers_is_the_default_depth_and_given_layers_are_one(data, tmp_path):
    plan = make_plan(config(tmp_path, data, student_layers=None))
    assert {run.layers for run in plan.students} == {2}
    plan = make_plan(config(tmp_path, data, student_layers=None, methods=("kd", "kd+student_layer_ids=1")))
    assert {(run.method.spec, run.layers) for run in plan.students} == {("kd", 2), ("kd+student_layer_ids=1", 1)}
    with pytest.raises(UserError, match="has a student of 1 layers, but student_layers asks for 2"):
        make_plan(config(tmp_path, data, methods=("kd", "kd+student_layer_ids=1")))


def test_threads_and_gpus_are_divided_among_the_jobs():
    one = environments(3, {"PATH": "/bin"}, cores=8, gpus=0)
    assert [e["OMP_NUM_THREADS"] for e in one] == ["2"] * 3
    assert "CUDA_VISIBLE_DEVICES" not in one[0]
    assert environments(2, {"OMP_NUM_THREADS": "6"}, cores=64, gpus=1)[0]["OMP_NUM_THREADS"] == "3"
    assert environments(4, {}, cores=2, gpus=0)[3]["MKL_NUM_THREADS"] == "1"
    dealt = [e["CUDA_VISIBLE_DEVICES"] for e in environments(3, {"CUDA_VISIBLE_DEVICES": "4,7"}, cores=8, gpus=2)]
    assert dealt == ["4", "7", "4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "3"], "--seed is not an option of this command: --seeds are the students'"),
        (["--mapping", "emd"], "--mapping is not an option of this command: --methods names"),
        (["--method", "emd"], "unknown flag --method; did you mean --methods?"),
        (["--teacher_learning_rte", "1"], "unknown flag --teacher_learning_rte; did you mean --teacher_learning_rate?"),
        (["--methods", "none"], "--output_dir"),
        (["--seeds", "1,x"], "seeds must be whole numbers separated by commas"),
    ],
)
def test_mistakes_on_the_command_line(words, message, capsys):
    assert main(["compare", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_configuration_file_sets_all_kinds_of_options(tmp_path, data):
    from bert_emd.cli import compare

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({
        "methods": ["none", "emd+student_layer_ids=1,3"], "seeds": [5], "task_name": "CoLA", "output_dir": "there",
        "learning-rate": 1e-3, "teacher_learning_rate": 2e-3, "beta": 3, "model_name_or_path": data["encoder"],
    }))  # fmt: skip
    parser = OptionParser(prog="x", description="")
    compare.add_arguments(parser)
    flags = ["--config", str(path), "--beta", "4", "--jobs=2", "--teacher-epochs", "1", "--no_use_att"]
    made = compare._config(vars(parser.parse(flags)))
    assert isinstance(made, CompareConfig)
    assert (made.methods, made.seeds, made.jobs) == (("none", "emd+student_layer_ids=1,3"), (5,), 2)
    assert made.options == {"learning_rate": 1e-3, "beta": "4", "use_att": "false"}
    assert made.teacher_options == {"learning_rate": 2e-3, "num_train_epochs": "1"}


def test_the_recipe_of_a_search_holds_for_all_students(tmp_path, data):
    from bert_emd.training.config import DistillConfig

    best = DistillConfig(
        teacher_model="elsewhere", task_name="MRPC", data_dir="there", student_layers=3, mapping="uniform", seed=9,
        select_on="holdout", learning_rate=3e-4, beta=10.0, cost_scale="relative", T=2.0, num_train_epochs=7.0,
        trainer_args={"adam_beta2": 0.98}, bf16=False,
    )  # fmt: skip
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in vars(best).items()}))
    changes = {"methods": ("kd", "emd+beta=1"), "seeds": (1,), "recipe": str(path), "options": {"T": 3}}
    made = config(tmp_path / "out", data, **changes)
    for run, beta in zip(make_plan(made).students, (10, 1), strict=True):
        c = run.config
        assert (c.learning_rate, c.beta, c.cost_scale, c.num_train_epochs) == (3e-4, beta, "relative", 7)
        assert (c.T, c.trainer_args) == (3, {"adam_beta2": 0.98})
        assert (c.seed, c.student_layers, c.task_name, c.data_dir) == (1, 2, "CoLA", data["glue"])
    # Nor does the switch of an earlier version's best.yaml turn every method into emd.
    path.write_text(path.read_text().replace("use_emd: null", "use_emd: true"))
    again = config(tmp_path / "again", data, **(changes | {"methods": ("kd", "uniform")}))
    assert [run.config.effective_mapping for run in make_plan(again).students] == ["kd", "uniform"]
    # Our defaults are not set anew, so they are not warned about where they have no effect.
    assert not {"rule", "weight_decay", "train_batch_size", "student_init", "mapping", "seed"} & made.options.keys()
    path.write_text("learning_rat: 1\n")
    with pytest.raises(UserError, match=r"best\.yaml: unknown key learning_rat; did you mean learning_rate"):
        config(tmp_path / "out", data, **changes)
    with pytest.raises(UserError, match=r"--recipe .*there is no such file"):
        config(tmp_path / "out", data, **(changes | {"recipe": str(tmp_path / "none.yaml")}))


def test_help_lists_the_comparisons_the_students_and_the_teachers_options(capsys):
    assert main(["compare", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--methods", "--seeds", "--jobs", "--beta", "--teacher_learning_rate", "--select_on", "--adam_beta2"):
        assert f"  {flag} " in out
    assert "  --mapping " not in out
    assert "  --seed " not in out


def test_the_folder_of_something_else_is_left_alone(data, tmp_path):
    from bert_emd import compare

    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no comparison"):
        compare(config(out, data))
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="own folder"):
        compare(config(Path(data["encoder"]), data))


@pytest.mark.parametrize(("asked", "told"), [({}, False), ({"select_on": "dev"}, True)])
def test_only_a_choice_of_rows_that_somebody_made_is_warned_about(tmp_path, data, asked, told):
    files = {name: str(tmp_path / f"{name}.csv") for name in ("train_file", "validation_file", "test_file")}
    for seed, path in enumerate(files.values()):
        rows = [f"{text},{('bad', 'good')[label]}" for text, label in compare_data.sentences(20, seed)]
        Path(path).write_text("\n".join(["text,label", *rows]))
    made = config(tmp_path / "out", data, task_name=None, options=files | {"T_emd": 3}, **asked)
    made = dataclasses.replace(made, options={k: v for k, v in made.options.items() if k != "data_dir"})
    for run in make_plan(made).students:
        names = [warning.split()[0] for warning in run.warnings]
        assert "T_emd" in names
        assert ("select_on" in names) is told
