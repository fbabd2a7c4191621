"""Every method in a loop on a real scene: exact repetition, checkpoints, options, and what is refused before a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_mixtures import scored_by, seeded
from tiny_world import random_prior, random_rewardcs

from rl3d.config import preset_names, preset_path, resolve
from rl3d.errors import ConfigError, InputError
from rl3d.priors.embedded import EmbeddedPrior
from rl3d.priors.protocol import PromptEmbedding
from rl3d.reconstruct.leaves import load_memory
from rl3d.reconstruct.lift import start_from_ball
from rl3d.reconstruct.splats import SplatState, smallest_scale
from rl3d.rewards.pictures import prior_images
from rl3d.rewards.protocol import Reward, RewardInput
from rl3d.text_to_3d.distill import distill_rates, distill_step, random_orbits
from rl3d.text_to_3d.method_options import (
    METHOD_NAMES,
    DreamDPOOptions,
    DreamRewardOptions,
    MethodOptions,
    RewardOptions,
    RewardSDSOptions,
)
from rl3d.text_to_3d.methods import METHODS, Guide, check_prompt, guide_for, reward_summary
from rl3d.text_to_3d.options import DistillOptions, GenerateOptions, LiftOptions, method_preset
from rl3d.text_to_3d.rescale import rescale_cfg
from rl3d.text_to_3d.schedule import Schedule

STEPS = 6
ON_SPLATS = [name for name in METHOD_NAMES if name != "dreamcs"]  # that one is at home in test_voxels.py


@pytest.fixture(scope="module")
def prior() -> EmbeddedPrior:
    return random_prior()


def redness(x: RewardInput) -> torch.Tensor:
    return x.images[:, :, 0].mean((1, 2, 3)) - x.images[:, :, 1:].mean((1, 2, 3, 4))


def reward_of(name: str) -> Reward | None:
    return scored_by(redness, differentiable=True) if METHODS[name].reward else None


def options_of(name: str) -> GenerateOptions:
    """The method's preset, its reward at work from the first step."""
    options = resolve(GenerateOptions, method_preset(name))
    now = replace(options.method.reward, weight=Schedule(((0.0, 0.3),)))
    return replace(options, method=replace(options.method, reward=now), distill=replace(options.distill, steps=STEPS))


def scene(options: DistillOptions, count: int = 60) -> SplatState:
    return SplatState.start(start_from_ball(LiftOptions(gaussians=count), seeded(0), "cpu"), distill_rates(options))


def run(state: SplatState, guide: Guide, prior: EmbeddedPrior, options: DistillOptions, until: int) -> list[Any]:
    prompt = prior.encode_prompt("a red box")
    rows = []
    while state.step < until:
        rows.append(distill_step(state, prior, prompt, None, options, seeded(state.step), guide))
    return rows


def test_the_default_step_is_mvdreams_loss_to_the_last_bit(prior: EmbeddedPrior) -> None:
    """The step written out: 1/2 |x - sg(x0~)|^2 and the layers' term, from the same random numbers."""
    options = DistillOptions(steps=STEPS, batch=3)
    state, twin, prompt = scene(options), scene(options), prior.encode_prompt("a red box")
    for step in range(3):
        numbers = distill_step(state, prior, prompt, None, options, seeded(step))
        generator = seeded(step)
        cameras = random_orbits(prior, options, generator)
        frames, layers = twin.render_layers(cameras)
        x = prior.to_latents(prior_images(frames, prior).unflatten(0, (3, -1)))
        low, high = (a + (b - a) * step / STEPS for a, b in (options.t_min, options.t_max))
        level = low + (high - low) * float(torch.rand((), generator=generator))
        t = torch.full((3,), level)
        noise = torch.randn(x.shape, generator=generator)
        with torch.no_grad():
            x_t = prior.add_noise(x.detach(), noise, t)
            x0 = rescale_cfg(*prior.predict_x0(x_t, t, prompt, cameras, options.guidance), options.rescale)
        loss = 0.5 * ((x - x0.clamp(-1, 1)) ** 2).mean()
        assert numbers == {"t": level, "distance": float(loss.detach()), "layers": float(layers.detach().mean())}
        twin.descend(loss + options.layers_weight * layers.mean(), 1 - 0.7 * step / STEPS, smallest_scale(cameras))
        assert all(torch.equal(v, twin.tensors[k]) for k, v in state.tensors.items())


@pytest.mark.parametrize("name", ON_SPLATS)
def test_a_killed_run_resumes_to_the_same_scene(name: str, prior: EmbeddedPrior, tmp_path: Path) -> None:
    """From a checkpoint after three of six steps: leaves, Adam, memory and log, all equal to the last bit."""
    options = options_of(name)
    whole, guide = scene(options.distill), guide_for(options.method, prior, reward_of(name))
    rows = run(whole, guide, prior, options.distill, STEPS)
    first, before = scene(options.distill), guide_for(options.method, prior, reward_of(name))
    head = run(first, before, prior, options.distill, 3)
    first.save(tmp_path / "distill.safetensors", before.memory)
    resumed = SplatState.load(tmp_path / "distill.safetensors", distill_rates(options.distill))
    after = guide_for(options.method, prior, reward_of(name))
    after.memory = load_memory(tmp_path / "distill.safetensors")
    assert head + run(resumed, after, prior, options.distill, STEPS) == rows
    assert all(torch.equal(v, resumed.tensors[k]) for k, v in whole.tensors.items())
    assert after.memory.keys() == guide.memory.keys()
    assert all(torch.equal(v, after.memory[k]) for k, v in guide.memory.items())
    if METHODS[name].reward:
        assert guide.memory and "reward" in rows[0]


@pytest.mark.parametrize("name", [n for n in ON_SPLATS if METHODS[n].reward])
def test_a_reward_steers_the_scene(name: str, prior: EmbeddedPrior) -> None:
    """Against the same seeds with the opposite reward, the scene ends redder."""
    options = options_of(name)
    distill = replace(options.distill, steps=25, lr_colours=4e-2)
    method = replace(options.method, rewardsds=RewardSDSOptions(until=1.0))
    found = []
    for sign in (1, -1):
        state = scene(distill)
        guide = guide_for(method, prior, scored_by(lambda x, s=sign: s * redness(x), differentiable=True))
        run(state, guide, prior, distill, 25)
        colours = state.tensors["colours"].detach()
        found.append(float((colours[:, 0] - colours[:, 1:].mean(1)).mean()))
    assert found[0] > found[1] + 0.02, found


def test_batch_and_resolution_follow_their_schedules(prior: EmbeddedPrior) -> None:
    method = MethodOptions(batch=Schedule(((0.0, 3.0), (0.5, 1.0))), resolution=Schedule(((0.0, 0.5), (0.5, 1.0))))
    options = DistillOptions(steps=4)
    seen: list[tuple[int, int]] = []

    class Watched(SplatState):
        def render_layers(self, cameras: Any) -> Any:
            seen.append((len(cameras), cameras.width))
            return super().render_layers(cameras)

    state = Watched.start(start_from_ball(LiftOptions(gaussians=60), seeded(0), "cpu"), distill_rates(options))
    run(state, Guide(method), prior, options, 4)
    assert seen == [(12, 8), (8, 12), (4, 16), (4, 16)]


def test_schedules() -> None:
    ramp = Schedule(((0.2, 0.0), (0.6, 2.0)))
    assert [ramp.at(p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 1, 2, 2])
    assert Schedule(((0.5, 3.0),)).at(0.1) == 3
    for points in ((), ((0.5, 1.0), (0.5, 2.0)), ((-0.1, 0.0),), ((0.0, 1.0), (1.5, 0.0))):
        with pytest.raises(ConfigError, match=r"a schedule is a list of \[progress, value\]"):
            Schedule(points)


BAD: list[tuple[type, dict[str, Any], str]] = [
    (RewardOptions, {"weight": Schedule(((0.0, 1.5),))}, "a reward never replaces"),
    (RewardOptions, {"weight": Schedule(((0.0, -1.0),)), "balance": "none"}, "must not be negative"),
    (RewardOptions, {"window": 0}, "window"),
    (DreamRewardOptions, {"x0_below": 1.5}, "x0_below"),
    (DreamDPOOptions, {"tau": -0.1}, "tau"),
    (DreamDPOOptions, {"tau": float("nan")}, "tau"),
    (RewardSDSOptions, {"candidates": 3}, "at least 4 for top2_bottom2"),
    (RewardSDSOptions, {"candidates": 1, "weighting": "softmax"}, "at least 2 for softmax"),
    (RewardSDSOptions, {"temperature": 0.0}, "temperature"),
    (RewardSDSOptions, {"until": 1.1}, "until"),
    (RewardSDSOptions, {"denoise": 0}, "denoise"),
    (MethodOptions, {"name": "sdss"}, "method.name must be one of mvdream, sds"),
    (MethodOptions, {"batch": Schedule(((0.0, 0.0),))}, "batch"),
    (MethodOptions, {"resolution": Schedule(((0.0, 2.0),))}, "resolution"),
    (GenerateOptions, {"method": MethodOptions(name="sds")}, "method sds has no rescale"),
]


@pytest.mark.parametrize(("options", "values", "message"), BAD, ids=lambda x: x.__name__ if isinstance(x, type) else "")
def test_bad_options_are_refused_by_name(options: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        options(**values)
    assert "\n" not in str(error.value)


def test_every_method_has_a_preset_of_its_name() -> None:
    assert set(METHODS) == set(METHOD_NAMES) <= set(preset_names("generate"))
    for name in METHOD_NAMES:
        assert resolve(GenerateOptions, preset_path("generate", name)).method.name == name
    assert resolve(GenerateOptions, method_preset("mvdream")) == GenerateOptions()
    with pytest.raises(ConfigError, match="unknown method 'dreamdpp'; did you mean 'dreamdpo'"):
        method_preset("dreamdpp")


def test_rewards_are_checked_before_a_run(prior: EmbeddedPrior) -> None:
    dpo, fl = MethodOptions(name="dreamdpo"), MethodOptions(name="dreamreward")
    six = replace(scored_by(redness), views=6)  # type: ignore[type-var]
    with pytest.raises(InputError, match="'test' needs 6 views an asset, the prior tiny shows 4"):
        guide_for(dpo, prior, six)
    with pytest.raises(InputError, match="dreamreward needs a reward with gradients, 'test' has none"):
        guide_for(fl, prior, scored_by(redness))
    with pytest.raises(InputError, match=r"a reward is made with @rl3d\.reward"):
        guide_for(dpo, prior, redness)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the gold judge only measures"):
        guide_for(replace(dpo, reward=RewardOptions(name="gold")), prior)
    with pytest.raises(InputError, match="'stability' looks at mesh, method dreamreward shows images alone"):
        guide_for(replace(fl, reward=RewardOptions(name="stability")), prior)
    with pytest.raises(InputError, match="dreamcs needs a reward with gradients, 'connectedness' has none"):
        guide_for(MethodOptions(name="dreamcs", scene="sdf", reward=RewardOptions(name="connectedness")), prior)
    with pytest.raises(InputError, match="no embedded reward is called 'jugde'"):
        guide_for(replace(dpo, reward=RewardOptions(name="jugde")), prior)
    with pytest.raises(ConfigError, match="method mvdream uses no reward; choose one of dreamreward, dreamdpo"):
        guide_for(MethodOptions(), prior, scored_by(redness))


def test_a_reward_of_meshes_is_for_dreamcs_and_asked_about_the_prompt(prior: EmbeddedPrior) -> None:
    reward = random_rewardcs()
    with pytest.raises(InputError, match="'rewardcs-mini' looks at mesh, method dreamreward shows images alone"):
        guide_for(MethodOptions(name="dreamreward"), prior, reward)
    guide = guide_for(MethodOptions(name="dreamcs", scene="sdf"), prior, reward)
    check_prompt(guide, prior, prior.encode_prompt("a red box"))
    with pytest.raises(InputError, match="'rewardcs-mini' knows no word of 'red blue'"):  # a shape has no colour
        check_prompt(guide, prior, prior.encode_prompt("red blue"))


def test_a_prompt_that_the_judge_cannot_judge_is_refused(prior: EmbeddedPrior) -> None:
    guide = guide_for(MethodOptions(name="dreamdpo"), prior)
    check_prompt(guide, prior, prior.encode_prompt("a red box"))
    with pytest.raises(InputError, match="knows no word of 'zyzzyva'"):
        check_prompt(guide, prior, PromptEmbedding(None, None, ["zyzzyva"]))


def test_the_gold_judge_itself_is_refused(prior: EmbeddedPrior) -> None:
    from rl3d.rewards.judges import Judge, JudgeConfig, build_model

    config = JudgeConfig("gold", 3, 16, (8, 8), 16, embedding=8, heads=2)
    gold = Judge("gold", build_model(config), {"<pad>": 0, "<null>": 1, "red": 2}, ())
    with pytest.raises(InputError, match="the gold judge only measures"):
        guide_for(MethodOptions(name="dreamdpo"), prior, gold)  # type: ignore[arg-type]


def test_the_report_has_the_last_quarters_means() -> None:
    rows = [{"step": i, "t": 0.5, "reward": i / 10, "gate": float(i % 2)} for i in range(1, 9)]
    assert reward_summary(rows) == {"score": 0.75, "gate": 0.5}
    assert reward_summary([]) == {} and reward_summary([{"t": 0.5}]) == {}
