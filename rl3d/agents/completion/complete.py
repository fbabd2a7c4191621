"""From a partial cloud in a file to a completed one on disk.

The models know objects that fill a box of longest side 1 around the origin, +Y up. Of a cloud from elsewhere neither
that box nor the heading is known: it may be all of the object or one side of it. So it is laid into the box in many
ways (headings, sizes, against each side), each is completed, and the one is kept that the objective likes best, with
distances in the cloud's own unit. No way of laying sees the missing part.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from rl3d.agents.completion.agent import ShiftAgent, hill_climb
from rl3d.agents.completion.autoencoder import Autoencoder
from rl3d.agents.completion.clouds import Frame, distances, nearest, resampled
from rl3d.agents.completion.implicit import ImplicitDecoder, surface_mesh
from rl3d.agents.completion.latent_gan import LatentGan
from rl3d.agents.completion.objective import Judge, Parts, parts_of
from rl3d.agents.completion.picture import before_and_after
from rl3d.agents.completion.select import NEAR, Evidence, evidence, hiding, select
from rl3d.assets import model_folder
from rl3d.errors import InputError
from rl3d.files import write_json
from rl3d.randomness import generator_for
from rl3d.scenes.gaussians import Gaussians
from rl3d.scenes.load import load_scene
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import PointCloud

LEAST = 32  # different points
SEEN = 512  # points that the encoder and the objective are given
HEADINGS = 6  # of a quarter turn; the models know all four quarters
SCALES = (1.0, 0.8, 0.6)  # longest side of the part in the box of the whole
By = Literal["agent", "search", "autoencoder"]
Up = Literal["y", "z"]


@dataclass(frozen=True)
class CompletionOptions:
    """Attributes:
    by: who completes. calls: decoder calls of the search. own_frame: the cloud lies already as the whole object does in
        its box of longest side 1 around the origin; else ways of laying it are tried.
    points: at most so many are written. viewpoint: where the cloud was seen from, in its own coordinates, or None.
    up: the cloud's upward axis. mesh: also extract a mesh. seed: of what is drawn.
    always: keep what `by` made, whatever the evidence says.
    """

    by: By = "agent"
    calls: int = 64
    own_frame: bool = False
    points: int = 4096
    viewpoint: tuple[float, float, float] | None = None
    up: Up = "y"
    mesh: bool = False
    seed: int = 0
    always: bool = False


@dataclass(frozen=True)
class Models:
    """What ships."""

    judge: Judge
    agent: ShiftAgent
    implicit: ImplicitDecoder | None


def load_models(folder: Path | None = None) -> Models:
    """The embedded models, or those of a folder laid out like assets/completion.

    Raises:
        AssetError: they are not there, or broken.
    """
    home = model_folder("completion") if folder is None else folder
    judge = Judge(Autoencoder.load(home / "autoencoder"), LatentGan.load(home / "critic"))
    implicit = ImplicitDecoder.load(home / "implicit") if (home / "implicit").is_dir() else None
    return Models(judge, ShiftAgent.load(home / "agent"), implicit)


@dataclass(frozen=True)
class Completed:
    """One completion.

    Attributes:
        cloud: [P, 3] decoded, in the input's coordinates. code: [G] its whitened latent. frame: the way of laying, of
            one row, after `centre` [3] was taken off and everything divided by `size`.
        share: how far the way of `by` was followed, 0: not at all, the autoencoder's cloud. before, after: the evidence
            for the autoencoder's cloud and for the kept one, of one row, lengths in the frame's unit.
    """

    cloud: Tensor
    code: Tensor
    frame: Frame
    centre: Tensor
    size: float
    share: float
    before: Evidence
    after: Evidence

    def back(self, points: Tensor) -> Tensor:
        """[N, 3] of the models' frame in the input's coordinates."""
        return self.frame.back(points[None])[0] * self.size + self.centre


def checked_cloud(path: str | Path) -> PointCloud:
    """A cloud that can be completed.

    Raises:
        InputError: no such file, not points, NaN, fewer than 32 different points, or all of them in one place or line.
    """
    scene = load_scene(path)
    if isinstance(scene, Mesh):
        raise InputError(f"{path} is a mesh, not a cloud; draw points from it with rl3d.scenes.sample_surface")
    if isinstance(scene, Gaussians) or not isinstance(scene, PointCloud):
        raise InputError(f"{path} holds {type(scene).__name__}, not a point cloud; export its points as PLY")
    different = len(torch.unique(scene.points, dim=0))
    if different < LEAST:
        raise InputError(
            f"{path} has {different} different points of {len(scene)}, a completion needs {LEAST}; give a denser cloud"
        )
    spread = torch.linalg.svdvals((scene.points - scene.points.mean(0)).double())
    if not spread[1] > 1e-4 * spread[0]:
        raise InputError(f"{path}: all points lie on one line; nothing of a surface can be seen in it")
    return scene


def layings(points: Tensor) -> Frame:
    """Ways to lay a part [M, 3], centred and of longest side 1, into the box of the whole."""
    headings, scales, shifts = [], [], []
    for k in range(HEADINGS):
        heading = 0.5 * math.pi * k / HEADINGS
        one = Frame(torch.tensor([heading]), torch.ones(1), torch.zeros(1, 3))
        turned = one.into(points[None])[0]
        low, high = turned.amin(0), turned.amax(0)
        fit = 1 / float((high - low).max())  # longest side 1 after the turn, too
        for scale in SCALES:
            middle = -0.5 * (low + high) * fit * scale
            room = 0.5 * (1 - (high - low) * fit * scale)  # on either side of each axis
            sides = torch.cat([torch.zeros(1, 3), torch.diag(room), -torch.diag(room)])
            for side in sides if scale < 1 else sides[:1]:
                headings.append(heading)
                scales.append(fit * scale)
                shifts.append(middle + side)
    return Frame(torch.tensor(headings), torch.tensor(scales), torch.stack(shifts))


@torch.no_grad()
def complete(models: Models, cloud: PointCloud, options: CompletionOptions) -> Completed:
    """Complete one cloud with +Y up (`options.up` is the caller's affair)."""
    generator = generator_for(options.seed, 0)
    points = cloud.points.float()
    if options.own_frame:
        centre, size = torch.zeros(3), 1.0
        frame = Frame(torch.zeros(1), torch.ones(1), torch.zeros(1, 3))
    else:
        low, high = points.amin(0), points.amax(0)
        centre, size = 0.5 * (low + high), float((high - low).max())
        frame = layings((points - centre) / size)
    everything = torch.ones(1, len(points), dtype=torch.bool)
    seen = resampled(((points - centre) / size)[None], everything, SEEN, generator)
    parts = parts_of(models.judge.autoencoder, frame.into(seen.expand(len(frame.scale), -1, -1)))
    code = _latents(models, parts, options, generator)
    best = _likeliest(models.judge, parts, code, frame)
    parts, code, frame = parts.of(best), code[best], frame.of(best)
    look = None
    if options.viewpoint is not None:
        where = (torch.tensor(options.viewpoint) - centre) / size
        look = frame.into(where[None, None])[:, 0]
    kept = select(models.judge, parts, code, look)
    share, after = float(kept.share[0]), kept.after
    if options.always:
        share, after = 1.0, evidence(models.judge, parts, code, models.judge.decode(code), look)
    else:
        code = kept.code
    found = Completed(models.judge.decode(code)[0], code[0], frame, centre, size, share, kept.before, after)
    return replace(found, cloud=found.back(found.cloud))


def _latents(models: Models, parts: Parts, options: CompletionOptions, generator: Generator) -> Tensor:
    """[B, G] by the agent, the search or the encoder alone."""
    if options.by == "agent":
        return models.agent.path(models.judge, parts)[-1]
    if options.by == "search":
        return hill_climb(models.judge, parts, options.calls, generator)
    return parts.start


def _likeliest(judge: Judge, parts: Parts, code: Tensor, frame: Frame) -> Tensor:
    """[1] int64: the laying with the best objective, the visible term in the part's own unit."""
    terms = judge.terms(parts, code)
    return (terms["visible"] / frame.scale + terms["critic"] + terms["norm"]).argmax()[None]


def joined(
    cloud: PointCloud,
    found: Completed,
    points: int,
    generator: Generator,
    viewpoint: tuple[float, float, float] | None = None,
) -> tuple[PointCloud, int]:
    """The visible points as they came and, where nothing was seen, decoded ones: (at most `points`, how many new).

    Decoded points near a visible one say nothing new, and those between the viewpoint and what was seen from it stand
    in space known to be free: both are left out. A new point has the colour of the visible one nearest to it. Normals
    are left out.
    """
    unit = found.size / float(found.frame.scale[0])
    seen, decoded = cloud.points[None].float(), found.cloud[None]
    new = distances(decoded, seen)[0] > NEAR * unit
    if viewpoint is not None:
        look = (torch.tensor([viewpoint]) - found.centre) / unit
        new &= ~hiding((seen - found.centre) / unit, (decoded - found.centre) / unit, look)[0]
    added = found.cloud[new]
    order = torch.randperm(len(added), generator=generator)[: max(points // 2, points - len(cloud))]
    added = added[order.sort().values]
    kept = torch.randperm(len(cloud), generator=generator)[: points - len(added)].sort().values
    colours = cloud.colours
    if colours is not None and len(added):
        colours = torch.cat([colours[kept], colours[nearest(added[None], seen)[0]]])
    elif colours is not None:
        colours = colours[kept]
    return PointCloud(torch.cat([cloud.points[kept], added]), None, colours), len(added)


def upright(points: Tensor, up: Up) -> Tensor:
    """[N, 3] with +Y up."""
    return points if up == "y" else torch.stack([points[:, 0], points[:, 2], -points[:, 1]], 1)


def as_it_was(points: Tensor, up: Up) -> Tensor:
    """[N, 3], the inverse of `upright`."""
    return points if up == "y" else torch.stack([points[:, 0], -points[:, 2], points[:, 1]], 1)


def complete_file(
    path: str | Path, out: str | Path, options: CompletionOptions, models: Models | None = None
) -> dict[str, Any]:
    """Write OUT (a PLY), and beside it .json (the report), .png (before and after) and with `mesh` -mesh.glb.

    Returns:
        The report.

    Raises:
        InputError: see `checked_cloud`; a file that cannot be written; a mesh where there is no surface.
    """
    out = Path(out)
    raw = checked_cloud(path)
    look = options.viewpoint
    if look is not None and options.up == "z":
        look = tuple(upright(torch.tensor([look]), "z")[0].tolist())  # type: ignore[assignment]
    options = replace(options, viewpoint=look)
    cloud = PointCloud(upright(raw.points, options.up), None, raw.colours)
    reach = float(cloud.points.abs().max())
    if options.own_frame and reach > 0.75:
        raise InputError(
            f"{path} reaches {reach:.3g} from the origin, the whole object's box of longest side 1 does not; leave "
            "--own-frame out"
        )
    models = models or load_models()
    if options.mesh and models.implicit is None:
        raise InputError("these models have no implicit decoder; leave --mesh out")
    began = time.perf_counter()
    found = complete(models, cloud, options)
    whole, new = joined(cloud, found, options.points, generator_for(options.seed, 1), look)
    mesh = None
    if options.mesh and models.implicit is not None:
        mesh = surface_mesh(models.implicit, found.code)
        mesh = Mesh(as_it_was(found.back(mesh.vertices), options.up), mesh.faces)
    seconds = time.perf_counter() - began
    report: dict[str, Any] = {
        "by": options.by,
        "followed": found.share,
        "evidence": {
            name: {"autoencoder": _number(getattr(found.before, name)), "kept": _number(getattr(found.after, name))}
            for name in ("visible", "near", "whole", *(() if look is None else ("through",)))
        },
        "points": len(whole),
        "new_points": new,
        "heading_degrees": round(math.degrees(float(found.frame.heading[0])), 1),
        "scale": round(float(found.frame.scale[0]), 4),
        "seed": options.seed,
        "seconds": round(seconds, 3),
    }
    PointCloud(as_it_was(whole.points, options.up), None, whole.colours).save(out)
    before_and_after(cloud.points, whole.points[: len(whole) - new], whole.points[len(whole) - new :], out)
    if mesh is not None:
        mesh.save(out.with_name(f"{out.stem}-mesh.glb"))
        report["mesh_faces"] = len(mesh.faces)
    write_json(out.with_suffix(".json"), report)
    return report


def _number(value: Tensor) -> float:
    return float(np.round(float(value[0]), 5))
