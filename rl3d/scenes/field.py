"""Radiance and signed-distance fields over a box, as frozen dataclasses of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rl3d.errors import InputError
from rl3d.scenes.grids import Encoding, encode, encoding_width
from rl3d.scenes.spherical_harmonics import COUNTS, basis

KINDS = ("density", "sdf")
DENSITY_SCALE = 25.0  # 1/m: what one unit of the activation means; 4 units hide 80 % behind 16 mm
BETA_RANGE = (1e-4, 1e3)  # metres; a beta of 0 has no density
DENSITY_SHIFT = -7.0  # a raw value of 0 is nearly empty: 0.023 / m


@dataclass(frozen=True)
class Decoder:
    """A small perceptron with ReLU between its layers: features [N, I] -> raw values [N, O].

    Attributes:
        weights: matrices [O, I], first layer first. biases: [O] each.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        shapes = [tuple(w.shape) for w in self.weights]
        chained = all(a[0] == b[1] for a, b in pairwise(shapes))
        if not shapes or [s[:1] for s in shapes] != [tuple(b.shape) for b in self.biases] or not chained:
            raise InputError(
                f"Decoder needs layers [O, I] and [O] that fit each other, got {shapes} and "
                f"{[tuple(b.shape) for b in self.biases]}"
            )

    @staticmethod
    def random(widths: tuple[int, ...], generator: torch.Generator | None = None) -> Decoder:
        """He-normal hidden layers (He et al. 2015), a small last layer, zero biases; `widths` from input to output."""
        weights = [torch.randn(o, i, generator=generator) * (2 / i) ** 0.5 for i, o in pairwise(widths)]
        weights[-1] = weights[-1] * 0.1
        return Decoder(tuple(weights), tuple(torch.zeros(o) for o in widths[1:]))

    def __call__(self, features: Tensor) -> Tensor:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1]):
            features = torch.addmm(bias, features, weight.T).relu()
        return torch.addmm(self.biases[-1], features, self.weights[-1].T)


@dataclass(frozen=True)
class Field:
    """A value and a colour at every point of a box.

    The encoding (through the decoder, if there is one) gives raw channels (v, c_0 [3], c_1 [3], ...). The colour is
    sigmoid(c_0 + sum over k >= 1 of Y_k(d) c_k) in sRGB, with Y the real spherical harmonics of the view direction d
    (as in Yu et al. 2021, PlenOctrees). With r the distance from the box's middle, the value is

    - kind "density": softplus(v + DENSITY_SHIFT + bias_height exp(-r^2 / (2 bias_radius^2))) * DENSITY_SCALE, in 1/m;
      the bias is the blob of DreamFusion (Poole et al. 2022); 0 outside the box;
    - kind "sdf": v + r - bias_radius in metres, negative inside (without a bias_radius: v); outside the box, the value
      at its border plus the distance to it. Its density is that of VolSDF (Yariv et al. 2021, eq. 2 and 3): Laplace's
      distribution of scale beta = exp(log_beta) metres (within BETA_RANGE), divided by beta. VolSDF rather than NeuS,
      because its density is a function of the point alone: renderer, occupancy grid and early stop are those of a
      radiance field.

    Attributes:
        encoding: features over the box, see `rl3d.scenes.grids`.
        box: [2, 3] lowest and highest corner, metres.
        kind: "density" or "sdf".
        decoder: None takes the features as the raw channels.
        log_beta: scalar, natural log of metres; for kind "sdf" alone.
        bias_height, bias_radius: of the start, see above; no unit and metres.
    """

    encoding: Encoding
    box: Tensor
    kind: str = "density"
    decoder: Decoder | None = None
    log_beta: Tensor | None = None
    bias_height: float = 0.0
    bias_radius: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Field.kind must be density or sdf, got {self.kind!r}")
        sides = self.box[1] - self.box[0] if tuple(self.box.shape) == (2, 3) else self.box.new_zeros(1)
        if not bool(((sides > 0) & torch.isfinite(sides)).all()):
            raise InputError(f"Field.box must be [2, 3], lowest corner first, got {self.box.tolist()}")
        if (self.log_beta is None) == (self.kind == "sdf"):
            raise InputError(f"Field.log_beta belongs to kind sdf, and to it alone; the kind is {self.kind!r}")
        width = encoding_width(self.encoding)
        if self.decoder is not None and self.decoder.weights[0].shape[1] != width:
            raise InputError(f"the decoder reads {self.decoder.weights[0].shape[1]} features, the encoding has {width}")
        channels = width if self.decoder is None else self.decoder.weights[-1].shape[0]
        if channels - 1 not in [3 * count for count in COUNTS]:
            raise InputError(
                f"a field needs 1 + 3 K channels with K = 1, 4, 9 or 16 harmonics, got {channels}; a decoder "
                "(hidden=(32,)) makes them out of any number of features"
            )

    @property
    def sh_count(self) -> int:
        """Spherical harmonics per colour channel; 1: the colour does not depend on the view."""
        last = encoding_width(self.encoding) if self.decoder is None else self.decoder.weights[-1].shape[0]
        return (last - 1) // 3

    @staticmethod
    def blob(
        encoding: Encoding,
        *,
        radius: float = 0.62,
        hidden: tuple[int, ...] | None = None,
        sh_count: int = 1,
        bias_height: float = 12.0,
        bias_radius: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> Field:
        """A density field over the cube [-radius, radius]^3 that starts as a soft blob; `bias_height` 0: as thin fog.

        Args:
            hidden: widths of the decoder's hidden layers; None: no decoder, the features are the raw channels.
            sh_count: spherical harmonics of the decoder's colours, 1, 4, 9 or 16.
        """
        decoder = _decoder(encoding, hidden, sh_count, generator)
        return Field(encoding, _cube(radius), "density", decoder, None, bias_height, bias_radius)

    @staticmethod
    def sphere(
        encoding: Encoding,
        *,
        radius: float = 0.62,
        hidden: tuple[int, ...] | None = None,
        sh_count: int = 1,
        bias_radius: float = 0.4,
        beta: float = 0.02,
        generator: torch.Generator | None = None,
    ) -> Field:
        """A signed-distance field over the cube [-radius, radius]^3 that starts as a sphere of `bias_radius` metres.

        The sphere is exact where the raw value starts at 0: zero grids, or any encoding with a decoder.
        """
        decoder = _decoder(encoding, hidden, sh_count, generator)
        log_beta = torch.tensor(math.log(beta))
        return Field(encoding, _cube(radius), "sdf", decoder, log_beta, 0.0, bias_radius)

    @property
    def device(self) -> torch.device:
        return self.box.device

    @property
    def dtype(self) -> torch.dtype:
        return self.box.dtype

    def parameters(self) -> dict[str, Tensor]:
        """What an optimiser may move, by name: the encoding's table, weights and biases, log_beta."""
        out = {f"encoding.{k}": v for k, v in vars(self.encoding).items() if isinstance(v, Tensor)}
        if self.decoder is not None:
            out |= {f"decoder.weights.{i}": w for i, w in enumerate(self.decoder.weights)}
            out |= {f"decoder.biases.{i}": b for i, b in enumerate(self.decoder.biases)}
        return out if self.log_beta is None else {**out, "log_beta": self.log_beta}

    def with_parameters(self, tensors: dict[str, Tensor]) -> Field:
        """The same field on other tensors, all or some of those that `parameters` names.

        Raises:
            InputError: a name that the field does not have.
        """
        known = self.parameters()
        if unknown := sorted(set(tensors) - set(known)):
            raise InputError(f"the field has no parameter {unknown[0]!r}; it has {', '.join(known)}")
        new = {**known, **tensors}
        table = {k.split(".")[1]: v for k, v in new.items() if k.startswith("encoding.")}
        decoder = None
        if self.decoder is not None:
            layers = range(len(self.decoder.weights))
            decoder = Decoder(
                tuple(new[f"decoder.weights.{i}"] for i in layers), tuple(new[f"decoder.biases.{i}"] for i in layers)
            )
        encoding = replace(self.encoding, **table)  # type: ignore[arg-type]
        return replace(self, encoding=encoding, decoder=decoder, log_beta=new.get("log_beta"))

    def leaves(self) -> tuple[Field, list[Tensor]]:
        """A copy whose parameters are fresh leaves that require gradients, and the list of them, for an optimiser."""
        own = {k: v.detach().clone().requires_grad_(True) for k, v in self.parameters().items()}
        return self.with_parameters(own), list(own.values())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Field:
        """The field on another device or in another float type."""
        moved = self.with_parameters({k: v.to(device, dtype) for k, v in self.parameters().items()})
        return replace(moved, box=self.box.to(device, dtype))

    def detach(self) -> Field:
        """The field cut off from any gradient graph."""
        return self.with_parameters({k: v.detach() for k, v in self.parameters().items()})

    def save(self, path: str | Path) -> None:
        """Write .safetensors with its facts as JSON, atomically, see `rl3d.scenes.field_io`."""
        from rl3d.scenes.field_io import save_field

        save_field(self, path)

    @staticmethod
    def load(path: str | Path) -> Field:
        """Read what `save` wrote, see `rl3d.scenes.field_io`."""
        from rl3d.scenes.field_io import load_field

        return load_field(path)


def query(
    field: Field, points: Tensor, directions: Tensor | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The field at points; differentiable to its parameters and to the points inside the box.

    Args:
        points: [..., 3] world, metres.
        directions: [..., 3] unit, from the eye to the point; None: the colour's view-independent part.
        backend: as in `rl3d.scenes.grids.encode`.

    Returns:
        density in 1/m (kind "density") or signed distance in metres (kind "sdf") [...], and colour [..., 3], sRGB in
        (0, 1).

    Raises:
        InputError: shapes, or points that are not finite.
    """
    value, colour = potential(field, points, directions, backend)
    return (_activated(field, value, points) if field.kind == "density" else value), colour


def potential(
    field: Field, points: Tensor, directions: Tensor | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """`query` before the density's activation: v + shift + blob [...] for kind "density", the distance for "sdf".

    Its gradient points into a radiance field's matter and out of a signed-distance field's.
    """
    if points.shape[-1:] != (3,) or (directions is not None and directions.shape != points.shape):
        got = [list(t.shape) for t in (points, directions) if t is not None]
        raise InputError(f"a field is asked at points [..., 3] and directions of that shape, got {got}")
    if not bool(torch.isfinite(points.detach()).all()):
        raise InputError("a field was asked at points that are NaN or infinite")
    low, high = field.box
    flat = points.reshape(-1, 3)
    raw = encode(field.encoding, (flat - low) / (high - low), backend)
    if field.decoder is not None:
        raw = field.decoder(raw)
    value, colour = raw[:, 0], raw[:, 1:4]
    if directions is not None and field.sh_count > 1:
        turned = basis(directions.reshape(-1, 3), field.sh_count)[:, 1:, None]
        colour = colour + (raw[:, 4:].reshape(len(raw), -1, 3) * turned).sum(1)
    held = flat.clamp(low, high) if field.kind == "sdf" else flat
    squared = ((held - (low + high) / 2) ** 2).sum(1)
    if field.kind == "density":
        value = value + DENSITY_SHIFT
        if field.bias_height and field.bias_radius > 0:
            value = value + field.bias_height * torch.exp(squared / (-2 * field.bias_radius**2))
    else:
        if field.bias_radius > 0:
            value = value + (squared + 1e-12).sqrt() - field.bias_radius  # 1e-12: a gradient in the middle
        beyond = ((flat - held) ** 2).sum(1)
        value = value + torch.where(beyond > 0, torch.where(beyond > 0, beyond, 1).sqrt(), 0)
    return value.reshape(points.shape[:-1]), torch.sigmoid(colour).reshape(points.shape)


def density(field: Field, points: Tensor, value: Tensor) -> Tensor:
    """Density [...] in 1/m, >= 0, of potentials [...] at points [..., 3]; differentiable to the potentials and beta."""
    if field.kind == "density":
        return _activated(field, value, points)
    assert field.log_beta is not None
    beta = field.log_beta.exp().clamp(*BETA_RANGE)
    # VolSDF, eq. 2 at -distance; both branches stay finite, so that the unused one sends no NaN back.
    tail = 0.5 * torch.exp(-value.abs() / beta)
    return torch.where(value > 0, tail, 1 - tail) / beta


def _activated(field: Field, value: Tensor, points: Tensor) -> Tensor:
    at = points.detach()
    inside = ((at >= field.box[0]) & (at <= field.box[1])).all(-1)
    return torch.where(inside, DENSITY_SCALE * softplus(value), 0)


def gradient(field: Field, points: Tensor, backend: str | None = None) -> Tensor:
    """The potential's gradient [..., 3] by the points; differentiable to the parameters where gradients are enabled.

    A signed distance's has length 1: the eikonal loss is ((gradient(field, points).norm(dim=-1) - 1) ** 2).mean().
    """
    wants = torch.is_grad_enabled() and any(t.requires_grad for t in field.parameters().values())
    with torch.enable_grad():
        at = points if points.requires_grad else points.detach().requires_grad_(True)
        value, _ = potential(field, at, backend=backend)
        (slope,) = torch.autograd.grad(value.sum(), at, create_graph=wants or points.requires_grad)
    return slope


def check_field(field: Field) -> None:
    """Refuse a field that has diverged or lies in pieces.

    Raises:
        InputError: a parameter holds NaN or infinity, or is of another type or on another device than the box.
    """
    for name, tensor in field.parameters().items():
        if tensor.dtype != field.dtype or tensor.device != field.device or not tensor.is_floating_point():
            raise InputError(
                f"the field's {name} is {tensor.dtype} on {tensor.device}, its box is {field.dtype} on {field.device}; "
                "Field.to moves both"
            )
        low, high = (float(x) for x in torch.aminmax(tensor.detach())) if tensor.numel() else (0.0, 0.0)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(f"the field's {name} holds NaN or infinity; a diverged optimisation, or a broken file?")


def _cube(radius: float) -> Tensor:
    if not radius > 0:
        raise InputError(f"the box's radius must be positive, got {radius}")
    return torch.tensor([[-radius] * 3, [radius] * 3])


def _decoder(
    encoding: Encoding, hidden: tuple[int, ...] | None, sh_count: int, generator: torch.Generator | None
) -> Decoder | None:
    """None, or a decoder whose raw value starts at 0, so that the bias alone shapes the start."""
    if hidden is None:
        return None
    decoder = Decoder.random((encoding_width(encoding), *hidden, 1 + 3 * sh_count), generator)
    decoder.weights[-1][0] = 0
    return decoder
