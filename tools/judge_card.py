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


def model_card(which: str, row: dict, command: str, parameters: int, sided: tuple[str, ...]) -> str:
    """Markdown of a card; `row` is what train_judge.py writes as evaluation.json."""
    val, train, state = row["val"], row["train"], row["training"]
    look = {"reward": "judge", "gold": "gold"}[which]
    lines = [f"| {text} | {_cell(val[key])} | {_cell(train.get(key))} |" for key, text in NAMES.items() if key in val]
    broken = [
        f"| {kind} | {'yes' if kind in SEEN else 'no'} | {_cell(value)} | {_cell(train['clean_above_damaged'][kind])} |"
        for kind, value in val["clean_above_damaged"].items()
    ]
    fronts = (
        f"\nNouns that `janus_rate` counts (front called front and back not, in 80 % of real renders, training assets "
        f"included; none while the side head is right on less than half of the val views): "
        f"{', '.join(sided) or 'none'}.\n"
        if which == "gold"
        else ""
    )
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
{fronts}
## Limits

Knows the {val.get("words", "training")} words of its vocabulary and low-poly props; it reads words, not grammar. Main
colours of two-coloured assets are ambiguous. Similarities are comparable for one prompt, not across prompts. It has
seen real renders and damaged ones, never the outputs of a generator: read low scores of generated assets with care.
"""
