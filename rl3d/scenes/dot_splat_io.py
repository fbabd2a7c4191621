"""The .splat files of web viewers (antimatter15/splat): 32 bytes a splat, no harmonics, no header.

Little-endian: position 3 x float32, standard deviations 3 x float32, colour and opacity 4 x uint8 (sRGB, 255 is 1),
rotation 4 x uint8 (w, x, y, z), (byte - 128) / 128. Axes are those of the scene that was written; nothing is turned.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rl3d.errors import InputError

if TYPE_CHECKING:
    from rl3d.scenes.gaussians import Gaussians

_ROW = np.dtype([("xyz", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quaternion", "u1", 4)])


def decode_splat(data: bytes, path: Path) -> Gaussians:
    """Splats of degree 0 out of a file's bytes; opacities 0 and 255 become half a step inside (0, 1), as logits need.

    Raises:
        InputError: a size that is no multiple of 32, or a standard deviation that is not positive.
    """
    from rl3d.scenes.gaussians import SH_C0, Gaussians

    if len(data) % _ROW.itemsize:
        raise InputError(f"{path} has {len(data)} bytes, a .splat has 32 a splat; it is truncated or another format")
    rows = np.frombuffer(data, _ROW)
    bad = int((~(rows["scales"] > 0)).any(1).sum())
    if bad:
        raise InputError(f"{path}: {bad} of {len(rows)} splats have sizes that are not positive; is it a .splat?")
    rgba = torch.from_numpy(rows["rgba"].astype(np.float32))
    return Gaussians(
        means=torch.from_numpy(rows["xyz"].astype(np.float32)),
        log_scales=torch.from_numpy(np.log(rows["scales"].astype(np.float32))),
        quaternions=(torch.from_numpy(rows["quaternion"].astype(np.float32)) - 128) / 128,
        opacity_logits=torch.logit(rgba[:, 3].clamp(0.5, 254.5) / 255),
        sh=((rgba[:, None, :3] / 255 - 0.5) / SH_C0),
    )


def encode_splat(gaussians: Gaussians) -> bytes:
    """Bytes of a .splat: the largest and most opaque first, as viewers that stream expect; harmonics are dropped."""
    g = gaussians.detach().to("cpu")
    order = torch.argsort(g.log_scales.double().sum(1).exp() * g.opacities, descending=True, stable=True)
    rows = np.empty(len(g), _ROW)
    rows["xyz"], rows["scales"] = g.means[order].numpy(), g.scales[order].numpy()
    rgba = torch.cat([g.colours, g.opacities[:, None]], 1)[order]
    rows["rgba"] = (rgba.clamp(0, 1) * 255).round().numpy()
    unit = torch.nn.functional.normalize(g.quaternions[order], dim=1)
    rows["quaternion"] = (unit * 128 + 128).round().clamp(0, 255).numpy()
    return rows.tobytes()
