"""The embedded prior's format, predictions and sampling, on a random model of 16 pixels."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import WORDS, random_model, random_prior
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import AssetError, InputError
from rl3d.priors import join_prompts, load
from rl3d.priors.embedded import EmbeddedPrior, UnknownWordWarning, Vocabulary, load_embedded, new_scheduler
from rl3d.priors.multiview_model import doubled, halved, patch_rays, pooled_places

SHAPE = (1, 4, 4, 16, 16)


@pytest.fixture(scope="module")
def prior() -> EmbeddedPrior:
    return random_prior()


@pytest.fixture(scope="module", params=[None, 0.6])
def either(request: pytest.FixtureRequest) -> EmbeddedPrior:
    """A prior of one size, and one that denoises at half the size from t = 0.6."""
    return coarse_prior(request.param)


def coarse_prior(above: float | None) -> EmbeddedPrior:
    model = random_model()
    model.register_to_config(coarse_above=above)
    return EmbeddedPrior(model, Vocabulary(WORDS), new_scheduler(), "tiny", torch.device("cpu"), torch.float32)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(prior: EmbeddedPrior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-prior"
    prior.save_pretrained(path, torch.float32)
    return path


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def test_round_trip(prior: EmbeddedPrior, folder: Path) -> None:
    again = load_embedded(folder, dtype=torch.float32)
    assert (again.name, again.image_size, again.vocabulary.words) == ("tiny-prior", 16, WORDS)
    x, t = noise(*SHAPE), torch.tensor([0.5])
    prompt = prior.encode_prompt("a red barrel")
    cameras = prior.cameras(0.1, 0.3)
    want = prior.predict_x0(x, t, prompt, cameras, 3.0)[0]
    assert torch.equal(again.predict_x0(x, t, again.encode_prompt("a red barrel"), cameras, 3.0)[0], want)
    through_the_door = load(str(folder))
    assert isinstance(through_the_door, EmbeddedPrior) and through_the_door.licence


def test_saving_in_half_precision_leaves_the_prior_as_it_is(tmp_path: Path) -> None:
    prior = random_prior()
    before = {k: v.clone() for k, v in prior.model.state_dict().items()}
    prior.save_pretrained(tmp_path)
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float32 for k, v in prior.model.state_dict().items())
    again = load_embedded(tmp_path, dtype=torch.float32).model.state_dict()
    assert all(torch.equal(v, before[k].bfloat16().float()) for k, v in again.items())


def test_large_models_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl3d.priors.embedded.SHARD_BYTES", 40_000)
    prior = random_prior()
    prior.save_pretrained(tmp_path)
    shards = sorted((tmp_path / "transformer").glob("*.safetensors"))
    assert len(shards) > 1 and (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert all(shard.stat().st_size < 48_000 for shard in shards)  # tensors and a header of some 100 bytes each
    assert load_embedded(tmp_path).image_size == 16
    shards[-1].unlink()
    with pytest.raises(AssetError):
        load_embedded(tmp_path)


FILES = [
    "tokenizer/vocabulary.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
]


@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize("file", FILES)
def test_a_broken_file_is_one_line(broken: Path, file: str, damage: str) -> None:
    path = broken / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AssetError, match=r"cannot load the multi-view prior in .*broken") as error:
        load_embedded(broken)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "words", "list"])
def test_files_that_do_not_fit_each_other(broken: Path, fault: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    if fault == "missing":
        del tensors["places"]
    elif fault == "extra":
        tensors["more"] = torch.zeros(3)
    elif fault == "shape":
        tensors["places"] = tensors["places"][:1].clone()
    elif fault == "words":
        (broken / "tokenizer" / "vocabulary.json").write_text(json.dumps(WORDS[:-1]))
    else:
        (broken / "tokenizer" / "vocabulary.json").write_text(json.dumps({w: i for i, w in enumerate(WORDS)}))
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(AssetError) as error:
        load_embedded(broken)
    assert "\n" not in str(error.value)


# Words ----------------------------------------------------------------------------------------------------------------


def test_words_become_ids(prior: EmbeddedPrior) -> None:
    prompt = prior.encode_prompt("A red, wooden BARREL!", "blue")
    ids = [WORDS.index(w) for w in ("a", "red", "wooden", "barrel")]
    assert prompt.positive.tolist() == [ids + [0] * 8] and prompt.prompts == ["A red, wooden BARREL!"]
    assert prompt.negative.tolist() == [[WORDS.index("blue")] + [0] * 11]
    assert prior.encode_prompt("barrel").negative.tolist() == [[1] + [0] * 11]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a red barel", "'barel' and leaves it out; nearest known: barrel"),
        ("a red zeppelin", "'zeppelin' and leaves it out; --prior"),
        ("small tree-chests", "'tree-chests' and leaves it out; nearest known: chest, tree"),
    ],
)
def test_unknown_words_warn(prior: EmbeddedPrior, prompt: str, said: str) -> None:
    with pytest.warns(UnknownWordWarning) as caught:
        prior.encode_prompt(prompt)
    assert len(caught) == 1 and said.split("; ")[0] in str(caught[0].message)
    assert all(part in str(caught[0].message) for part in said.split(": ")[-1].split(", "))


def test_an_unknown_negative_word_warns_too(prior: EmbeddedPrior) -> None:
    with pytest.warns(UnknownWordWarning, match="'zeppelin'"):
        prior.encode_prompt("a box", "zeppelin")


def test_words_beyond_the_last_that_is_read_warn(prior: EmbeddedPrior) -> None:
    with pytest.warns(UnknownWordWarning, match="reads 12 words and leaves out 'tree chest'"):
        prompt = prior.encode_prompt("a small " + "red " * 9 + "box tree chest")
    assert int((prompt.positive > 0).sum()) == 12


@pytest.mark.parametrize("prompt", ["", "!?", "zeppelin", "a the", "a zeppelin"])
def test_a_prompt_without_a_known_word_is_refused(prior: EmbeddedPrior, prompt: str) -> None:
    with pytest.raises(InputError, match="knows no word of the prompt") as error:
        prior.encode_prompt(prompt)
    assert "\n" not in str(error.value)


# Predictions ----------------------------------------------------------------------------------------------------------


def test_spaces(prior: EmbeddedPrior) -> None:
    images = torch.rand(2, 4, 4, 16, 16)
    assert torch.allclose(prior.decode(prior.to_latents(images)), images, atol=1e-6)
    x, eps = noise(2, 4, 4, 16, 16), noise(2, 4, 4, 16, 16, seed=1)
    noisy = prior.add_noise(x, eps, torch.tensor([0.25, 1.0]))
    assert torch.allclose(noisy[0], 0.75 * x[0] + 0.25 * eps[0]) and torch.equal(noisy[1], eps[1])


def test_cameras(prior: EmbeddedPrior) -> None:
    cameras = prior.cameras(0.3, 0.2)
    assert len(cameras) == 4 and (cameras.height, cameras.width) == (16, 16)
    assert torch.allclose(cameras.centres.norm(dim=1), torch.full((4,), 2.7), atol=1e-5)
    turn = torch.atan2(cameras.centres[:, 0], cameras.centres[:, 2])
    assert torch.allclose(torch.sin((turn - 0.3 - torch.arange(4) * math.pi / 2) / 2), torch.zeros(4), atol=1e-5)
    assert torch.equal(prior.cameras(torch.tensor(0.3), torch.tensor(0.2)).view, cameras.view)


@pytest.mark.parametrize("stem", [0, 16])
def test_shapes_and_any_number_of_views(stem: int) -> None:
    model = random_model(stem_channels=stem).eval()
    words = torch.tensor([[3, 2, 0], [1, 0, 0]])
    for views in (1, 3, 6):
        cameras = Cameras.orbit(torch.arange(views) * 1.0, 0.2, 2.7, 0.47, 16)
        rays = patch_rays(cameras, 2).expand(2, -1, -1, -1)
        assert rays.shape == (2, views, 4, 6)
        with torch.no_grad():
            x0 = model(noise(2, views, 4, 16, 16), torch.tensor([0.2, 0.9]), words, rays)
        assert x0.shape == (2, views, 4, 16, 16) and bool(torch.isfinite(x0).all()) and float(x0.std()) > 0.05


def test_a_prior_takes_other_numbers_of_views(either: EmbeddedPrior) -> None:
    cameras = Cameras.orbit(torch.arange(6) * 1.0, 0.2, 2.7, 0.47, 16)
    x0, _ = either.predict_x0(noise(1, 6, 4, 16, 16), torch.tensor([0.5]), either.encode_prompt("box"), cameras, 2.0)
    assert x0.shape == (1, 6, 4, 16, 16)


def test_the_order_of_the_views_does_not_matter(prior: EmbeddedPrior) -> None:
    x, t, prompt = noise(*SHAPE), torch.tensor([0.6]), prior.encode_prompt("red chest")
    cameras, order = prior.cameras(0.4, 0.3), [2, 0, 3, 1]
    straight = prior.predict_x0(x, t, prompt, cameras)[0]
    turned = prior.predict_x0(x[:, order], t, prompt, cameras[order])[0]
    assert torch.allclose(turned, straight[:, order], atol=1e-5)  # measured 8e-7
    other = prior.predict_x0(x, t, prompt, cameras[order])[0]
    assert float((other - straight).abs().max()) > 1e-3  # the cameras do matter


def test_rays_are_pluecker_coordinates() -> None:
    cameras = Cameras.orbit(torch.tensor([0.0, 1.0]), 0.3, 2.7, 0.47, 16)
    rays = patch_rays(cameras, 2)
    direction, moment = rays[..., :3], rays[..., 3:]
    assert torch.allclose(direction.norm(dim=-1), torch.ones(2, 4), atol=1e-6)
    nearest = torch.linalg.cross(direction, moment)  # the ray's point closest to the origin
    along = (nearest - cameras.centres[:, None]) * direction
    assert torch.allclose(cameras.centres[:, None] + along.sum(-1, keepdim=True) * direction, nearest, atol=1e-5)


def test_guidance(either: EmbeddedPrior) -> None:
    """One batched forward is what two separate ones give."""
    x, t, cameras = noise(2, 4, 4, 16, 16), torch.tensor([0.3, 0.8]), either.cameras(0.0, 0.2)
    prompt = either.encode_prompt("a red box", "blue")
    text, same = either.predict_x0(x, t, prompt, cameras, 1.0)
    assert same is text
    empty, _ = either.predict_x0(x, t, replace(prompt, positive=prompt.negative), cameras, 1.0)
    assert float((text - empty).abs().max()) > 1e-3  # words do matter
    guided, text_only = either.predict_x0(x, t, prompt, cameras, 4.0)
    assert torch.allclose(text_only, text, atol=1e-5)
    assert torch.allclose(guided, empty + 4.0 * (text - empty), atol=1e-4)


def test_a_batch_is_its_objects(either: EmbeddedPrior) -> None:
    x, t = noise(2, 4, 4, 16, 16), torch.tensor([0.3, 0.8])
    prompts = [either.encode_prompt("a red box"), either.encode_prompt("green tree")]
    groups = [either.cameras(0.0, 0.2), either.cameras(1.0, 0.4)]
    together = either.predict_x0(x, t, join_prompts(prompts), Cameras.cat(groups), 3.0)[0]
    for i in range(2):
        alone = either.predict_x0(x[i : i + 1], t[i : i + 1], prompts[i], groups[i], 3.0)[0]
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


def test_mismatched_batches_are_explained(either: EmbeddedPrior) -> None:
    x, t, prompt = noise(3, 4, 4, 16, 16), torch.tensor([0.5]), either.encode_prompt("box")
    with pytest.raises(InputError, match="8 cameras for 3 x 4 images"):
        either.predict_x0(x, t, prompt, Cameras.cat([either.cameras(0, 0.1)] * 2))
    with pytest.raises(InputError, match="2 prompts cannot serve a batch of 3"):
        either.predict_x0(x, t, join_prompts([prompt, prompt]), either.cameras(0, 0.1))


def test_gradients_reach_the_views_and_no_weight(either: EmbeddedPrior) -> None:
    x = noise(*SHAPE).requires_grad_(True)
    either.predict_x0(x, torch.tensor([0.5]), either.encode_prompt("box"), either.cameras(0, 0.1))[0].sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0
    assert all(not p.requires_grad for p in either.model.parameters())


# High noise at half the size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.3, 0.8, 1.0])
def test_halved_views_are_noisy_views_of_the_halved_picture(t: float) -> None:
    x0, level = noise(1, 1, 1, 128, 128, seed=1), torch.tensor([t])
    small, lower = halved((1 - t) * x0 + t * noise(*x0.shape), level)
    assert float(lower / (1 - lower)) == pytest.approx(t / (1 - t) / 2 if t < 1 else math.inf)
    left = small - (1 - lower) * torch.nn.functional.avg_pool2d(x0[0], 2)[None]
    assert abs(float(left.mean())) < 0.05 and float(left.std()) == pytest.approx(float(lower), rel=0.05)


def test_high_noise_is_denoised_at_half_the_size() -> None:
    plain, coarse = coarse_prior(None), coarse_prior(0.6)
    x, prompt, cameras = noise(*SHAPE), plain.encode_prompt("a red box"), plain.cameras(0.2, 0.3)
    t = torch.tensor([0.5])
    assert torch.equal(coarse.predict_x0(x, t, prompt, cameras)[0], plain.predict_x0(x, t, prompt, cameras)[0])
    t = torch.tensor([0.6])
    small, lower = halved(x, t)
    expected = doubled(plain.model(small, lower, prompt.positive, patch_rays(cameras, 1)[None]))
    assert torch.allclose(coarse.predict_x0(x, t, prompt, cameras)[0], expected.clamp(-1.1, 1.1), atol=1e-5)
    weights = dict(coarse.linears())
    assert torch.allclose(coarse.predict_x0_with(weights, x, t, prompt, cameras), expected, atol=1e-5)


def test_the_border_is_saved(tmp_path: Path) -> None:
    coarse_prior(0.6).save_pretrained(tmp_path)
    assert load_embedded(tmp_path).coarse_above == 0.6


def test_places_of_a_coarser_grid_are_means() -> None:
    places = torch.arange(16.0)[:, None].expand(16, 3)  # 4 x 4, row by row
    assert torch.equal(pooled_places(places, 4), places)
    assert torch.equal(pooled_places(places, 2)[:, 0], torch.tensor([2.5, 4.5, 10.5, 12.5]))


# Sampling -------------------------------------------------------------------------------------------------------------


def test_sampling_is_decided_by_the_seed(prior: EmbeddedPrior) -> None:
    prompt, cameras, calls = prior.encode_prompt("a red box"), prior.cameras(0.0, 0.3), []
    options: dict[str, Any] = {"steps": 3, "guidance": 2.0}
    first = prior.sample(prompt, cameras, **options, generator=seeded(5), progress=lambda *a: calls.append(a))
    assert first.shape == SHAPE and calls == [(1, 3), (2, 3), (3, 3)]
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    assert torch.equal(prior.sample(prompt, cameras, **options, generator=seeded(5)), first)
    assert not torch.equal(prior.sample(prompt, cameras, **options, generator=seeded(6)), first)
    assert prior.sample(prompt, cameras, **options, generator=seeded(0), groups=3).shape == (3, *SHAPE[1:])
    pair = Cameras.cat([cameras, prior.cameras(0.7, 0.1)])
    assert prior.sample(prompt, pair, **options, generator=seeded(0)).shape == (2, *SHAPE[1:])


class Oracle(EmbeddedPrior):
    """A prior whose every prediction is `truth` [B, V, 4, S, S] in [-1, 1]; remembers what it was shown."""

    truth: Tensor
    seen: list[tuple[float, Tensor]]

    def predict_x0(self, x_t: Tensor, t: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.seen.append((float(t[0]), x_t))
        return self.truth, self.truth


@pytest.fixture
def oracle(prior: EmbeddedPrior) -> Oracle:
    made = Oracle(prior.model, prior.vocabulary, prior.scheduler, "oracle", prior.device, torch.float32)
    made.truth, made.seen = 2 * torch.rand(SHAPE, generator=seeded(3)) - 1, []
    return made


@pytest.mark.parametrize("steps", [1, 4, 24])
def test_a_perfect_denoiser_is_followed_to_the_end(oracle: Oracle, steps: int) -> None:
    images = oracle.sample(
        oracle.encode_prompt("box"), oracle.cameras(0, 0.2), steps=steps, guidance=1.0, generator=seeded(0)
    )
    assert torch.allclose(images, 0.5 * (oracle.truth + 1), atol=1e-5)
    levels = [t for t, _ in oracle.seen]
    even = [1 - i / steps for i in range(steps)]
    assert levels == pytest.approx([4 * u / (1 + 3 * u) for u in even], abs=1e-4)  # the scheduler's shift of 4
    # On the way, x_t = (1 - t) x0 + t eps with the noise it began with (measured 7e-7 after 24 steps).
    eps = oracle.seen[0][1]
    for t, x in oracle.seen:
        assert torch.allclose(x, oracle.add_noise(oracle.truth, eps, torch.tensor([t])), atol=1e-5)


def test_sampling_is_guided_where_noise_is_high(prior: EmbeddedPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []
    own = EmbeddedPrior.predict_x0

    def predict(self: EmbeddedPrior, x_t: Tensor, t: Tensor, prompt: Any, cameras: Cameras, guidance: float) -> Any:
        asked.append((float(t[0]), guidance))
        return own(self, x_t, t, prompt, cameras, guidance)

    monkeypatch.setattr(EmbeddedPrior, "predict_x0", predict)
    prior.sample(prior.encode_prompt("box"), prior.cameras(0, 0.2), steps=8, guidance=3.0, generator=seeded(0))
    assert {guidance for t, guidance in asked if t >= 0.75} == {3.0}
    assert {guidance for t, guidance in asked if t < 0.75} == {1.0}


def test_starting_from_images(oracle: Oracle) -> None:
    start = torch.rand(SHAPE, generator=seeded(7))
    prompt, cameras = oracle.encode_prompt("box"), oracle.cameras(0, 0.2)
    options: dict[str, Any] = {"steps": 5, "guidance": 1.0, "start": start}
    oracle.truth = oracle.to_latents(start)
    images = oracle.sample(prompt, cameras, **options, generator=seeded(0), strength=0.4)
    assert torch.allclose(images, start, atol=1e-5)
    level, first = oracle.seen[0]
    assert level == pytest.approx(0.4, abs=1e-4)
    eps = (first - 0.6 * oracle.truth) / 0.4
    assert abs(float(eps.mean())) < 0.1 and float(eps.std()) == pytest.approx(1, abs=0.1)


def test_at_full_strength_nothing_of_the_start_is_left(prior: EmbeddedPrior) -> None:
    start = torch.rand(SHAPE, generator=seeded(7))
    prompt, cameras = prior.encode_prompt("box"), prior.cameras(0, 0.2)
    options: dict[str, Any] = {"steps": 2, "guidance": 1.0}
    started = prior.sample(prompt, cameras, **options, generator=seeded(0), start=start, strength=1.0)
    assert torch.allclose(started, prior.sample(prompt, cameras, **options, generator=seeded(0)), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"strength": 0.0}, "strength must lie in"),
        ({"strength": 1.5}, "strength must lie in"),
        ({"start": torch.zeros(1, 3, 4, 16, 16)}, "start must be views"),
    ],
)
def test_bad_sampling_options(prior: EmbeddedPrior, changes: dict[str, Any], message: str) -> None:
    options = {"steps": 2, "guidance": 1.0, "generator": seeded(0), **changes}
    with pytest.raises(InputError, match=message):
        prior.sample(prior.encode_prompt("box"), prior.cameras(0, 0.1), **options)


def test_half_precision_runs_where_it_is_native() -> None:
    half = random_prior(dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = half.sample(
            half.encode_prompt("red box"), half.cameras(0, 0.2), steps=2, guidance=3.0, generator=seeded(0)
        )
    full = random_prior()
    want = full.sample(full.encode_prompt("red box"), full.cameras(0, 0.2), steps=2, guidance=3.0, generator=seeded(0))
    assert images.dtype == torch.float32 and float((images - want).abs().mean()) < 0.02  # measured 0.0047
