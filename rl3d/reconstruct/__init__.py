"""From a few views to a scene: per-sample fits and feed-forward networks, behind one protocol.

The names below load on first use: the options of `rl3d generate` are checked before torch is imported, and those of the
lift are in `rl3d.reconstruct.options`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl3d.reconstruct.feedforward import FeedForward as FeedForward
    from rl3d.reconstruct.feedforward import load_reconstructor as load_reconstructor
    from rl3d.reconstruct.hull_fit import HullFit as HullFit
    from rl3d.reconstruct.instantmesh import InstantMesh as InstantMesh
    from rl3d.reconstruct.instantmesh import load_instantmesh as load_instantmesh
    from rl3d.reconstruct.lgm import LGM as LGM
    from rl3d.reconstruct.lgm import load_lgm as load_lgm
    from rl3d.reconstruct.lift import NoSharedVolume as NoSharedVolume
    from rl3d.reconstruct.protocol import Reconstructor as Reconstructor
    from rl3d.reconstruct.views import leave_one_out as leave_one_out
    from rl3d.reconstruct.views import look as look

__all__ = [
    "LGM",
    "FeedForward",
    "HullFit",
    "InstantMesh",
    "NoSharedVolume",
    "Reconstructor",
    "leave_one_out",
    "load_instantmesh",
    "load_lgm",
    "load_reconstructor",
    "look",
]

_HOME = {
    "LGM": "lgm",
    "FeedForward": "feedforward",
    "HullFit": "hull_fit",
    "InstantMesh": "instantmesh",
    "NoSharedVolume": "lift",
    "Reconstructor": "protocol",
    "leave_one_out": "views",
    "load_instantmesh": "instantmesh",
    "load_lgm": "lgm",
    "load_reconstructor": "feedforward",
    "look": "views",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"rl3d.reconstruct.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rl3d.reconstruct' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
