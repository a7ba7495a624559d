"""The part of TRL's `GRPOConfig` that is no objective: batch, optimiser, model and files."""

from __future__ import annotations

import math

from rlkit.convert.base import Given, Writer
from rlkit.convert.trl_tables import OPTIMISERS, SCHEDULES


def batch(write: Writer) -> None:
    """Convert TRL's rows, processes and accumulation into prompts of a step and its updates."""
    given = write.given
    group = given("num_generations")
    prompts, updates = prompts_and_updates(given)
    rows = (
        *("per_device_train_batch_size", "steps_per_generation", "gradient_accumulation_steps"),
        "generation_batch_size",
    )
    write.set("algorithm.group_size", group, "num_generations")
    write.set("prompts_per_step", prompts, *rows, "num_generations")
    write.set("optim.minibatches", min(updates, prompts), *rows)
    write.set("optim.inner_epochs", given("num_iterations"), "num_iterations")
    write.note("prompts_per_step is that of one process: multiply it by the number of yours")
    if updates > prompts:
        write.note(f"TRL makes {updates} updates of {prompts} prompts; rlkit never splits a group")
    if given("max_steps") > 0:
        # TRL counts updates, rlkit counts batches of rollouts.
        steps = -(-given("max_steps") // updates_of_batch(given))
        write.set("steps", steps, "max_steps", "num_iterations")
    elif given.has("max_steps"):
        write.same("max_steps")


def prompts_and_updates(given: Given) -> tuple[int, int]:
    """Return the prompts of a batch of rollouts, and TRL's updates of one pass over it."""
    rows, accumulation = given("per_device_train_batch_size"), given("gradient_accumulation_steps")
    steps, whole = given("steps_per_generation"), given("generation_batch_size")
    if steps is None:
        steps = accumulation if whole is None else max(1, whole // rows)
    total = whole if whole is not None else rows * steps
    return max(1, total // given("num_generations")), max(1, steps // accumulation)


def updates_of_batch(given: Given) -> int:
    """Return the updates that rlkit makes of one batch of rollouts."""
    prompts, updates = prompts_and_updates(given)
    return min(updates, prompts) * int(given("num_iterations"))


def optimiser(write: Writer) -> None:
    given = write.given
    name = given("optim")
    if name in OPTIMISERS:
        write.option(f"optim={OPTIMISERS[name]}", "optim")
    else:
        write.lose("optim", f"rlkit has {', '.join(sorted(OPTIMISERS))}")
    write.set("optim.learning_rate", given("learning_rate"), "learning_rate")
    schedule = given("lr_scheduler_type")
    if schedule in (*SCHEDULES, "constant_with_warmup"):
        write.set("optim.schedule", SCHEDULES.get(schedule, "constant"), "lr_scheduler_type")
    else:
        write.lose("lr_scheduler_type", f"rlkit has {', '.join(SCHEDULES)}")
    betas = [given("adam_beta1"), given("adam_beta2")]
    write.set("optim.betas", betas, "adam_beta1", "adam_beta2")
    write.each_if_given(
        {
            "adam_epsilon": "optim.eps",
            "weight_decay": "optim.weight_decay",
            "max_grad_norm": "optim.max_grad_norm",
        }
    )
    if given.has("warmup_ratio") and given("max_steps") > 0 and not given.has("warmup_steps"):
        updates = math.ceil(given("warmup_ratio") * given("max_steps"))
        write.set("optim.warmup_steps", updates, "warmup_ratio", "max_steps")
    elif given.has("warmup_ratio"):
        write.lose("warmup_ratio", "it needs max_steps: give optim.warmup_steps")
    steps = given("warmup_steps")
    if steps is not None and 0 < steps < 1:
        write.lose("warmup_steps", "a share needs the number of updates: give optim.warmup_steps")
    else:
        write.if_given("warmup_steps", "optim.warmup_steps")


def model(write: Writer) -> None:
    given = write.given
    write.each_if_given(
        {
            "model_name_or_path": "model.source",
            "model_revision": "model.revision",
            "trust_remote_code": "model.allow_remote_code",
        }
    )
    for source, dtype in (("bf16", "bf16"), ("fp16", "fp16")):
        if given(source):
            write.set("model.dtype", dtype, source)
        else:
            write.same(source)
    if given.has("gradient_checkpointing"):
        value = "on" if given("gradient_checkpointing") else "off"
        write.set("model.gradient_checkpointing", value, "gradient_checkpointing")
    if given("load_in_4bit"):
        write.option("memory=qlora", "load_in_4bit")
    else:
        write.same("load_in_4bit")
    _adapter(write)


def _adapter(write: Writer) -> None:
    given = write.given
    write.each_if_given(
        {
            **{"peft.r": "model.lora.rank", "lora_r": "model.lora.rank"},
            **{"peft.lora_alpha": "model.lora.alpha", "lora_alpha": "model.lora.alpha"},
            **{"peft.use_rslora": "model.lora.rslora", "use_rslora": "model.lora.rslora"},
        }
    )
    for source in ("peft.target_modules", "lora_target_modules"):
        if given(source) not in (None, "all-linear"):
            names = given(source)
            names = names if isinstance(names, list | tuple) else [names]
            write.set("model.lora.targets", names, source)
        else:
            write.same(source)  # every linear layer is rlkit's default
    adapted = any(given.has(key) for key in ("peft.r", "lora_r", "peft.lora_alpha"))
    if given.has("use_peft") and not given("use_peft"):
        write.option("model.tuning=full", "use_peft")
    elif given.has("use_peft"):
        write.same("use_peft")
    elif not adapted:
        write.note(
            "a GRPOConfig does not say what trains; rlkit trains LoRA unless model.tuning=full"
        )


def files(write: Writer) -> None:
    given = write.given
    write.each_if_given(
        {"seed": "seed", "output_dir": "run_dir", "log_completions": "tracker.completions"}
    )
    for source, key in (
        ("save_steps", "checkpoint.every"),
        ("eval_steps", "evaluation.every"),
        ("logging_steps", "tracker.metrics_every"),
    ):
        value = given(source)
        if value is not None and 0 < value < 1:
            write.lose(source, "a share of all steps: give a number of steps")
        elif value is not None:
            # TRL counts updates, rlkit counts batches of rollouts.
            write.set(key, max(1, int(value) // updates_of_batch(given)), source)
    if (limit := given("save_total_limit")) is not None:
        write.set("checkpoint.keep_last", max(2, limit), "save_total_limit")
    services = given("report_to") if given.has("report_to") else []
    services = [services] if isinstance(services, str) else list(services)
    known = [s for s in services if s in ("wandb", "trackio", "tensorboard")]
    if known:
        write.option(f"tracker={known[0]}", "report_to")
    if services == ["none"]:
        write.same("report_to")
    elif set(services) - set(known[:1]):
        write.lose("report_to", "rlkit mirrors to one of wandb, trackio and tensorboard")
