"""Time the renderer against what a user could pick instead; ratios of one run, each cell in a process of its own.

    python tools/bench_render.py --out runs/bench_render             # everything installed, the whole grid
    python tools/bench_render.py --out runs/bench_render --quick     # the two headline cells and a few around them
    python tools/bench_render.py --out runs/bench_render --report-only

Peers are used where they are installed and named as missing elsewhere: PyTorch3D and Mitsuba 3 (meshes), nvdiffrast
(meshes, CUDA), gsplat (Gaussians, CUDA). `rl3d torch` is this project's plain twin: tiled and vectorised for Gaussians,
brute force over faces for meshes. A cell that takes longer than --limit seconds is given up and said so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl3d.environment import environment
from rl3d.files import atomic_write_text, write_json

SPHERE = {
    1_000: (24, 21),
    5_000: (52, 49),
    20_000: (102, 98),
    50_000: (160, 156),
    200_000: (318, 314),
    1_000_000: (710, 706),
}
# For the kernels alone (the twin and the peers take too long or too much): a million primitives at 512 pixels, and a
# side of 4,096 pixels.
MILLION, LARGEST = 1_000_000, 4_096
BASELINE = "rl3d cpu"
FIRST = ("forward_first_ms", "both_first_ms")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "render.md"


@dataclass(frozen=True)
class Cell:
    """One measurement: what is drawn, by whom, how large, how often."""

    kind: str  # "mesh" or "gaussians"
    peer: str
    primitives: int
    pixels: int
    views: int


# Scenes: numpy, the same for every peer -------------------------------------------------------------------------------


def sphere(faces: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bumpy UV sphere of about `faces` faces: vertices [N, 3] float32, faces [F, 3] int64, colours [N, 3] float32."""
    rows, columns = SPHERE[faces]
    theta, phi = np.linspace(0.02, np.pi - 0.02, rows), np.arange(columns) * (2 * np.pi / columns)
    t, p = np.meshgrid(theta, phi, indexing="ij")
    radius = 0.5 + 0.05 * np.sin(5 * t) * np.cos(4 * p)
    points = np.stack([np.sin(t) * np.cos(p), np.cos(t), np.sin(t) * np.sin(p)], -1) * radius[..., None]
    i = np.arange((rows - 1) * columns).reshape(rows - 1, columns)
    right = np.roll(i, -1, 1)
    quads = np.stack([i, right, right + columns, i, right + columns, i + columns], -1)
    colours = 0.5 + 0.5 * np.sin(7 * points + 1)
    return points.reshape(-1, 3).astype(np.float32), quads.reshape(-1, 3), colours.reshape(-1, 3).astype(np.float32)


def splats(count: int) -> dict[str, np.ndarray]:
    """A ball of Gaussians whose size shrinks as their number grows, so that they cover about the same in sum."""
    rng = np.random.default_rng(0)
    size = np.log(0.018 * (10_000 / count) ** (1 / 3))
    return {
        "means": (0.25 * rng.standard_normal((count, 3))).astype(np.float32),
        "scales": np.exp(size + 0.3 * rng.standard_normal((count, 3))).astype(np.float32),
        "quaternions": rng.standard_normal((count, 4)).astype(np.float32),
        "opacities": rng.uniform(0.1, 0.9, count).astype(np.float32),
        "colours": rng.uniform(0, 1, (count, 3)).astype(np.float32),
    }


def cameras(cell: Cell):  # type: ignore[no-untyped-def]
    import torch

    from rl3d.cameras import Cameras

    azimuth = 0.3 + torch.arange(cell.views) * (2 * np.pi / cell.views)
    return Cameras.orbit(azimuth, torch.full((cell.views,), 0.35), torch.full((cell.views,), 2.7), 0.47, cell.pixels)


# Peers: each returns (forward, forward and backward), callables that leave nothing pending ----------------------------

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def _torch_pair(draw: Callable[..., Any], leaves: list, device: str) -> Pair:  # type: ignore[type-arg]
    """Forward without a graph, and forward + backward of a mean over all that was drawn."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        with torch.no_grad():
            draw(*leaves)
        wait()

    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        sum(image.mean() for image in draw(*leaves)).backward()
        wait()

    return forward, both


def mesh_rl3d(cell: Cell, backend: str, device: str = "cpu") -> Pair:
    import torch

    from rl3d.render import render
    from rl3d.scenes import Mesh

    vertices, faces, colours = (torch.from_numpy(a).to(device) for a in sphere(cell.primitives))
    view = cameras(cell).to(device)

    def draw(vertices, colours):  # type: ignore[no-untyped-def]
        frames = render(Mesh(vertices, faces, vertex_colours=colours), view, backend=backend)
        return frames.rgb, frames.alpha

    return _torch_pair(draw, [vertices.requires_grad_(), colours.requires_grad_()], device)


def mesh_pytorch3d(cell: Cell, soft: bool) -> Pair:
    """Soft: SoftRas silhouettes and blended colours as in PyTorch3D's fitting tutorial; hard: its plain rasterizer."""
    import torch
    from pytorch3d.renderer import (
        BlendParams,
        MeshRasterizer,
        PerspectiveCameras,
        RasterizationSettings,
        TexturesVertex,
        softmax_rgb_blend,
    )
    from pytorch3d.structures import Meshes

    vertices, faces, colours = (torch.from_numpy(a) for a in sphere(cell.primitives))
    lens = PerspectiveCameras(**cameras(cell).to_pytorch3d(), in_ndc=False)
    sigma = 1e-4
    settings = RasterizationSettings(
        image_size=cell.pixels,
        blur_radius=float(np.log(1 / 1e-4 - 1) * sigma) if soft else 0.0,
        faces_per_pixel=50 if soft else 1,
        bin_size=0,
        perspective_correct=not soft,
    )
    blend = BlendParams(sigma=sigma)

    def draw(vertices, colours):  # type: ignore[no-untyped-def]
        mesh = Meshes([vertices], [faces], TexturesVertex([colours])).extend(cell.views)
        fragments = MeshRasterizer(lens, settings)(mesh)
        image = softmax_rgb_blend(mesh.sample_textures(fragments), fragments, blend)
        return image[..., :3], image[..., 3]

    return _torch_pair(draw, [vertices.requires_grad_(), colours.requires_grad_()], "cpu")


def mesh_mitsuba(cell: Cell) -> Pair:
    """`direct_projective`: its edge sampling without guiding and without indirect visibility, 4 samples a pixel."""
    import drjit as dr
    import mitsuba as mi

    mi.set_variant("llvm_ad_rgb")
    mi.set_log_level(mi.LogLevel.Error)
    vertices, faces, colours = sphere(cell.primitives)
    mesh = mi.Mesh("mesh", len(vertices), len(faces), has_vertex_normals=False)
    mesh.add_attribute("vertex_color", 3, colours.ravel().tolist())
    data = mi.traverse(mesh)
    data["vertex_positions"], data["faces"] = vertices.ravel(), faces.astype(np.uint32).ravel()
    data.update()
    view = cameras(cell)
    sensors = []
    for v in range(cell.views):
        pose = view.poses[v].numpy().astype(np.float64) @ np.diag([-1.0, -1.0, 1.0, 1.0])  # its camera: x left, y up
        film = {"type": "hdrfilm", "width": cell.pixels, "height": cell.pixels, "rfilter": {"type": "box"}}
        lens = {"type": "perspective", "fov": float(np.degrees(0.47)), "fov_axis": "y"}
        sensors.append(mi.load_dict({**lens, "to_world": mi.ScalarTransform4f(pose), "film": film}))
    path = Path(os.environ["BENCH_RENDER_FOLDER"]) / f"{os.getpid()}.ply"
    mesh.write_ply(str(path))
    colour = {"type": "mesh_attribute", "name": "vertex_color"}
    shape = {"type": "ply", "filename": str(path), "face_normals": True, "bsdf": {"type": "diffuse"}}
    shape["emitter"] = {"type": "area", "radiance": colour}
    integrator = {"type": "direct_projective", "sppi": 0, "guiding": "none"}
    scene = mi.load_dict({"type": "scene", "integrator": integrator, "shape": shape})
    path.unlink()
    parameters = mi.traverse(scene)
    key = "shape.vertex_positions"
    base = mi.Float(parameters[key])

    def forward() -> None:
        for v, sensor in enumerate(sensors):
            dr.eval(mi.render(scene, sensor=sensor, spp=4, seed=v))
        dr.sync_thread()

    def both() -> None:
        parameters[key] = mi.Float(base)
        dr.enable_grad(parameters[key])
        parameters.update()
        for v, sensor in enumerate(sensors):
            dr.backward(dr.mean(mi.render(scene, parameters, sensor=sensor, spp=4, seed=v)))
        dr.eval(dr.grad(parameters[key]))
        dr.sync_thread()

    return forward, both


def mesh_nvdiffrast(cell: Cell) -> Pair:
    import nvdiffrast.torch as dr
    import torch

    vertices, faces, colours = (torch.from_numpy(a).cuda() for a in sphere(cell.primitives))
    view, projection = (m.cuda() for m in cameras(cell).to_opengl())
    to_clip, faces = (projection @ view).transpose(1, 2), faces.int()
    context = dr.RasterizeCudaContext()

    def draw(vertices, colours):  # type: ignore[no-untyped-def]
        clip = torch.nn.functional.pad(vertices, (0, 1), value=1.0) @ to_clip
        seen, _ = dr.rasterize(context, clip, faces, (cell.pixels, cell.pixels))
        image, _ = dr.interpolate(torch.cat([colours, torch.ones_like(colours[:, :1])], 1)[None], seen, faces)
        return (dr.antialias(image * (seen[..., 3:] > 0), seen, clip, faces),)

    return _torch_pair(draw, [vertices.requires_grad_(), colours.requires_grad_()], "cuda")


def gaussians_rl3d(cell: Cell, backend: str, device: str = "cpu") -> Pair:
    import torch

    from rl3d.render.gaussians import splat

    view = cameras(cell).to(device)

    def draw(*scene):  # type: ignore[no-untyped-def]
        return splat(*scene, view.view, view.intrinsics, cell.pixels, cell.pixels, backend=backend)[:2]

    leaves = [torch.from_numpy(a).to(device).requires_grad_() for a in splats(cell.primitives).values()]
    return _torch_pair(draw, leaves, device)


PEERS: dict[str, tuple[str, str | None, bool, Callable[[Cell], Pair]]] = {
    # name: (kind, package it needs, needs CUDA, maker)
    "rl3d cpu": ("both", None, False, lambda c: (mesh_rl3d if c.kind == "mesh" else gaussians_rl3d)(c, "cpu")),
    "rl3d torch": ("both", None, False, lambda c: (mesh_rl3d if c.kind == "mesh" else gaussians_rl3d)(c, "torch")),
    "PyTorch3D soft": ("mesh", "pytorch3d", False, lambda c: mesh_pytorch3d(c, True)),
    "PyTorch3D hard": ("mesh", "pytorch3d", False, lambda c: mesh_pytorch3d(c, False)),
    "Mitsuba projective": ("mesh", "mitsuba", False, mesh_mitsuba),
    "rl3d torch, CUDA": (
        "both",
        None,
        True,
        lambda c: (mesh_rl3d if c.kind == "mesh" else gaussians_rl3d)(c, "torch", "cuda"),
    ),
    "nvdiffrast": ("mesh", "nvdiffrast", True, mesh_nvdiffrast),
    "gsplat": ("gaussians", "gsplat", True, lambda c: gaussians_rl3d(c, "gsplat", "cuda")),
}


def available(peer: str) -> str | None:
    """None where a peer can run, else why not."""
    _, package, cuda, _ = PEERS[peer]
    if package and importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if cuda:
        import torch

        return None if torch.cuda.is_available() else "no CUDA device"
    return None


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(cell: Cell, seconds: float = 2.0) -> dict[str, float]:
    """Median milliseconds of both passes, and MiB that the measured work added to the process."""
    pair = PEERS[cell.peer][3](cell)
    out: dict[str, float] = {}
    for name, call in zip(("forward_ms", "both_ms"), pair):
        start = time.perf_counter()
        call()
        first = time.perf_counter() - start
        out[name.replace("_ms", "_first_ms")] = 1e3 * first
        few = 1 if first > 2 * seconds else 3  # so slow that neither a second warm-up nor a third time tells more
        if few > 1:
            call()
        if name == "forward_ms":
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times: list[float] = []
        while len(times) < few or (sum(times) < seconds and len(times) < 200):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        out[name], out[name.replace("_ms", "_best_ms")] = 1e3 * statistics.median(times), 1e3 * min(times)
    out["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out["added_mib"] = out["peak_mib"] - before / 1024
    return out


def run_cell(cell: Cell, folder: Path, limit: float, kernels: Path | None = None) -> dict[str, Any]:
    """The measurement in a fresh process, or the reason why there is none; `kernels`: another cache of numba's."""
    command = [sys.executable, __file__, "--out", str(folder), "--cell", json.dumps(asdict(cell))]
    changed = {"BENCH_RENDER_FOLDER": str(folder.resolve()), "PYTHONPATH": os.pathsep.join(sys.path)}
    if kernels is not None:
        changed["NUMBA_CACHE_DIR"] = str(kernels)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env={**os.environ, **changed})
    except subprocess.TimeoutExpired:
        return {"failed": f"over {limit:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        return {"failed": said[-1][:160] if said else f"exit status {done.returncode}"}
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def grid(quick: bool) -> list[Cell]:
    """What is measured: one axis at a time around the headline cell of 128 pixels and one view."""
    sizes, views = ((64, 128) if quick else (64, 128, 256, 512)), ((1, 4) if quick else (1, 2, 4, 8))
    cells = []
    for kind, middle, counts in (
        ("mesh", 5_000, (1_000, 5_000) if quick else (1_000, 5_000, 20_000, 50_000, 200_000)),
        ("gaussians", 10_000, (1_000, 10_000) if quick else (1_000, 10_000, 50_000, 200_000)),
    ):
        shapes = [(n, 128, 1) for n in counts] + [(middle, s, 1) for s in sizes] + [(middle, 128, v) for v in views]
        for shape in dict.fromkeys(shapes):
            cells += [Cell(kind, peer, *shape) for peer, entry in PEERS.items() if entry[0] in (kind, "both")]
        cells += [Cell(kind, BASELINE, MILLION, 512, 1), Cell(kind, BASELINE, middle, LARGEST, 1)]
    return cells


def first_calls(folder: Path, limit: float) -> list[dict[str, Any]]:
    """What the first calls of a process take, with no compiled kernel on disk and again with what that left there."""
    rows = []
    for kind, primitives in (("mesh", 5_000), ("gaussians", 10_000)):
        with tempfile.TemporaryDirectory() as kernels:
            cell = Cell(kind, BASELINE, primitives, 128, 1)
            cold, warm = (run_cell(cell, folder, limit, Path(kernels)) for _ in range(2))
        rows.append({"kind": kind, "cold": cold, "warm": warm})
    return rows


# Reporting ------------------------------------------------------------------------------------------------------------


def tables(rows: list[dict[str, Any]]) -> str:
    """One Markdown table a kind of scene; ratios to `rl3d cpu` of the same cell in brackets."""
    parts = []
    for kind in ("mesh", "gaussians"):
        mine = [r for r in rows if r["kind"] == kind]
        shapes = list(dict.fromkeys((r["primitives"], r["pixels"], r["views"]) for r in mine))
        what = "faces" if kind == "mesh" else "Gaussians"
        lines = [f"| {what} | pixels | views | renderer | forward, ms | forward + backward, ms | added MiB |"]
        lines.append("|---:|---:|---:|---|---:|---:|---:|")
        for shape in shapes:
            cells = [r for r in mine if (r["primitives"], r["pixels"], r["views"]) == shape]
            base = next((r for r in cells if r["peer"] == BASELINE and "failed" not in r), None)
            for r in cells:
                head = f"| {shape[0]:,} | {shape[1]} | {shape[2]} | {r['peer']} |"
                if "failed" in r:
                    lines.append(f"{head} {r['failed']} | | |")
                    continue
                numbers = [_with_ratio(r[k], base and base[k]) for k in ("forward_ms", "both_ms")]
                lines.append(f"{head} {numbers[0]} | {numbers[1]} | {r['added_mib']:.0f} |")
        parts.append(f"## {'Meshes' if kind == 'mesh' else 'Gaussians'}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _with_ratio(value: float, base: float | None) -> str:
    digits = 0 if value >= 100 else 1
    ratio = f" ({value / base:.1f}x)" if base and value != base else ""
    return f"{value:.{digits}f}{ratio}"


def first_call_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| scene | kernels on disk | first forward, s | first forward + backward after it, s |",
        "|---|---|---:|---:|",
    ]
    for row in rows:
        for state, name in (("cold", "none"), ("warm", "yes")):
            m = row[state]
            numbers = [m["failed"], ""] if "failed" in m else [f"{m[k] / 1e3:.2f}" for k in FIRST]
            lines.append(f"| {row['kind']} | {name} | {numbers[0]} | {numbers[1]} |")
    return (
        "## The first call\n\n`rl3d cpu` compiles its kernels when they are first called and keeps them on disk; a line"
        " on stderr says so while it happens.\n\n" + "\n".join(lines)
    )


NOTES = """## How to read it

- PyTorch3D is built from source for the CPU, where its rasterizer tests every face at every pixel; so does this
  project's torch twin, which is there to be right and not to be fast. Both grow with faces times pixels. Soft is what
  gives PyTorch3D gradients through silhouettes; hard has none, and is the fair peer of a forward pass alone.
- Mitsuba traces rays through a tree, so many faces cost it little: its forward pass comes near at 200,000 faces. Its
  picture takes 4 samples a pixel, ours one and blended edges.
- Silhouette gradients: on the scene of `tests/render/test_against_pytorch3d.py`, against finite differences of the
  covered area, `rl3d cpu` has a cosine of 0.9996 and 0.975 of the length; SoftRas 0.995 and 1.006 at its best sigma.
- Memory is what the calls added to a process that holds the scene already."""


def page(
    rows: list[dict[str, Any]], missing: dict[str, str], made: dict[str, Any], firsts: list[dict[str, Any]]
) -> str:
    machine = made["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items())
    absent = "".join(f"- {peer}: {why}\n" for peer, why in missing.items())
    return "\n\n".join(
        [
            "# The renderer, timed against what else there is",
            "Written by `tools/bench_render.py`; do not edit. Medians; each cell in a fresh process, one after the"
            " other; in brackets the ratio to `rl3d cpu` in the same cell. Meshes: a bumpy sphere with vertex colours,"
            " gradients to colours and vertices through silhouettes (PyTorch3D hard: without). Gaussians: a ball.",
            tables(rows),
            NOTES,
            first_call_table(firsts) if firsts else "",
            f"## Not measured here\n\n{absent}" if absent else "",
            f"## What produced it\n\n    {made['command']}\n\n- machine: {machine['cpu']}, {machine['cpus']} CPUs,"
            f" {machine.get('torch_threads', '?')} threads, load before the run {made['load']:.1f}\n"
            f"- Python {machine['python']}, {packages}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; finished cells in it are kept")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--limit", type=float, default=120, help="seconds a cell may take")
    parser.add_argument("--kinds", nargs="+", choices=("mesh", "gaussians"), default=["mesh", "gaussians"])
    parser.add_argument("--peers", nargs="+", choices=tuple(PEERS), default=list(PEERS))
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown page to write")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(measure(Cell(**json.loads(args.cell)))))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.json"
    load = os.getloadavg()[0]
    found = json.loads(results.read_text()) if results.exists() else {}
    rows, firsts = found.get("rows", []), found.get("first_calls", [])
    missing = {peer: why for peer in args.peers if (why := available(peer))}
    keys = tuple(asdict(Cell("", "", 0, 0, 0)))
    have = {tuple(r[k] for k in keys) for r in rows}
    limit = f" --limit {args.limit:g}" if args.limit != parser.get_default("limit") else ""
    made = {"command": "python tools/bench_render.py" + (" --quick" if args.quick else "") + limit, "load": load}

    def save() -> None:
        facts = {"missing": missing, "made": {**made, "environment": environment()}}
        write_json(results, {"rows": rows, "first_calls": firsts, **facts})

    for cell in () if args.report_only else grid(args.quick):
        wanted = cell.kind in args.kinds and cell.peer in args.peers and cell.peer not in missing
        if not wanted or tuple(asdict(cell).values()) in have:
            continue
        row = {**asdict(cell), **run_cell(cell, args.out, args.limit)}
        rows.append(row)
        print(json.dumps(row), flush=True)
        save()
    if not args.report_only and not firsts:
        firsts = first_calls(args.out, args.limit)
        save()
    found = json.loads(results.read_text())
    order = {peer: i for i, peer in enumerate(PEERS)}
    ordered = sorted(
        found["rows"], key=lambda r: (r["kind"], r["views"], r["pixels"], r["primitives"], order[r["peer"]])
    )
    atomic_write_text(args.page, page(ordered, found["missing"], found["made"], found["first_calls"]))
    print(f"{args.page} is written", file=sys.stderr)


if __name__ == "__main__":
    main()
