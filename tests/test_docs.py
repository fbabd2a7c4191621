"""The documentation's code runs, its links lead somewhere, and its commands have the options that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from rl3d.cli.main import COMMANDS, build_parser
from rl3d.scenes import Mesh

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = re.compile(r"<!-- runnable -->\n```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^ {4,}|[`&] ?)(rl3d [a-z]+ [^`\n]*)", re.MULTILINE)


def blocks(page: Path) -> list[str]:
    return RUNNABLE.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    Mesh(corners, faces, vertex_colours=corners).save("asset.glb")
    names: dict[str, object] = {"__name__": "page"}
    for i, block in enumerate(blocks(page)):  # one page is one session: later blocks use what earlier ones made
        exec(compile(block, f"{page.name}, block {i + 1}", "exec"), names)


def test_the_pages_that_promise_code_have_some() -> None:
    for name in ("README.md", "docs/priors.md", "docs/conventions.md"):
        assert blocks(ROOT / name), name
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- runnable -->") == len(blocks(page)), f"{page.name}: a mark without a block after it"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_commands_have_the_options_that_are_named() -> None:
    checked = 0
    for page in PAGES:
        for line in COMMAND.findall(page.read_text(encoding="utf-8")):
            words = shlex.split(line, comments=True)[1:]
            assert words[0] in COMMANDS, f"{page.name}: {line}"
            parser = build_parser(words[0])._subparsers._group_actions[0].choices[words[0]]  # type: ignore[union-attr, index]
            if parser._subparsers is not None:  # a group of commands: its first word is one of them
                parser = parser._subparsers._group_actions[0].choices[words[1]]  # type: ignore[index]
            known = {option for action in parser._actions for option in action.option_strings}
            for option in (w.partition("=")[0] for w in words if w.startswith("--")):
                assert option in known, f"{page.name}: {line}: {option}"
            checked += 1
    assert checked >= 10
