"""Damage does what its name says, keeps shapes and ranges, and repeats with its seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rewards import damage


def squares(batch: int = 2, size: int = 32) -> Tensor:
    """Four views of a red square whose width differs from view to view."""
    images = torch.zeros(batch, 4, 4, size, size)
    for v in range(4):
        images[:, v, 0, 8:24, 8 : 14 + 3 * v] = 0.8
        images[:, v, 3, 8:24, 8 : 14 + 3 * v] = 1
    return images


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


FORMS = {
    "noise": lambda x: damage.noise(x, 0.1, generator()),
    "grain": lambda x: damage.grain(x, 0.1, generator()),
    "blur": lambda x: damage.blur(x, 1.5),
    "blank_view": lambda x: damage.blank_view(x, generator()),
    "unfinished": lambda x: damage.unfinished(x, 0.5, generator()),
    "swapped_colour": lambda x: damage.repaint(x, torch.tensor([[0.1, 0.2, 0.9]]).expand(len(x), 3)),
    "mixed_views": lambda x: damage.mixed_views(x, x.flip(-2)[:, [1, 2, 3, 0]]),
    "two_faced": lambda x: damage.two_faced(x, 1),
    "janus": lambda x: damage.janus(x, 3),
    "exchanged_views": lambda x: damage.exchanged_views(x, generator()),
    "shifted_view": lambda x: damage.shifted_view(x, 0.125, generator()),
    "tinted_view": lambda x: damage.tinted_view(x, 0.3, generator()),
    "floaters": lambda x: damage.floaters(x, generator()),
    "holes": lambda x: damage.holes(x, generator()),
    "scaled_down": lambda x: damage.scaled_down(x, 0.5),
}


@pytest.mark.parametrize("kind", FORMS)
def test_every_form_changes_and_stays_premultiplied(kind: str) -> None:
    clean = squares()
    bad = FORMS[kind](clean)
    assert bad.shape == clean.shape
    assert bad.min() >= 0 and bad.max() <= 1 + 1e-6
    assert (bad[:, :, :3] <= bad[:, :, 3:] + 1e-6).all()
    assert not torch.equal(bad, clean)
    assert torch.equal(bad, FORMS[kind](clean))


def test_grain_stays_on_the_object() -> None:
    clean = squares()
    bad = damage.grain(clean, 0.3, generator())
    assert torch.equal(bad[:, :, 3], clean[:, :, 3])
    assert not bad[:, :, :3][(clean[:, :, 3:] == 0).expand(-1, -1, 3, -1, -1)].any()


def test_one_view_moves_or_is_tinted_and_two_are_exchanged() -> None:
    clean = squares()
    for bad in (damage.shifted_view(clean, 0.125, generator()), damage.tinted_view(clean, 0.3, generator())):
        assert (bad != clean).any((2, 3, 4)).sum(1).tolist() == [1, 1]
    moved = damage.shifted_view(clean, 0.125, generator())
    which = (moved != clean).any((2, 3, 4))[0]
    assert any(torch.equal(moved[0, which], clean[0, which].roll(by, -1)) for by in (-4, 4))  # 0.125 of 32 pixels
    exchanged = damage.exchanged_views(clean, generator())
    assert (exchanged != clean).any((2, 3, 4)).sum(1).tolist() == [2, 2]
    area = clean[:, :, 3].sum((2, 3))
    assert torch.equal(exchanged[:, :, 3].sum((2, 3)).sort().values, area.sort().values)


def test_areas_move_the_right_way() -> None:
    area = lambda x: float(x[:, :, 3].sum())  # noqa: E731
    clean = squares()
    assert area(damage.holes(clean, generator())) < area(clean) < area(damage.floaters(clean, generator()))
    assert area(damage.scaled_down(clean, 0.5)) == pytest.approx(area(clean) / 4, rel=1e-4)  # half each way
    assert area(damage.blur(clean, 1.0)) == pytest.approx(area(clean), rel=1e-4)  # nothing leaves the image
    assert area(damage.blank_view(clean[:1], generator())) < area(clean[:1])


def test_janus_repeats_each_objects_own_front() -> None:
    clean = squares()
    bad = damage.janus(clean, torch.tensor([0, 2]))
    for v in range(4):
        assert torch.equal(bad[0, v], clean[0, 0]) and torch.equal(bad[1, v], clean[1, 2])


def test_two_faces_are_the_front_and_its_back_alone() -> None:
    clean = squares()
    bad = damage.two_faced(clean, torch.tensor([1, 2]))
    assert torch.equal(bad[0, 3], clean[0, 1]) and torch.equal(bad[1, 0], clean[1, 2])
    assert torch.equal(bad[0, :3], clean[0, :3]) and torch.equal(bad[1, 1:], clean[1, 1:])


def test_less_is_finished_the_more_is_wrong() -> None:
    clean = squares()
    wrong = [float((damage.unfinished(clean, a, generator()) - clean).square().mean()) for a in (0.2, 0.5, 1.0)]
    assert 0 < wrong[0] < wrong[1] < wrong[2]
    assert damage.unfinished(clean, 1.0, generator())[:, :, 3].sum() < clean[:, :, 3].sum()
    with pytest.raises(InputError, match="amount"):
        damage.unfinished(clean, 0.0, generator())


def test_repaint_gives_the_colour() -> None:
    colour = torch.tensor([[0.1, 0.2, 0.9]])
    bad = damage.repaint(squares(1), colour)
    assert torch.allclose(bad[0, 0, :3, 12, 10], colour[0], atol=1e-5)  # a flat object keeps no shading


def test_a_factor_that_does_not_shrink_is_refused() -> None:
    with pytest.raises(InputError, match="factor"):
        damage.scaled_down(squares(), 1.5)
