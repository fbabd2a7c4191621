"""The end of a run: splats and a checked mesh on disk, pictures, and both judges' verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rl3d.errors import RL3DError
from rl3d.export.asset import ExportOptions, check_cameras, export_asset
from rl3d.files import write_json
from rl3d.preview import turntable, view_sheet
from rl3d.progress import Progress
from rl3d.render.render import render
from rl3d.rewards.score import score_asset
from rl3d.runs import Run
from rl3d.scenes.facts import mesh_facts
from rl3d.scenes.field import Field
from rl3d.scenes.gaussians import Gaussians
from rl3d.scenes.mesh import Mesh
from rl3d.text_to_3d.options import GenerateOptions, MeshOptions

ASSET, SPLATS, FIELD = "asset.glb", "asset.ply", "asset.safetensors"
TURNTABLE, VIEWS = "turntable.webp", "views.png"
EXPORT_STEPS = 8  # named stages inside the export, for the progress bar


def export_options(options: MeshOptions, shaded: bool) -> ExportOptions:
    """The export's options; `shaded` says that the scene's colours carry the embedded prior's light."""
    return ExportOptions(
        resolution=options.resolution,
        views=options.views,
        image_size=options.render_size,
        faces=options.faces,
        texture=options.texture,
        delight=options.delight and shaded,
        min_iou=options.min_iou,
        min_psnr=options.min_psnr,
    )


def finish_asset(
    run: Run,
    scene: Gaussians | Field,
    prompt: str,
    options: GenerateOptions,
    out: Path,
    progress: Progress,
    shaded: bool,
) -> dict[str, Any]:
    """Write the scene, asset.glb, turntable.webp and views.png into `out` and judge the written mesh.

    The scene is asset.ply, or asset.safetensors for a field.

    Args:
        shaded: the scene's colours carry the embedded prior's light, which the mesh should not.

    Returns:
        "mesh" (facts), "export" (seconds, check against the scene in memory), "judges" and "warnings".

    Raises:
        InputError: the scene has no surface, or a file cannot be written.
    """
    facts_file = out / "checkpoints" / "mesh.json"
    if not run.is_done("mesh"):
        with run.stage("mesh"), progress.stage("mesh", EXPORT_STEPS) as stage:
            scene.save(out / (SPLATS if isinstance(scene, Gaussians) else FIELD))
            export = export_options(options.mesh, shaded)
            _, report = export_asset(scene, out / ASSET, export, on_stage=lambda name: stage.step(doing=name))
            write_json(facts_file, report)
    report = json.loads(facts_file.read_text(encoding="utf-8"))
    warnings = report.pop("warnings")
    for warning in warnings:
        progress.note(f"warning: {warning}")
    mesh = Mesh.load(out / ASSET)
    lit = shaded and not options.mesh.delight  # the light is in the colours: do not apply it twice
    shading = "unlit" if lit else "half_lambert"
    if not run.is_done("preview"):
        with run.stage("preview"), progress.stage("preview", 2) as stage:
            frames, size = options.preview.frames, options.preview.size
            turntable(mesh, out / TURNTABLE, frames=frames, size=size, shading=shading)
            stage.step()
            _views_picture(scene, mesh, out / VIEWS, size, shading)
            stage.step()
    with run.stage("score"), progress.stage("score", 1) as stage:
        try:
            judges = score_asset(prompt, mesh)
        except RL3DError as error:  # words that the judges do not know must not lose the asset
            judges = {}
            warnings.append(f"not judged: {error}")
        stage.step()
    return {"mesh": mesh_facts(mesh), "export": report, "judges": judges, "warnings": warnings}


@torch.no_grad()
def _views_picture(scene: Gaussians | Field, mesh: Mesh, path: Path, size: int, shading: str) -> None:
    """Four views of the scene above, the same of the written mesh below."""
    cameras = check_cameras(size)[::2]
    drawn = render(scene, cameras.to(scene.device), background=0.93).rgb.cpu()
    solid = render(mesh, cameras, background=0.93, shading=shading, supersample=2).rgb
    view_sheet(torch.cat([drawn, solid]), path, columns=len(cameras))
