"""Cameras: one convention inside, named conversions at the edges.

World: right-handed, +Y up, metres. An asset's front looks along +Z (as in glTF).
Camera: OpenCV. +X right, +Y down, +Z forward; `view` maps world points to camera points.
Pixels: x to the right, y down, the centre of the top-left pixel is (0.5, 0.5).
Angles are radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.errors import InputError


@dataclass(frozen=True)
class Cameras:
    """A batch of V pinhole cameras that share one image size.

    Attributes:
        view: [V, 4, 4] world-to-camera matrices (OpenCV axes), differentiable.
        intrinsics: [V, 3, 3] pixel intrinsics [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], differentiable.
        height, width: image size in pixels.
    """

    view: Tensor
    intrinsics: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.view.ndim != 3 or self.view.shape[1:] != (4, 4):
            raise InputError(f"Cameras.view must be [V, 4, 4], got {list(self.view.shape)}")
        if self.intrinsics.shape != (self.view.shape[0], 3, 3):
            raise InputError(
                f"Cameras.intrinsics must be [{self.view.shape[0]}, 3, 3] like view, got {list(self.intrinsics.shape)}"
            )
        if self.height < 1 or self.width < 1:
            raise InputError(f"image size must be at least 1 x 1 pixel, got {self.height} x {self.width}")

    @classmethod
    def orbit(
        cls,
        azimuth: Tensor | float,
        elevation: Tensor | float = 0.0,
        distance: Tensor | float = 2.2,
        fov_y: Tensor | float = 0.7,
        size: int | tuple[int, int] = 256,
        target: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Cameras:
        """Cameras on a sphere around `target` that look at it.

        Args:
            azimuth: [V] or scalar, radians; 0 stands on +Z (sees the front), pi/2 on +X.
            elevation: [V] or scalar, radians above the horizon, strictly inside (-pi/2, pi/2).
            distance: [V] or scalar, from the target.
            fov_y: [V] or scalar, vertical field of view in radians.
            size: pixels, one number for a square or (height, width).
        """
        azimuth, elevation, distance, fov_y = (torch.as_tensor(t) for t in (azimuth, elevation, distance, fov_y))
        dtype = azimuth.dtype if azimuth.is_floating_point() else torch.get_default_dtype()
        az, el, dist, fov = torch.broadcast_tensors(
            *(t.to(device=azimuth.device, dtype=dtype).reshape(-1) for t in (azimuth, elevation, distance, fov_y))
        )
        if bool((el.abs() >= math.pi / 2).any()):
            raise InputError("elevation must lie strictly between -pi/2 and pi/2 radians; is it in degrees?")
        height, width = (size, size) if isinstance(size, int) else size
        # The camera's axes in the world: backward points from the target to the eye.
        backward = torch.stack([az.sin() * el.cos(), el.sin(), az.cos() * el.cos()], -1)  # [V, 3]
        right = torch.stack([az.cos(), torch.zeros_like(az), -az.sin()], -1)
        up = torch.linalg.cross(backward, right)
        rotation = torch.stack([right, -up, -backward], 1)  # rows: x right, y down, z forward
        eye = torch.as_tensor(target, dtype=dtype, device=az.device) + dist[:, None] * backward
        view = torch.zeros(len(az), 4, 4, dtype=dtype, device=az.device)
        view[:, :3, :3] = rotation
        view[:, :3, 3] = -(rotation @ eye[:, :, None])[:, :, 0]
        view[:, 3, 3] = 1
        focal = 0.5 * height / torch.tan(0.5 * fov)
        intrinsics = torch.zeros(len(az), 3, 3, dtype=dtype, device=az.device)
        intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
        intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = 0.5 * width, 0.5 * height, 1
        return cls(view, intrinsics, height, width)

    def __len__(self) -> int:
        return self.view.shape[0]

    def __getitem__(self, index: int | slice | Tensor | list[int]) -> Cameras:
        """A sub-batch; an integer keeps the batch dimension."""
        if isinstance(index, int):
            index = [index]
        return Cameras(self.view[index], self.intrinsics[index], self.height, self.width)

    @property
    def device(self) -> torch.device:
        return self.view.device

    @property
    def centres(self) -> Tensor:
        """[V, 3] eye positions in the world."""
        return -(self.view[:, :3, :3].transpose(1, 2) @ self.view[:, :3, 3:])[:, :, 0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cameras:
        return Cameras(
            self.view.to(device=device, dtype=dtype),
            self.intrinsics.to(device=device, dtype=dtype),
            self.height,
            self.width,
        )

    def resized(self, size: int | tuple[int, int]) -> Cameras:
        """The same view frustums seen by images of another size."""
        height, width = (size, size) if isinstance(size, int) else size
        scale = self.intrinsics.new_tensor([[width / self.width], [height / self.height], [1.0]])
        return Cameras(self.view, self.intrinsics * scale, height, width)

    def rays(self) -> tuple[Tensor, Tensor]:
        """World-space rays through the pixel centres.

        Returns:
            origins [V, H, W, 3] and unit directions [V, H, W, 3].
        """
        like = {"dtype": self.view.dtype, "device": self.device}
        y, x = torch.meshgrid(
            torch.arange(self.height, **like) + 0.5, torch.arange(self.width, **like) + 0.5, indexing="ij"
        )
        pixels = torch.stack([x, y, torch.ones_like(x)], -1)  # [H, W, 3]
        in_camera = torch.einsum("vij,hwj->vhwi", torch.linalg.inv(self.intrinsics), pixels)
        directions = torch.einsum("vji,vhwj->vhwi", self.view[:, :3, :3], in_camera)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        return self.centres[:, None, None].expand_as(directions), directions

    @classmethod
    def cat(cls, parts: list[Cameras]) -> Cameras:
        """One batch out of several of the same image size."""
        sizes = {(c.height, c.width) for c in parts}
        if len(sizes) != 1:
            raise InputError(f"cameras of different image sizes cannot be joined: {sorted(sizes)}")
        return cls(
            torch.cat([c.view for c in parts]), torch.cat([c.intrinsics for c in parts]), parts[0].height, parts[0].width
        )
