"""One engine for every distillation method: K noises at one level t, one batched prediction, scores, weights, a target.

Everything is in x0 form. With x the renders in the prior's space and x0_i what the prior makes of x under noise i,
every method descends on x the gradient

    G = sum_i v_i (x - x0_i) + extras,     w(t) (eps_hat - eps) = w(t) (a_t / s_t) (x - x0_hat)

as the loss 1/2 |x - sg(target)|^2 with target = x - G. A method is a function of a `Shot` that returns a `Guidance`.
Its state is the `memory` of the shot: tensors by name, which the checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError, RL3DError
from rl3d.priors.protocol import Prior, PromptEmbedding, levels_of
from rl3d.rewards.pictures import reward_input
from rl3d.rewards.protocol import Reward, RewardInput, check_scores
from rl3d.scenes.mesh import Mesh
from rl3d.text_to_3d.method_options import MethodOptions, RewardOptions
from rl3d.text_to_3d.options import DistillOptions
from rl3d.text_to_3d.rescale import rescale_cfg

Memory = Mapping[str, Tensor]
PATIENCE = 20  # steps whose scores may all be equal before a reward is called a constant


@dataclass(frozen=True)
class Shot:
    """What a method gets to see of one step.

    Attributes:
        prior, prompt: who predicts, and what for. cameras: [B * V] of the renders.
        images: [B, V, C, H, W] the renders as the prior's images, in [0, 1]; no gradient.
        x: [B, V, c, h, w] the same in the prior's space; no gradient.
        t: noise level in (0, 1), shared by all. progress: of the run, in [0, 1].
        depths: [B, V, 1, H, W] of the renders, metres, or None.
        distill, method: options. reward: None for methods without one.
        surface: gives the scene's mesh at a resolution, differentiable to the scene; None for scenes without one.
        generator: the step's random numbers. memory: what the method left in the step before.
    """

    prior: Prior
    prompt: PromptEmbedding
    cameras: Cameras
    images: Tensor
    x: Tensor
    t: float
    progress: float
    distill: DistillOptions
    method: MethodOptions
    reward: Reward | None
    generator: torch.Generator
    depths: Tensor | None = None
    surface: Callable[[int], Mesh] | None = None
    memory: Memory = field(default_factory=dict)

    def noise(self, count: int) -> Tensor:
        """`count` fresh noises [K, B, V, c, h, w]."""
        return torch.randn((count, *self.x.shape), generator=self.generator).to(self.x)

    def levels(self, t: float | None = None) -> tuple[float, float]:
        """a_t and s_t of x_t = a_t x + s_t eps; of the shot's own t, or of another."""
        return levels_of(self.prior, self.t if t is None else t, self.x)


@dataclass(frozen=True)
class Guidance:
    """A method's verdict on one step.

    Attributes:
        target: [B, V, c, h, w] where the renders are pulled to.
        push: [B, V, C, H, W] a gradient on the images that is descended too, d(-reward) / d(images), before it is
            balanced; None where there is none.
        scene_loss: a scalar on the scene itself that is descended too, balanced in the same way; None without one.
        strength: the weight of push or scene_loss, see `balanced`.
        numbers: for the log. memory: entries that changed.
    """

    target: Tensor
    push: Tensor | None = None
    scene_loss: Tensor | None = None
    strength: float = 0.0
    numbers: Mapping[str, float] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)


def weight_of(shot: Shot) -> float:
    """The step's weight in x0 form, w(t) a_t / s_t; abar_t = a_t^2 / (a_t^2 + s_t^2)."""
    if shot.method.weighting == "x0":
        return 1.0
    a, s = shot.levels()
    w = s**2 / (a**2 + s**2) if shot.method.weighting == "sds" else 1.0
    return w * a / s


@torch.no_grad()
def predict(shot: Shot, noise: Tensor) -> Tensor:
    """x0_i [K, B, V, c, h, w] of the renders under K noises at t, guided and rescaled: one batched forward."""
    count, batch = noise.shape[:2]
    x = shot.x.expand(noise.shape).flatten(0, 1)
    t = torch.full((count * batch,), shot.t, device=x.device)
    x_t = shot.prior.add_noise(x, noise.flatten(0, 1), t)
    return predict_x0(shot, x_t, t, count).unflatten(0, (count, batch))


@torch.no_grad()
def predict_x0(shot: Shot, x_t: Tensor, t: Tensor, count: int = 1) -> Tensor:
    """The guided, rescaled and clamped prediction for `count` noised copies of the batch, x_t [K * B, V, c, h, w]."""
    cameras = Cameras.cat([shot.cameras] * count) if count > 1 else shot.cameras
    x0, text = shot.prior.predict_x0(x_t, t, shot.prompt, cameras, shot.distill.guidance)
    if shot.distill.rescale > 0:
        x0 = rescale_cfg(x0, text, shot.distill.rescale)
    return in_range(shot.prior, x0)


def in_range(prior: Prior, x0: Tensor) -> Tensor:
    """A pixel prior's prediction without what no image can show."""
    return x0.clamp(-1, 1) if prior.has_alpha else x0


def combine(x: Tensor, x0: Tensor, weights: Tensor) -> Tensor:
    """The target x - G for G = sum_i v_i (x - x0_i).

    Args:
        x: [B, ...]. x0: [K, B, ...]. weights: v, [K, B].
    """
    v = weights.to(x).reshape(*weights.shape, *[1] * (x.ndim - 1))
    # Written so that one candidate of weight 1 gives x0 itself, to the last bit.
    return (1 - v.sum(0)) * x + (v * x0).sum(0)


def candidate_scores(shot: Shot, x0: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The reward's scores [K, B] of candidates x0 [K, B, ...], decoded; no gradient.

    A judge that breaks on one candidate (raises anything but an error of rl3d) loses that candidate: its score is NaN.

    Returns:
        The scores, and numbers for the log: the mean "reward", its "spread", and how many candidates were "dropped".

    Raises:
        InputError: the reward breaks its promise (see `check_scores`), or fails on every candidate.
    """
    reward = shot.reward
    assert reward is not None  # methods with candidates to choose from are given one
    count, batch = x0.shape[:2]
    with torch.no_grad():
        images = shot.prior.decode(x0.flatten(0, 1)).unflatten(0, (count, batch))
        whole = _input(shot, images.flatten(0, 1), count)
        try:
            scores = checked(reward, whole).reshape(count, batch).double().cpu()
        except RL3DError:
            raise
        except Exception:  # a user's own judge may raise anything
            scores = _one_by_one(shot, reward, images)
    known = scores[~scores.isnan()]
    numbers = {"reward": float(known.mean()), "spread": float(known.max() - known.min())}
    if len(known) < scores.numel():
        numbers["dropped"] = float((scores.numel() - len(known)) // batch)
    return scores, numbers


def _one_by_one(shot: Shot, reward: Reward, images: Tensor) -> Tensor:
    """Scores [K, B] of images [K, B, V, C, H, W], NaN for the candidates on which the reward breaks."""
    scores = torch.full(images.shape[:2], torch.nan, dtype=torch.float64)
    failure: Exception | None = None
    for i, candidate in enumerate(images):
        try:
            scores[i] = checked(reward, _input(shot, candidate, 1)).double().cpu()
        except RL3DError:
            raise
        except Exception as error:
            failure = error
    if failure is not None and bool(scores.isnan().all()):
        reason = " ".join(f"{type(failure).__name__}: {failure}".split())[:160]
        raise InputError(f"reward {reward.name!r} failed on every candidate of a step ({reason})") from failure
    return scores


def checked(reward: Reward, x: RewardInput) -> Tensor:
    """The reward's scores [B], unless it broke its promise."""
    return check_scores(reward(x), x, reward.name, reward.differentiable, reward.range)


def _input(shot: Shot, images: Tensor, count: int, depths: Tensor | None = None) -> RewardInput:
    prompts = (shot.prompt.prompts * (len(images) // len(shot.prompt.prompts)))[: len(images)]
    cameras = Cameras.cat([shot.cameras] * count) if count > 1 else shot.cameras
    return reward_input(images, shot.prior, cameras, prompts, depths)


def reward_gradient(shot: Shot, images: Tensor, depths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scores [B] of images [B, V, C, H, W] and the gradient of sum relu(cap - r) by them.

    The hinge stops the gradient of an asset whose score has reached the cap.

    Raises:
        InputError: the reward breaks its promise, or its gradient is not finite.
    """
    reward = shot.reward
    assert reward is not None
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        scores = checked(reward, _input(shot, leaf, 1, depths))
        (push,) = torch.autograd.grad((shot.method.reward.cap - scores).relu().sum(), leaf)
    if not bool(torch.isfinite(push).all()):
        raise InputError(f"the gradient of reward {reward.name!r} is not finite; lower its weight or check its formula")
    return scores.detach(), push


def running_mean(old: Tensor | None, value: float, window: int) -> Tensor:
    """[2] (mean, count) after one more value: a plain mean at first, an exponential one over `window` values later."""
    mean, count = (0.0, 0.0) if old is None else old.tolist()
    count = min(count + 1, float(window))
    return torch.tensor([mean + (value - mean) / count, count], dtype=torch.float64)


def balanced(
    pull: Tensor, push: Tensor, strength: float, options: RewardOptions, memory: Memory
) -> tuple[float, dict[str, Tensor]]:
    """lambda, the factor of a reward's gradient `push` beside the distillation's `pull`, and the running means.

    With "norm", lambda |push| is `strength` times the running mean of |pull| on average, and never more in one step:
    a reward pushes less than the prior pulls, whatever its scale. With "none", lambda is `strength`.
    """
    if options.balance == "none":
        return strength, {}
    pulled, pushed = float(pull.norm()), float(push.norm())
    means = {"pull": running_mean(memory.get("pull"), pulled, options.window)}
    if pushed == 0:  # every score has reached the cap; such steps say nothing about the reward's scale
        return 0.0, means
    means["push"] = running_mean(memory.get("push"), pushed, options.window)
    return strength * float(means["pull"][0]) / max(float(means["push"][0]), pushed), means


def watch_constant(memory: Memory, scores: Tensor, name: str) -> dict[str, Tensor]:
    """Remember the lowest and highest score so far.

    Raises:
        InputError: all scores of the first `PATIENCE` steps are the same number; such a reward cannot guide.
    """
    known = scores.detach().double().cpu()
    known = known[~known.isnan()]
    count, low, high = memory["scores"].tolist() if "scores" in memory else (0.0, torch.inf, -torch.inf)
    count, low, high = count + 1, min(low, float(known.min())), max(high, float(known.max()))
    if count == PATIENCE and low == high:
        raise InputError(
            f"reward {name!r} gave {low:g} to every candidate of {PATIENCE} steps; a constant cannot guide, "
            "choose another reward"
        )
    return {"scores": torch.tensor([count, low, high], dtype=torch.float64)}
