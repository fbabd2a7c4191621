"""Ship the models of point-cloud completion with their card.

python tools/ship_completion.py RUN runs/bench_completion --agent agent
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from completion_page import TITLES, gain_of, mean_of, no_worse, percent
from safetensors.torch import load_file
from ship_model import ship

from rl3d.assets import packaged_folder

WHAT = "Point-cloud completion: autoencoder, latent GAN, implicit decoder, and the agent that shifts latents"
PARTS = {"autoencoder": "autoencoder/model", "critic": "agent/critic", "implicit": "implicit/model"}


def copy_models(run: Path, assets: Path, agent: str) -> dict[str, int]:
    """Parameters of each part."""
    sizes = {}
    for name, source in {**PARTS, "agent": f"{agent}/model"}.items():
        (assets / name).mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(run / source / file, assets / name / file)
        sizes[name] = sum(t.numel() for t in load_file(assets / name / "model.safetensors").values())
    return sizes


def last(run: Path, stage: str) -> dict[str, float]:
    return json.loads((run / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])


def card(run: Path, sizes: dict[str, int], results: dict[str, Any], note: str = "") -> str:
    first = results["view50"]
    lines = [
        "# Point-cloud completion",
        "",
        "| part | what | parameters |",
        "|---|---|---|",
        f"| autoencoder | PointNet encoder to a latent of 128, perceptron to 2,048 points | {sizes['autoencoder']:,} |",
        f"| critic | latent GAN: generator of 32 numbers, critic that went on learning with the agent | "
        f"{sizes['critic']:,} |",
        f"| agent | shifts the latent in {first['calls'] - 1} steps | {sizes['agent']:,} |",
        f"| implicit | signed distance from latent and place, for meshes | {sizes['implicit']:,} |",
        "",
        "Half precision. Trained by `tools/train_completion.py` on the surfaces of the 1,911 training assets of the "
        "low-poly set (KayKit by Kay Lousberg and packs by Quaternius, all CC0 1.0; thank you), on one CPU core: "
        f"{last(run, 'autoencoder')['step']} steps of the autoencoder (batch 32), {last(run, 'gan')['step']} of the "
        f"GAN, {last(run, 'agent')['step']} of the agent (batch 48), {last(run, 'implicit')['step']} of the implicit "
        "decoder. Random quarter turns with up to 10 degrees more, mirrored, half of them smaller and shifted. The "
        "agent's reward sees what is visible, never what is missing; the autoencoder and the critic learn from "
        "complete clouds, never paired with a part." + (f" {note}" if note else ""),
        "",
        f"On {first['shapes']} shapes that nothing was trained or tuned on (docs/benchmarks/completion.md), CD-l1 x "
        "1000 with 95 % intervals by shape:",
        "",
        "| | input | autoencoder | agent + selector | below the autoencoder | no worse than it |",
        "|---|---|---|---|---|---|",
    ]
    for key, title in TITLES.items():
        if key not in results:
            continue
        row = results[key]
        cells = []
        for method in ("input", "autoencoder", "selected"):
            mean, low, high = (1000 * v for v in mean_of(row, method, "cd_l1"))
            cells.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]")
        cells += [
            percent(gain_of(row, "selected", "autoencoder")),
            f"{100 * no_worse(row, 'selected', 'autoencoder'):.0f} %",
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Limits: low-poly props, buildings, furniture, food and plants; +Y up; thin parts and fine detail are lost in "
        "a latent of 128; what lies behind is guessed from what such assets usually look like.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("bench", type=Path, help="folder of tools/bench_completion.py")
    parser.add_argument("--note", default="", help="a sentence for the card, about how this run went")
    parser.add_argument("--agent", choices=("agent", "td3"), default="agent")
    args = parser.parse_args()
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in args.bench.glob("*.json")}
    assets = packaged_folder("assets") / "completion"
    sizes = copy_models(args.run, assets, args.agent)
    numbers = {
        key: {m: {k: sum(v) / len(v) for k, v in found.items()} for m, found in results[key]["methods"].items()}
        for key in TITLES
        if key in results
    }
    ship(assets, WHAT, card(args.run, sizes, results, args.note), numbers)


if __name__ == "__main__":
    main()
