from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from rl3d.errors import InputError
from rl3d.files import atomic_path, atomic_write_bytes, atomic_write_text, file_lock, write_json


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_write_makes_folders_and_leaves_one_file(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a" / "b.txt", "grüße")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "grüße"
    assert names(tmp_path / "a") == ["b.txt"]


def test_an_exception_in_the_block_keeps_the_old_file_and_removes_the_new(tmp_path: Path) -> None:
    target = tmp_path / "asset.glb"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="halfway"), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise ValueError("halfway")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["asset.glb"]


def test_ctrl_c_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "x.ply") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*x\.ply: No space left"), atomic_path(tmp_path / "x.ply"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_the_temporary_file_keeps_the_suffix_and_the_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "turn.webp") as temporary:
        assert temporary.suffix == ".webp"
        assert temporary.parent == tmp_path
        assert not (tmp_path / "turn.webp").exists()
    assert (tmp_path / "turn.webp").exists()


def test_a_target_below_a_file_or_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        atomic_write_bytes(tmp_path / "file" / "x.bin", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        atomic_write_bytes(tmp_path / "folder", b"")
    assert names(tmp_path) == ["file", "folder"]


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    write_json(target, {"a": [1, "é"]})
    with pytest.raises(ValueError):
        write_json(target, {"a": math.nan})
    assert json.loads(target.read_text(encoding="utf-8")) == {"a": [1, "é"]}
    assert names(tmp_path) == ["report.json"]


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.lock"
    with file_lock(path) as mine:
        with file_lock(path) as also_mine:
            assert (mine, also_mine) == (True, False)
        assert path.exists()
    assert names(tmp_path / "new") == []
    with pytest.raises(ValueError, match="oh"), file_lock(path):
        raise ValueError("oh")
    with file_lock(path, wait=True) as mine:
        assert mine


def test_a_lock_dies_with_its_process_and_those_who_wait_get_it(tmp_path: Path, killed_holder: Callable) -> None:
    path = tmp_path / "a.lock"
    with killed_holder(path, seconds=0.3):
        with file_lock(path) as mine:
            assert not mine
        with file_lock(path, wait=True) as mine:
            assert mine
    assert names(tmp_path) == []


def test_threads_that_wait_for_a_lock_take_turns(tmp_path: Path) -> None:
    """Its file is removed and made again between two holders: nobody may hold a lock on a removed one."""
    inside, seen = [], []

    def work() -> None:
        for _ in range(50):
            with file_lock(tmp_path / "a.lock", wait=True):
                inside.append(1)
                seen.append(len(inside))
                inside.pop()

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 200


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"), file_lock(tmp_path / "file" / "a.lock"):
        pass
