"""The feed-forward network: what it starts from, its gradients, its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras, camera_rows
from rl3d.errors import AssetError, ConfigError, InputError
from rl3d.reconstruct import FeedForward, NoSharedVolume, leave_one_out, load_reconstructor, look
from rl3d.reconstruct.feedforward import FeedForwardConfig, ReconstructorModel, save_reconstructor
from rl3d.reconstruct.lift import start_from_hull
from rl3d.reconstruct.options import LiftOptions
from rl3d.scenes.gaussians import Gaussians

TINY = FeedForwardConfig(
    image_size=32, patch=8, width=32, depth=1, heads=2, features=8, hidden=16, gaussians=150, grid=24
)


def tiny(random: bool = True) -> FeedForward:
    """A small network; `random`: every tensor, also those that start at zero."""
    torch.manual_seed(0)
    model = ReconstructorModel(TINY).eval()
    if random:
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(0.05 * torch.randn_like(tensor))
    return FeedForward(model)


def same(a: Gaussians, b: Gaussians, tolerance: float = 0.0) -> bool:
    return all(
        x.shape == y.shape and float((x - y).detach().abs().max()) <= tolerance for x, y in zip(*map(_parts, (a, b)))
    )


def _parts(scene: Gaussians) -> list[Tensor]:
    return list(vars(scene).values())


def test_untrained_it_gives_the_splats_of_the_hull(boxes: Tensor, cameras: Cameras) -> None:
    options = LiftOptions(gaussians=150, grid=24)
    for scene, images in zip(tiny(random=False)(boxes, cameras), boxes):
        start = start_from_hull(images, cameras, options, torch.Generator().manual_seed(0))
        assert torch.equal(scene.means, start["means"]) and torch.equal(scene.opacity_logits, start["opacity_logits"])
        assert torch.equal(scene.quaternions, start["quaternions"])
        assert torch.allclose(scene.log_scales, start["log_scales"])
        # e^3 against one for each of four views: 5/6 of the start's own colour. Measured 0.067.
        assert float((scene.colours.detach() - start["colours"]).abs().max()) < 0.15


def test_alone_and_in_a_batch_it_gives_the_same_scene(boxes: Tensor, cameras: Cameras) -> None:
    fit = tiny()
    together, again = fit(boxes, cameras), fit(boxes, camera_rows(cameras, 2, 4))
    assert all(same(a, b) for a, b in zip(together, again))
    alone = fit(boxes[1:], cameras)
    assert same(
        together[1], alone[0], 1e-5
    )  # matrix products of other shapes may round differently; measured 0, reordered 8e-7


def test_views_in_another_order_are_the_same_views(boxes: Tensor, cameras: Cameras) -> None:
    order = [2, 0, 3, 1]
    a, b = tiny()(boxes, cameras), tiny()(boxes[:, order], cameras[order])
    assert all(same(x, y, 1e-5) for x, y in zip(a, b))


@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize("size", [32, 48])
def test_any_number_of_views_of_any_size(boxes: Tensor, cameras: Cameras, views: int, size: int) -> None:
    images = torch.nn.functional.interpolate(boxes.flatten(0, 1), size).unflatten(0, (2, 4))[:, :views]
    where = cameras.resized(size)[list(range(views))]
    scenes = tiny()(images, where)
    assert len(scenes) == 2 and all(bool(torch.isfinite(t).all()) for s in scenes for t in _parts(s))


def test_gradients_reach_the_images(boxes: Tensor, cameras: Cameras) -> None:
    """The derivative along a random direction is the finite difference; the hull's places are held fixed."""
    fit = tiny()
    assert fit.differentiable and fit.shared
    images = (0.1 + 0.8 * boxes).requires_grad_()
    weight = torch.rand(boxes.shape, generator=torch.Generator().manual_seed(1))

    def value(x: Tensor) -> Tensor:
        return (look(fit(x, cameras), camera_rows(cameras, 2, 4)) * weight).mean()

    (gradient,) = torch.autograd.grad(value(images), images)
    assert bool((gradient.abs().amax((2, 3, 4)) > 0).all())  # every view of every asset
    direction = torch.randn(boxes.shape, generator=torch.Generator().manual_seed(2))
    direction[:, :, 3] = 0  # the alphas decide where the hull is
    h = 1e-3
    with torch.no_grad():
        numeric = float(value(images + h * direction) - value(images - h * direction)) / (2 * h)
    analytic = float((gradient * direction).sum())
    assert analytic == pytest.approx(numeric, rel=0.02), (analytic, numeric)  # measured 0.3 % apart


def test_every_weight_learns(boxes: Tensor, cameras: Cameras) -> None:
    fit = tiny()
    look(fit(boxes, cameras), camera_rows(cameras, 2, 4)).square().mean().backward()
    dead = [n for n, p in fit.model.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]
    assert dead == []


def test_a_few_steps_on_two_assets_bring_them_back(boxes: Tensor, cameras: Cameras) -> None:
    fit = tiny(random=False)
    optimizer = torch.optim.Adam(fit.model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = (look(fit(boxes, cameras), camera_rows(cameras, 2, 4)) - boxes).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0], losses  # measured 0.113 and 0.014


def test_it_serves_leave_one_out(boxes: Tensor, cameras: Cameras) -> None:
    shown = leave_one_out(boxes, cameras, tiny())
    assert shown.shape == boxes.shape and float(shown.min()) >= 0 and float(shown.max()) <= 1


def test_bad_views_are_refused(boxes: Tensor, cameras: Cameras) -> None:
    fit = tiny()
    with pytest.raises(NoSharedVolume):
        fit(0 * boxes, cameras)
    with pytest.raises(InputError, match="feed-forward takes at least 2 views an asset, got 1"):
        fit(boxes[:, :1], cameras[0])
    with pytest.raises(InputError, match="3 cameras for 2 x 4 images"):
        fit(boxes, cameras[[0, 1, 2]])


def test_saved_and_loaded(boxes: Tensor, cameras: Cameras, tmp_path: Path) -> None:
    fit = tiny()
    save_reconstructor(fit.model, tmp_path / "exact", torch.float32)
    loaded = load_reconstructor(tmp_path / "exact")
    assert loaded.model.config == TINY and not any(p.requires_grad for p in loaded.model.parameters())
    with torch.no_grad():
        assert all(same(a, b) for a, b in zip(fit(boxes, cameras), loaded(boxes, cameras)))
    save_reconstructor(fit.model, tmp_path / "half")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("exact", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    shown = [
        look(load_reconstructor(tmp_path / name)(boxes, cameras), camera_rows(cameras, 2, 4))
        for name in ("exact", "half")
    ]
    assert float((shown[0] - shown[1]).abs().max()) < 0.02  # measured 0.0032


def test_the_shipped_size_fits_its_files() -> None:
    """6 MiB in float16 at most."""
    numbers = sum(p.numel() for p in ReconstructorModel(FeedForwardConfig()).parameters())
    assert 2 * numbers < 6 * 2**20


def test_broken_files_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="reconstructor"):
        load_reconstructor(tmp_path / "none")
    save_reconstructor(tiny().model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 64}))
    with pytest.raises(AssetError, match="size mismatch") as caught:
        load_reconstructor(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({**config, "patch": 6}))
    with pytest.raises((AssetError, ConfigError), match="patch must be a multiple of 4"):
        load_reconstructor(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(AssetError, match="cannot be loaded"):
        load_reconstructor(tmp_path)


@pytest.mark.parametrize(
    "sizes, text",
    [
        ({"patch": 6}, "multiple of 4"),
        ({"image_size": 60}, "does not divide"),
        ({"heads": 5}, "do not divide width"),
        ({"depth": 0}, "at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        FeedForwardConfig(**sizes)
