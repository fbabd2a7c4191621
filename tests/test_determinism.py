"""Compiled kernels give the same bits for the same inputs: on any number of threads, at any address, under load."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.render import render
from rl3d.render.compositing import composite
from rl3d.render.gaussians import splat
from rl3d.scenes import Mesh

CAMERAS = Cameras.orbit(torch.arange(3) * 2.0, 0.3, 2.7, 0.47, 37)  # 37: neither tiles nor vectors come out even


def at_offset(tensor: Tensor, words: int) -> Tensor:
    """A copy that begins `words` elements after an address that 64 bytes divide."""
    room = torch.empty(tensor.numel() + 32, dtype=tensor.dtype)
    start = -room.data_ptr() % 64 // tensor.element_size() + words
    return room[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)


def slopes(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    """The outputs and the gradients of a random sum of them."""
    g = torch.Generator().manual_seed(5)
    loss = sum((out * torch.rand(out.shape, generator=g)).sum() for out in outputs)
    return [*(out.detach() for out in outputs), *torch.autograd.grad(loss, leaves)]  # type: ignore[arg-type]


def splats(words: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    raw = [0.3 * torch.randn(400, 3, generator=g), 0.02 + 0.05 * torch.rand(400, 3, generator=g)]
    raw += [torch.randn(400, 4, generator=g), torch.rand(400, generator=g), torch.rand(3, 400, 5, generator=g)]
    raw[0][200:] = raw[0][:200]  # ties in depth
    leaves = [at_offset(t, words).requires_grad_() for t in raw]
    return slopes(splat(*leaves, CAMERAS.view, CAMERAS.intrinsics, 37, 37, backend="cpu"), leaves)


def sheet(words: int) -> Mesh:
    x, y = torch.meshgrid(*[torch.linspace(-0.5, 0.5, 24)] * 2, indexing="ij")
    vertices = torch.stack([x, y, 0.2 * torch.sin(9 * x) * torch.cos(7 * y)], -1).reshape(-1, 3)
    i = torch.arange(24 * 24).reshape(24, 24)
    a, b, c, d = (t.reshape(-1) for t in (i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]))
    faces = torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])
    colours = torch.rand(576, 3, generator=torch.Generator().manual_seed(1))
    return Mesh(
        at_offset(vertices, words).requires_grad_(), faces, vertex_colours=at_offset(colours, words).requires_grad_()
    )


def mesh(words: int) -> list[Tensor]:
    scene = sheet(words)
    frames = render(scene, CAMERAS, backend="cpu")
    assert scene.vertex_colours is not None
    return slopes((frames.rgb, frames.alpha, frames.depth), [scene.vertices, scene.vertex_colours])


def rays(words: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(2)
    offsets = torch.randint(0, 30, (200,), generator=g).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), offsets])
    total = int(offsets[-1])
    raw = [0.3 * torch.rand(total, generator=g), torch.randn(total, 3, generator=g)]
    leaves = [at_offset(t, words).requires_grad_() for t in raw]
    return slopes(composite(*leaves, offsets, backend="cpu"), leaves)


@contextmanager
def load() -> Iterator[None]:
    """Two threads that keep allocating and computing, so that threads and memory come in another order each time."""
    stop = threading.Event()

    def work(seed: int) -> None:
        g = np.random.default_rng(seed)
        while not stop.is_set():
            np.sort(g.random(int(g.integers(1, 20_000)), dtype=np.float32))

    workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(2)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join()


@pytest.mark.parametrize("kernels", [splats, mesh, rays])
def test_the_same_inputs_give_the_same_bits(kernels: Callable[[int], list[Tensor]]) -> None:
    most = numba.config.NUMBA_NUM_THREADS
    first = kernels(0)
    assert all(bool(t.isfinite().all()) for t in first) and float(first[0].abs().max()) > 0
    before = numba.get_num_threads()
    try:
        with load():
            for threads in sorted({1, 2, most} & set(range(1, most + 1))):
                numba.set_num_threads(threads)
                for words in (0, 1, 8, 0):  # aligned to 64, 4 and 32 bytes; what numba allocates is aligned to 32
                    again = kernels(words)
                    assert len(again) == len(first)
                    for i, (a, b) in enumerate(zip(first, again)):
                        assert torch.equal(a, b), f"output {i} on {threads} threads, {4 * words} bytes off"
    finally:
        numba.set_num_threads(before)


def test_kernels_compiled_here_and_kernels_found_on_disk_give_the_same_bits(tmp_path: Path) -> None:
    """A callee that is not inlined is compiled twice, by itself and inside its caller; which of the two copies runs
    depends on whether this process compiled it. With reassociated sums the two differ."""
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="1")
    code = "import test_determinism as t; print(t.digest(t.splats(0)))"
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); {code}"]
    compiled, found = (
        subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert len(compiled) > 60 and list(tmp_path.rglob("*.nbc"))
    assert compiled == found


def digest(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()
