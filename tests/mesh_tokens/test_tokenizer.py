"""Meshes to tokens and back: exact at the bins, for thousands of meshes; broken sequences are told, not raised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rl3d.errors import ConfigError, InputError
from rl3d.mesh_tokens.grammar import NEXT, OVER, Grammar, slots_of
from rl3d.mesh_tokens.quantise import clean, dequantise, frame_of, quantise, to_bins
from rl3d.mesh_tokens.tokenizer import Tokenizer, strips

TOKENIZERS = [Tokenizer("raw", 8), Tokenizer("adjacent", 8), Tokenizer("raw"), Tokenizer("adjacent")]
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
     [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


def soup(rng: np.random.Generator, bins: int):
    """A random clean mesh: triangle soup, grids, doubled and flipped faces, corners at the ends of the grid."""
    count = int(rng.integers(4, 20))
    vertices = rng.integers(0, bins, (count, 3))
    vertices[rng.random(vertices.shape) < 0.2] = bins - 1
    faces = rng.integers(0, count, (int(rng.integers(1, 30)), 3))
    if rng.random() < 0.5:  # a strip over the vertices: many shared edges
        faces = np.concatenate([faces, np.stack([np.arange(count - 2) + i for i in range(3)], 1)])
        faces[-1::-2] = faces[-1::-2, ::-1]
    return clean(vertices, faces, bins)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: f"{t.kind}-{t.bins}")
def test_round_trip_of_random_meshes(tokenizer):
    grammar, checked = Grammar(tokenizer), 0
    for seed in range(1000):
        mesh = soup(np.random.default_rng(seed), tokenizer.bins)
        if not len(mesh.faces):
            continue
        checked += 1
        tokens = tokenizer.encode(mesh)
        said = tokenizer.decode(tokens)
        again = said.clean()
        assert said.failure == "" and said.face_count == len(mesh.faces)
        assert np.array_equal(again.vertices, mesh.vertices) and np.array_equal(again.faces, mesh.faces)
        if seed < 150:
            row = torch.from_numpy(tokens)[None]
            assert grammar.supports(row).gather(2, row[:, 1:, None]).all()
            state, slots = grammar.start(1), [0]
            for token in row[0, 1:]:
                state = grammar.advance(state, token[None])
                slots.append(int(state.slot))
            assert slots == slots_of(row, tokenizer)[0].tolist()
            assert int(state.faces) == len(mesh.faces) and slots[-1] == OVER
    assert checked > 950


@pytest.mark.parametrize("kind", ["raw", "adjacent"])
def test_winding_and_map_of_a_cube(kind):
    mesh, frame = to_bins(CUBE, CUBE_FACES)
    tokenizer = Tokenizer(kind)
    tokens = tokenizer.encode(mesh)
    said = tokenizer.decode(tokens)
    corners = said.mesh(frame).triangles.double()
    # outward winding everywhere: 6 V of the divergence theorem is 6 times the unit cube's volume
    assert float(torch.linalg.det(corners).sum()) == pytest.approx(6, rel=1e-5)
    assert len(tokens) == (9 * 12 + 2 if kind == "raw" else 9 + 3 * 11 + 4 + 2)  # one strip that turns four times
    # each face depends on nine coordinates (and on a turn before it), and those spell its corners
    for face in range(12):
        places = said.token_faces[said.token_faces[:, 1] == face, 0]
        places = places[tokens[places] < tokenizer.bins]
        assert len(places) == 9
        assert sorted(tokens[places]) == sorted(said.vertices[3 * face : 3 * face + 3].reshape(-1))


def test_a_sign_belongs_to_the_face_after_it():
    # Two triangles that share nothing; the second begins after a restart at token 10.
    mesh = clean(
        np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1], [5, 5, 5], [6, 5, 5], [5, 5, 6]]), np.arange(6).reshape(2, 3)
    )
    tokenizer = Tokenizer("adjacent")
    tokens = tokenizer.encode(mesh)
    assert tokens[10] == tokenizer.vocabulary.restart
    pairs = tokenizer.decode(tokens).token_faces
    assert pairs[pairs[:, 0] == 10].tolist() == [[10, 1]]


def test_strips_of_a_fan_turn():
    # A fan around vertex 0: 012, 023, 034. The face after 023 lies across 0-3, its oldest and newest vertex.
    assert strips(np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4]])) == [0, 1, 2, -2, 3, -2, 4]


def test_bins_are_read_at_their_centres():
    assert quantise(np.array([-0.5, -0.49609375, 0.0, 0.49609375, 0.5, 9.0])).tolist() == [0, 0, 64, 127, 127, 127]
    assert dequantise(np.array([0, 127])).tolist() == [-0.49609375, 0.49609375]
    every = np.arange(128)
    assert np.array_equal(quantise(dequantise(every)), every)
    rng = np.random.default_rng(0)
    inside = rng.uniform(-0.5, 0.5, 1000)
    assert np.abs(dequantise(quantise(inside)) - inside).max() <= 0.5 / 128 + 1e-12


def test_a_mesh_comes_back_to_its_place():
    mesh, frame = to_bins(CUBE * [2, 5, 3] + 100, CUBE_FACES)
    box = mesh.mesh(frame).bounds
    assert torch.allclose(box, torch.tensor([[100.0, 100, 100], [102, 105, 103]]), atol=0.5 * 5 / 127)
    assert mesh.vertices[:, 1].min() == 0 and mesh.vertices[:, 1].max() == 127


def test_clean_drops_what_the_card_says():
    vertices = np.array([[0, 0, 0], [4, 0, 0], [0, 4, 0], [4, 0, 0], [1, 1, 1]])
    faces = np.array(
        [[2, 0, 1], [0, 3, 2], [1, 3, 0], [0, 2, 1]]
    )  # a face, it again by another index, a flat one, flipped
    mesh = clean(vertices, faces)
    assert mesh.faces.tolist() == [[0, 1, 2]] and len(mesh.vertices) == 3
    assert np.array_equal(mesh.vertices[mesh.faces[0]], vertices[[0, 1, 2]])  # wound as the first one


@pytest.mark.parametrize("kind", ["raw", "adjacent"])
def test_broken_sequences_are_failures_with_the_faces_before(kind):
    tokenizer = Tokenizer(kind)
    mesh, _ = to_bins(CUBE, CUBE_FACES)
    tokens, signs = tokenizer.encode(mesh), tokenizer.vocabulary
    broken = {
        "no end": tokens[:-1],
        "inside a vertex": np.r_[tokens[:11], signs.end],
        "no begin": tokens[1:],
        "empty": tokens[:0],
        "no face": np.array([signs.begin, signs.end]),
        "two restarts": np.r_[tokens[:10], signs.restart, signs.restart],
        "turn at once": np.array([signs.begin, signs.turn]),
        "out of range": np.r_[tokens[:10], 10**6],
        "negative": np.r_[tokens[:10], -1],
        "pad": np.r_[tokens[:10], signs.pad],
        "begin again": np.r_[tokens[:10], signs.begin],
    }
    for name, sequence in broken.items():
        said = tokenizer.decode(sequence)
        assert said.failure, name
        faces = 12 if name == "no end" else 0 if len(sequence) < 10 or name == "no begin" else 1
        assert said.face_count == faces, name
        said.clean(), said.mesh()


@pytest.mark.parametrize("kind", ["raw", "adjacent"])
def test_any_walk_through_the_grammar_is_a_clean_mesh(kind):
    """Random allowed tokens decode without failure, into as many faces, none collapsed; raw ones come out sorted."""
    tokenizer = Tokenizer(kind, 4)
    grammar, signs = Grammar(tokenizer), tokenizer.vocabulary
    generator = torch.Generator().manual_seed(0)
    state, rows = grammar.start(256), [torch.full((256,), signs.begin)]
    dead = torch.zeros(256, dtype=torch.bool)
    for _ in range(200):
        allowed = grammar.allowed(state)
        dead |= ~allowed.any(1)
        weights = allowed.float()
        weights[:, signs.end] *= 0.3
        weights[dead] = 1
        token = torch.multinomial(weights, 1, generator=generator)[:, 0]
        state = grammar.advance(state, token)
        rows.append(token)
    sequences, ended = torch.stack(rows, 1), 0
    for row, sequence in enumerate(sequences.numpy()):
        if dead[row] or state.slot[row] != OVER:
            continue
        ended += 1
        said = tokenizer.decode(sequence)
        assert said.failure == "" and said.face_count == state.faces[row]
        corners = said.vertices.reshape(-1, 3, 3)
        for i, j in ((0, 1), (1, 2), (2, 0)):
            assert (corners[:, i] != corners[:, j]).any(1).all()
        if kind == "raw":
            assert len(said.clean().faces) <= said.face_count
            again = tokenizer.encode(said.clean())
            if len(again) == np.flatnonzero(sequence == signs.end)[0] + 1:  # no duplicates of other winding
                assert np.array_equal(again, sequence[: len(again)])
    assert ended > 50


def test_a_sign_in_the_wrong_place_ends_the_row():
    grammar = Grammar(Tokenizer("adjacent"))
    signs = grammar.tokenizer.vocabulary
    state = grammar.advance(grammar.start(2), torch.tensor([signs.restart, 5]))
    assert state.slot.tolist() == [OVER, 1] and NEXT not in state.slot


@pytest.mark.parametrize(
    ("vertices", "faces", "words"),
    [
        (CUBE, CUBE_FACES[:0], "without faces"),
        (CUBE * np.nan, CUBE_FACES, "NaN"),
        (CUBE * 0, CUBE_FACES, "one place"),
        (CUBE, CUBE_FACES + 1, "names vertex 8 of 8"),
        (CUBE * [1, 1e-9, 1e-9], CUBE_FACES[:, [0, 0, 1]], "collapse"),
    ],
)
def test_meshes_that_have_no_tokens(vertices, faces, words):
    with pytest.raises(InputError, match=words):
        to_bins(vertices, faces)
    with pytest.raises(ConfigError):
        Tokenizer("raw", 1).vocabulary  # noqa: B018
    with pytest.raises(InputError, match="no points"):
        frame_of(np.zeros((0, 3)))


def test_odd_meshes_still_go_in():
    for scale in (1e-6, 1e6):
        assert len(to_bins(CUBE * scale, CUBE_FACES)[0].faces) == 12
    one, _ = to_bins(CUBE[:3], np.array([[0, 1, 2]]))
    said = Tokenizer().decode(Tokenizer().encode(one))
    assert said.failure == "" and said.face_count == 1
    flipped = np.concatenate([CUBE_FACES, CUBE_FACES[:, ::-1]])  # non-manifold: every face twice
    assert len(to_bins(CUBE, flipped)[0].faces) == 12


@pytest.mark.parametrize("kind", ["raw", "adjacent"])
def test_what_cannot_be_exceeded_any_more_is_not_equalled(kind):
    """A whole face comes after the last one in order, its vertices after its first: neither may run out of room."""
    tokenizer = Tokenizer(kind, 8)
    grammar, signs, far = Grammar(tokenizer), tokenizer.vocabulary, 7
    face = [far, far, 0, far, far, 1, far, far, far]
    again = [signs.begin, *face, *([signs.restart] if kind == "adjacent" else []), *face[:5]]
    state = grammar.start(1)
    for token in again[1:]:
        assert grammar.allowed(state)[0, token], token
        state = grammar.advance(state, torch.tensor([token]))
    assert grammar.allowed(state)[0].nonzero().flatten().tolist() == list(range(2, 8))  # 1 would have to end above 7
    state = grammar.start(1)
    for token in (3, far, far):
        state = grammar.advance(state, torch.tensor([token]))
    assert grammar.allowed(state)[0].nonzero().flatten().tolist() == list(range(4, 8))
