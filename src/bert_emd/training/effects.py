"""Which fields of a configuration have no effect under its other values, and why."""

from __future__ import annotations

from bert_emd.data import find_task
from bert_emd.errors import UserError
from bert_emd.method import MAPPINGS
from bert_emd.training.config import DistillConfig, RunConfig
from bert_emd.training.shared import TrainFields

__all__ = ["OF_MAPPINGS", "of_mapping", "of_run", "of_student", "of_training"]

OF_MAPPINGS = tuple(sorted(frozenset().union(*(mapping.uses for mapping in MAPPINGS.values()))))
"""Every option that only some mappings have."""


def of_run(config: RunConfig) -> dict[str, str]:
    """Those of fine-tuning or a distillation."""
    found = {}
    if config.task_name is None and config.data_dir is not None:
        found["data_dir"] = "task_name is not set"
    if config.test_file is not None:
        found["select_on"] = "test_file is reported on, so the checkpoint is chosen on other rows anyway"
    found |= of_training(config)
    if isinstance(config, DistillConfig):
        found |= _of_distillation(config)
    return found


def of_training(config: TrainFields) -> dict[str, str]:
    """Those of the learning rate's course and the length of training."""
    found = {}
    if config.warmup_steps is not None:
        found["warmup_proportion"] = "warmup_steps is set"
    if config.lr_scheduler == "constant":
        found["warmup_proportion"] = "lr_scheduler is constant"
        found["warmup_steps"] = "lr_scheduler is constant"
    if config.max_steps > 0:
        found["num_train_epochs"] = "max_steps is set"
    return found


def _of_distillation(config: DistillConfig) -> dict[str, str]:
    mapping = config.effective_mapping
    found = of_mapping(config)
    if _is_regression(config):
        found["T"] = "the target is a number, and a temperature is for classes"
    if mapping != config.mapping:
        switch = f"use_emd is {str(config.use_emd).lower()}"
        if config.pkd or config.pred_distill:
            switch = "pred_distill is set" if config.pred_distill else "pkd is set"
        found["mapping"] = f"{switch}, so it is {mapping}"
    nothing = None
    if mapping in MAPPINGS and not config.matches:
        nothing = "use_att, use_rep and use_embedding are false"
    elif mapping in MAPPINGS and config.beta == 0 and _together(config):
        nothing = "beta is 0"
    if nothing is not None:
        for name in ("mapping", "beta", "theta", *OF_MAPPINGS):
            if name not in nothing and (name not in OF_MAPPINGS or config.has_effect(name)):
                found[name] = nothing
    if config.mapping not in ("emd", "uniform") or config.pkd or config.pred_distill:
        found["use_emd"] = f"mapping is {mapping}"
    if config.has_effect("use_att") and not (config.use_att or config.use_rep):
        found["theta"] = "use_att and use_rep are false"
    if config.aug_file is not None and config.aug_train:
        found["aug_train"] = "aug_file names the file"
    if mapping == "none":
        for name in ("cache_teacher", "teacher_cache_dir", "alpha", "T", "reduce_T", "new_pred_loss"):
            found[name] = "there is no teacher in the loss"
    return found | of_student(config) | _of_stages(config)


def _is_regression(config: DistillConfig) -> bool:
    """Whether the options alone tell that a number is predicted."""
    if config.task_name is None:
        return bool(config.regression)
    try:
        return find_task(config.task_name).is_regression
    except UserError:
        return False  # said where the data are read


def of_mapping(config: DistillConfig) -> dict[str, str]:
    """The options of mappings that the one in use does not have, and those that its other options overrule."""
    mapping = config.effective_mapping
    reason = "pred_distill is set" if config.pred_distill and mapping == "kd" else f"mapping is {mapping}"
    found: dict[str, str] = {}
    if mapping not in MAPPINGS:
        found |= dict.fromkeys(("beta", "theta"), reason)
    for name in OF_MAPPINGS:
        if not config.has_effect(name) and getattr(config, name) is not None:
            known = mapping in MAPPINGS and name in MAPPINGS[mapping].uses
            found[name] = "state_loss is cls" if known else reason
    if config.has_effect("rule"):
        if config.effective_rule in ("ratio", "fixed"):
            found["T_emd"] = f"rule is {config.effective_rule}"
        if config.effective_rule == "fixed":
            found["seperate"] = "rule is fixed"
        if not config.update_weight:
            found["rule"] = "update_weight is false"
        elif config.rule == "fixed":
            found["update_weight"] = "rule is fixed"
    return found


def of_student(config: DistillConfig) -> dict[str, str]:
    """Those of where the student's weights come from."""
    found = {}
    if config.student_model is not None or config.student_layer_ids is not None or any(config.sizes):
        found["student_init"] = "the student is not made of a choice of the teacher's layers"
    if config.student_model is not None or config.student_init == "fresh" or any(config.sizes):
        found["student_from"] = "no layers are copied"
    if config.student_from == "teacher" and config.pretrained_model is not None:
        found["pretrained_model"] = "student_from is teacher"
    return found


def _of_stages(config: DistillConfig) -> dict[str, str]:
    found: dict[str, str] = {}
    if not config.cache_teacher and config.teacher_cache_dir is not None:
        found["teacher_cache_dir"] = "cache_teacher is false"
    if not config.one_step:
        for name in ("alpha", "beta", "theta", "T", "reduce_T", "new_pred_loss"):
            found[name] = "one_step is false"
        for name in ("lr_scheduler", "warmup_proportion", "warmup_steps"):
            found[name] = "one_step is false: the learning rate is constant"
    if config.schedule == "two-stage":
        found |= dict.fromkeys(("beta", "theta"), "schedule is two-stage: the intermediate losses stand alone")
        if config.steps_of_intermediate > 0:
            found["intermediate_epochs"] = "the first stage's steps are set"
    else:
        for name in ("intermediate_epochs", "intermediate_learning_rate", "intermediate_max_steps"):
            if getattr(config, name) is not None:
                found[name] = "schedule is one-step"
    if not config.new_pred_loss:
        found["alpha"] = "new_pred_loss is false"
    return found


def _together(config: DistillConfig) -> bool:
    """Whether the intermediate losses are added to the prediction loss, so that beta weighs them."""
    return config.one_step and config.schedule == "one-step"
