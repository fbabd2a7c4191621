"""Turn a training run of tools/train_prior.py into a pipeline folder, and draw sample grids at fixed seeds.

python tools/export_prior.py RUN --out assets/prior          # the averaged weights, bfloat16
python tools/export_prior.py RUN --grid samples.png          # look at it
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ship_model import averaged_weights

from rl3d.files import atomic_path
from rl3d.priors.embedded import EmbeddedPrior, Vocabulary, new_scheduler
from rl3d.priors.multiview_model import MultiViewTransformer

GRID_PROMPTS = (
    "a small wooden barrel",
    "a red chest",
    "a green tree",
    "a blue couch",
    "a stone tower",
    "a yellow potion",
    "a red house",
    "a golden key",
    "a purple mushroom",
    "a wooden chair",
    "a sword",
    "an orange pumpkin",
)


def prior_of_run(run: Path, device: str = "cpu") -> EmbeddedPrior:
    """The prior with a run's averaged weights."""
    state = json.loads((run / "state.json").read_text())
    model = MultiViewTransformer(**{k: v for k, v in state["model"].items() if not k.startswith("_")})
    model.load_state_dict(averaged_weights(run))
    return EmbeddedPrior(model, Vocabulary(state["vocabulary"]), new_scheduler(), run.name, torch.device(device))


def draw_grid(
    prior: EmbeddedPrior, out: Path, prompts: tuple[str, ...], steps: int, guidance: float, seed: int
) -> None:
    """One row a prompt, four views each, two prompts side by side, over light grey."""
    rows = []
    for prompt in prompts:
        images = prior.sample(
            prior.encode_prompt(prompt),
            prior.cameras(0.0, 0.35),
            steps=steps,
            guidance=guidance,
            generator=torch.Generator().manual_seed(seed),
        )[0]
        rgb = images[:, :3] + 0.85 * (1 - images[:, 3:])
        rows.append(rgb.permute(2, 0, 3, 1).flatten(1, 2).numpy())  # [S, 4 S, 3]
    pairs = [np.concatenate(rows[i : i + 2], 1) for i in range(0, len(rows) - 1, 2)]
    grid = (np.concatenate(pairs).clip(0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(grid).resize((2 * grid.shape[1], 2 * grid.shape[0]), Image.Resampling.NEAREST)
    with atomic_path(out) as temporary:
        picture.save(temporary)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="pipeline folder to write")
    parser.add_argument("--grid", type=Path, help="PNG to draw")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prior = prior_of_run(args.run)
    if args.grid:
        draw_grid(prior, args.grid, GRID_PROMPTS, args.steps, args.guidance, args.seed)
    if args.out:
        prior.save_pretrained(args.out)
