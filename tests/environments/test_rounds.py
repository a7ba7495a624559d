"""Episodes over a real engine: every id accounted for, whatever the environment does."""

from __future__ import annotations

from pathlib import Path

import torch
from episode_stage import SAMPLING, stage
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlkit.environments import Message
from rlkit.environments.config import CutTurn
from rlkit.generation import sample_seed
from rlkit.generation.base import environment_seed, turn_seed
from rlkit.training.collate import collate
from rlkit.training.scoring import completion_of
from rlkit.types import EpisodeEnd, FinishReason, Prompt, ScoredRollout


def test_ids_are_those_of_the_engine_run_again_from_text(
    module: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Each turn again by itself, after a prompt that is made of text and of sampled ids alone."""
    with stage(module, model, tokenizer) as s:
        seen_turns = 0
        for group in s.play():
            secret = environment_seed(sample_seed(7, 0, group[0].prompt.index, 0)) % 1000
            for rollout in group:
                assert rollout.episode is not None
                seed = sample_seed(7, 0, rollout.prompt.index, rollout.sample_index)
                context = s.prompts(3)[rollout.prompt.index].ids
                ids: tuple[int, ...] = ()
                for number, turn in enumerate(rollout.episode.turns):
                    if number:
                        before = rollout.episode.turns[number - 1]
                        text = f"<|im_end|> {before.stop - before.start} {secret}"
                        ids += s.splicer.between([Message("user", text)], after=ids[-1])
                    ((again,),) = s.engine.inner.generate(
                        [Prompt(index=0, ids=context + ids, text="", limit=120 - len(ids))],
                        num_samples=1,
                        sampling=SAMPLING,
                        seeds=[[turn_seed(seed, number)]],
                    )
                    assert len(ids) == turn.start
                    ids += again.completion_ids
                    assert len(ids) == turn.stop
                    torch.testing.assert_close(
                        again.sampling_logps,
                        rollout.sampling_logps[turn.start : turn.stop],
                        rtol=0,
                        atol=1e-10,
                    )
                    seen_turns += 1
                assert ids == rollout.completion_ids
        assert seen_turns > 20


def test_one_forward_pass_over_the_whole_row_gives_the_sampling_logps(
    module: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Training sees the tokens that were sampled, with their context and positions."""
    with stage(module, model, tokenizer) as s:
        groups = s.play()
    scored = [
        [ScoredRollout(rollout=r, text="", components=(), reward=0.0) for r in g] for g in groups
    ]
    batch = collate(scored, reward_weights=(), pad_token_id=0, device=torch.device("cpu"))
    assert batch.spliced is not None and int(batch.spliced.sum()) > 100
    for row in range(len(batch)):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        ids = torch.cat([prompt, batch.completion_ids[row][batch.exists[row]]])
        logits = model(input_ids=ids[None]).logits[0] / SAMPLING.temperature
        logps = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[len(prompt) - 1 :, 0]
        mask = batch.completion_mask[row][: len(logps)]
        got = batch.sampling_logps[row][: len(logps)].double()
        torch.testing.assert_close(got[mask], logps[mask], rtol=1e-5, atol=1e-5)
        assert not bool(got[~mask].any())


def test_the_first_turn_is_what_a_single_turn_would_be(
    module: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with stage(module, model, tokenizer) as s:
        seeds = [[sample_seed(7, 0, p, i) for i in range(4)] for p in range(3)]
        alone = s.engine.inner.generate(s.prompts(3), num_samples=4, sampling=SAMPLING, seeds=seeds)
        for one, many in zip(
            [r for g in alone for r in g], [r for g in s.play() for r in g], strict=True
        ):
            start, stop = many.spans[0]
            assert many.completion_ids[start:stop] == one.completion_ids
            assert many.sampling_logps[start:stop] == one.sampling_logps
            assert many.prompt == one.prompt


def test_episodes_do_not_depend_on_their_neighbours_and_rounds_are_few(
    module: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with stage(module, model, tokenizer) as s:
        together = s.play(3, 4)
        assert s.engine.calls[0] == (3, 4)
        # One call a turn for all episodes that go on, each with a prompt of its own.
        assert len(s.engine.calls) == 3
        assert all(samples == 1 for _, samples in s.engine.calls[1:])
        few = s.play(2, 2)
    for p in range(2):
        for i in range(2):
            assert few[p][i].completion_ids == together[p][i].completion_ids
            assert few[p][i].episode == together[p][i].episode


def test_what_an_episode_may_use_is_limited_and_said(
    module: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with stage(module, model, tokenizer, {"turns": 9}, max_turns=2) as s:
        ends = {r.episode.end for g in s.play() for r in g if r.episode is not None}
        assert ends <= {EpisodeEnd.turns, EpisodeEnd.length} and EpisodeEnd.turns in ends
    with stage(module, model, tokenizer, max_turn_tokens=3) as s:
        for rollout in [r for g in s.play() for r in g]:
            assert rollout.episode is not None
            lengths = [stop - start for start, stop in rollout.spans]
            assert max(lengths) <= 3
            cut = rollout.episode.end is EpisodeEnd.length
            assert cut == (rollout.finish_reason is FinishReason.length)
            if cut:  # not given to the environment, so it earned nothing
                assert lengths[-1] == 3 and rollout.episode.turns[-1].reward is None
    with stage(module, model, tokenizer, max_turn_tokens=3, cut_turns=CutTurn.answer) as s:
        rollouts = [r for g in s.play() for r in g]
        assert {r.episode.end for r in rollouts if r.episode is not None} == {EpisodeEnd.done}
        assert max(stop - start for r in rollouts for start, stop in r.spans) == 3
    with stage(module, model, tokenizer, {"turns": 9}) as s:
        tight = SAMPLING._replace(max_completion_length=40)
        rollouts = [r for g in s.play(sampling=tight) for r in g]
        assert max(len(r.completion_ids) for r in rollouts) <= 40
        # Words of the environment that nobody answers are not part of a row.
        assert all(r.spans[-1][1] == len(r.completion_ids) for r in rollouts)
        ends = {r.episode.end for r in rollouts if r.episode is not None}
        assert EpisodeEnd.context in ends
    with stage(module, model, tokenizer, {"slow": 0.05}, episode_timeout_s=0.04) as s:
        ends = {r.episode.end for g in s.play(1, 4) for r in g if r.episode is not None}
        assert EpisodeEnd.seconds in ends
        assert EpisodeEnd.done not in ends


def test_an_environment_that_fails_leaves_an_episode_without_reward(
    module: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with stage(module, model, tokenizer, {"fail_at": 1}) as s:
        episodes = [r.episode for g in s.play() for r in g]
    failed = [e for e in episodes if e is not None and e.end is EpisodeEnd.failed]
    assert failed and all(len(e.turns) == 2 and e.reward != e.reward for e in failed)


def test_what_the_environment_begins_with_is_part_of_the_prompt(
    module: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with stage(module, model, tokenizer, {"greet": True}) as s:
        groups = s.play(2, 2)
        for p, group in enumerate(groups):
            seed = environment_seed(sample_seed(7, 0, p, 0))
            hello = f"hello {seed % 1000}"
            assert all(hello in r.prompt.text for r in group)
            assert group[0].prompt.ids == group[1].prompt.ids
            assert tokenizer.decode(list(group[0].prompt.ids)) == group[0].prompt.text


def test_a_reward_sees_the_last_turn_and_all_turns(
    module: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with stage(module, model, tokenizer) as s:
        rollout = next(r for g in s.play() for r in g if len(r.spans) == 3)
        seen = completion_of(rollout, s.decode)
    assert seen.episode is not None
    start, stop = rollout.spans[-1]
    assert seen.text == s.decode(rollout.completion_ids[start:stop])
    assert [t.text for t in seen.episode.turns] == [
        s.decode(rollout.completion_ids[a:b]) for a, b in rollout.spans
    ]
    assert seen.ids == rollout.completion_ids[start:stop]


def test_seeds_of_turns_differ_and_turn_0_is_todays() -> None:
    first = sample_seed(1, 2, 3, 4)
    seeds = [turn_seed(first, turn) for turn in range(50)]
    assert seeds[0] == first
    assert len({*seeds, environment_seed(first)}) == 51
    assert all(0 <= seed < 2**63 for seed in seeds)
