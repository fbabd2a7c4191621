"""`rl3d mesh score`: topology, quads and distances of mesh files."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl3d import workers
from rl3d.cli import checks
from rl3d.environment import available_cpus
from rl3d.errors import InputError

if TYPE_CHECKING:
    from rl3d.metrics import MeshScore, Reference

MANY = 32  # files from which further processes pay for their start

EPILOG = """examples:
  rl3d mesh score chair.glb
  rl3d mesh score generated/ --reference chair.glb
  rl3d mesh score *.obj --reference scan.ply --faces 500 --json

BER is the share of boundary edges, TS the topology score (100 is best), HD the Hausdorff distance and CD the Chamfer
distance in longest sides of the reference; docs/mesh_metrics.md has every formula. A mesh that fails a gate (copies of
faces, soup, needles, too few faces, too far away) gets the worst of all, and the gate's name. Exit code 1 where a file
could not be read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help=f"mesh files ({', '.join(checks.MESH_SUFFIXES)}), or folders of them"
    )
    parser.add_argument("--reference", metavar="FILE", help="the mesh that all are compared with, as it lies")
    parser.add_argument(
        "--faces", type=int, metavar="N", help="how many were asked for (default: the reference's; 0: any number)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.01, metavar="T", help="of the F-score, in longest sides (default: 0.01)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help=f"processes (default: one a CPU from {MANY} files, else one)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object with every number")


def run(args: argparse.Namespace) -> int:
    paths = checks.mesh_files(args.files)
    target = None if args.reference is None else checks.mesh_file(args.reference)
    if args.faces is not None:
        checks.whole_number("--faces", args.faces, 0, 10**9)
    if not 0 < args.threshold < 1:
        raise InputError(f"--threshold must lie between 0 and 1, got {args.threshold}")
    if args.workers is not None:
        checks.whole_number("--workers", args.workers, 1, 1024)
    processes = args.workers or (available_cpus() if len(paths) >= MANY else 1)

    from rl3d.progress import Progress

    with Progress().notes_of("rl3d.kernels"):
        scores = list(_scores(paths, (target, args.threshold, args.faces), min(processes, len(paths))))
    if args.json:
        rows = [{"file": str(path), "passed": score.passed, **score.as_json()} for path, score in zip(paths, scores)]
        print(json.dumps({"reference": args.reference, "meshes": rows, "summary": summary(scores)}, indent=2))
    else:
        print(table([str(path) for path in paths], scores))
    return 1 if any(score.topology.faces == 0 for score in scores) else 0


def _scores(paths: list[Path], settings: tuple[Path | None, float, int | None], processes: int) -> Iterator[MeshScore]:
    if processes > 1:
        yield from workers.spread(_score, paths, processes, _prepare, settings)
        return
    _prepare(*settings)
    for path in paths:
        yield _score(path)


_PREPARED: dict[str, Any] = {}  # the reference, and how many faces are asked for, of this process


def _prepare(target: Path | None, threshold: float, faces: int | None) -> None:
    from rl3d.metrics import Protocol, load_surface, reference

    prepared: Reference | None = None
    if target is not None:
        prepared = reference(load_surface(target), Protocol(threshold=threshold))
    _PREPARED.update(reference=prepared, faces=faces)


def _score(path: Path) -> MeshScore:
    from rl3d.metrics import score_file

    return score_file(path, _PREPARED["reference"], faces=_PREPARED["faces"])


def summary(scores: list[MeshScore]) -> dict[str, Any]:
    """How many failed, and mean and median of what counts; failed ones are in them with the worst of each."""
    columns = {"ber": [s.ber for s in scores], "ts": [s.ts for s in scores]}
    distances = [s.hausdorff for s in scores if s.hausdorff is not None]
    if distances:
        columns["hausdorff"] = distances
    means = {k: {"mean": statistics.fmean(v), "median": statistics.median(v)} for k, v in columns.items()}
    return {"meshes": len(scores), "failed": sum(not s.passed for s in scores), **means}


def table(names: list[str], scores: list[MeshScore]) -> str:
    """A line a mesh, and one below for several; why gates failed is said under the mesh."""
    compared = any(s.geometry is not None for s in scores)
    heads = ["faces", "BER", "TS", "quads", "loops", "closed", "manifold", "nonman", "flat", "copies", "crossing"]
    heads += ["HD", "CD", "F", "normals"] if compared else []
    width = max(map(len, [*names, "mean of what counts"]))
    lines = [f"{'':{width}}  " + " ".join(f"{h:>8}" for h in heads)]
    for name, score in zip(names, scores):
        lines.append(f"{name:{width}}  " + " ".join(f"{cell:>8}" for cell in _cells(score)))
        lines += [f"{'':{width}}  worst score: {why}" for why in score.failed]
    if len(scores) > 1:
        total = summary(scores)
        means = ", ".join(
            f"{label} {scale * total[key]['mean']:.4g} (median {scale * total[key]['median']:.4g})"
            for key, label, scale in (("ber", "BER", 1), ("ts", "TS", 100), ("hausdorff", "HD", 1))
            if key in total
        )
        lines.append(f"{'mean of what counts':{width}}  {means}; {total['failed']} of {total['meshes']} failed")
    return "\n".join(lines)


def _cells(score: MeshScore) -> list[str]:
    t, q, g = score.topology, score.quads, score.geometry
    cells = [
        str(t.faces),
        f"{t.ber:.4f}",
        f"{100 * q.ts:.1f}",
        f"{q.quad_share:.2f}",
        f"{score.loops.average:.1f}",
        "yes" if t.watertight else "no",
        "yes" if t.manifold else "no",
        f"{t.non_manifold_ratio:.4f}",
        f"{t.degenerate_ratio:.3f}",
        f"{t.duplicate_ratio:.3f}",
        f"{score.self_intersection_ratio:.3f}",
    ]
    if g is not None:
        cells += [f"{g.hausdorff:.4f}", f"{g.chamfer_l1:.4f}", f"{g.f_score:.3f}", f"{g.normal_consistency:.3f}"]
    return cells
