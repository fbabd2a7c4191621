"""Replay: the density of what was drawn, again and exactly, row by row and with an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_world import load_tool, random_prior

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.multiview.rollouts import Path as Drawn
from rl3d.multiview.rollouts import replay, rollout
from rl3d.multiview.sampler_options import SamplerOptions
from rl3d.priors import load
from rl3d.priors.adapters import LoraOptions, adapter_parameters, attach, reference
from rl3d.priors.load import join_prompts
from rl3d.priors.protocol import Prior

OPTIONS = SamplerOptions(steps=4, guidance=2.0)


@pytest.fixture(scope="module")
def mvdream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return load_tool("make_tiny_pipelines").write_mvdream(tmp_path_factory.mktemp("models") / "tiny-mvdream")


@pytest.fixture(params=["embedded", "mvdream"])
def prior(request: pytest.FixtureRequest, mvdream: Path) -> Iterator[Prior]:
    torch.manual_seed(0)
    yield random_prior() if request.param == "embedded" else load(str(mvdream))


def draw(prior: Prior, seeds: list[int], options: SamplerOptions = OPTIONS, **more) -> Drawn:
    prompts = join_prompts([prior.encode_prompt(("a red box", "a blue crate")[i % 2]) for i, _ in enumerate(seeds)])
    cameras = Cameras.cat([prior.cameras(0.3 * i, 0.2) for i, _ in enumerate(seeds)])
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return rollout(prior, prompts, cameras, options, generators, **more)


def test_a_replay_is_the_rollout_to_the_bit(prior: Prior) -> None:
    attach(prior, LoraOptions(), seed=1)  # type: ignore[arg-type]
    path = draw(prior, [0, 1])
    assert path.log_p.shape == (3, 2)  # the last of 4 steps has no density
    for k in range(3):
        log_p, _ = replay(prior, path, k)
        ratio = (log_p - path.log_p[k]).exp()
        assert log_p.requires_grad
        assert float((ratio.detach() - 1).abs().max()) <= 1e-6


def test_a_moved_adapter_changes_the_ratio_and_the_reference_does_not(prior: Prior) -> None:
    base = draw(prior, [0, 1])
    parameters = attach(prior, LoraOptions(rank=2), seed=1)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, tensor in parameters.items():
            if "lora_B" in name:
                tensor.add_(0.5)
    log_p, _ = replay(prior, base, 2)
    assert float((log_p.detach() - base.log_p[2]).abs().max()) > 1e-5
    with reference(prior.network), torch.no_grad():  # type: ignore[attr-defined]
        again, _ = replay(prior, base, 2)
    torch.testing.assert_close(again, base.log_p[2], rtol=0, atol=1e-6)


def test_the_density_s_gradient_reaches_the_adapter_as_finite_differences_say() -> None:
    prior = random_prior()
    parameters = attach(prior, LoraOptions(rank=2), seed=1)
    for tensor in prior.network.parameters():
        tensor.data = tensor.data.double()
    prior.dtype = torch.float64
    path = draw(prior, [0])
    tensor = next(p for n, p in parameters.items() if "lora_B" in n)
    log_p, _ = replay(prior, path, 1)
    (slope,) = torch.autograd.grad(log_p.sum(), tensor)
    where = divmod(int(slope.abs().argmax()), slope.shape[1])
    values = []
    for step in (0.1, -0.1):
        with torch.no_grad():
            tensor[where] += step
            values.append(float(replay(prior, path, 1)[0].sum()))
            tensor[where] -= step
    # The prior hands x0 out in float32: a density is known to 1e-7, the difference of these two is 3e-5.
    assert (values[0] - values[1]) / 0.2 == pytest.approx(float(slope[where]), rel=2e-2)


def test_rows_do_not_depend_on_their_neighbours(prior: Prior) -> None:
    together, alone = draw(prior, [5, 6]), draw(prior, [5])
    torch.testing.assert_close(together.clean[:1], alone.clean, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.clean[0], together.clean[1], atol=1e-2)


def test_only_the_window_is_noisy(prior: Prior) -> None:
    path = draw(prior, [0], keep=[1])
    assert path.log_p.shape == (1, 1)
    assert path.levels[0].t == pytest.approx(prior.times(4).tolist()[1], abs=1e-6)
    nothing = draw(prior, [0], keep=[])
    assert nothing.log_p.shape == (0, 1)
    assert nothing.clean.shape == path.clean.shape


def test_a_shared_start_and_other_noise(prior: Prior) -> None:
    start = torch.randn(1, prior.n_views, *prior.latent_shape, generator=torch.Generator().manual_seed(3)).expand(
        2, -1, -1, -1, -1
    )
    path = draw(prior, [0, 1], start=start)
    torch.testing.assert_close(path.states[0][0], path.states[0][1])
    assert not torch.allclose(path.landed[0][0], path.landed[0][1])


def test_bad_requests_are_named(prior: Prior) -> None:
    with pytest.raises(InputError, match="must lie in"):
        draw(prior, [0], keep=[3])
    prompt, cameras = prior.encode_prompt("a red box"), prior.cameras(0.0, 0.2)
    generators = [torch.Generator(), torch.Generator()]
    with pytest.raises(InputError, match="2 rows need 2 prompts"):
        rollout(prior, prompt, cameras, OPTIONS, generators)


def test_parameters_that_are_trained_are_the_adapter_s_alone(prior: Prior) -> None:
    parameters = attach(prior, LoraOptions(), seed=1)  # type: ignore[arg-type]
    network = prior.network  # type: ignore[attr-defined]
    assert {n for n, p in network.named_parameters() if p.requires_grad} == set(parameters)
    assert adapter_parameters(network).keys() == parameters.keys()
