"""Which fields of a configuration have no effect under its other values, and why."""

from __future__ import annotations

from bert_emd.training.config import DistillConfig, RunConfig

__all__ = ["without_effect"]


def without_effect(config: RunConfig) -> dict[str, str]:
    """The fields without effect, each with the reason."""
    found = {}
    if config.task_name is None and config.data_dir is not None:
        found["data_dir"] = "task_name is not set"
    if config.test_file is not None:
        found["select_on"] = "test_file is reported on, so the checkpoint is chosen on other rows anyway"
    if config.warmup_steps is not None:
        found["warmup_proportion"] = "warmup_steps is set"
    if config.lr_scheduler == "constant":
        found["warmup_proportion"] = "lr_scheduler is constant"
        found["warmup_steps"] = "lr_scheduler is constant"
    if config.max_steps > 0:
        found["num_train_epochs"] = "max_steps is set"
    if isinstance(config, DistillConfig):
        found |= _of_distillation(config)
    return found


def _of_distillation(config: DistillConfig) -> dict[str, str]:
    found: dict[str, str] = {}
    mapping = config.effective_mapping
    if mapping != config.mapping:
        switch = "pred_distill is set" if config.pred_distill else "pkd is set" if config.pkd else "use_emd is false"
        found["mapping"] = f"{switch}, so it is {mapping}"
    if mapping in ("kd", "none"):
        reason = f"mapping is {mapping}" if not config.pred_distill else "pred_distill is set"
        for name in ("beta", "theta", "use_att", "use_rep", "use_embedding", "count_padding", "projection"):
            found[name] = reason
    if mapping != "emd":
        for name in ("T_emd", "rule", "seperate", "update_weight"):
            found[name] = f"mapping is {mapping}"
    elif config.effective_rule in ("ratio", "fixed"):
        found["T_emd"] = f"rule is {config.effective_rule}"
        if config.effective_rule == "fixed":
            found["seperate"] = "rule is fixed"
    if not config.update_weight:
        found["rule"] = "update_weight is false"
    elif config.rule == "fixed":
        found["update_weight"] = "rule is fixed"
    if config.student_model is not None or config.student_layer_ids is not None or any(config.sizes):
        found["student_init"] = "the student is not made of a choice of the teacher's layers"
    nothing = None
    if mapping not in ("kd", "none", "pkd") and not (config.use_att or config.use_rep or config.use_embedding):
        nothing = "use_att, use_rep and use_embedding are false"
    elif mapping not in ("kd", "none") and config.one_step and config.beta == 0:
        nothing = "beta is 0"
    if nothing is not None:
        for name in ("mapping", "theta", "rule", "T_emd", "seperate", "update_weight", "use_att", "use_rep",
                     "use_embedding", "count_padding", "projection"):  # fmt: skip
            if name not in nothing:
                found[name] = nothing
        if "beta" not in nothing:
            found["beta"] = nothing
    if config.mapping != "emd" or config.pkd or config.pred_distill:
        found["use_emd"] = f"mapping is {mapping}"
    if not (config.use_att or config.use_rep):
        found["theta"] = "use_att and use_rep are false"
    if not config.cache_teacher and config.teacher_cache_dir is not None:
        found["teacher_cache_dir"] = "cache_teacher is false"
    if mapping == "none":
        for name in ("cache_teacher", "teacher_cache_dir", "alpha", "T", "reduce_T", "new_pred_loss"):
            found[name] = "there is no teacher in the loss"
    if mapping == "pkd":
        for name in ("use_att", "use_rep", "use_embedding", "count_padding"):
            found[name] = "PKD matches [CLS] states only"
    if not config.one_step:
        for name in ("alpha", "beta", "theta", "T", "reduce_T", "new_pred_loss"):
            found[name] = "one_step is false"
        for name in ("lr_scheduler", "warmup_proportion", "warmup_steps"):
            found[name] = "one_step is false: the learning rate is constant"
    if not config.new_pred_loss:
        found["alpha"] = "new_pred_loss is false"
    return found
