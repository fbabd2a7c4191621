"""Options of runs that take a second, and a verdict that no judge had to be loaded for."""

from __future__ import annotations

from dataclasses import replace

from rl3d.text_to_3d.options import (
    DistillOptions,
    GenerateOptions,
    LiftOptions,
    MeshOptions,
    PreviewOptions,
    SampleOptions,
)

TINY = GenerateOptions(
    seed=1,
    sample=SampleOptions(steps=2, candidates=2),
    lift=LiftOptions(steps=8, gaussians=300, grid=16),
    distill=DistillOptions(steps=6, save_every=2),
    mesh=MeshOptions(resolution=16, views=4, render_size=32, faces=120, texture=32),
    preview=PreviewOptions(frames=2, size=24),
)
TINY_DRAFT = replace(
    TINY,
    sample=SampleOptions(steps=1, candidates=1, rings=1),
    lift=LiftOptions(steps=10, gaussians=200, grid=16),
    distill=DistillOptions(steps=0),
    mesh=replace(TINY.mesh, faces=80),
)
VERDICT = {"reward": {"similarity": 0.5}, "gold": {"similarity": 0.4}, "unknown_words": []}
