"""Every rope type of transformers: packed rows and samples have the logps of a row by itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from folder_run import run_config
from tiny_models import VOCAB, make_batch, oracle_logps, random_ids, tiny_model
from tiny_tokenizers import byte_level_tokenizer
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rlkit.assembly.assemble import assemble
from rlkit.config import ConfigError
from rlkit.generation import HFGeneratorConfig
from rlkit.generation.hf import HFGenerator
from rlkit.models.config import Switch
from rlkit.models.families import head_of
from rlkit.models.rope import check_lengths, fix_all_rows, fix_factors, fixed_config, switches
from rlkit.policy.lora import LoRAConfig, attach, init_adapter
from rlkit.policy.policy import Policy
from rlkit.types import Prompt, RolloutBatch, SamplingConfig

SWITCH = 32
_THETA: dict[str, Any] = {"rope_theta": 10000.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": SWITCH},
    "longrope": {
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": SWITCH,
    },
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": SWITCH,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
MODELS = [
    ("phi3", "default"),
    ("phi3", "longrope"),
    *(("llama", kind) for kind in ROPES),
    ("phi", "dynamic"),
    ("gemma3_text", "dynamic"),
    ("gemma3_text", "longrope"),
]


def rope_model(family: str, kind: str) -> PreTrainedModel:
    """A fresh tiny model of head size 8 whose factors change at 32 tokens, if they change."""
    options: dict[str, Any] = {"rope_parameters": {"rope_type": kind, **_THETA, **ROPES[kind]}}
    if family == "gemma3_text":
        plain = {"rope_type": "default", **_THETA}
        nested = {"full_attention": options["rope_parameters"], "sliding_attention": plain}
        options["rope_parameters"] = nested
    if kind == "dynamic":
        options["max_position_embeddings"] = SWITCH
    if kind == "longrope" and family == "phi3":
        options["original_max_position_embeddings"] = SWITCH
    return tiny_model(family, **options)


def plain_policy(model: PreTrainedModel, share: Switch) -> Policy:
    lora = attach(model, LoRAConfig(rank=2), dtype=model.dtype)
    adapter = init_adapter(lora, seed=0, device=torch.device("cpu"))
    return Policy(
        model=model, tuning=lora, head=head_of(model), adapter=adapter, shared_prefix=share
    )


def rows_on_both_sides() -> RolloutBatch:
    """Rows of 24, 32, 33 and 50 tokens; the first three have one prompt, all begin alike."""
    prompt = random_ids(20, seed=1)
    lengths = (4, 12, 13)
    completions = [random_ids(n, seed=n) for n in (*lengths, 6)]
    return make_batch([prompt] * 3 + [prompt + random_ids(24, seed=2)], completions)


def oracle(family: str, kind: str, batch: RolloutBatch) -> torch.Tensor:
    """Each row by a model that has seen no other row: transformers' factors have a memory."""
    rows = []
    for i in range(len(batch)):
        one = make_batch(
            [batch.prompt_ids[i][batch.prompt_mask[i]].tolist()],
            [batch.completion_ids[i][batch.completion_mask[i]].tolist()],
        )
        logps = oracle_logps(rope_model(family, kind), one, temperature=1.0)[0]
        width = batch.completion_ids.shape[1]
        rows.append(torch.nn.functional.pad(logps, (0, width - len(logps))))
    return torch.stack(rows)


def test_the_list_is_that_of_transformers() -> None:
    assert set(ROPES) == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("share", [Switch.off, Switch.on])
@pytest.mark.parametrize(("family", "kind"), MODELS)
def test_packed_rows_have_the_logps_of_a_row_by_itself(
    family: str, kind: str, share: Switch
) -> None:
    batch = rows_on_both_sides()
    policy = plain_policy(rope_model(family, kind), share)
    logps = policy.forward(batch, adapter=None, temperature=1.0).logps
    truth = oracle(family, kind, batch)
    assert truth.abs().max() > 1.0
    torch.testing.assert_close(logps, truth, rtol=1e-6, atol=1e-6)


def test_the_factors_matter() -> None:
    """With one set of factors the test above would be off by nats, not rounding."""
    batch = rows_on_both_sides()
    truth = oracle("phi3", "longrope", batch)
    short, long = (rope_model("phi3", "longrope") for _ in range(2))
    fix_factors(short, SWITCH)
    fix_factors(long, SWITCH + 1)
    for model, right in ((short, slice(0, 2)), (long, slice(2, 4))):
        logps = plain_policy(model, Switch.on).forward(batch, adapter=None, temperature=1.0).logps
        difference = (logps - truth).abs().amax(1)
        assert difference[right].max() < 1e-6
        assert difference.max() > 0.5


def generator(model: PreTrainedModel) -> HFGenerator:
    def activate(_: object) -> AbstractContextManager[None]:
        return nullcontext()

    return HFGenerator(
        model,
        byte_level_tokenizer(),
        activate=activate,
        stop_token_ids=frozenset(),
        config=HFGeneratorConfig(max_rows=4),
    )


@pytest.mark.parametrize(("family", "kind"), MODELS)
def test_samples_have_the_trainers_logps(family: str, kind: str) -> None:
    """Prompts of several lengths in one call, on both sides of LongRoPE's switch."""
    model = rope_model(family, kind)
    lengths = [5, 9, 26] + ([33, 40] if kind != "dynamic" else [])
    common = random_ids(40, seed=3)
    prompts = [
        Prompt(index=i, ids=(*common[: n - 1], 3 + i), text="") for i, n in enumerate(lengths)
    ]
    seeds = [[100 * i + k for k in range(3)] for i in range(len(prompts))]
    rollouts = generator(model).generate(
        prompts, num_samples=3, sampling=SamplingConfig(max_completion_length=6), seeds=seeds
    )
    samples = [sample for group in rollouts for sample in group]
    batch = make_batch(
        [list(s.prompt.ids) for s in samples], [list(s.completion_ids) for s in samples]
    )
    sampled = torch.tensor([s.sampling_logps for s in samples], dtype=torch.float64)
    logps = plain_policy(model, Switch.on).forward(batch, adapter=None, temperature=1.0).logps
    torch.testing.assert_close(sampled, logps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sampled, oracle(family, kind, batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rows_that_would_cross_the_switch_are_refused(kind: str) -> None:
    family = "phi3" if kind == "longrope" else "llama"
    model = rope_model(family, kind)
    assert switches(model.config) == {kind: SWITCH}
    check_lengths(model.config, SWITCH)
    with pytest.raises(
        ValueError, match=f"must be <= 32 for {family} with rope type {kind}"
    ) as error:
        check_lengths(model.config, SWITCH + 1)
    assert "model.rope_length=33" in str(error.value) and "\n" not in str(error.value)
    if kind == "longrope":
        prompt = Prompt(index=0, ids=tuple(random_ids(30, seed=1)), text="")
        with pytest.raises(ValueError, match=f"<= 32 tokens for phi3 with rope type {kind}"):
            generator(model).generate(
                [prompt],
                num_samples=1,
                sampling=SamplingConfig(max_completion_length=3),
                seeds=[[1]],
            )


def test_a_run_that_could_cross_the_switch_is_refused_at_its_start(tmp_path: Path) -> None:
    """The prompts of 40 and completions of 8 tokens; one option makes the same run possible."""
    folder = tmp_path / "longrope"
    options = ROPES["longrope"] | {"rope_type": "longrope"} | _THETA
    tiny_model(
        "phi3",
        dtype=torch.float32,
        vocab_size=300,
        rope_parameters=options,
        original_max_position_embeddings=SWITCH,
    ).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    rows = [{"prompt": "abcdefghijkl"[i], "answer": "a"} for i in range(12)]
    rule = r"max_completion_length must be <= 32 for \S*longrope with rope type longrope"
    with pytest.raises(ConfigError, match=rule):
        assemble(run_config(folder, rows, tmp_path), say=lambda _: None)
    said: list[str] = []
    run = assemble(run_config(folder, rows, tmp_path, "model.rope_length=48"), say=said.append)
    run.close()
    assert "rotary factors: those of a row of 48 tokens for all rows (model.rope_length)" in said


def test_fixed_factors_let_rows_cross() -> None:
    model = rope_model("phi3", "longrope")
    fix_factors(model, SWITCH + 1)
    prompt = Prompt(index=0, ids=tuple(random_ids(28, seed=1)), text="")
    ((sample,),) = generator(model).generate(
        [prompt], num_samples=1, sampling=SamplingConfig(max_completion_length=9), seeds=[[1]]
    )
    batch = make_batch([list(prompt.ids)], [list(sample.completion_ids)])
    logps = plain_policy(model, Switch.on).forward(batch, adapter=None, temperature=1.0).logps
    sampled = torch.tensor([sample.sampling_logps], dtype=torch.float64)
    torch.testing.assert_close(sampled, logps, rtol=1e-6, atol=1e-6)
    # 37 tokens: transformers itself takes the long factors for the whole row.
    alone = oracle_logps(rope_model("phi3", "longrope"), batch, temperature=1.0)
    torch.testing.assert_close(sampled, alone, rtol=1e-6, atol=1e-6)


def test_rope_length_is_refused_where_it_would_do_nothing() -> None:
    with pytest.raises(ValueError, match=r"model\.rope_length must be unset .* got 64 for tiny"):
        fix_all_rows(tiny_model("llama"), 64, source="tiny")
    model = rope_model("phi3", "longrope")
    (note,) = fix_all_rows(model, 64, source="tiny")
    assert note.startswith("rotary factors: those of a row of 64 tokens for all rows")
    assert fix_all_rows(model, None, source="tiny") == ()


def test_an_unknown_rope_type_is_refused_by_name() -> None:
    config = tiny_model("llama").config
    config.rope_parameters = {"rope_type": "spiral", "rope_theta": 1.0}
    with pytest.raises(ValueError, match="got llama with rope type spiral"):
        switches(config)
    assert VOCAB == 67


@pytest.mark.parametrize(("family", "kind"), [m for m in MODELS if m[1] in ("dynamic", "longrope")])
@pytest.mark.parametrize("length", [20, 68])
def test_a_fixed_config_says_what_fixed_factors_compute(
    family: str, kind: str, length: int
) -> None:
    """A model that another library makes of the config has the logits of ours, row by row."""
    ours = rope_model(family, kind)
    config = fixed_config(ours.config, length)
    # What transformers chooses by length must be the same at every length now.
    theirs: Any = type(ours)(config)
    theirs.load_state_dict(ours.state_dict())
    theirs.to(torch.float64).requires_grad_(False).train(False)
    fix_factors(ours, length)
    for n in (5, 31, 60):
        ids = torch.tensor([random_ids(n, seed=n)])
        expected, found = ours(input_ids=ids).logits, theirs(input_ids=ids).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    plain: Any = rope_model(family, kind)
    if length > SWITCH:
        ids = torch.tensor([random_ids(20, seed=1)])
        assert (plain(input_ids=ids).logits - ours(input_ids=ids).logits).abs().max() > 1e-3


def test_a_config_without_a_length_stays_as_it_is() -> None:
    config = rope_model("llama", "dynamic").config
    assert fixed_config(config, None).to_dict() == config.to_dict()
    assert fixed_config(config, 68).rope_parameters["rope_type"] == "default"
    assert config.rope_parameters["rope_type"] == "dynamic", "the original is left alone"
