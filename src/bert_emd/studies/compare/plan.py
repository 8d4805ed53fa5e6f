"""All runs of a comparison, resolved and checked before the first one starts."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from bert_emd.data import find_task
from bert_emd.errors import UserError
from bert_emd.models import label_names, load_config
from bert_emd.studies.compare.config import CompareConfig
from bert_emd.studies.compare.ledger import Ledger, settings_of
from bert_emd.studies.compare.methods import Method, parse_methods
from bert_emd.studies.compare.starts import check_student, copies_layers, with_starts
from bert_emd.training.config import DATA, DistillConfig, FinetuneConfig, RunConfig
from bert_emd.training.inputs import load_run_data
from bert_emd.training.resolve import Resolved, resolve
from bert_emd.training.values import convert

__all__ = ["Plan", "Run", "TaskPlan", "make_plan"]

_DATA_FIELDS = frozenset(f.name for f in dataclasses.fields(FinetuneConfig) if f.metadata["group"] == DATA) - {
    "model_name_or_path",
    "model_type",
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process: a teacher's fine-tuning or a student's training."""

    title: str
    arguments: tuple[str, ...]
    """The command and its flags, behind ``bert-emd``."""
    config: RunConfig
    folder: Path
    task: str
    layers: int | None = None
    method: Method | None = None
    seed: int
    teacher: Run | None = None
    """The run that must be finished first; None for a ready teacher and for the teachers themselves."""
    data: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the rows that it reads."""
    warnings: tuple[str, ...] = ()

    @property
    def ledger(self) -> Ledger:
        """Its record and its log."""
        return Ledger(folder=self.folder)


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """What the runs of one task share."""

    name: str
    metric: str
    teacher: Run | str
    """The run that makes it, or the ready one."""
    selected_on: str
    selection_rows: int
    reported_on: str
    optimistic: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a comparison runs, in order."""

    config: CompareConfig
    methods: list[Method]
    tasks: list[TaskPlan]
    teachers: list[Run]
    students: list[Run]
    notes: list[str] = field(default_factory=list)
    """What a reader has to know about the starts."""

    @property
    def depths(self) -> list[int]:
        """All depths, the deepest first as they were asked for."""
        return list(dict.fromkeys(run.layers for run in self.students if run.layers is not None))


def make_plan(config: CompareConfig) -> Plan:
    """Resolve every run and refuse, before anything is trained, what cannot be run.

    Raises:
        UserError: an unknown method or option, a depth the teacher does not have, data that cannot be read, …
    """
    names = config.task_name or (None,)
    ready = _ready_teachers(config, [name for name in names if name is not None])
    methods, notes = with_starts(config, parse_methods(config.methods), ready)
    teachers: list[Run] = []
    students: list[Run] = []
    tasks: list[TaskPlan] = []
    for name in names:
        title = name if name is not None else Path(str(config.options["train_file"])).stem
        teacher: Run | str = ready[name] if name in ready else _teacher_run(config, name, title)
        task, runs = _task(config, methods, name, title, teacher)
        tasks.append(task)
        students += runs
        if isinstance(task.teacher, Run):
            teachers.append(task.teacher)
    starts = {method.start or config.student_from for method in methods}
    if config.model_name_or_path and not teachers and "pretrained" not in starts:
        raise UserError("every task has a ready teacher, so model_name_or_path has no use; leave it out")
    if config.teacher_options and not teachers:
        given = next(iter(config.teacher_options))
        raise UserError(f"teacher_{given} has no use: every task has a ready teacher; leave it out")
    _refuse_twins(methods, students)
    # Seed by seed, so that what is there after a while can be compared.
    order = {seed: i for i, seed in enumerate(config.seeds)}
    students.sort(key=lambda run: order[run.seed])
    return Plan(config=config, methods=methods, tasks=tasks, teachers=teachers, students=students, notes=notes)


def _ready_teachers(config: CompareConfig, tasks: Sequence[str]) -> dict[str | None, str]:
    """Teachers that need no training, by task."""
    given = config.teacher_model or ()
    if not given and not config.model_name_or_path:
        raise UserError("which teacher? Name an encoder with --model_name_or_path, or ready ones with --teacher_model")
    if len(given) == 1 and "=" not in given[0]:
        if len(tasks) > 1:
            raise UserError(f"one teacher for {len(tasks)} tasks; name them as --teacher_model TASK=FOLDER,TASK=FOLDER")
        return {tasks[0] if tasks else None: given[0]}
    found: dict[str | None, str] = {}
    for pair in given:
        name, equals, folder = pair.partition("=")
        if not equals or not folder:
            raise UserError(f"teacher_model {pair!r} is not of the form TASK=FOLDER")
        task = find_task(name).name
        if task not in tasks:
            raise UserError(f"teacher_model names {task}, which is none of the tasks: {', '.join(tasks) or 'own data'}")
        if task in found:
            raise UserError(f"teacher_model names {task} twice; leave one out")
        found[task] = folder
    if (rest := [task for task in tasks if task not in found]) and not config.model_name_or_path:
        raise UserError(f"no teacher for {rest[0]}: add {rest[0]}=FOLDER, or an encoder with --model_name_or_path")
    return found


def _teacher_run(config: CompareConfig, task: str | None, title: str) -> Run:
    folder = _root(config) / _slug(title) / "teacher"
    flags = {name: value for name, value in config.options.items() if name in _DATA_FIELDS}
    flags |= {"select_on": config.select_on, **config.teacher_options}
    flags |= {"model_name_or_path": config.model_name_or_path, "output_dir": str(folder)}
    if task is not None:
        flags["task_name"] = task
    resolved = resolve(FinetuneConfig, flags=flags, preset=config.preset)
    return Run(
        title=f"{title}: the teacher, seed {resolved.config.seed}",
        arguments=_arguments("finetune", resolved, config.preset),
        config=resolved.config,
        folder=folder,
        task=title,
        seed=resolved.config.seed,
    )


def _task(
    config: CompareConfig, methods: Sequence[Method], task: str | None, title: str, teacher: Run | str
) -> tuple[TaskPlan, list[Run]]:
    is_ready = isinstance(teacher, str)
    source = teacher if isinstance(teacher, str) else str(config.model_name_or_path)
    encoder = load_config(source, "the teacher" if is_ready else "the model", cache_dir=config.options.get("cache_dir"))
    resolved = [
        (method, layers, seed, _resolve_student(config, method, task, title, layers, seed, teacher))
        for method in methods
        for layers in _depths(config, method, encoder.num_hidden_layers)
        for seed in config.seeds
    ]
    configs = [r.config for *_, r in resolved]
    for method, layers, seed, r in resolved:
        if seed == config.seeds[0]:
            check_student(method, layers, r.config, source, encoder.num_hidden_layers)
    names = label_names(encoder) if is_ready else None
    regression = (names is None) if is_ready else None
    needs_labels = not is_ready or any(c.needs_labels(regression=names is None) for c in configs)
    data = load_run_data(
        configs[0], None, None, model_names=names, regression=regression, needs_labels=needs_labels,
        augmented=next((c.augmented for c in configs if c.augmented), False),
    )  # fmt: skip
    prints = {
        "training rows": data.train.fingerprint(),
        "rows that choose": data.validation.fingerprint(),
        **{f"reported rows ({name})": rows.fingerprint() for name, rows in data.reported.items()},
    }
    if isinstance(teacher, Run):
        teacher.data.update(prints)
    students = [
        Run(
            title=f"{title}, {layers} layers, {method.spec}, seed {seed}",
            arguments=_arguments("distill", r, method.preset or config.preset),
            config=r.config,
            folder=Path(str(r.config.output_dir)),
            task=title,
            layers=layers,
            method=method,
            seed=seed,
            teacher=teacher if isinstance(teacher, Run) else None,
            data=prints,
            warnings=tuple(_warnings(config, r)),
        )
        for method, layers, seed, r in resolved
    ]
    plan = TaskPlan(
        name=title,
        metric=data.validation.task.main_metric,
        teacher=teacher,
        selected_on=data.selected_on,
        selection_rows=len(data.validation),
        reported_on=data.reported_on,
        optimistic=data.optimistic,
    )
    # By depth first: a table a task and depth.
    return plan, sorted(students, key=lambda run: -(run.layers or 0))


def _warnings(config: CompareConfig, student: Resolved[DistillConfig]) -> list[str]:
    """Which of a student's options have no effect; `select_on` is the comparison's own where nobody asked for it."""
    asked = config.select_on != CompareConfig.select_on
    return [warning for warning in student.warnings if asked or not warning.startswith("select_on ")]


def _depths(config: CompareConfig, method: Method, total: int) -> list[int]:
    options = {**config.options, **method.options}
    ids = options.get("student_layer_ids")
    if ids is not None:
        own = len(convert(ids, tuple[int, ...], "student_layer_ids"))
    elif options.get("student_model") is not None:
        student = load_config(str(options["student_model"]), "the student", cache_dir=options.get("cache_dir"))
        own = int(student.num_hidden_layers)
    else:
        return list(config.student_layers or (max(1, total // 2),))
    if config.student_layers is not None and own not in config.student_layers:
        asked = ", ".join(map(str, config.student_layers))
        raise UserError(f"method {method.spec!r} has a student of {own} layers, but student_layers asks for {asked}")
    return [own]


def _resolve_student(
    config: CompareConfig, method: Method, task: str | None, title: str, layers: int, seed: int, teacher: Run | str
) -> Resolved[DistillConfig]:
    folder = _root(config) / _slug(title) / f"{layers}-layers" / f"{_slug(method.spec)}-seed{seed}"
    flags: dict[str, Any] = {**config.options, **method.options}
    own: dict[str, Any] = {} if task is None else {"task_name": task}
    if flags.get("student_model") is None and flags.get("student_layer_ids") is None:
        own["student_layers"] = layers
    start = method.start or (config.student_from if copies_layers(flags) else "teacher")
    if method.start is not None or start != "teacher":
        own["student_from"] = start
    if start == "pretrained" and config.model_name_or_path and "pretrained_model" not in flags:
        own["pretrained_model"] = config.model_name_or_path
    own |= {
        "mapping": method.name,
        "seed": seed,
        "select_on": config.select_on,
        "teacher_model": str(teacher.folder) if isinstance(teacher, Run) else teacher,
        "output_dir": str(folder),
    }
    try:
        if method.preset is None:
            return resolve(DistillConfig, flags=flags | own, preset=config.preset)
        # A row's own preset wins over what is set for all rows, and what is written behind the row over the preset.
        alone = resolve(DistillConfig, flags=method.options | own, preset=method.preset)
        of_preset = {name for name, source in alone.sources.items() if source == f"preset {method.preset}"}
        kept = {name: value for name, value in config.options.items() if name not in of_preset}
        return resolve(DistillConfig, flags=kept | method.options | own, preset=method.preset)
    except UserError as error:
        raise UserError(f"method {method.spec!r}: {error}") from error


def _refuse_twins(methods: Sequence[Method], students: Sequence[Run]) -> None:
    """Two names of the same runs would count them twice."""
    known: dict[str, Method] = {}
    for method in methods:
        own = [run for run in students if run.method is method]
        key = json.dumps([(run.task, run.layers, run.seed, settings_of(run.config)) for run in own], sort_keys=True)
        other = known.setdefault(key, method)
        if other is not method:
            raise UserError(f"the methods {other.spec} and {method.spec} are one and the same; leave one out")


def _root(config: CompareConfig) -> Path:
    return Path(str(config.output_dir)) / "runs"


def _slug(text: str) -> str:
    """A folder's name that tells the text, and tells it apart from every other one."""
    plain = re.sub(r"[^\w.=+@-]+", "_", text)
    return plain if plain == text and len(text) <= 100 else f"{plain[:80]}-{sha256(text.encode()).hexdigest()[:8]}"


def _arguments(command: str, resolved: Resolved[Any], preset: str | None) -> tuple[str, ...]:
    """The command line of a run: what was set, nothing that is a default."""
    words = [command]
    if preset is not None:
        words += ["--preset", preset]
    for name, source in resolved.sources.items():
        value = getattr(resolved.config, name)
        if source != "flag" or name == "trainer_args" or value is None:
            continue
        words += [f"--{name}", _text(value)]
    for name in resolved.trainer_sources:
        words += [f"--{name}", _text(resolved.config.trainer_args[name])]
    return tuple(words)


def _text(value: Any) -> str:
    """A value as a flag takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(value)
        return line.getvalue()
    return str(value)
