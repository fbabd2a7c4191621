"""Score distillation: its formula, its schedule, and that it moves a scene to what the prior wants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.priors.mixture import GaussianMixturePrior, Mixture
from rl3d.priors.protocol import PromptEmbedding
from rl3d.reconstruct.lift import start_from_ball
from rl3d.reconstruct.splats import SplatState
from rl3d.render.frames import Frames
from rl3d.rewards.pictures import prior_images
from rl3d.text_to_3d.distill import (
    Anchor,
    distill_rates,
    distill_step,
    level_range,
    random_orbits,
)
from rl3d.text_to_3d.engine import Shot, predict
from rl3d.text_to_3d.method_options import MethodOptions
from rl3d.text_to_3d.options import DistillOptions, LiftOptions
from rl3d.text_to_3d.rescale import rescale_cfg

SIZE = 16


def seeded(*keys: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(k * 1009**i for i, k in enumerate(keys)))


def test_rescale_by_hand() -> None:
    """cfg (0, 4): mean 2, deviation sqrt(8); text (1, 2): deviation sqrt(0.5). f = 1/4, so half-way 5/8 of (-2, 2)."""
    cfg = torch.tensor([0.0, 4.0]).reshape(1, 1, 1, 1, 2)
    text = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 1, 2)
    assert rescale_cfg(cfg, text, 0.5).flatten().tolist() == pytest.approx([2 - 1.25, 2 + 1.25])
    assert torch.allclose(rescale_cfg(cfg, text, 0.0), cfg)
    assert float(rescale_cfg(cfg, text, 1.0).std()) == pytest.approx(float(text.std()))
    assert torch.allclose(rescale_cfg(text, text, 0.7), text)


def test_rescale_is_per_group() -> None:
    cfg, text = torch.randn(2, 4, 3, 5, 5), torch.randn(2, 4, 3, 5, 5)
    both = rescale_cfg(cfg, text, 0.5)
    assert torch.allclose(both[1:], rescale_cfg(cfg[1:], text[1:], 0.5), atol=1e-6)
    flat = torch.zeros(1, 1, 1, 2, 2)
    assert torch.equal(rescale_cfg(flat, text[:1, :1, :1, :2, :2], 0.5), flat)  # and no division by zero


def test_levels_are_annealed() -> None:
    options = DistillOptions(t_max=(0.8, 0.4), t_min=(0.6, 0.2))
    assert level_range(options, 0.0) == pytest.approx((0.6, 0.8))
    assert level_range(options, 0.5) == pytest.approx((0.4, 0.6))
    assert level_range(options, 1.0) == pytest.approx((0.2, 0.4))


class Wants:
    """A prior of V views that wants every render to be `target` [V, C, S, S] in [0, 1]; remembers what it was asked."""

    n_views, image_size, baked_light = 4, SIZE, False
    name, licence = "stub", "none"

    def __init__(self, target: Tensor, background: float = 1.0) -> None:
        self.target, self.has_alpha, self.background = target, target.shape[1] == 4, background
        self.levels: list[float] = []
        self.elevations: list[float] = []

    def cameras(self, azimuth: float | Tensor, elevation: float | Tensor) -> Cameras:
        self.elevations.append(math.degrees(float(elevation)))
        turn = torch.as_tensor(azimuth) + torch.arange(4) * (math.pi / 2)
        return Cameras.orbit(turn, elevation, 2.7, 0.47, SIZE)

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> PromptEmbedding:
        return PromptEmbedding(None, None, [prompt])

    def to_latents(self, images: Tensor) -> Tensor:
        return 2 * images - 1

    def decode(self, latents: Tensor) -> Tensor:
        return 0.5 * (latents + 1)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return (1 - t[:, None, None, None, None]) * latents + t[:, None, None, None, None] * noise

    def predict_x0(
        self, x_t: Tensor, t: Tensor, prompt: PromptEmbedding, cameras: Cameras, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled() and len(cameras) == x_t.shape[0] * x_t.shape[1]
        self.levels += t.tolist()
        x0 = (2 * self.target - 1).expand(x_t.shape)
        return x0, x0

    def sample(self, *_: Any, **__: Any) -> Tensor:
        return self.target[None]


def scene(options: DistillOptions, count: int = 300) -> SplatState:
    return SplatState.start(start_from_ball(LiftOptions(gaussians=count), seeded(0), "cpu"), distill_rates(options))


def disc(colour: tuple[float, float, float]) -> Tensor:
    """[4, 4, S, S]: the same round patch in every view, premultiplied."""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    alpha = (((x - SIZE / 2) ** 2 + (y - SIZE / 2) ** 2).sqrt() < 4).float()
    rgba = torch.cat([torch.tensor(colour)[:, None, None] * alpha, alpha[None]])
    return rgba.expand(4, 4, SIZE, SIZE)


FAST: dict[str, Any] = {"lr_means": 4e-3, "lr_scales": 2e-2, "lr_colours": 4e-2, "lr_opacities": 8e-2}


def test_a_scene_moves_to_what_the_prior_wants() -> None:
    options = DistillOptions(steps=60, **FAST)
    prior, state = Wants(disc((0.9, 0.2, 0.1))), scene(options)
    prompt = prior.encode_prompt("disc")
    first = distill_step(state, prior, prompt, None, options, seeded(0))["distance"]
    for step in range(1, 60):
        numbers = distill_step(state, prior, prompt, None, options, seeded(step))
    assert numbers["distance"] < 0.2 * first and state.step == 60, (first, numbers)
    with torch.no_grad():
        frames = state.render(prior.cameras(0.7, 0.3))
    middle = frames.rgb[:, :, SIZE // 2, SIZE // 2].mean(0)
    assert middle.tolist() == pytest.approx([0.9, 0.2, 0.1], abs=0.1)
    assert float(frames.alpha[:, 0, 1].max()) < 0.1
    early, late = prior.levels[:5], prior.levels[-5:]
    assert all(0.79 < t < 0.98 for t in early) and all(0.2 <= t < 0.66 for t in late)


def test_one_step_by_hand() -> None:
    """The distance is half the mean squared difference in the prior's space; the scene moves by the rates."""
    options = DistillOptions(steps=10)
    prior, state, twin = Wants(disc((0.2, 0.4, 0.9))), scene(options), scene(options)
    cameras = random_orbits(prior, options, seeded(3))
    with torch.no_grad():
        frames = twin.render(cameras)
    x = 2 * torch.cat([frames.rgb, frames.alpha], 1) - 1
    want = 0.5 * float(((x - (2 * prior.target - 1)) ** 2).mean())
    numbers = distill_step(state, prior, prior.encode_prompt("x"), None, options, seeded(3))
    assert numbers["distance"] == pytest.approx(want, rel=1e-5) and "anchor" not in numbers
    moved = (state.tensors["means"] - twin.tensors["means"]).detach().abs().max()
    assert float(moved) == pytest.approx(options.lr_means, rel=0.02)


def test_steps_can_be_repeated_and_batched() -> None:
    options = DistillOptions(steps=10, batch=3, elevation=(10.0, 20.0))
    prior = Wants(disc((0.5, 0.5, 0.5)))
    runs = []
    for _ in range(2):
        state = scene(options, 50)
        distill_step(state, prior, prior.encode_prompt("x"), None, options, seeded(1))
        runs.append(state.tensors["means"].detach())
    assert torch.equal(*runs) and len(prior.levels) == 6
    assert len(prior.elevations) == 6 and all(10 <= e <= 20 for e in prior.elevations)
    assert len(set(prior.elevations)) == 3


def test_the_anchor_holds_the_scene() -> None:
    """The prior wants blue, the anchor red: with a heavy anchor the scene stays red."""
    options = DistillOptions(steps=40, anchor_weight=20.0, **FAST)
    prior, state = Wants(disc((0.1, 0.1, 0.9))), scene(options)
    anchor = Anchor(disc((0.9, 0.1, 0.1)), prior.cameras(0.0, 0.3))
    prompt = prior.encode_prompt("x")
    first = distill_step(state, prior, prompt, anchor, options, seeded(0))
    for step in range(1, 40):
        last = distill_step(state, prior, prompt, anchor, options, seeded(step))
    assert last["anchor"] < 0.3 * first["anchor"]
    with torch.no_grad():
        middle = state.render(anchor.cameras).rgb[:, :, SIZE // 2, SIZE // 2].mean(0)
    assert float(middle[0]) > 0.7 and float(middle[2]) < 0.3


def test_images_for_a_prior_without_alpha_lie_on_its_background() -> None:
    frames = Frames(torch.full((4, 3, 2, 2), 0.2), torch.full((4, 1, 2, 2), 0.25), torch.zeros(4, 1, 2, 2))
    grey = Wants(torch.zeros(4, 3, SIZE, SIZE), background=0.6)
    assert torch.allclose(prior_images(frames, grey), torch.tensor(0.2 + 0.75 * 0.6))  # type: ignore[arg-type]
    with_alpha = prior_images(frames, Wants(torch.zeros(4, 4, SIZE, SIZE)))  # type: ignore[arg-type]
    assert with_alpha.shape == (4, 4, 2, 2) and float(with_alpha[0, 3, 0, 0]) == 0.25


def test_the_exact_prior_of_a_mixture_is_distilled() -> None:
    """The analytic posterior mean leads to the mode that the prompt names, through RGB over its background."""
    white = torch.ones(4, 3, SIZE, SIZE, dtype=torch.float64)
    means = {}
    for name, colour in {"red": (0.9, 0.1, 0.1), "blue": (0.1, 0.1, 0.9)}.items():
        rgba = disc(colour).double()
        means[name] = rgba[:, :3] + (1 - rgba[:, 3:]) * white
    one, tight = torch.ones(1, dtype=torch.float64), torch.full((1,), 0.05, dtype=torch.float64)
    mixtures = {name: Mixture(one, mean[None], tight) for name, mean in means.items()}
    empty = Mixture(torch.ones(2, dtype=torch.float64), torch.stack(list(means.values())), tight.expand(2))
    prior = GaussianMixturePrior(mixtures, empty)
    options = DistillOptions(steps=40, guidance=1.0, **FAST)
    state = scene(options)
    prompt = prior.encode_prompt("blue")
    for step in range(40):
        numbers = distill_step(state, prior, prompt, None, options, seeded(step))
    with torch.no_grad():
        frames = state.render(prior.cameras(0.2, 0.3))
    middle = frames.rgb[:, :, SIZE // 2, SIZE // 2].mean(0)
    assert float(middle[2]) > 0.7 and float(middle[0]) < 0.3, (middle, numbers)
    # And the target itself: near the clean mean, whatever the noise.
    images = prior_images(frames, prior)[None]
    x, cameras = prior.to_latents(images), prior.cameras(0.0, 0.0)
    shot = Shot(prior, prompt, cameras, images, x, 0.5, 0.0, options, MethodOptions(), None, seeded(9))
    x0 = predict(shot, shot.noise(1))[0]
    assert float((x0[0] - means["blue"]).abs().mean()) < 0.03


def test_a_diverged_scene_is_named() -> None:
    options = DistillOptions(steps=10)
    prior, state = Wants(disc((0.5, 0.5, 0.5))), scene(options, 20)
    with torch.no_grad():
        state.tensors["means"][3] = math.nan
    with pytest.raises(InputError, match="means holds NaN"):
        distill_step(state, prior, prior.encode_prompt("x"), None, options, seeded(0))
