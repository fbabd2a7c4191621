"""Sampling under the grammar: one support, one log-probability, whatever the cache and the neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_mesh_lm import tiny_condition, tiny_model

from rl3d.errors import ConfigError
from rl3d.mesh_tokens.condition import Condition
from rl3d.mesh_tokens.grammar import Grammar
from rl3d.mesh_tokens.model import MeshLM
from rl3d.mesh_tokens.sampling import SampleOptions, drawn, sample, sequence_log_probs, supported

OPTIONS = SampleOptions(temperature=1.0, top_p=1.0, max_faces=12)


@pytest.fixture(scope="module", params=["adjacent", "raw"])
def model(request: pytest.FixtureRequest) -> MeshLM:
    return tiny_model(request.param)


def test_log_probs_are_those_of_one_pass_over_the_sequence(model: MeshLM) -> None:
    """With a cache step by step, in a shrinking batch, and without one over the whole: measured 2e-5."""
    condition = tiny_condition(6)
    drawn_ = sample(model, condition, 6, OPTIONS, seed=1)
    with torch.no_grad():
        again, real = sequence_log_probs(model, drawn_.tokens, condition)
    assert torch.equal(real.sum(1) + 1, drawn_.lengths)
    assert len(set(drawn_.lengths.tolist())) > 2  # rows left the batch at several steps
    assert (again - drawn_.log_probs).abs().max() < 1e-4
    assert again.isfinite().all() and (drawn_.log_probs[~real] == 0).all()


def test_a_reference_has_the_same_support(model: MeshLM) -> None:
    """Another model gives each token a probability, and those of a place's support sum to 1."""
    condition, other = tiny_condition(4), tiny_model(model.config.kind)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.mul_(0.9)
    made = sample(model, condition, 4, OPTIONS, seed=2)
    supports = Grammar(model.config.tokenizer).supports(made.tokens)
    with torch.no_grad():
        theirs, real = sequence_log_probs(other, made.tokens, condition, supports)
        assert theirs.isfinite().all()
        assert (theirs - made.log_probs)[real].abs().max() > 1e-3
        logits = other(made.tokens[:, :-1], **condition.tensors()).logits
    total = (logits.log_softmax(-1).exp() * supports).sum(-1)
    ours = supported(logits, supports).exp()
    assert torch.allclose(ours.sum(-1)[real], torch.ones(()), atol=1e-5) and (total < 0.999).any()
    assert (ours[~supports] == 0).all()


def test_a_row_is_the_same_alone_and_among_others(model: MeshLM) -> None:
    condition = tiny_condition(5)
    together = sample(model, condition, 5, OPTIONS, seed=3)
    for row in range(5):
        index = torch.tensor([row])
        alone = sample(model, condition.rows(index), 1, OPTIONS, seed=3, first_row=row)
        length = int(alone.lengths)
        assert length == int(together.lengths[row])
        assert torch.equal(alone.tokens[0], together.tokens[row, :length])
        assert (alone.log_probs[0] - together.log_probs[row, : length - 1]).abs().max() < 1e-5
        assert alone.failures == [together.failures[row]]


def test_one_condition_serves_all_its_rows(model: MeshLM) -> None:
    condition = tiny_condition(1)
    once = sample(model, condition, 4, OPTIONS, seed=4)
    each = sample(model, condition.rows(torch.zeros(4, dtype=torch.int64)), 4, OPTIONS, seed=4)
    assert torch.equal(once.tokens, each.tokens) and torch.allclose(once.log_probs, each.log_probs, atol=1e-5)
    assert len({tuple(row.tolist()) for row in once.tokens}) == 4
    assert not torch.equal(sample(model, condition, 4, OPTIONS, seed=5).tokens, once.tokens)


def test_everything_drawn_is_of_the_grammar(model: MeshLM) -> None:
    """Ended rows decode without failure; rows that were given up say why, and hold their faces."""
    made = sample(model, tiny_condition(1), 24, OPTIONS, seed=6)
    tokenizer = model.config.tokenizer
    ended = 0
    for sequence, failure in zip(made.sequences(), made.failures):
        said = tokenizer.decode(sequence)
        ended += not failure
        assert (said.failure == "") == (failure == "")
        if failure == "more than 12 faces":
            assert said.face_count == 13 and said.failure == "it has no end"
    assert 0 < ended < 24


def test_without_the_grammar_rows_stop_at_their_first_fault(model: MeshLM) -> None:
    made = sample(model, tiny_condition(1), 16, replace(OPTIONS, grammar=False), seed=7)
    assert "it breaks the grammar" in made.failures
    grammar = Grammar(model.config.tokenizer)
    for sequence in made.sequences():
        if len(sequence) > 1:
            row = torch.from_numpy(sequence)[None]
            assert grammar.supports(row).gather(2, row[:, 1:, None]).all()
    with torch.no_grad():
        logits = model(made.tokens[:, :-1], **tiny_condition(1).rows(torch.zeros(16, dtype=torch.int64)).tensors())
    plain = logits.logits.log_softmax(-1).gather(2, made.tokens[:, 1:, None])[..., 0]
    real = made.tokens[:, 1:] != grammar.tokenizer.vocabulary.pad
    assert (plain - made.log_probs)[real].abs().max() < 1e-5


def test_no_temperature_takes_the_likeliest(model: MeshLM) -> None:
    condition = tiny_condition(1)
    made = sample(model, condition, 2, SampleOptions(temperature=0, max_faces=4), seed=0)
    assert torch.equal(made.tokens[0], made.tokens[1])
    with torch.no_grad():
        logits = model(made.tokens[:1, :-1], **condition.tensors()).logits
    best = supported(logits, Grammar(model.config.tokenizer).supports(made.tokens[:1])).argmax(-1)
    assert torch.equal(best, made.tokens[:1, 1:])


def test_draws_by_hand() -> None:
    """Probabilities 0.1, 0.6, 0.3: in falling order 1, 2, 0 with sums 0.6, 0.9, 1."""
    log_probs = torch.tensor([[0.1, 0.6, 0.3]]).log()

    def at(*uniform: float, **options: float) -> list[int]:
        chosen = SampleOptions(**{"temperature": 1.0, "top_p": 1.0, **options})
        return [int(drawn(log_probs, torch.tensor([u], dtype=torch.float64), chosen)) for u in uniform]

    assert at(0.0, 0.59, 0.61, 0.89, 0.91, 1 - 1e-16) == [1, 1, 2, 2, 0, 0]
    assert at(0.0, 0.66, 0.67, 0.999, top_k=2) == [1, 1, 2, 2]  # 0.6 / 0.9 = 0.667
    assert at(0.66, 0.67, 0.999, top_p=0.7) == [1, 2, 2]  # 0.6 is not enough, 0.9 is
    assert at(0.999, top_p=0.6) == [1]
    # Temperature 1/2 squares: 0.01, 0.36, 0.09 of 0.46, so 0.783 and 0.978.
    assert at(0.78, 0.79, 0.97, 0.98, temperature=0.5) == [1, 2, 2, 0]
    barred = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert int(drawn(barred, torch.tensor([0.999], dtype=torch.float64), SampleOptions())) == 0


def test_frequencies_are_the_probabilities() -> None:
    """20,000 draws: the standard error of a share is at most 0.0035; 4 of them."""
    log_probs = torch.tensor([0.05, 0.5, 0.15, 0.3]).log().expand(20000, -1)
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(drawn(log_probs, uniform, OPTIONS), minlength=4) / 20000
    assert (counts - torch.tensor([0.05, 0.5, 0.15, 0.3])).abs().max() < 0.014


def test_no_condition_is_one_too(model: MeshLM) -> None:
    made = sample(model, Condition(), 3, OPTIONS, seed=8)
    assert made.tokens.shape[0] == 3


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"max_faces": 0}],
)
def test_options_that_make_no_sense(options: dict) -> None:
    with pytest.raises(ConfigError):
        SampleOptions(**options)


def test_a_dead_end_has_finite_gradients(model: MeshLM) -> None:
    """The far corner twice in a face leaves nothing to write; online alignment learns from such rows too."""
    signs = model.config.tokenizer.vocabulary
    far = signs.bins - 1
    stuck = [signs.begin, far - 1, far - 1, far - 1, far - 1, far - 1, far, far - 1, far - 1]
    fine = [signs.begin, 0, 0, 0, 0, 0, 1, 0, 1, 0, signs.end]
    tokens = torch.tensor([stuck + [signs.pad] * 2, fine])
    allowed = Grammar(model.config.tokenizer).supports(tokens)
    assert allowed[0, 8].nonzero().flatten().tolist() == [signs.pad] and allowed.any(2).all()
    copy = tiny_model(model.config.kind)
    log_probs, real = sequence_log_probs(copy, tokens, tiny_condition(2))
    assert real.sum(1).tolist() == [8, 10] and log_probs.isfinite().all()
    log_probs.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in copy.parameters())
