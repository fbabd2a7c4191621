"""The model card of an embedded judge, written from its measurements so that card and weights cannot drift apart."""

from __future__ import annotations

WHAT = {
    "reward": """# Reward judge

Scores how well 4 (or any number of) views of an asset fit a prompt: the cosine similarity, in [-1, 1], of an image and
a text embedding. Differentiable to the images. Anybody may optimise it; its partner, the gold judge, only measures, so
that an asset that fools this one is noticed.

    reward = rl3d.rewards.load("judge")          # in the shared Reward protocol
    scores = reward(rl3d.RewardInput(images, alphas, None, prompts))

Network: a small CNN per view on premultiplied sRGB + alpha at 64x64, views pooled by mean, maximum and spread; text is
a bag of word embeddings and a small MLP; a linear head names the main colour among 13. View order does not matter.
""",
    "gold": """# Gold judge

Measures how well views of an asset fit a prompt: the cosine similarity, in [-1, 1], of image and text embeddings.
**It only measures**: never in a loss, a selection or an early stop. The code gives no gradient through it and refuses
to make a reward of it.

    scores = rl3d.rewards.score_asset("a red barrel", mesh)["gold"]

Network: a convolutional stem to 8x8-pixel patches of RGB over grey, and alpha, at 56x56; a transformer block over the
patches of all views; attention and maximum pooling; text is a transformer block over the words. A linear head names the
main colour among 13, another the side each view shows (front, +X, back, -X). Independent of the reward judge in
architecture, seed, cameras, light and augmentation; the data set is the same, so a fault of the data is shared.
""",
}
NAMES = {
    "caption_of_20": "right caption (colour and words) among 20, distractors of other nouns (chance 0.05)",
    "caption_of_20_known_noun": "the same, assets with at least one training word in their noun",
    "noun_of_20": "noun alone among 20 (chance 0.05)",
    "noun_of_20_same_colour": "right caption among 20 of the same colour: only the noun decides (chance 0.05)",
    "colour_of_13": "colour word in the right caption among 13 (chance 0.077)",
    "colour_head_of_13": "main colour by the colour head (chance 0.077)",
    "side_of_4": "side of a view by the side head, all nouns, symmetric ones too (chance 0.25)",
}
SEEN = ("janus", "floaters", "holes", "blank_view", "mixed_views", "swapped_colour", "wrong_noun")


def _cell(value: list[float] | None) -> str:
    return "-" if value is None else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


COPIES = {
    "real": "real assets (false alarms)",
    "again": "the front seen again at the back: from another angle, lit as the back is",
    "other": "the front of another asset of the noun at the back, painted in this one's main colour",
}


def janus_section(found: dict | None) -> str:
    """What `tools/measure_janus.py` found, for the gold judge's card."""
    if found is None:
        return "\nNo Janus thresholds were set for these weights: `rl3d.rewards.janus_rate` counts nothing.\n"
    nouns = ", ".join(f"{n} ({e['threshold']:.4f}, {e['train_assets']})" for n, e in found["nouns"].items())
    parts = {"val": "val", "train_left_out": "train, each asset left out", "train": "train"}
    lines = [
        f"| {said} | {' | '.join(_cell(found[part][kind]['all']) for part in parts)} |" for kind, said in COPIES.items()
    ]
    lines += [
        f"| {COPIES[kind].split(' (')[0].split(':')[0]}, {where} | "
        + " | ".join(f"{found[part][kind].get(key, float('nan')):.3f}" for part in parts)
        + " |"
        for kind in ("real", "again")
        for key, where in CONDITIONS.items()
    ]
    few = found["val"]["assets"]
    assets = " | ".join(str(found[part]["assets"]) for part in parts)
    return f"""
## Fronts shown twice

`rl3d.rewards.janus_rate` compares front and back, each view alone: the relative squared distance of the stem's patch
features, averaged along each row of the image, the back plain or mirrored, whichever is closer. Below the noun's
threshold the front is shown twice. A noun has a threshold where its real training assets can be told from copies with
the front seen again at the back; these are {len(found["nouns"])} of the {found["nouns_looked_at"]} nouns with at
least 5 training assets (at most 12 of each were looked at). Noun (threshold, training assets looked at):
{nouns}.

    {found["command"]}

Share called Janus: mean and 95 % bootstrap interval over assets, each in two lights, half of them blurred and noisy.
"Each asset left out": its noun's threshold, and whether it counts, were found without it.

| what | {" | ".join(parts.values())} |
|---|---|---|---|
| assets | {assets} |
{chr(10).join(lines)}

Val counts {few} assets of these nouns, too few to say much: even no false alarm among them leaves a true share of up
to {1 - 0.05 ** (1 / max(few, 1)):.2f} (exact, one-sided 95 %). Features and rule were chosen on training renders too,
so that the middle column is a little kind. Some false alarms are real assets that stand turned or have two fronts.

An exact copy of the front, plain or mirrored, has distance 0 and is always found. A back that repeats the front of
another asset of the noun, and not its own, is mostly missed: the rate is about fronts shown twice, not wrong backs.
"""


CONDITIONS = {
    "prior": "the prior's light",
    "both": "the prior's light baked in",
    "blurred and noisy": "blurred and noisy",
}


CALIBRATION = """
## Calibration

`rl3d rewards check judge` compares props with damaged versions; tools/calibrate_rewards.py records the result, without
which `rl3d generate` refuses these weights, and writes docs/benchmarks/rewards.md.
"""


def model_card(which: str, row: dict, command: str, parameters: int, janus: dict | None = None) -> str:
    """Markdown of a card; `row` is what train_judge.py writes as evaluation.json."""
    val, train, state = row["val"], row["train"], row["training"]
    look = {"reward": "judge", "gold": "gold"}[which]
    lines = [f"| {text} | {_cell(val[key])} | {_cell(train.get(key))} |" for key, text in NAMES.items() if key in val]
    broken = [
        f"| {kind} | {'yes' if kind in SEEN else 'no'} | {_cell(value)} | {_cell(train['clean_above_damaged'][kind])} |"
        for kind, value in val["clean_above_damaged"].items()
    ]
    return f"""{WHAT[which]}
## Files, licence, data

`model.safetensors` ({parameters:,} parameters, float16; loaded as float32), `config.json`, `vocabulary.json`,
`evaluation.json`. Weights: Apache-2.0. Data: 1,995 captioned low-poly assets, CC0 1.0, by Kay Lousberg (KayKit) and
Quaternius; captions cleaned by rule, main colours repainted in half of the draws. Trained on the train split only.

## Training

{state["objects"]:,} objects in {state["step"]:,} steps, {state["seconds"] / 60:.0f} minutes of wall-clock on a shared
2-core CPU (one thread, lowest priority). InfoNCE with hard negatives (same words in another colour; another noun in the
same colour), colour and damage-ranking losses. The run resumes; more training helps.

    python tools/build_views.py DATA CACHE --look {look}
    {command}

## Numbers

Mean and 95 % bootstrap interval over assets. Val: {val["assets"]} assets, 3 view sets each, half of the draws
repainted; {100 * val["share_with_a_known_noun_word"]:.0f} % of them have a training word in their noun, the rest
cannot be known. Train: every tenth asset, one set.

| | val | train |
|---|---|---|
{chr(10).join(lines)}

Share of pairs (whole, damaged) in which the whole one scores higher with the right caption; 0.5 is blind. "Seen": a
milder or equal form was among the training losses.

| damage | seen | val | train |
|---|---|---|---|
{chr(10).join(broken)}

Noise and blur are also training augmentations that should not matter, so their rows near 0.5 are intended. For Janus
copies, many assets look alike from all sides, which bounds the share from above.
{janus_section(janus) if which == "gold" else CALIBRATION}
## Limits

Knows the {val.get("words", "training")} words of its vocabulary and low-poly props; it reads words, not grammar. Main
colours of two-coloured assets are ambiguous. Similarities are comparable for one prompt, not across prompts. It has
seen real renders and damaged ones, never the outputs of a generator: read low scores of generated assets with care.
"""
