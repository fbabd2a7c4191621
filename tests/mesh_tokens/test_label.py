"""Labelling pairs in a browser: what a pick changes, and the page over real HTTP."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from tiny_mesh_pairs import BINS, pairs_of_boxes

from rl3d.errors import InputError
from rl3d.mesh_tokens.label import Session, next_open, picked, server, shown
from rl3d.mesh_tokens.pair_files import Pair, read_pair_set, write_pair_set
from rl3d.mesh_tokens.tokenizer import Tokenizer

PAIRS = [Pair("a", "b"), Pair("c", "d", "human"), Pair("f", "e")]


def test_a_pick_writes_the_shown_side_and_neither_removes() -> None:
    for place in range(3):
        left, right = shown(PAIRS, place)
        assert picked(PAIRS, place, "left")[place] == Pair(left, right, "human")
        assert picked(PAIRS, place, "right")[place] == Pair(right, left, "human")
        assert shown(picked(PAIRS, place, "right"), place) == (left, right)  # nothing jumps to the other side
        assert len(picked(PAIRS, place, "neither")) == 2
    for place, side in ((3, "left"), (-1, "left"), (0, "both")):
        with pytest.raises(InputError):
            picked(PAIRS, place, side)


def test_the_winner_is_on_either_side() -> None:
    names = [(f"shape{i}/0", f"shape{i}/1") for i in range(60)]
    on_left = [shown([Pair(*p)], 0)[0] == p[0] for p in names]
    assert 0.25 < np.mean(on_left) < 0.75


def test_the_next_open_pair() -> None:
    assert next_open(PAIRS, 0) == 0 and next_open(PAIRS, 1) == 2 and next_open(PAIRS, 3) == 0
    assert next_open([PAIRS[1]], 0) is None


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[Session, int]]:
    write_pair_set(tmp_path, pairs_of_boxes())
    session = Session.open(tmp_path, Tokenizer("adjacent", BINS))
    running = server(session, 0)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield session, running.server_address[1]
    running.shutdown()
    running.server_close()
    thread.join()


def ask(port: int, method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Status, where it sends us, and the text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = urlencode(form) if form is not None else None
    connection.request(method, path, body, {"Content-Type": "application/x-www-form-urlencoded"} if body else {})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.getheader("Location", ""), text


def forms(text: str) -> list[dict[str, str]]:
    found = []
    for form in re.findall(r"<form.*?</form>", text):
        found.append({k: unescape(v) for k, v in re.findall(r'name="(\w+)" value="([^"]*)"', form)})
    return found


def test_two_picks_over_http_are_in_the_file(page: tuple[Session, int]) -> None:
    session, port = page
    assert ask(port, "GET", "/")[:2] == (303, "/pair/0")
    status, _, text = ask(port, "GET", "/pair/0")
    assert status == 200 and text.count("data:image/png") == 2 and "red box, about 12 faces" in text
    left, right, neither = forms(text)
    assert (left["side"], right["side"], neither["side"]) == ("left", "right", "neither")
    assert ask(port, "POST", "/pick", right)[:2] == (303, "/pair/1")
    assert read_pair_set(session.folder).pairs[0] == Pair(right["right"], right["left"], "human")
    drop = forms(ask(port, "GET", "/pair/1")[2])[2]
    assert ask(port, "POST", "/pick", drop)[:2] == (303, "/done")
    assert len(read_pair_set(session.folder).pairs) == 1
    assert "All 1 pairs are seen" in ask(port, "GET", "/done")[2]


def test_strange_requests_change_nothing(page: tuple[Session, int]) -> None:
    session, port = page
    before = (session.folder / "pairs.jsonl").read_bytes()
    good = forms(ask(port, "GET", "/pair/0")[2])[0]
    assert ask(port, "POST", "/pick", {**good, "token": "guess"})[0] == 403
    assert ask(port, "POST", "/pick", {})[0] == 403
    assert ask(port, "POST", "/pick", {**good, "place": "1"})[0] == 409  # the page showed another pair
    assert ask(port, "POST", "/pick", {**good, "place": "x"})[0] == 409
    assert ask(port, "POST", "/pick", {**good, "side": "both"})[0] == 409
    assert ask(port, "GET", "/pair/99")[0] == 404 and ask(port, "GET", "/../etc")[0] == 404
    assert (session.folder / "pairs.jsonl").read_bytes() == before


def test_a_taken_port_is_said(page: tuple[Session, int]) -> None:
    session, port = page
    with pytest.raises(InputError, match=f"port {port} cannot be had"):
        server(session, port)
