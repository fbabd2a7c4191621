"""Options of `rl3d generate`, one frozen dataclass a stage. Every field's comment says its unit and what it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl3d.config import preset_path, to_dict
from rl3d.errors import ConfigError, way_out
from rl3d.ranges import need, need_not_negative
from rl3d.reconstruct.options import RATES
from rl3d.reconstruct.options import LiftOptions as LiftOptions
from rl3d.text_to_3d.alarms import GuardOptions
from rl3d.text_to_3d.method_options import METHOD_NAMES, MethodOptions


@dataclass(frozen=True)
class SampleOptions:
    """Sampling the first views from the prior."""

    steps: int = 24  # denoising steps
    guidance: float = 4.0  # classifier-free guidance scale; 1 switches it off
    rings: int = 2  # view groups a candidate: each another elevation, its azimuths between the last ones'
    elevation: float = 20.0  # degrees above the horizon of the first group
    candidates: int = 8  # view groups drawn per asset; the one that agrees in 3D and fits the prompt is lifted
    judge_weight: float = 0.5  # of the reward judge's similarity beside that agreement; 0: agreement alone

    def __post_init__(self) -> None:
        need(self.steps >= 1, f"sample.steps must be at least 1, got {self.steps}")
        need(self.guidance >= 0, f"sample.guidance must not be negative, got {self.guidance}")
        need(-10 <= self.elevation <= 45, f"sample.elevation must lie in [-10, 45] degrees, got {self.elevation}")
        need(self.rings >= 1, f"sample.rings must be at least 1, got {self.rings}")
        need(self.candidates >= 1, f"sample.candidates must be at least 1, got {self.candidates}")
        need_not_negative(self, "sample", "judge_weight")


@dataclass(frozen=True)
class DistillOptions:
    """Score distillation in x0 form from random orbits, whatever the method (see `MethodOptions`)."""

    steps: int = 200
    batch: int = 1  # view groups a step
    guidance: float = 6.0
    rescale: float = 0.5  # share of the CFG rescale, MVDream's rho
    t_max: tuple[float, float] = (0.97, 0.6)  # upper noise level at the first and last step
    t_min: tuple[float, float] = (0.85, 0.2)  # lower noise level at the first and last step
    elevation: tuple[float, float] = (-5.0, 40.0)  # degrees, range of the orbits
    anchor_weight: float = 0.5  # how strongly the first sampled views keep being fitted
    layers_weight: float = 10.0  # as in the lift
    save_every: int = 25  # steps between resumable checkpoints
    lr_means: float = 1e-3
    lr_scales: float = 5e-3
    lr_colours: float = 1e-2
    lr_opacities: float = 2e-2

    def __post_init__(self) -> None:
        need(self.steps >= 0, f"distill.steps must not be negative, got {self.steps}")
        need(self.batch >= 1, f"distill.batch must be at least 1, got {self.batch}")
        need(0 <= self.rescale <= 1, f"distill.rescale must lie in [0, 1], got {self.rescale}")
        for name in ("t_max", "t_min"):
            pair = getattr(self, name)
            fits = len(pair) == 2 and all(0 < level < 1 for level in pair)
            need(fits, f"distill.{name} must hold two levels in (0, 1), got {list(pair)}")
        need(self.t_min[0] < self.t_max[0] and self.t_min[1] < self.t_max[1], "distill.t_min must lie below t_max")
        fits = len(self.elevation) == 2 and -90 < self.elevation[0] <= self.elevation[1] < 90
        pair = list(self.elevation)
        need(fits, f"distill.elevation must be an ordered pair in (-90, 90) degrees, got {pair}")
        need_not_negative(self, "distill", "guidance", "anchor_weight", "layers_weight", *RATES)
        need(self.save_every >= 1, f"distill.save_every must be at least 1, got {self.save_every}")


@dataclass(frozen=True)
class MeshOptions:
    """Extracting, colouring and checking the mesh."""

    resolution: int = 112  # voxels a side of the fused distance field
    views: int = 40  # renders fused and baked from
    render_size: int = 192  # their pixels a side
    faces: int = 4000  # upper bound after simplification
    texture: int = 512  # texels a side
    delight: bool = True  # divide the prior's known lighting out of the colours
    min_iou: float = 0.9  # warn when the re-rendered GLB's silhouettes agree less than this
    min_psnr: float = 20.0  # dB, the same for its pictures

    def __post_init__(self) -> None:
        need(16 <= self.resolution <= 512, f"mesh.resolution must lie in [16, 512], got {self.resolution}")
        need(self.views >= 4, f"mesh.views must be at least 4, got {self.views}")
        need(self.render_size >= 16, f"mesh.render_size must be at least 16, got {self.render_size}")
        need(self.faces >= 4, f"mesh.faces must be at least 4, got {self.faces}")
        need(16 <= self.texture <= 8192, f"mesh.texture must lie in [16, 8192], got {self.texture}")


@dataclass(frozen=True)
class PreviewOptions:
    """The pictures in the run folder."""

    frames: int = 36  # of the turntable
    size: int = 256  # pixels a side

    def __post_init__(self) -> None:
        need(self.frames >= 1, f"preview.frames must be at least 1, got {self.frames}")
        need(16 <= self.size <= 4096, f"preview.size must lie in [16, 4096], got {self.size}")


@dataclass(frozen=True)
class GenerateOptions:
    """Everything that decides an asset besides the prompt and the prior."""

    seed: int = 0
    best_of: int = 1  # candidates lifted and judged by the reward judge; the best is refined
    negative_prompt: str = ""
    sample: SampleOptions = field(default_factory=SampleOptions)
    lift: LiftOptions = field(default_factory=LiftOptions)
    distill: DistillOptions = field(default_factory=DistillOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    guard: GuardOptions = field(default_factory=GuardOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    preview: PreviewOptions = field(default_factory=PreviewOptions)

    def __post_init__(self) -> None:
        need(self.seed >= 0, f"seed must not be negative, got {self.seed}; give 0 or more")
        need(self.best_of >= 1, f"best_of must be at least 1, got {self.best_of}")
        plain = self.method.name in ("sds", "vsd", "ism") and self.distill.rescale > 0 and self.distill.steps > 0
        name = self.method.name
        need(not plain, f"method {name} has no rescale; set distill.rescale=0, or take --method {name}, which does")


def recorded(options: GenerateOptions) -> dict[str, Any]:
    """Plain values for a record of what was asked for.

    The default method, guard and start of the lift are left out, so that what was begun before there was a choice can
    be resumed.
    """
    values: dict[str, Any] = to_dict(options)
    if options.method == MethodOptions():
        del values["method"]
    if options.guard == GuardOptions():
        del values["guard"]
    if options.lift.reconstructor == LiftOptions().reconstructor:
        del values["lift"]["reconstructor"]
    return values


def method_preset(name: str) -> Path:
    """The preset that gives a distillation method its paper's settings.

    Raises:
        ConfigError: no method of that name.
    """
    if name not in METHOD_NAMES:
        raise ConfigError(f"unknown method {name!r}; {way_out(name, METHOD_NAMES)}")
    return preset_path("generate", name)
