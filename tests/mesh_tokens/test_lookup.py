"""Attention by geometry: its weights are the formula's, and what is near is what was written last."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_mesh_lm import tiny_condition, tiny_model

from rl3d.mesh_tokens.around import WINDOW, Around, around_of, near_of
from rl3d.mesh_tokens.condition import fourier
from rl3d.mesh_tokens.grammar import SLOTS, slots_of
from rl3d.mesh_tokens.lookup import FAR, HEADS, NEARBY, OCTAVES, SurfaceLookup
from rl3d.mesh_tokens.quantise import AXES
from rl3d.mesh_tokens.sampling import SampleOptions, sample


@pytest.mark.parametrize("kind", ["adjacent", "raw"])
def test_near_is_what_was_written_last(kind: str) -> None:
    model = tiny_model(kind)
    tokenizer = model.config.tokenizer
    made = sample(model, tiny_condition(6), 6, SampleOptions(1.0, top_p=1.0, max_faces=12), seed=0)
    slots = slots_of(made.tokens, tokenizer)
    near = near_of(made.tokens, slots, tokenizer)
    signs, turned = 0, False
    for row, length in enumerate(made.lengths.tolist()):
        written: list[int] = []  # coordinates, without the signs between vertices
        for place, token in enumerate(made.tokens[row, :length].tolist()):
            written += [token] if token < tokenizer.bins else []
            signs += token >= tokenizer.bins
            whole = len(written) // 3 * 3
            last = [-1] * 3 if whole < 3 else written[whole - 3 : whole]
            before = [-1] * 3 if whole < 6 else written[whole - 6 : whole - 3]
            own = (written[whole:] + [-1] * 3)[:3]
            assert near[row, place, :9].tolist() == [*last, *before, *own]
            turned = token == tokenizer.vocabulary.turn or (turned and len(written) % 3 > 0)
            if int(slots[row, place]) in (9, 10, 11, 12):
                third = np.array(written[whole - 9 : whole - 6])
                corner = np.array(last) + (third - before if turned else np.array(before) - third)
                assert near[row, place, 9:].tolist() == corner.clip(0, tokenizer.bins - 1).tolist()
            else:
                assert near[row, place, 9:].tolist() == [-1] * 3
            window = slice(max(0, place + 1 - WINDOW), place + 1)
            few = near_of(made.tokens[row : row + 1, window], slots[row : row + 1, window], tokenizer)
            assert few[0, -1].tolist() == near[row, place].tolist()
    assert signs > 12 or kind == "raw"  # more than begin and end


def around(near: torch.Tensor, slots: torch.Tensor, reach: torch.Tensor) -> Around:
    written = torch.arange(near.shape[1]).expand(len(near), -1)
    return Around(slots, near, written, reach, torch.zeros(len(near), 1), slots)


def test_weights_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    bins, width, count = 16, 40, 32
    lookup = SurfaceLookup(width, bins).double()
    with torch.no_grad():
        for tensor in lookup.parameters():
            tensor.add_(0.2 * torch.randn_like(tensor))
    condition = tiny_condition(2)
    assert condition.points is not None and condition.normals is not None
    near = torch.randint(0, bins, (2, 5, 12))
    near[0, 0], near[0, 1, 3:], near[1, 2, 7:] = -1, -1, -1
    reach = 0.5 * torch.rand(2, 5, count)
    reach[0, 0] = torch.inf
    here = around(near, torch.randint(0, SLOTS, (2, 5)), reach)
    asked = {"points": condition.points, "normals": condition.normals, "faces": torch.tensor([8, 0])}
    out = lookup(here, has_points=torch.tensor([True, True]), **asked)
    points, normals = condition.points[..., AXES].double(), condition.normals[..., AXES].double()
    for row, place in ((0, 0), (0, 1), (1, 2), (1, 4)):
        slot, known = here.slots[row, place], near[row, place] >= 0
        at = torch.where(known, (near[row, place] + 0.5) / bins - 0.5, torch.tensor(0.0)).double().view(4, 3)
        far = (reach[row, place] / FAR).clamp_max(1).double()
        found, left_open = [], []
        for head in range(HEADS):
            score = points[row] @ lookup.slope[slot, head]
            for vertex in range(4):
                s = 0.5 * lookup.precision[slot, head, vertex].exp() * known.view(4, 3)[vertex]
                score = score - ((points[row] - at[vertex]).square() * s).sum(1)
            if head >= NEARBY:
                score = score + lookup.seek[slot, head - NEARBY] * far
                left_open.append((score.softmax(0) * far).sum())
            found.append(score.softmax(0) @ torch.cat([fourier(points[row], OCTAVES), normals[row]], 1))
        own = fourier(at.flatten()[:, None], OCTAVES) * known[:, None]
        ours = lookup.out(torch.cat([own.flatten(), *found, torch.stack(left_open), far.mean()[None]]))
        if row == 0:  # 8 faces were asked for
            left = torch.tensor([(8 - place) / 8, math.log2(9 - place) / 8]).double()
            ours = ours + lookup.left(fourier(left, 4))
        assert torch.allclose(out[row, place], ours, atol=1e-5)
    hidden = lookup(here, has_points=torch.tensor([True, False]), **asked)
    without = lookup(here, None, None, None, asked["faces"])
    assert torch.equal(hidden[0], out[0]) and torch.allclose(hidden[1], without[1])


def test_gradients_reach_the_widths() -> None:
    torch.manual_seed(0)
    lookup = SurfaceLookup(24, 16)
    torch.nn.init.normal_(lookup.out.weight)
    condition = tiny_condition(2)
    here = around(torch.randint(0, 16, (2, 4, 12)), torch.zeros(2, 4, dtype=torch.long), torch.rand(2, 4, 32))
    lookup(here, condition.points, condition.normals, None, None).square().sum().backward()
    for tensor in (lookup.precision.grad, lookup.slope.grad, lookup.seek.grad):
        assert tensor is not None and tensor[0].abs().min() > 0 and float(tensor[1:].abs().max()) == 0


@pytest.mark.parametrize("kind", ["adjacent", "raw"])
def test_step_by_step_is_the_whole(kind: str) -> None:
    """Faces written, and which points the mesh came near, against a loop over vertices."""
    model, condition = tiny_model(kind), tiny_condition(4)
    tokenizer, points = model.config.tokenizer, condition.points
    assert points is not None
    made = sample(model, condition, 4, SampleOptions(1.0, top_p=1.0, max_faces=12), seed=0)
    whole = around_of(made.tokens, tokenizer, points)
    for row, length in enumerate(made.lengths.tolist()):
        step = around_of(made.tokens[row : row + 1, :1], tokenizer, points[row : row + 1])
        marks: list[list[float]] = []
        for place in range(1, length):
            token, slot = made.tokens[row : row + 1, place], whole.slots[row : row + 1, place]
            step = step.after(token, slot, tokenizer, points[row : row + 1])
            written = tokenizer.decode(made.tokens[row, : place + 1].numpy()).face_count
            assert int(step.written) == int(whole.written[row, place]) == written
            v1, v2 = ((whole.near[row, place, i : i + 3] + 0.5) / tokenizer.bins - 0.5 for i in (0, 3))
            if whole.near[row, place, 0] >= 0:
                marks.append(v1.tolist())
            if whole.near[row, place, 3] >= 0:
                marks.append((0.5 * (v1 + v2)).tolist())
            if marks:
                expected = (points[row][:, None, AXES] - torch.tensor(marks)).norm(dim=2).amin(1)
                assert step.reach is not None and whole.reach is not None
                assert torch.allclose(step.reach[0, 0], expected, atol=1e-5)
                assert torch.allclose(whole.reach[row, place], expected, atol=1e-5)
