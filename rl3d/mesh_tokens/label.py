"""A page on this machine that shows two meshes of a pair side by side and writes a person's pick into pairs.jsonl.

Plain forms, no scripts; it listens on 127.0.0.1 alone and takes picks only with the token that its own pages carry.
"""

from __future__ import annotations

import base64
import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qs

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rl3d.errors import InputError
from rl3d.html_page import document, table, text
from rl3d.mesh_tokens.pair_files import Pair, PairSet, read_pair_set, write_pairs
from rl3d.mesh_tokens.tokenizer import Tokenizer
from rl3d.preview import to_uint8
from rl3d.wireframe import wireframe

AZIMUTHS = (0.6, 2.6)
SIZE = 300
SIDES = ("left", "right", "neither")
STYLE = """<style>body { max-width: 90rem } .pair { display: flex; gap: 1.5rem } .pair > div { flex: 1 }
button { font: inherit; padding: .5rem 1.4rem; margin: .6rem .6rem .6rem 0; cursor: pointer } form { display: inline }
</style>"""


def shown(pairs: Sequence[Pair], place: int) -> tuple[str, str]:
    """(left, right) of a pair: which side the winner is on says nothing, every second one is turned."""
    pair = pairs[place]
    return (pair.winner, pair.loser) if hash_side(pair) else (pair.loser, pair.winner)


def hash_side(pair: Pair) -> bool:
    """The same for a pair whichever of the two wins, so that a picture stays on its side after a pick."""
    first = min(pair.winner, pair.loser)
    return (sum(first.encode()) % 2 == 0) == (pair.winner == first)


def picked(pairs: Sequence[Pair], place: int, side: str) -> tuple[Pair, ...]:
    """The pairs after a person's pick: "left" or "right" wins the pair at `place`, "neither" removes it.

    Raises:
        InputError: no such pair or side.
    """
    if not 0 <= place < len(pairs):
        raise InputError(f"there is no pair {place}; the set has {len(pairs)}")
    if side not in SIDES:
        raise InputError(f"a pick is {', '.join(SIDES)}, got {side!r}")
    left, right = shown(pairs, place)
    new = {"left": [Pair(left, right, "human")], "right": [Pair(right, left, "human")], "neither": []}[side]
    return (*pairs[:place], *new, *pairs[place + 1 :])


def next_open(pairs: Sequence[Pair], after: int) -> int | None:
    """The next pair that no person has looked at, from `after` on and then from the front."""
    order = [*range(after, len(pairs)), *range(min(after, len(pairs)))]
    return next((i for i in order if pairs[i].by != "human"), None)


@dataclass
class Session:
    """A set that is being labelled; picks are on disk at once."""

    folder: Path
    tokenizer: Tokenizer
    pairs: PairSet
    token: str
    lock: Lock

    @classmethod
    def open(cls, folder: str | Path, tokenizer: Tokenizer) -> Session:
        """Raises InputError where the set cannot be read."""
        return cls(Path(folder), tokenizer, read_pair_set(folder), secrets.token_urlsafe(16), Lock())

    def pick(self, place: int, side: str, names: tuple[str, str]) -> int | None:
        """Write a pick down; the place of the next open pair.

        Raises:
            InputError: as `picked`, or the pair is no longer what the page showed.
        """
        with self.lock:
            have = self.pairs.pairs
            if not 0 <= place < len(have) or {have[place].winner, have[place].loser} != set(names):
                raise InputError("the pairs changed since this page was made; load it again")
            left = picked(have, place, side)
            write_pairs(self.folder, left)
            self.pairs = PairSet(self.pairs.shapes, self.pairs.candidates, left, self.pairs.facts)
            return next_open(left, place if side == "neither" else place + 1)


def picture(tokens: NDArray[np.integer], tokenizer: Tokenizer) -> str:
    """Wireframes from two sides as an HTML image."""
    mesh = tokenizer.decode(tokens).mesh()
    views = wireframe(mesh, torch.tensor(AZIMUTHS), size=SIZE)
    data = io.BytesIO()
    Image.fromarray(to_uint8(torch.cat(list(views), 2))).save(data, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}" alt="wireframe">'


def pair_page(session: Session, place: int) -> str:
    """The page of one pair."""
    pairs = session.pairs.pairs
    left, right = shown(pairs, place)
    shape = session.pairs.shapes[session.pairs.candidates[left].shape]
    cells = []
    for key, side, name in (("a", "left", left), ("b", "right", right)):
        candidate = session.pairs.candidates[name]
        facts = [["faces", text(len(candidate.quality))], *([k, text(v)] for k, v in candidate.scores.items())]
        looks = _cached(session.tokenizer, tuple(candidate.tokens.tolist()))
        cells.append(
            f"<div>{looks}{_button(session, place, side, key, 'This one')}"
            f"<details><summary>numbers</summary>{table(['', ''], facts)}</details></div>"
        )
    done = sum(p.by == "human" for p in pairs)
    asked = f"{shape.caption or 'points alone'}, about {shape.faces} faces"
    head = (
        f"<h1>Which mesh is better?</h1><p>{escape(asked)} &middot; pair {place + 1} of {len(pairs)}, {done} seen</p>"
    )
    legend = '<p class="quiet">Both from two sides. Red: inner sides, seen through holes or on turned faces.</p>'
    neither = _button(session, place, "neither", "n", "Neither: drop this pair")
    skip = f'<a href="/pair/{(place + 1) % len(pairs)}" accesskey="s">skip</a>'
    return document(
        "rl3d mesh label", [STYLE, head, f'<div class="pair">{"".join(cells)}</div>', legend, neither, skip]
    )


@lru_cache(maxsize=256)
def _cached(tokenizer: Tokenizer, tokens: tuple[int, ...]) -> str:
    return picture(np.asarray(tokens), tokenizer)


def _button(session: Session, place: int, side: str, key: str, label: str) -> str:
    left, right = shown(session.pairs.pairs, place)
    hidden = {"token": session.token, "place": place, "side": side, "left": left, "right": right}
    fields = "".join(f'<input type="hidden" name="{k}" value="{escape(str(v))}">' for k, v in hidden.items())
    return f'<form method="post" action="/pick">{fields}<button accesskey="{key}">{label}</button></form>'


def server(session: Session, port: int) -> ThreadingHTTPServer:
    """Ready to `serve_forever`; port 0 takes a free one.

    Raises:
        InputError: the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pairs = session.pairs.pairs
            word = self.path.removeprefix("/pair/")
            if self.path == "/":
                found = next_open(pairs, 0)
                self._to(f"/pair/{found}" if found is not None else "/done")
            elif self.path == "/done":
                done = f"<h1>All {len(pairs)} pairs are seen</h1><p>{escape(str(session.folder / 'pairs.jsonl'))}</p>"
                self._page(200, document("rl3d mesh label", [done]))
            elif word.isdigit() and int(word) < len(pairs):
                self._page(200, pair_page(session, int(word)))
            else:
                self._page(404, document("rl3d mesh label", ["<p>There is no such page. <a href='/'>Go on</a></p>"]))

        def do_POST(self) -> None:
            size = min(int(self.headers.get("Content-Length") or 0), 1 << 16)
            form = {k: v[0] for k, v in parse_qs(self.rfile.read(size).decode("utf-8", "replace")).items()}
            if self.path != "/pick" or not secrets.compare_digest(form.get("token", ""), session.token):
                self._page(403, document("rl3d mesh label", ["<p>This pick is not from a page of this session.</p>"]))
                return
            place = form.get("place", "")
            try:
                names = (form.get("left", ""), form.get("right", ""))
                found = session.pick(int(place) if place.isdigit() else -1, form.get("side", ""), names)
            except InputError as error:
                self._page(409, document("rl3d mesh label", [f"<p>{escape(str(error))} <a href='/'>Go on</a></p>"]))
                return
            self._to(f"/pair/{found}" if found is not None else "/done")

        def _to(self, where: str) -> None:
            self.send_response(303)
            self.send_header("Location", where)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _page(self, code: int, page: str) -> None:
            data = page.encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Silence: every request would be a line."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise InputError(f"port {port} cannot be had ({error.strerror or error}); give another --port") from error
