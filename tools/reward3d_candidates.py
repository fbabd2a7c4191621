"""What the prior makes of the captions: its samples and quick lifts beside real views, for tools/train_reward3d.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from reward3d_pairs import draw_real
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rl3d.data.batches import ViewBatches
from rl3d.errors import InputError
from rl3d.files import atomic_path
from rl3d.priors.embedded import EmbeddedPrior
from rl3d.reconstruct import lift
from rl3d.reconstruct.options import LiftOptions
from rl3d.reconstruct.splats import SplatState

SAMPLING = {"steps": 12, "guidance": 4.0}
LIFT = LiftOptions(steps=60, gaussians=1500, grid=48)
FEW = 5  # steps of the lift that was hardly begun


def make_one(
    source: ViewBatches, prior: EmbeddedPrior, asset: int, number: int
) -> tuple[Tensor, Tensor, str, np.ndarray] | None:
    """One caption's (real, sample, lifted, hardly lifted) views [4, V, 4, S, S], azimuths [V], caption and cameras.

    All are seen from the real views' azimuths and elevation; lifts from their distance too. None: nothing to lift.
    """
    rng = np.random.default_rng([7, number])
    real = draw_real(source, np.array([asset]), rng, 0.5)
    params = source.params[real.assets, real.sets]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    try:
        prompt = prior.encode_prompt(real.captions[0])
        drawn = prior.cameras(float(params[0, 0]), float(params[0, 1])).to(dtype=torch.float32)
        sample = prior.sample(prompt, drawn, generator=generator, **SAMPLING)[0].float()
        sample = torch.cat([torch.minimum(sample[:, :3], sample[:, 3:]), sample[:, 3:]], 1)
        state = SplatState.start(lift.start_from_hull(sample, drawn, LIFT, generator), lift.lift_rates(LIFT))
    except InputError:
        return None
    looks = []
    for steps in (FEW, LIFT.steps - FEW):
        lift.fit(state, sample, drawn, LIFT, steps)
        with torch.no_grad():
            frames = state.render(source.cameras(params))
        looks.append(torch.cat([frames.rgb, frames.alpha], 1).clamp(0, 1))
    return torch.stack([real.images[0], sample, looks[1], looks[0]]), real.azimuths[0], real.captions[0], params


def make_candidates(sources: dict[str, ViewBatches], prior: EmbeddedPrior, count: int, path: Path) -> None:
    """Write `count` captions' candidates of "train" and a fifth as many of "val"; goes on where the file stops.

    views [N, 4, V, 4, S, S] uint8 and azimuths [N, V]; the metadata "facts" names caption, asset and split of each.
    """
    views, angles, facts = [], [], []
    if path.is_file():
        with safe_open(path, "pt") as handle:
            facts = json.loads(handle.metadata()["facts"])
            views, angles = list(handle.get_tensor("views")), list(handle.get_tensor("azimuths"))
    for split, wanted in (("train", count), ("val", max(1, count // 5))):
        source = sources[split]
        tried = max((f["number"] + 1 for f in facts if f["split"] == split), default=0)
        while sum(f["split"] == split for f in facts) < wanted:
            if tried > 20 * wanted:
                raise SystemExit("the prior gives hardly anything that can be lifted; train it further")
            number, tried = 2 * tried + (split == "val"), tried + 1
            asset = int(np.random.default_rng([8, number]).choice(source.keep, p=source.weight))
            made = make_one(source, prior, asset, number)
            if made is None:
                continue
            views.append((made[0] * 255).round().to(torch.uint8))
            angles.append(made[1].float())
            facts.append({"caption": made[2], "asset": asset, "split": split, "number": tried - 1})
            if len(facts) % 10 == 0:
                _write(path, views, angles, facts)
                print(f"{len(facts)} captions", flush=True)
    _write(path, views, angles, facts)


def _write(path: Path, views: list[Tensor], angles: list[Tensor], facts: list[dict]) -> None:
    with atomic_path(path) as temporary:
        tensors = {"views": torch.stack(views), "azimuths": torch.stack(angles)}
        save_file(tensors, temporary, {"facts": json.dumps(facts)})
