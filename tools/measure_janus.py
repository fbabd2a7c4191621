"""Set the gold judge's Janus thresholds on training renders, and measure their errors on others.

    python tools/measure_janus.py DATA --assets assets/judge_gold

Real assets are seen from the front and from behind as the benchmark sees them: in the prior's light (its own views),
and with the prior's light baked in under the judge's (a generated asset), half of them blurred and noisy. Janus copies
of them, from easy to hard, take the place of the back:

    copy    the same picture, plain or mirrored
    again   the front from up to 15 degrees aside and 7 above or below, lit as what stands behind is lit
    other   the front of another asset of the noun, so seen, its main colour painted in this one's

A noun's threshold is the mid (of the logarithms) between the distance that 10 % of its real training renders fall below
and the one that 80 % of their `again` copies fall below. Where the second is not the smaller one, its fronts and backs
cannot be told apart and the noun is left out; so is one of fewer than 5 training assets. The 10 % leave room for one
asset in ten that stands turned or has two fronts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numba
import numpy as np
import torch
from judge_card import model_card
from measure_judge import with_interval
from torch import Tensor

from rl3d.assets import record_model
from rl3d.cameras import Cameras
from rl3d.colour import linear_to_srgb, srgb_to_linear
from rl3d.data.asset_set import AssetSet, load_asset_set
from rl3d.data.views import ViewSpec, face_geometry, main_colour, render_view_sets, to_images
from rl3d.files import atomic_write_text, write_json
from rl3d.rewards import damage, load_judge
from rl3d.rewards.janus import front_back_distance
from rl3d.rewards.judges import JANUS, Judge
from rl3d.rewards.score import LOOKS

LEAST, MOST = 5, 12  # training assets a noun: fewer say nothing of it, more are drawn from at random
FALSE_ALARMS, FOUND = 0.1, 0.8  # of a noun's training renders; over all nouns that count 5 % were called falsely
JITTER = (math.radians(15), math.radians(7))
LIGHTS = ("prior", "both")
KINDS = ("real", "again", "other")
ELEVATION = LOOKS["gold"].elevations[0]


@dataclass(frozen=True)
class Distances:
    """One row a noun, light and asset: index of the asset, and of KINDS the distance from its front, [N, 3]."""

    asset: np.ndarray
    noun: np.ndarray
    light: np.ndarray
    rough: np.ndarray
    values: np.ndarray

    def of(self, rows: np.ndarray) -> Distances:
        return Distances(self.asset[rows], self.noun[rows], self.light[rows], self.rough[rows], self.values[rows])


def spec_of(light: str) -> ViewSpec:
    """How the gold judge looks, in its own light, the prior's, or evenly lit."""
    look = LOOKS["gold"]
    if light == "judge":
        return ViewSpec(
            fov_y=look.fov_y, light=look.light, ambient=look.ambient, diffuse=look.diffuse, half_lambert=False
        )
    prior = ViewSpec(fov_y=look.fov_y)
    return prior if light == "prior" else replace(prior, ambient=1.0, diffuse=0.0)


def pictures(assets: AssetSet, i: int, light: str, cameras: Cameras, turned: bool, paint: Tensor | None) -> Tensor:
    """[V, 4, H, W] premultiplied sRGB. turned: lit as if it stood behind. paint: linear main colour, None: its own."""
    vertices, faces, colours = assets.mesh(i)
    main = main_of(assets, i)

    def lit(name: str) -> Tensor:
        spec = spec_of(name)
        if turned:
            x, y, z = spec.light
            spec = replace(spec, light=(-x, y, -z))
        stored = torch.from_numpy(render_view_sets(vertices, faces, colours, cameras, spec))
        return to_images(stored[None], main[None], None if paint is None else paint[None])[0]

    if light != "both":
        return lit(light)
    judge, prior, even = (lit(name) for name in ("judge", "prior", "even"))
    alpha = even[:, 3:]
    a, b, c = (srgb_to_linear((x[:, :3] / alpha.clamp_min(1 / 255)).clamp(0, 1)) for x in (judge, prior, even))
    return torch.cat([linear_to_srgb((a * b / c.clamp_min(1e-3)).clamp(0, 1)) * alpha, alpha], 1)


def main_of(assets: AssetSet, i: int) -> Tensor:
    """Linear main colour [3] of asset i."""
    vertices, faces, colours = assets.mesh(i)
    return torch.from_numpy(main_colour(colours, face_geometry(vertices, faces)[1])[1])


def measured(judge: Judge, assets: AssetSet, chosen: list[int], partner: dict[int, int]) -> Distances:
    """Distances of all chosen assets in all lights. partner: whose front `other` shows."""
    rows = []
    for i in chosen:
        for k, light in enumerate(LIGHTS):
            rng = np.random.default_rng([23, i, k])
            rough = bool(rng.random() < 0.5)
            height = ELEVATION + float(rng.uniform(-0.1, 0.1))
            azimuth = float(rng.uniform(-0.1, 0.1))
            look = LOOKS["gold"]

            def cameras(azimuths: list[float], elevation: float, look=look) -> Cameras:  # type: ignore[no-untyped-def]
                return Cameras.orbit(torch.tensor(azimuths), elevation, look.distance, look.fov_y, 64)

            aside, above = (float(rng.uniform(-j, j)) for j in JITTER)
            front, back = pictures(assets, i, light, cameras([azimuth, azimuth + math.pi], height), False, None)
            turned = cameras([azimuth + aside], height + above)
            again = pictures(assets, i, light, turned, True, None)[0]
            other = pictures(assets, partner[i], light, turned, True, main_of(assets, i))[0]
            seen = torch.stack([front, back, again, other])
            if rng.random() < 0.5:
                seen[2:] = seen[2:].flip(-1)
            if rough:
                generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
                seen = damage.noise(damage.blur(seen[None], 0.7), 0.03, generator)[0]
            distance = front_back_distance(judge, seen[:1].expand(3, -1, -1, -1), seen[1:])
            rows.append((i, assets.records[i].noun_words[-1], light, rough, distance.cpu().numpy()))
    asset, noun, lights, roughs, values = (np.array(column) for column in zip(*rows))
    return Distances(asset, noun, lights, roughs, values)


def threshold(values: np.ndarray) -> float | None:
    """The threshold from a noun's training distances [N, 3]; None: it has no front that shows."""
    real, again = np.quantile(values[:, 0], FALSE_ALARMS), np.quantile(values[:, 1], FOUND)
    return math.sqrt(real * again) if again < real else None


def fit(train: Distances) -> dict[str, float]:
    found = {str(n): threshold(train.values[train.noun == n]) for n in np.unique(train.noun)}
    return {n: t for n, t in found.items() if t is not None}


def called(seen: Distances, fronts: dict[str, float]) -> tuple[Distances, np.ndarray]:
    """The rows whose noun counts, and [N, 3] bool: called Janus."""
    rows = np.array([n in fronts for n in seen.noun], dtype=bool)
    seen = seen.of(rows)
    limits = np.array([fronts[n] for n in seen.noun])
    return seen, seen.values < limits[:, None]


def left_out(train: Distances) -> tuple[Distances, np.ndarray]:
    """Calls on each training asset by thresholds, and a choice of nouns, made without it."""
    parts = []
    for noun in np.unique(train.noun):
        own = train.of(train.noun == noun)
        for asset in np.unique(own.asset):
            limit = threshold(own.values[own.asset != asset])
            if limit is not None:
                held = own.of(own.asset == asset)
                parts.append((held, held.values < limit))
    columns = (np.concatenate([getattr(d, f) for d, _ in parts]) for f in Distances.__annotations__)
    return Distances(*columns), np.concatenate([hits for _, hits in parts])


def rates(seen: Distances, hits: np.ndarray) -> dict:
    """Shares called Janus as [mean, low, high], assets drawn again whole; by light and roughness without intervals."""
    rng = np.random.default_rng(0)
    result: dict = {"assets": len(np.unique(seen.asset)), "nouns": dict(Counter(map(str, _nouns(seen))))}
    for column, kind in enumerate(KINDS):
        own = hits[:, column].astype(float)
        groups = {light: seen.light == light for light in LIGHTS}
        groups |= {"clean": ~seen.rough, "blurred and noisy": seen.rough}
        result[kind] = {
            "all": with_interval(own, seen.asset, rng),
            **{name: round(float(own[rows].mean()), 3) for name, rows in groups.items() if rows.any()},
        }
    return result


def _nouns(seen: Distances) -> list[str]:
    return [seen.noun[seen.asset == a][0] for a in np.unique(seen.asset)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with captions.jsonl and meshes")
    parser.add_argument(
        "--assets", type=Path, required=True, help="the gold judge's folder; gets janus.json and a card"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    numba.set_num_threads(args.threads)
    judge, assets = load_judge("gold", folder=args.assets), load_asset_set(args.data)
    rng = np.random.default_rng(5)
    members: dict[str, list[int]] = {}
    for i, record in enumerate(assets.records):
        if record.split == "train":
            members.setdefault(record.noun_words[-1], []).append(i)
    members = {n: sorted(rng.permutation(v)[:MOST].tolist()) for n, v in members.items() if len(v) >= LEAST}
    partner = {i: v[(k + 1) % len(v)] for v in members.values() for k, i in enumerate(v)}
    train = measured(judge, assets, [i for v in members.values() for i in v], partner)
    fronts = fit(train)
    val = [i for i, r in enumerate(assets.records) if r.split == "val" and r.noun_words[-1] in fronts]
    partner |= {i: members[assets.records[i].noun_words[-1]][i % LEAST] for i in val}
    entries = {
        noun: {
            "threshold": round(limit, 5),
            "train_assets": len(members[noun]),
            "real_quantile": round(float(np.quantile(train.values[train.noun == noun][:, 0], FALSE_ALARMS)), 5),
            "again_quantile": round(float(np.quantile(train.values[train.noun == noun][:, 1], FOUND)), 5),
        }
        for noun, limit in sorted(fronts.items())
    }
    seen = measured(judge, assets, val, partner)
    found = {
        "command": "python tools/measure_janus.py DATA --assets assets/judge_gold",
        "nouns_looked_at": len(members),
        "nouns": entries,
        "val": rates(*called(seen, fronts)),
        "train": rates(*called(train, fronts)),
        "train_left_out": rates(*left_out(train)),
    }
    print(json.dumps(found, indent=2))
    write_json(args.assets / JANUS, found)
    row = json.loads((args.assets / "evaluation.json").read_text(encoding="utf-8"))
    command = "python tools/train_judge.py DATA CACHE --which gold --out RUN --minutes MINUTES"
    size = sum(p.numel() for p in judge.model.parameters())
    atomic_write_text(args.assets / "README.md", model_card("gold", row, command, size, found))
    licence = "Apache-2.0 (weights), CC0-1.0 (data)"
    record_model(args.assets.name, description="Gold judge: measures only", licence=licence, root=args.assets.parent)


if __name__ == "__main__":
    main()
