"""LPIPS in its published format on tiny weights, the embedded substitute, and that both grow with damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import AssetError, InputError
from rl3d.render.render import render
from rl3d.rewards import damage
from rl3d.rewards.check_assets import check_assets
from rl3d.rewards.judges import Judge
from rl3d.rewards.perceptual import LPIPS, JudgeFeatures, judge_features, load_lpips, pixel_distance

CHANNELS = (4, 6, 5, 3, 2)


def tiny_tensors(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """AlexNet's tensors by torchvision's names and LPIPS's by its own, with few channels."""
    generator = torch.Generator().manual_seed(seed)
    net, lin = {}, {}
    before = 3
    for k, (n, side, channels) in enumerate(zip((0, 3, 6, 8, 10), (11, 5, 3, 3, 3), CHANNELS)):
        scale = (before * side**2) ** -0.5
        net[f"features.{n}.weight"] = scale * torch.randn(channels, before, side, side, generator=generator)
        net[f"features.{n}.bias"] = 0.1 * torch.randn(channels, generator=generator)
        lin[f"lin{k}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
        before = channels
    net["classifier.1.weight"] = torch.zeros(2, 2)
    return net, lin


def pictures(count: int = 2, size: int = 64, seed: int = 0) -> Tensor:
    rgba = torch.rand(count, 4, size, size, generator=torch.Generator().manual_seed(seed))
    rgba[:, :3] *= rgba[:, 3:]
    return rgba


def prop_views(size: int = 64) -> Tensor:
    """[8, 4, S, S]: the calibration's props."""
    cameras = Cameras.orbit(torch.tensor([0.6]), 0.3, 2.7, 0.47, size)
    frames = [render(a.mesh, cameras, shading="half_lambert", supersample=2) for a in check_assets()]
    return torch.cat([torch.cat([f.rgb, f.alpha], 1) for f in frames]).clamp(0, 1)


def test_lpips_is_the_published_formula(tmp_path: Path) -> None:
    net, lin = tiny_tensors()
    save_file(net, tmp_path / "alexnet.safetensors")
    save_file(lin, tmp_path / "lpips.safetensors")
    distance = load_lpips(tmp_path)
    a, b = pictures(seed=1), pictures(seed=2)

    # A second writing of the paper's eq. 1 and its ScalingLayer, on torch.nn modules as torchvision builds them.
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 11, 4, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(4, 6, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(6, 5, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(5, 3, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
    )  # fmt: skip
    layers.load_state_dict({k.removeprefix("features."): v for k, v in net.items() if k.startswith("features.")})

    def maps(x: Tensor) -> list[Tensor]:
        x = x[:, :3] + 1 - x[:, 3:]
        mean = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        x = (2 * x - 1 - mean) / torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        found = []
        for i, layer in enumerate(layers):
            x = layer(x)
            if i in (1, 4, 7, 9, 11):
                found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found

    with torch.no_grad():
        want = torch.zeros(2)
        for k, (x, y) in enumerate(zip(maps(a), maps(b))):
            want += F.conv2d((x - y) ** 2, lin[f"lin{k}.model.1.weight"]).mean((1, 2, 3))
    assert torch.allclose(distance(a, b), want, rtol=1e-5)
    assert distance(a, a).tolist() == [0, 0] and torch.allclose(distance(a, b), distance(b, a))
    assert distance.name == "LPIPS (AlexNet)"


def test_lpips_reads_its_own_names_too(tmp_path: Path) -> None:
    net, lin = tiny_tensors()
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    own = {}
    for key, value in net.items():
        if key.startswith("features."):
            _, n, part = key.split(".")
            own[f"net.slice{slices[int(n)]}.{n}.{part}"] = value
    own |= {key.replace("lin", "lins.", 1): value for key, value in lin.items()}
    save_file(own, tmp_path / "one.safetensors")
    a, b = pictures(seed=1), pictures(seed=2)
    assert torch.equal(load_lpips(tmp_path / "one.safetensors")(a, b), LPIPS.from_tensors({**net, **lin})(a, b))


def test_lpips_has_gradients() -> None:
    net, lin = tiny_tensors()
    a, b = pictures(1, seed=1).requires_grad_(), pictures(1, seed=2)
    LPIPS.from_tensors({**net, **lin})(a, b).sum().backward()
    assert a.grad is not None and bool(a.grad.any()) and bool(torch.isfinite(a.grad).all())


def test_files_that_are_no_lpips(tmp_path: Path) -> None:
    net, lin = tiny_tensors()
    with pytest.raises(AssetError, match=r"lin0\.model\.1\.weight.*missing"):
        LPIPS.from_tensors(net)
    with pytest.raises(AssetError, match=r"features\.0\.weight.*missing"):
        LPIPS.from_tensors(lin)
    with pytest.raises(AssetError, match="layer 1 has"):
        LPIPS.from_tensors({**net, **lin, "features.3.weight": torch.zeros(6, 4, 3, 3)})
    with pytest.raises(AssetError, match="negative"):
        LPIPS.from_tensors({**net, **lin, "lin2.model.1.weight": -torch.ones(1, 5, 1, 1)})
    pickled = tmp_path / "alex.pth"
    torch.save(net, pickled)
    with pytest.raises(AssetError, match="no safetensors file"):
        load_lpips(pickled)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"{}")
    with pytest.raises(AssetError, match="cannot be read"):
        load_lpips(broken)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssetError, match="holds no"):
        load_lpips(tmp_path / "empty")
    with pytest.raises(InputError, match="32 pixels"):
        small = pictures(size=16)
        LPIPS.from_tensors({**net, **lin})(small, small)


def test_pixel_distance_by_hand() -> None:
    a, b = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    b[:, :, ::2] = 1  # every second row: 1/2 at full size; 1/2 everywhere at half the size and below
    assert pixel_distance(a, b, 3).item() == pytest.approx(0.5)
    b[:, :, ::2, ::2] = -1  # +1 and -1 take turns: |.| 1/2 at full size, 0 below
    assert pixel_distance(a, b, 2).item() == pytest.approx(0.25)


def test_features_are_those_behind_every_halving(tiny_judge: Callable[..., Judge]) -> None:
    distance = JudgeFeatures(tiny_judge("reward"))
    sizes = [tuple(f.shape[1:]) for f in distance._features(pictures(1, 32))]
    assert sizes == [(8, 16, 16), (16, 8, 8), (16, 4, 4)]
    a, b = pictures(1, seed=1).requires_grad_(), pictures(1, seed=2)
    value = distance(a, b)
    assert distance(b, b).item() == 0 and 0 < value.item() < 1
    value.sum().backward()
    assert a.grad is not None and bool(a.grad.any())
    with pytest.raises(InputError, match="gold"):
        JudgeFeatures(tiny_judge("gold"))


@pytest.mark.parametrize("kind", ["blur", "noise", "shift"])
def test_the_embedded_distance_grows_with_damage(kind: str) -> None:
    views = prop_views()
    distance = judge_features()
    steps: list[Tensor] = [views]
    for k in (1, 2, 3, 4):
        if kind == "blur":
            steps.append(damage.blur(views[None], 0.5 * 2 ** (k - 1))[0])
        elif kind == "noise":
            steps.append(damage.noise(views[None], 0.02 * 2 ** (k - 1), torch.Generator().manual_seed(0))[0])
        else:
            steps.append(views.roll(2 ** (k - 1), -1))
    values = torch.stack([distance(views, worse) for worse in steps])  # [5, 8]
    assert values[0].abs().max() < 1e-6
    assert bool((values.diff(dim=0) > 0).all()), values  # on every prop, at every step
    assert values.max() <= 1
