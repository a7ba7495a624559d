"""The part of a configuration of verl that is no objective: batch, data, model, files."""

from __future__ import annotations

import math

from rlkit.convert.base import Writer
from rlkit.convert.verl_tables import ACTOR, MODEL, ROLLOUT

_OPTIM = f"{ACTOR}optim."


def batch(write: Writer) -> None:
    """Convert the prompts of a step and its updates."""
    given = write.given
    prompts, mini = given("data.train_batch_size"), given(f"{ACTOR}ppo_mini_batch_size")
    write.set("prompts_per_step", prompts, "data.train_batch_size")
    write.set("algorithm.group_size", given(f"{ROLLOUT}n"), f"{ROLLOUT}n")
    updates = max(1, prompts // mini)
    write.set(
        *("optim.minibatches", updates),
        *(f"{ACTOR}ppo_mini_batch_size", "data.train_batch_size"),
    )
    write.set("optim.inner_epochs", given(f"{ACTOR}ppo_epochs"), f"{ACTOR}ppo_epochs")


def data(write: Writer) -> None:
    """Convert rows and lengths."""
    given = write.given
    for source, key in (
        ("data.max_prompt_length", "task.max_prompt_length"),
        ("data.max_response_length", "task.max_completion_length"),
    ):
        write.set(key, given(source), source)
    overlong = {"error": "error", "left": "truncate_left"}
    if given("data.filter_overlong_prompts"):
        write.set("task.overlong_prompts", "drop", "data.filter_overlong_prompts")
        write.same("data.truncation")
    elif given("data.truncation") in overlong:
        write.same("data.filter_overlong_prompts")
        write.set("task.overlong_prompts", overlong[given("data.truncation")], "data.truncation")
    else:
        write.lose("data.truncation", "rlkit has error and left, or drops the row")
    files = given("data.train_files")
    files = files if isinstance(files, list) else [files]
    if files == [None]:
        return
    write.option("task=dataset", "data.train_files")
    write.set("task.path", files[0], "data.train_files")
    write.set("+task.columns.prompt", given("data.prompt_key"), "data.prompt_key")
    if len(files) > 1:
        write.lose("data.train_files", "task.path is one file or one folder")
    held_out = given("data.val_files")
    held_out = held_out if isinstance(held_out, list) else [held_out]
    if held_out != [None]:
        write.set("task.eval_path", held_out[0], "data.val_files")
    if len(held_out) > 1:
        write.lose("data.val_files", "task.eval_path is one file: see evaluation.tasks")
    write.note("name the columns that your rewards read: +task.columns.answer=...")


def optimiser(write: Writer) -> None:
    """Convert AdamW and its schedule."""
    given = write.given
    for source, key in (
        ("lr", "optim.learning_rate"),
        ("weight_decay", "optim.weight_decay"),
        ("betas", "optim.betas"),
        ("clip_grad", "optim.max_grad_norm"),
    ):
        write.set(key, given(f"{_OPTIM}{source}"), f"{_OPTIM}{source}")
    schedule = f"{_OPTIM}lr_scheduler_type"
    if given(schedule) in ("constant", "cosine"):
        write.set("optim.schedule", given(schedule), schedule)
    else:
        write.lose(schedule, "rlkit has constant, linear and cosine")
    steps, share = given(f"{_OPTIM}lr_warmup_steps"), given(f"{_OPTIM}lr_warmup_steps_ratio")
    total = given("trainer.total_training_steps")
    if steps > 0:
        write.set("optim.warmup_steps", steps, f"{_OPTIM}lr_warmup_steps")
    elif share > 0 and total:
        write.set("optim.warmup_steps", math.floor(share * total), f"{_OPTIM}lr_warmup_steps_ratio")
    elif share > 0:
        reason = "it needs trainer.total_training_steps: give optim.warmup_steps"
        write.lose(f"{_OPTIM}lr_warmup_steps_ratio", reason)
    write.same(*(f"{_OPTIM}{k}" for k, v in _UNSET.items() if given(f"{_OPTIM}{k}") == v))


_UNSET = {"lr_warmup_steps": -1, "lr_warmup_steps_ratio": 0.0, "optimizer": "AdamW"}


def model(write: Writer) -> None:
    """Convert the base model and what of it trains."""
    given = write.given
    write.each_if_given(
        {
            f"{MODEL}path": "model.source",
            f"{MODEL}trust_remote_code": "model.allow_remote_code",
        }
    )
    rank = given(f"{MODEL}lora_rank")
    if rank > 0:
        write.set("model.lora.rank", rank, f"{MODEL}lora_rank")
        write.set("model.lora.alpha", given(f"{MODEL}lora_alpha"), f"{MODEL}lora_alpha")
        targets = given(f"{MODEL}target_modules")
        if isinstance(targets, list):
            write.set("model.lora.targets", targets, f"{MODEL}target_modules")
        else:
            write.same(f"{MODEL}target_modules")
    else:
        write.option("model.tuning=full", f"{MODEL}lora_rank")
    key = f"{MODEL}enable_gradient_checkpointing"
    if given.has(key):
        write.set("model.gradient_checkpointing", "on" if given(key) else "off", key)


def sampling(write: Writer) -> None:
    """Convert the sampler and its distribution."""
    given = write.given
    name = given(f"{ROLLOUT}name")
    chosen = name if name in ("vllm", "hf") else "vllm"
    write.option(f"generator={chosen}", f"{ROLLOUT}name")
    if chosen != name:
        write.lose(f"{ROLLOUT}name", "rlkit samples with vLLM or transformers")
    for key in ("temperature", "top_p"):
        write.set(f"generator.sampling.{key}", float(given(f"{ROLLOUT}{key}")), f"{ROLLOUT}{key}")
    top_k = max(0, given(f"{ROLLOUT}top_k"))
    write.set("generator.sampling.top_k", top_k, f"{ROLLOUT}top_k")
    if given.has(f"{ROLLOUT}val_kwargs.n"):
        samples = given(f"{ROLLOUT}val_kwargs.n")
        write.set("evaluation.samples_per_prompt", samples, f"{ROLLOUT}val_kwargs.n")


def trainer(write: Writer) -> None:
    """Convert steps, files, processes and trackers."""
    given = write.given
    write.each_if_given(
        {"trainer.total_training_steps": "steps", "trainer.default_local_dir": "run_dir"}
    )
    for source, key in (
        ("trainer.save_freq", "checkpoint.every"),
        ("trainer.test_freq", "evaluation.every"),
    ):
        if given(source) > 0:
            write.set(key, given(source), source)
        else:
            write.same(source)
    cards = given("trainer.nnodes") * given("trainer.n_gpus_per_node")
    write.set("gpus", cards, "trainer.nnodes", "trainer.n_gpus_per_node")
    if given("trainer.resume_mode") == "auto":
        write.set("resume", "auto", "trainer.resume_mode")
    elif given("trainer.resume_mode") == "disable":
        write.same("trainer.resume_mode")
    services = given("trainer.logger") if given.has("trainer.logger") else []
    services = [services] if isinstance(services, str) else list(services)
    known = [s for s in services if s in ("wandb", "trackio", "tensorboard")]
    if known:
        write.option(f"tracker={known[0]}", "trainer.logger")
        write.if_given("trainer.project_name", "tracker.project")
    else:
        write.same("trainer.project_name")
    if set(services) - set(known[:1]) - {"console"}:
        write.lose("trainer.logger", "rlkit mirrors to one of wandb, trackio and tensorboard")
    elif not known:
        write.same("trainer.logger")
