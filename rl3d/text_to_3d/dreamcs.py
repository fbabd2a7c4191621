"""DreamCS (Zou et al. 2025, arXiv 2506.09814): score distillation plus a reward on the mesh itself.

    L(psi) = L_SDS(psi) - alpha(t) r(d(psi) | c)

d is a differentiable iso-surface (marching tetrahedra, as in the paper's DMTet) of the scene's signed distance, alpha
grows linearly over the run (`method.reward.weight`). The reward sees the mesh and its renders, with gradients through
vertices and silhouettes; it is capped, relu(cap - r), and balanced by gradient norm on the scene's leaves, because a
mesh has no render to compare gradients on. The paper's RewardCS is one such reward (a mini of it is embedded as
"rewardcs-mini"); any reward of a mesh or its views serves. For a reward that looks at the mesh alone nothing is
rendered.
"""

from __future__ import annotations

import torch

from rl3d.errors import InputError
from rl3d.rewards.pictures import mesh_input
from rl3d.text_to_3d.engine import Guidance, Shot, checked, combine, predict, watch_constant, weight_of


def dreamcs(shot: Shot) -> Guidance:
    x0 = predict(shot, shot.noise(1))
    target = combine(shot.x, x0, torch.full(x0.shape[:2], weight_of(shot)))
    strength = shot.method.reward.weight.at(shot.progress)  # alpha(t)
    if strength == 0:
        return Guidance(target)
    reward, surface = shot.reward, shot.surface
    assert reward is not None
    if surface is None:
        raise InputError("method dreamcs needs a scene with a surface; set method.scene=sdf, or take --method dreamcs")
    with torch.enable_grad():
        mesh = surface(shot.method.dreamcs.resolution)
        if len(mesh.faces) == 0:  # nothing to judge; the distillation alone may bring a surface back
            return Guidance(target, numbers={"faces": 0.0})
        views = shot.prior.n_views
        cameras = shot.cameras[:views]  # the first group's: it is one mesh
        pictures = getattr(reward, "needs", None) != ("mesh",)
        seen = mesh_input(mesh, cameras, shot.prompt.prompts[:1], pictures)
        scores = checked(reward, seen)
        loss = (shot.method.reward.cap - scores).relu().sum()
    memory = watch_constant(shot.memory, scores, reward.name)
    numbers = {"reward": float(scores.detach().mean()), "faces": float(len(mesh.faces))}
    return Guidance(target, scene_loss=loss, strength=strength, numbers=numbers, memory=memory)
