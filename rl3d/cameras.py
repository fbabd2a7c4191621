"""Cameras: one convention inside, named conversions at the edges.

World: right-handed, +Y up, metres. An asset's front looks along +Z (as in glTF).
Camera: OpenCV. +X right, +Y down, +Z forward; `view` maps world points to camera points.
Pixels: x to the right, y down, the centre of the top-left pixel is (0.5, 0.5).
Angles are radians.

Other conventions have names: `to_opengl`, `to_pytorch3d`, `to_transforms` (nerfstudio, instant-ngp), `to_gltf`, and a
`from_...` for each. All of them keep world points where they are, except `to_transforms`, whose world is z-up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl3d.errors import InputError

_FLIP_YZ = (1.0, -1.0, -1.0)  # OpenCV's camera axes <-> OpenGL's (+X right, +Y up, -Z forward)
_FLIP_XY = (-1.0, -1.0, 1.0)  # OpenCV's camera axes <-> PyTorch3D's (+X left, +Y up, +Z forward)
_Z_UP = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))  # our y-up world in a z-up one: (x, y, z) -> (x, -z, y)


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

    @property
    def poses(self) -> Tensor:
        """[V, 4, 4] camera-to-world, the inverse of `view` (a rigid motion), OpenCV axes."""
        return _rigid_inverse(self.view)

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
        rows = torch.arange(self.height, dtype=self.view.dtype, device=self.device) + 0.5
        columns = torch.arange(self.width, dtype=self.view.dtype, device=self.device) + 0.5
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        pixels = torch.stack([x, y, torch.ones_like(x)], -1)  # [H, W, 3]
        in_camera = torch.einsum("vij,hwj->vhwi", torch.linalg.inv(self.intrinsics), pixels)
        directions = torch.einsum("vji,vhwj->vhwi", self.view[:, :3, :3], in_camera)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        return self.centres[:, None, None].expand_as(directions), directions

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points [N, 3] to pixels [V, N, 2] and camera-space z [V, N]; differentiable. Pixels mean nothing where
        z <= 0.
        """
        in_camera = torch.einsum("vij,nj->vni", self.view[:, :3, :3], points) + self.view[:, None, :3, 3]
        homogeneous = torch.einsum("vij,vnj->vni", self.intrinsics, in_camera)
        return homogeneous[..., :2] / homogeneous[..., 2:], in_camera[..., 2]

    @classmethod
    def cat(cls, parts: list[Cameras]) -> Cameras:
        """One batch out of several of the same image size."""
        sizes = {(c.height, c.width) for c in parts}
        if len(sizes) != 1:
            raise InputError(f"cameras of different image sizes cannot be joined: {sorted(sizes)}")
        return cls(
            torch.cat([c.view for c in parts]),
            torch.cat([c.intrinsics for c in parts]),
            parts[0].height,
            parts[0].width,
        )

    # Conversions ------------------------------------------------------------------------------------------------------

    def to_opengl(self, near: float = 0.01, far: float = 100.0) -> tuple[Tensor, Tensor]:
        """OpenGL's matrices for column vectors; differentiable.

        Args:
            near, far: metres, mapped to -1 and 1 in normalised device coordinates.

        Returns:
            view [V, 4, 4], world to a camera with +X right, +Y up, -Z forward, and projection [V, 4, 4] to clip space
            with NDC y up: pixel x = (ndc_x + 1) / 2 * width, pixel y = (1 - ndc_y) / 2 * height.
        """
        if not 0 < near < far:
            raise InputError(f"OpenGL's planes need 0 < near < far, got near {near} and far {far}")
        projection = torch.zeros_like(self.view)
        projection[:, 0, 0] = 2 / self.width * self.intrinsics[:, 0, 0]
        projection[:, 0, 2] = 1 - 2 / self.width * self.intrinsics[:, 0, 2]
        projection[:, 1, 1] = 2 / self.height * self.intrinsics[:, 1, 1]
        projection[:, 1, 2] = 2 / self.height * self.intrinsics[:, 1, 2] - 1
        projection[:, 2, 2] = -(far + near) / (far - near)
        projection[:, 2, 3] = -2 * far * near / (far - near)
        projection[:, 3, 2] = -1
        return _flipped_rows(self.view, _FLIP_YZ), projection

    @classmethod
    def from_opengl(cls, view: Tensor, projection: Tensor, size: int | tuple[int, int]) -> Cameras:
        """The inverse of `to_opengl`: view [V, 4, 4], perspective projection [V, 4, 4], size in pixels."""
        height, width = (size, size) if isinstance(size, int) else size
        if bool((projection[:, 3] != projection.new_tensor([0, 0, -1, 0])).any()):
            raise InputError("from_opengl takes perspective projections with the last row (0, 0, -1, 0)")
        intrinsics = _intrinsics(
            projection[:, 0, 0] * (width / 2),
            projection[:, 1, 1] * (height / 2),
            (1 - projection[:, 0, 2]) * (width / 2),
            (1 + projection[:, 1, 2]) * (height / 2),
        )
        return cls(_flipped_rows(view, _FLIP_YZ), intrinsics, height, width)

    def to_pytorch3d(self) -> dict[str, Tensor]:
        """Arguments of `pytorch3d.renderer.PerspectiveCameras(**arguments, in_ndc=False)`; differentiable.

        PyTorch3D multiplies row vectors, x_camera = x_world @ R + T, and its camera has +X left, +Y up, +Z forward.
        Focal length and principal point are given in its screen convention: pixels, origin in the top-left corner.

        Returns:
            R [V, 3, 3], T [V, 3], focal_length [V, 2] (x, y), principal_point [V, 2] (x, y), image_size [V, 2]
            (height, width).
        """
        view = _flipped_rows(self.view, _FLIP_XY)
        size = self.intrinsics.new_tensor([self.height, self.width]).expand(len(self), 2)
        return {
            "R": view[:, :3, :3].transpose(1, 2),
            "T": view[:, :3, 3],
            "focal_length": torch.stack([self.intrinsics[:, 0, 0], self.intrinsics[:, 1, 1]], 1),
            "principal_point": self.intrinsics[:, :2, 2],
            "image_size": size,
        }

    @classmethod
    def from_pytorch3d(
        cls, R: Tensor, T: Tensor, focal_length: Tensor, principal_point: Tensor, image_size: Tensor
    ) -> Cameras:
        """The inverse of `to_pytorch3d`; screen convention (in_ndc=False), one image size for all."""
        sizes = {(int(h), int(w)) for h, w in image_size.tolist()}
        if len(sizes) != 1:
            raise InputError(f"cameras must share one image size, got {sorted(sizes)}")
        rotation = R.transpose(1, 2)
        view = _flipped_rows(_rigid(rotation, T), _FLIP_XY)
        (height, width) = sizes.pop()
        return cls(view, _intrinsics(*focal_length.unbind(1), *principal_point.unbind(1)), height, width)

    def to_transforms(self, file_paths: Sequence[str] | None = None) -> dict[str, Any]:
        """The content of a `transforms.json` as nerfstudio and instant-ngp read it.

        `transform_matrix` is camera-to-world with OpenGL's camera axes, in a z-up world: our (x, y, z) is written as
        (x, -z, y). Focal lengths (fl_x, fl_y) and principal point (cx, cy) are pixels and stand in every frame.

        Args:
            file_paths: V names of the images, relative to the JSON file; None leaves them out.
        """
        if file_paths is not None and len(file_paths) != len(self):
            raise InputError(f"{len(self)} cameras need as many file paths, got {len(file_paths)}")
        frames = []
        for i, (pose, k) in enumerate(zip(self._opengl_poses(z_up=True).tolist(), self.intrinsics.tolist())):
            frame: dict[str, Any] = {} if file_paths is None else {"file_path": file_paths[i]}
            frame |= {"fl_x": k[0][0], "fl_y": k[1][1], "cx": k[0][2], "cy": k[1][2], "transform_matrix": pose}
            frames.append(frame)
        return {"camera_model": "OPENCV", "w": self.width, "h": self.height, "frames": frames}

    @classmethod
    def from_transforms(cls, transforms: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Cameras:
        """The inverse of `to_transforms`: parsed JSON of nerfstudio, instant-ngp or the NeRF data sets.

        Frames may override the file's intrinsics; `camera_angle_x` (radians) stands in for `fl_x`; `fl_y` defaults to
        `fl_x` and the principal point to the middle.

        Raises:
            InputError: a key is missing, sizes differ, or there is lens distortion (a pinhole cannot show it).
        """
        frames = transforms.get("frames") or []
        if not frames:
            raise InputError("transforms hold no frames")
        poses, pinholes, sizes = [], [], set()
        for i, frame in enumerate(frames):
            values = {**transforms, **frame}
            if any(values.get(k) for k in ("k1", "k2", "k3", "k4", "p1", "p2")):
                raise InputError(f"frame {i} has lens distortion; undistort the images first")
            missing = [k for k in ("w", "h", "transform_matrix") if k not in values]
            if missing or not ("fl_x" in values or "camera_angle_x" in values):
                raise InputError(f"frame {i} of the transforms lacks {', '.join(missing) or 'fl_x or camera_angle_x'}")
            width, height = int(values["w"]), int(values["h"])
            fx = values["fl_x"] if "fl_x" in values else 0.5 * width / math.tan(0.5 * values["camera_angle_x"])
            pinholes.append([fx, values.get("fl_y", fx), values.get("cx", width / 2), values.get("cy", height / 2)])
            poses.append(values["transform_matrix"])
            sizes.add((height, width))
        if len(sizes) != 1:
            raise InputError(f"cameras must share one image size, got (height, width) {sorted(sizes)}")
        (height, width) = sizes.pop()
        pose = torch.tensor(poses, dtype=dtype)
        if pose.shape[1:] == (3, 4):  # some writers leave the constant last row out
            pose = _rigid(pose[:, :, :3], pose[:, :, 3])
        return cls._from_opengl_poses(pose, _intrinsics(*torch.tensor(pinholes, dtype=dtype).unbind(1)), height, width)

    def to_gltf(self, znear: float = 0.01) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """glTF 2.0's `nodes` and `cameras` (JSON values); the world is the same: +Y up, an asset's front on +Z.

        Returns:
            nodes: {"camera": index, "matrix": 16 numbers, column by column, camera-to-world, OpenGL's camera axes}.
            cameras: {"type": "perspective", "perspective": {"yfov", "aspectRatio", "znear"}}.

        Raises:
            InputError: a principal point off the middle, which glTF cannot say.
        """
        middle = self.intrinsics.new_tensor([self.width / 2, self.height / 2])
        off = float((self.intrinsics[:, :2, 2] - middle).abs().max()) if len(self) else 0.0
        if off > 1e-3:
            raise InputError(f"a glTF camera looks through the image's middle; a principal point is off by {off:g} px")
        nodes, cameras = [], []
        for i, (pose, k) in enumerate(zip(self._opengl_poses(z_up=False), self.intrinsics.tolist())):
            half_height, half_width = 0.5 * self.height / k[1][1], 0.5 * self.width / k[0][0]
            lens = {"yfov": 2 * math.atan(half_height), "aspectRatio": half_width / half_height, "znear": znear}
            nodes.append({"camera": i, "matrix": pose.T.flatten().tolist()})
            cameras.append({"type": "perspective", "perspective": lens})
        return nodes, cameras

    @classmethod
    def from_gltf(
        cls,
        nodes: Sequence[Mapping[str, Any]],
        cameras: Sequence[Mapping[str, Any]],
        size: int | tuple[int, int],
        dtype: torch.dtype = torch.float32,
    ) -> Cameras:
        """The inverse of `to_gltf`, for nodes whose `matrix` is already the global one.

        Args:
            nodes: those with a camera; others are passed over. cameras: the file's list. size: pixels.

        Raises:
            InputError: no node with a camera, an orthographic one, or a node without a `matrix`.
        """
        height, width = (size, size) if isinstance(size, int) else size
        poses, focal = [], []
        for i, node in enumerate(nodes):
            if "camera" not in node:
                continue
            lens = cameras[node["camera"]].get("perspective")
            if lens is None or "matrix" not in node:
                raise InputError(f"glTF node {i} needs a perspective camera and a global 'matrix'")
            fy = 0.5 * height / math.tan(0.5 * lens["yfov"])
            focal.append([fy * (width / height) / lens.get("aspectRatio", width / height), fy])
            poses.append(node["matrix"])
        if not poses:
            raise InputError("no glTF node has a camera")
        pose = torch.tensor(poses, dtype=dtype).reshape(-1, 4, 4).transpose(1, 2)
        pinholes = torch.tensor([[*f, width / 2, height / 2] for f in focal], dtype=dtype)
        return cls._from_opengl_poses(pose, _intrinsics(*pinholes.unbind(1)), height, width, z_up=False)

    def _opengl_poses(self, z_up: bool) -> Tensor:
        """[V, 4, 4] camera-to-world with OpenGL's camera axes, in our world or in a z-up one."""
        pose = self.poses * self.view.new_tensor([*_FLIP_YZ, 1])
        return _world_rotation(pose) @ pose if z_up else pose

    @classmethod
    def _from_opengl_poses(
        cls, pose: Tensor, intrinsics: Tensor, height: int, width: int, z_up: bool = True
    ) -> Cameras:
        turned = pose[:, :3, :3].transpose(1, 2) @ pose[:, :3, :3]
        error = float((turned - torch.eye(3, dtype=pose.dtype, device=pose.device)).abs().max())
        if not error < 1e-3:
            raise InputError(f"camera matrices must be rotations and translations; off by {error:g}, is one scaled?")
        pose = _world_rotation(pose).T @ pose if z_up else pose
        return cls(_rigid_inverse(pose * pose.new_tensor([*_FLIP_YZ, 1])), intrinsics, height, width)


def camera_rows(cameras: Cameras, batch: int, views: int) -> Cameras:
    """Cameras [V] shared by the batch, or [B * V] in "(b f)" order, as [B * V] in "(b f)" order.

    Raises:
        InputError: any other number of cameras.
    """
    if len(cameras) == batch * views:
        return cameras
    if len(cameras) != views:
        raise InputError(f"{len(cameras)} cameras for {batch} x {views} images; pass {views} or {batch * views}")
    # Tiled whole, c0 c1 c2 c3 c0 c1 ...; repeating each camera (c0 c0 c1 c1 ...) would hand views to other objects.
    return Cameras(
        cameras.view.repeat(batch, 1, 1), cameras.intrinsics.repeat(batch, 1, 1), cameras.height, cameras.width
    )


def _rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """[V, 4, 4] out of [V, 3, 3] and [V, 3]."""
    last = translation.new_tensor([0, 0, 0, 1]).expand(len(translation), 1, 4)
    return torch.cat([torch.cat([rotation, translation[:, :, None]], 2), last], 1)


def _rigid_inverse(motion: Tensor) -> Tensor:
    """The inverse of rigid motions [V, 4, 4]."""
    back = motion[:, :3, :3].transpose(1, 2)
    return _rigid(back, -(back @ motion[:, :3, 3:])[:, :, 0])


def _intrinsics(fx: Tensor, fy: Tensor, cx: Tensor, cy: Tensor) -> Tensor:
    """[V, 3, 3] out of four [V]."""
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], 1).reshape(-1, 3, 3)


def _flipped_rows(view: Tensor, signs: tuple[float, float, float]) -> Tensor:
    """World-to-camera [V, 4, 4] with some of the camera's axes turned round."""
    return view * view.new_tensor([*signs, 1])[:, None]


def _world_rotation(like: Tensor) -> Tensor:
    """[4, 4] from our y-up world to a z-up one."""
    rotation = torch.eye(4, dtype=like.dtype, device=like.device)
    rotation[:3, :3] = rotation.new_tensor(_Z_UP)
    return rotation
