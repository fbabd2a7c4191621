"""Fields: values by hand, starts, parameters, derivatives, files and errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rl3d.errors import InputError
from rl3d.scenes.field import DENSITY_SCALE, DENSITY_SHIFT, Decoder, Field, check_field, density, gradient, query
from rl3d.scenes.grids import Dense, HashGrid, Triplane
from rl3d.scenes.spherical_harmonics import C1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_fields() -> dict[str, Field]:
    g = generator()
    return {
        "dense density": Field.blob(Dense(torch.randn(4, 3, 3, 3, generator=g)), bias_height=2.0),
        "triplane density": Field.blob(Triplane.random(4, 3, generator=g), hidden=(5,), sh_count=4, generator=g),
        "hash sdf": Field.sphere(HashGrid.random(2, 3, 5, 2, 5, spread=0.5, generator=g), hidden=(5, 5), generator=g),
        "dense sdf": Field.sphere(Dense(0.1 * torch.randn(13, 2, 2, 3, generator=g))),
    }


def test_a_density_by_hand() -> None:
    field = Field.blob(Dense.zeros(4, 3), bias_height=7.0, bias_radius=0.2)
    value, colour = query(field, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.2, 0.0], [0.7, 0.0, 0.0]]))
    at = [DENSITY_SHIFT + 7.0 * s for s in (1.0, math.exp(-0.5))]
    want = [DENSITY_SCALE * math.log1p(math.exp(v)) for v in at] + [0.0]  # the last one is outside the box
    torch.testing.assert_close(value, torch.tensor(want))
    assert colour.tolist() == [[0.5] * 3] * 3


def test_a_sphere_is_one_and_its_distance_goes_on_outside() -> None:
    for field in (
        Field.sphere(Dense.zeros(4, 3), bias_radius=0.4),
        Field.sphere(HashGrid.random(generator=generator()), hidden=(16,), bias_radius=0.4, generator=generator()),
    ):
        points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.3, 0.4], [0.0, 0.0, -0.6], [1.62, 0.0, 0.0]])
        value, _ = query(field, points)
        # The last: 0.62 - 0.4 on the border and 1 m from there.
        torch.testing.assert_close(value, torch.tensor([-0.4, 0.1, 0.2, 1.22]), atol=2e-6, rtol=1e-5)
        slope = gradient(field, points[1:3])
        torch.testing.assert_close(slope.norm(dim=1), torch.ones(2), atol=1e-4, rtol=0)


def test_the_density_of_a_distance_is_laplaces() -> None:
    field = Field.sphere(Dense.zeros(4, 3), beta=0.1)
    got = density(field, torch.zeros(4, 3), torch.tensor([0.0, 0.1, -0.1, 1e6]))
    # 1 / 0.1 * (1/2, e^-1 / 2, 1 - e^-1 / 2, 0)
    torch.testing.assert_close(got, torch.tensor([5.0, 5 * math.exp(-1), 10 - 5 * math.exp(-1), 0.0]))


def test_colour_follows_the_view_by_harmonics() -> None:
    grid = torch.zeros(13, 2, 2, 2)
    grid[4 + 3 * 1 + 0] = 2.0  # red of the second of the three linear harmonics: C1 z
    field = Field.blob(Dense(grid))
    directions = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    _, colour = query(field, torch.zeros(3, 3), directions)
    torch.testing.assert_close(colour[:, 0], torch.sigmoid(torch.tensor([2 * C1, -2 * C1, 0.0])))
    assert query(field, torch.zeros(3, 3))[1].tolist() == [[0.5] * 3] * 3


@pytest.mark.parametrize("name", ["dense density", "triplane density", "hash sdf", "dense sdf"])
def test_derivatives_of_the_twin(name: str) -> None:
    field = some_fields()[name].to(dtype=torch.float64)
    names = list(field.parameters())
    leaves = [t.detach().requires_grad_() for t in field.parameters().values()]
    points = (torch.rand(3, 3, dtype=torch.float64, generator=generator(2)) - 0.5).requires_grad_()
    directions = torch.nn.functional.normalize(torch.randn(3, 3, dtype=torch.float64, generator=generator(3)), dim=1)

    def run(at: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        f = field.with_parameters(dict(zip(names, tensors)))
        value, colour = query(f, at, directions)
        return value, colour, density(f, at, value) if f.kind == "sdf" else value, gradient(f, at)

    assert torch.autograd.gradcheck(run, (points, *leaves))


def test_the_eikonal_loss_reaches_the_parameters() -> None:
    field, leaves = some_fields()["dense sdf"].leaves()
    points = torch.rand(20, 3, generator=generator()) - 0.5
    ((gradient(field, points).norm(dim=-1) - 1) ** 2).mean().backward()
    assert leaves[0].grad is not None and float(leaves[0].grad.abs().sum()) > 0


def test_parameters_come_and_go() -> None:
    for field in some_fields().values():
        own = field.parameters()
        doubled = field.with_parameters({k: 2 * v for k, v in own.items()})
        assert all(torch.equal(v, 2 * own[k]) for k, v in doubled.parameters().items())
        copy, leaves = field.leaves()
        assert len(leaves) == len(own) and all(t.is_leaf and t.requires_grad for t in copy.parameters().values())
        assert field.to(dtype=torch.float64).dtype == torch.float64 and not copy.detach().box.requires_grad
    with pytest.raises(InputError, match=r"no parameter 'encoding\.table'; it has encoding\.grid"):
        some_fields()["dense density"].with_parameters({"encoding.table": torch.zeros(1)})


def test_files_keep_everything(tmp_path: Path) -> None:
    points = torch.rand(5, 3, generator=generator()) - 0.5
    for field in some_fields().values():
        field.save(tmp_path / "f.safetensors")
        back = Field.load(tmp_path / "f.safetensors")
        assert (back.kind, back.bias_height, back.bias_radius) == (field.kind, field.bias_height, field.bias_radius)
        for a, b in zip(query(field, points), query(back, points)):
            assert torch.equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    some_fields()["hash sdf"].save(path)
    data = path.read_bytes()
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    for content in (
        data[:-7],
        data[:20],
        b"",
        b"{}",
        data.replace(b"HashGrid", b"Cashgrid"),
        data.replace(b"[3,", b"[4,"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            Field.load(path)
        assert "\n" not in str(error.value)
    for name in ("other.safetensors", "none.safetensors", "f.ply"):
        with pytest.raises(InputError):
            Field.load(tmp_path / name)


def test_errors_are_one_line() -> None:
    good = some_fields()["dense density"]
    nan = good.with_parameters({"encoding.grid": torch.full((4, 2, 2, 2), math.nan)})
    for make in (
        lambda: Field(Dense.zeros(4, 2), good.box, "radiance"),
        lambda: Field(Dense.zeros(4, 2), good.box.flip(0)),
        lambda: Field(Dense.zeros(4, 2), good.box * math.inf),
        lambda: Field(Dense.zeros(4, 2), good.box, "sdf"),
        lambda: Field(Dense.zeros(5, 2), good.box),
        lambda: Field(Dense.zeros(5, 2), good.box, decoder=Decoder.random((4, 4))),
        lambda: Decoder((torch.zeros(3, 2), torch.zeros(4, 4)), (torch.zeros(3), torch.zeros(4))),
        lambda: Field.blob(Dense.zeros(4, 2), radius=0.0),
        lambda: query(good, torch.zeros(2, 2)),
        lambda: query(good, torch.full((2, 3), math.nan)),
        lambda: check_field(nan),
    ):
        with pytest.raises(InputError) as error:
            make()
        assert "\n" not in str(error.value)
