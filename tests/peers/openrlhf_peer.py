"""OpenRLHF 0.11: its losses and its experience maker, without ray actors or DeepSpeed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from peers.ours import GROUP, WIDTH, Case
from torch import Tensor

PACKAGES = ("", "models", "utils", "trainer", "trainer.ppo_utils", "trainer.ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRLHFOptions:
    """OpenRLHF's names and defaults."""

    estimator: str = "group_norm"
    token_level_loss: bool = True
    policy_loss_type: str = "ppo"
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    dual_clip: float | None = None
    is_correction_level: str = "off"
    is_correction_mode: str = "mask"
    is_correction_threshold: tuple[float, float] = (0.5, 5.0)
    kl_coef: float = 0.0
    """k1 per token in the reward, after the baseline."""
    overlong_buffer_len: float | None = None
    overlong_penalty_factor: float = 1.0
    gamma: float = 1.0
    lambd: float = 0.95
    value_clip: float | None = 0.2
    value_coef: float = 0.0


class Wide(Tensor):
    """float() keeps float64: OpenRLHF's casts would hide differences below 1e-7."""

    def float(self) -> Tensor:
        return self.double()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRLHF:
    """OpenRLHF's modules."""

    losses: Any
    utils: Any
    maker: Any
    experience: Any

    @staticmethod
    def load() -> OpenRLHF:
        """Import the modules without their packages' __init__ files, which need DeepSpeed, vLLM and
        flash-attn."""
        spec = find_spec("openrlhf")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("openrlhf is not installed: run `make test-peers`")
        root = Path(spec.origin).parent
        for name in PACKAGES:
            package = ModuleType(f"openrlhf.{name}".rstrip("."))
            package.__path__ = [str(root.joinpath(*name.split(".")))]
            sys.modules[package.__name__] = package
        sys.modules["deepspeed"] = ModuleType("deepspeed")
        launcher = ModuleType("openrlhf.trainer.ray.launcher")
        vars(launcher)["RayActorGroup"] = object
        sys.modules[launcher.__name__] = launcher
        maker = import_module("openrlhf.trainer.ppo_utils.experience_maker")
        del sys.modules["deepspeed"]  # transformers and TRL look whether it is there
        return OpenRLHF(
            losses=import_module("openrlhf.models.loss"),
            utils=import_module("openrlhf.models.utils"),
            maker=maker.RemoteExperienceMaker,
            experience=import_module("openrlhf.trainer.ppo_utils.experience").Experience,
        )

    def advantages(self, options: OpenRLHFOptions, case: Case) -> tuple[Tensor, Tensor]:
        """Advantages and returns (B C); `gae` without OpenRLHF's whitening, whose variance has no
        Bessel correction."""
        if options.estimator == "gae":
            rewards = self.utils.compute_reward(
                case.rollout.rewards, options.kl_coef, self._kl(case), case.rollout.completion_mask
            )
            result = self.maker.get_advantages_and_returns(
                None, case.rollout.values, rewards, case.mask, options.gamma, options.lambd
            )
            advantages, returns = result
            return advantages, returns
        batch = self._experience(case)
        self.maker.compute_advantages_and_returns(maker_state(options), [batch])
        return batch.advantages.as_subclass(Tensor), batch.returns.as_subclass(Tensor)

    def loss(self, options: OpenRLHFOptions, case: Case) -> Callable[..., Tensor]:
        """From rewards to the sum of policy and value losses."""
        policy_loss = self.losses.PolicyLoss(
            clip_eps_low=options.clip_eps_low,
            clip_eps_high=options.clip_eps_high,
            dual_clip=options.dual_clip,
            token_level_loss=options.token_level_loss,
            policy_loss_type=options.policy_loss_type,
            is_correction_level=options.is_correction_level,
            is_correction_mode=options.is_correction_mode,
            is_correction_threshold=options.is_correction_threshold,
        )
        value_loss = self.losses.ValueLoss(options.value_clip, options.token_level_loss)
        rollout, mask = case.rollout, case.mask

        def loss(logps: Tensor, entropy: Tensor, values: Tensor) -> Tensor:
            advantages, returns = self.advantages(options, case)
            total = policy_loss(logps, rollout.old_logps, advantages, mask, rollout.sampling_logps)[
                0
            ]
            if options.value_coef > 0.0:
                critic = value_loss(values, rollout.values, returns, mask)
                total = total + options.value_coef * critic
            assert isinstance(total, Tensor)
            return total

        return loss

    def kl_loss(
        self, case: Case, *, estimator: str, unbiased: bool, off_policy: bool, beta: float
    ) -> Callable[..., Tensor]:
        """The KL in the loss, beta times its token mean."""
        old = wide(case.rollout.old_logps) if off_policy else None

        def loss(logps: Tensor, entropy: Tensor, values: Tensor) -> Tensor:
            kl = self.utils.compute_approx_kl(
                wide(logps), wide(case.rollout.ref_logps), old, estimator, unbiased
            )
            total: Tensor = self.losses.aggregate_loss(kl, case.mask)
            return beta * total.as_subclass(Tensor)

        return loss

    def dpo_loss(
        self, case: Case, *, beta: float, label_smoothing: float, ipo: bool
    ) -> Callable[..., Tensor]:
        """DPOLoss on pairs of adjacent rows, the better one chosen; ties go to the first."""
        first, second = torch.arange(len(case.rollout)).view(-1, 2).unbind(dim=1)
        swap = case.rollout.rewards[second] > case.rollout.rewards[first]
        chosen, rejected = torch.where(swap, second, first), torch.where(swap, first, second)
        module = self.losses.DPOLoss(beta, label_smoothing, ipo)

        def loss(logps: Tensor, entropy: Tensor, values: Tensor) -> Tensor:
            assert case.rollout.ref_logps is not None
            policy = (logps * case.mask).sum(dim=1)
            reference = (case.rollout.ref_logps * case.mask).sum(dim=1)
            total = module(
                policy[chosen], policy[rejected], reference[chosen], reference[rejected]
            )[0]
            assert isinstance(total, Tensor)
            return total

        return loss

    def _kl(self, case: Case) -> Tensor:
        kl = self.utils.compute_approx_kl(
            wide(case.rollout.old_logps), wide(case.rollout.ref_logps), None, "k1"
        )
        assert isinstance(kl, Tensor)
        return kl

    def _experience(self, case: Case) -> Any:
        rollout = case.rollout
        return self.experience(
            action_mask=rollout.completion_mask,
            rewards=wide(rollout.rewards.clone()),
            response_length=rollout.completion_mask.sum(dim=1),
            kl=self._kl(case),
            index=list(range(len(rollout))),
        )


def maker_state(options: OpenRLHFOptions) -> SimpleNamespace:
    """The attributes that RemoteExperienceMaker.compute_advantages_and_returns reads."""
    advantage = SimpleNamespace(
        estimator=options.estimator, gamma=options.gamma, lambd=options.lambd, no_std_norm=False
    )
    args = SimpleNamespace(
        algo=SimpleNamespace(advantage=advantage),
        rollout=SimpleNamespace(n_samples_per_prompt=GROUP, max_new_tokens=WIDTH),
        reward=SimpleNamespace(
            clip_range=None,
            overlong_buffer_len=options.overlong_buffer_len,
            overlong_penalty_factor=options.overlong_penalty_factor,
        ),
    )
    maker = import_module("openrlhf.trainer.ppo_utils.experience_maker").RemoteExperienceMaker
    state = SimpleNamespace(
        strategy=SimpleNamespace(args=args),
        advantage_estimator=options.estimator,
        kl_ctl=SimpleNamespace(value=options.kl_coef),
    )
    state.get_cumulative_returns = lambda *a: maker.get_cumulative_returns(state, *a)
    return state


def wide(x: Tensor | None) -> Tensor:
    """`x` as a `Wide`, with its gradient."""
    assert x is not None
    return x.as_subclass(Wide)
