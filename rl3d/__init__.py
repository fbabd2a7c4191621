"""rl3d aligns 3D generation with rewards: a generator proposes, the renderer shows, a reward judges, an update learns.

The names below load on first use, so that `import rl3d` (and `rl3d --help`) does not pay for torch.

`rl3d.render` and `rl3d.text_to_3d` are packages that can also be called: `rl3d.render(mesh, cameras)` is
`rl3d.render.render(mesh, cameras)`, and `rl3d.text_to_3d(prompt)` is `rl3d.text_to_3d.generate.text_to_3d(prompt)`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rl3d import metrics as metrics
    from rl3d import priors as priors
    from rl3d import rewards as rewards
    from rl3d.cameras import Cameras as Cameras
    from rl3d.render import render as render
    from rl3d.render.frames import Frames as Frames
    from rl3d.rewards import RewardInput as RewardInput
    from rl3d.rewards import reward as reward
    from rl3d.scenes import Field as Field
    from rl3d.scenes import Gaussians as Gaussians
    from rl3d.scenes import Mesh as Mesh
    from rl3d.scenes import PointCloud as PointCloud
    from rl3d.text_to_3d.generate import text_to_3d as text_to_3d

__all__ = [
    "Cameras",
    "Field",
    "Frames",
    "Gaussians",
    "Mesh",
    "PointCloud",
    "RewardInput",
    "__version__",
    "metrics",
    "priors",
    "render",
    "reward",
    "rewards",
    "text_to_3d",
]

_HOME = {
    "Cameras": "rl3d.cameras",
    "Field": "rl3d.scenes",
    "Frames": "rl3d.render.frames",
    "Gaussians": "rl3d.scenes",
    "Mesh": "rl3d.scenes",
    "PointCloud": "rl3d.scenes",
    "RewardInput": "rl3d.rewards",
    "reward": "rl3d.rewards",
}
_CALLED = {"render": ("rl3d.render", "render"), "text_to_3d": ("rl3d.text_to_3d.generate", "text_to_3d")}


class _CallablePackage(ModuleType):
    """A subpackage that forwards a call to its main function, which is imported only then."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, name = _CALLED[self.__name__.rpartition(".")[2]]
        return getattr(import_module(module), name)(*args, **kwargs)


class _Package(ModuleType):
    """The import system binds every subpackage to its parent with setattr, which is where a call is taught to two."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLED and type(value) is ModuleType:
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in __all__:
        return import_module(f"rl3d.{name}")
    raise AttributeError(f"module 'rl3d' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
