"""Texture coordinates for any mesh, by xatlas, with a bound on the time it may take."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.scenes.mesh import Mesh

_WORKER = Path(__file__).with_name("xatlas_worker.py")


@dataclass(frozen=True)
class Unwrapping:
    """Where a mesh's faces lie in a texture.

    Attributes:
        uvs: [T, 2] in [0, 1], (0, 0) is the top-left corner of the picture.
        face_uvs: [F, 3] int64 into `uvs`, in the order of the mesh's faces and corners; vertices are not split.
        charts: number of islands.
        utilization: share of the texture that islands cover.
    """

    uvs: Tensor
    face_uvs: Tensor
    charts: int
    utilization: float


def unwrap(
    mesh: Mesh, *, resolution: int = 512, padding: int = 3, max_cost: float = 2.0, timeout: float = 30.0
) -> Unwrapping | str:
    """Cut and flatten a mesh.

    Args:
        mesh: welded vertices give larger islands.
        resolution: side of the texture that `padding` is measured in, texels.
        padding: texels between islands, so that bilinear sampling and one mip level do not bleed.
        max_cost: xatlas's bound on how curved an island may get; larger gives fewer islands.
        timeout: seconds; the process that unwraps is then ended.

    Returns:
        The unwrapping, or one line that says why there is none (too slow, or xatlas failed on this mesh), for the
        caller to report and fall back to vertex colours.
    """
    if resolution < 16 or padding < 0 or timeout <= 0:
        raise InputError(
            f"unwrap needs resolution >= 16, padding >= 0 and timeout > 0, got {resolution}, {padding} and {timeout}"
        )
    buffer = io.BytesIO()
    faces = mesh.faces.cpu().numpy()
    arrays: dict[str, Any] = {
        "vertices": mesh.vertices.detach().cpu().numpy().astype(np.float32),
        "faces": faces.astype(np.uint32),
        "resolution": np.array(resolution),
        "padding": np.array(padding),
        "max_cost": np.array(max_cost),
    }
    np.savez(buffer, **arrays)
    try:
        done = subprocess.run(
            [sys.executable, str(_WORKER)], input=buffer.getvalue(), capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return f"unwrapping {len(faces)} faces took more than {timeout:g} s"
    except OSError as error:
        return f"the unwrapping process did not start: {error.strerror or error}"
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return f"xatlas failed on {len(faces)} faces (exit {done.returncode}): {lines[-1] if lines else 'no message'}"
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
        source, face_uvs, uvs = found["source"], found["face_uvs"].astype(np.int64), found["uvs"]
        charts, utilization = int(found["counts"][0]), float(found["utilization"])
        pages = int(found["counts"][1])
    if pages != 1 or face_uvs.shape != faces.shape or (source[face_uvs] != faces).any() or not np.isfinite(uvs).all():
        return f"xatlas returned another mesh than it was given ({pages} pages, {len(face_uvs)} of {len(faces)} faces)"
    return Unwrapping(
        torch.from_numpy(uvs.astype(np.float32)).clamp(0, 1).to(mesh.device),
        torch.from_numpy(face_uvs).to(mesh.device),
        charts,
        utilization,
    )
