from __future__ import annotations

from pathlib import Path

import pytest

from rl3d.errors import InputError
from rl3d.text_to_3d.prompts import LARGEST_FILE_MIB, LONGEST_SLUG, folder_name, read_prompts


def test_a_prompt_a_line_without_blank_ones_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red chest\r\n\r\n  # trees\n  a grüner Baum \ra # b\na\x85b\n\n".encode())
    assert read_prompts(file) == ["a red chest", "a grüner Baum", "a # b", "a\x85b"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no prompt"),
        (b"\n  \n# all of it\n", "holds no prompt"),
        (b"a chest\na \xff box\n", "line 2 is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "line 1 is not UTF-8"),
        (b"glTF\0\0\0\2", "holds zero bytes"),
        (b"a chest\n" * (LARGEST_FILE_MIB * 2**17 + 1), "has over 16 MiB"),
    ],
)
def test_a_file_that_holds_no_prompts(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_prompts(file)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file: --prompts"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(tmp_path)
    (tmp_path / "file").write_text("a chest")
    with pytest.raises(InputError, match="cannot read --prompts"):
        read_prompts(tmp_path / "file" / "below.txt")


def test_names_of_folders_are_readable_stable_and_unique() -> None:
    assert folder_name("a small wooden barrel") == "a-small-wooden-barrel"
    alike = [
        "a red chest",
        "A red chest",
        "a red, chest",
        "a red  chest",
        "a-red-chest",
        "椅子",
        "凳子",
        "?",
        "x" * 500,
    ]
    alike += ["x" * 499, "x" * LONGEST_SLUG, "y" * LONGEST_SLUG]
    names = [folder_name(prompt) for prompt in alike]
    assert len({name.lower() for name in names}) == len(alike)
    assert all(name.startswith("a-red-chest") for name in names[:5])
    assert names[5] == "asset-e57f49ca"  # the same on every machine
    assert max(map(len, names)) <= LONGEST_SLUG + 9
