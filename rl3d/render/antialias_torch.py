"""Silhouette antialiasing in plain torch: the readable reference, any device and dtype, differentiable to the cameras.

After Laine et al. 2020, "Modular primitives for high-performance differentiable rendering", section 3.6. Where two
neighbouring pixels see different faces, the nearer surface may end between their centres. Its silhouette edge crosses
the segment of centres at t in [0, 1] from the pixel that sees it (t is in pixels). Reading the edge as parallel to the
pixels' common side, the surface covers t - 1/2 of the other pixel if t > 1/2, and leaves 1/2 - t of its own pixel free
otherwise; that share of a pixel takes the colour of its neighbour. The image is then continuous in the edge's position,
so that gradients reach the vertices (and cameras) through occlusion.

Three choices differ from the paper:

- The paper tests the edges of the one face that the nearer pixel sees. Here the segment is followed from face to face
  across the mesh until it leaves the visible sheet, so that meshes with faces smaller than a pixel, whose silhouettes
  lie on slivers that no pixel sees, are antialiased and differentiated as well.
- Rows are blended first, columns second, on the result of the rows. Both passes are convex combinations, so alpha stays
  in [0, 1], and the corner of an axis-aligned box gets the product of its two coverages.
- An edge is used by the pass that it is steeper to (rows: at least 45 degrees in pixels), so that no area counts twice.

An edge is a silhouette if it is a boundary, if more than two faces meet there, or if the far corners of its two faces
lie on one side of the plane through the eye and the edge (whatever their winding). Where surfaces pierce each other
there is no edge, hence no antialiasing and no gradient. All of it is computed in camera space, without a division by a
depth: edges may run through the near plane and behind the eye.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.render.mesh_torch import NEAR, camera_vertices

MAX_STEPS = 256  # faces that a segment of one pixel may cross before the search gives up


@dataclass(frozen=True)
class Crossings:
    """Silhouette edges between neighbouring pixels of one pass (rows or columns); nothing here is differentiable.

    Attributes:
        near, far: [K] int64 flat indices v H W + row W + column of the pixel that sees the edge's surface and of its
            neighbour.
        edge: [K, 2] int64 vertices.
    """

    near: Tensor
    far: Tensor
    edge: Tensor


def face_neighbours(faces: Tensor) -> Tensor:
    """The faces across the edges of each face.

    Args:
        faces: [F, 3] int64.

    Returns:
        [F, 3] int64: entry k is the face across the edge from corner k to corner k + 1; -1 where there is none, where
        more than two faces meet, or where the edge joins a vertex with itself.
    """
    n = int(faces.max()) + 1 if faces.numel() else 1
    a, b = faces.reshape(-1), faces.roll(-1, 1).reshape(-1)
    key, order = torch.sort(torch.minimum(a, b) * n + torch.maximum(a, b), stable=True)
    same = key[1:] == key[:-1]  # [3F - 1]
    no = same.new_zeros(1)
    before, after = torch.cat([no, same]), torch.cat([same, no])  # equal to the entry before, after
    two = after & ~before & ~torch.cat([after[1:], no])  # the first of exactly two
    first = two.nonzero()[:, 0]
    one, other = order[first], order[first + 1]
    out = torch.full_like(a, -1)
    out[one], out[other] = other // 3, one // 3
    out[(a == b) | (out == torch.arange(len(a), device=a.device) // 3)] = -1  # edges of faces without an area
    return out.reshape(-1, 3)


@torch.no_grad()
def silhouette_crossings(
    face_id: Tensor,
    depth: Tensor,
    vertices: Tensor,
    faces: Tensor,
    neighbours: Tensor,
    view: Tensor,
    intrinsics: Tensor,
    axis: int,
) -> Crossings:
    """The pairs of pixels between which a visible surface ends.

    Args:
        face_id: [V, H, W]. depth: [V, H, W]. vertices: [N, 3]. faces, neighbours: [F, 3].
        axis: 0 compares pixels of one row, 1 of one column.
    """
    n_views, height, width = face_id.shape
    index = torch.arange(face_id.numel(), device=face_id.device).reshape(face_id.shape)
    first, second = (index[..., :-1], index[..., 1:]) if axis == 0 else (index[:, :-1], index[:, 1:])
    ids = face_id.reshape(-1)
    z = torch.where(ids >= 0, depth.reshape(-1).double(), torch.inf)
    differs = ids[first] != ids[second]
    one, two = first[differs], second[differs]  # [P]
    forward = z[one] <= z[two]
    near, far = torch.where(forward, one, two), torch.where(forward, two, one)
    geometry = (camera_vertices(vertices.double(), view.double()), faces, neighbours, intrinsics.double())
    edge, end = _follow(near, far, ids, *geometry, height, width, axis)
    # The sheet of the nearer pixel goes on behind the other: then it is the other's that ends in between.
    swap = (edge[:, 0] < 0) & (end != ids[far]) & (ids[far] >= 0)
    again, _ = _follow(far[swap], near[swap], ids, *geometry, height, width, axis)
    edge[swap] = again
    near, far = torch.where(swap, far, near), torch.where(swap, near, far)
    kept = edge[:, 0] >= 0
    return Crossings(near[kept], far[kept], edge[kept])


def _follow(
    start: Tensor,
    stop: Tensor,
    ids: Tensor,
    camera: Tensor,
    faces: Tensor,
    neighbours: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    axis: int,
) -> tuple[Tensor, Tensor]:
    """Follow the segments from pixels `start` [P] to `stop` [P] across the mesh until the sheet ends.

    Returns:
        edge [P, 2]: the vertices of the silhouette edge, -1 where there is none or where it belongs to the other pass;
        end [P]: the face that the segment ends in, -1 where it left the sheet.
    """
    edge = torch.full((len(start), 2), -1, dtype=torch.int64, device=start.device)
    end = torch.full_like(start, -1)
    of_view = torch.div(start, height * width, rounding_mode="floor")
    flip = [1, 0, 2] if axis else [0, 1, 2]  # (u, v, z): u runs along the segment
    camera = camera[..., flip]
    fu, fv = intrinsics[:, flip[0], flip[0]], intrinsics[:, flip[1], flip[1]]
    u0, v0 = _centre(start, intrinsics, height, width, axis)
    ahead = (stop > start).to(u0.dtype) * 2 - 1  # +1 or -1
    face, entered = ids[start], torch.full_like(start, -1)  # entered: the edge's slot in `face`, -1 at the start
    active = torch.arange(len(start), device=start.device)
    for _ in range(MAX_STEPS):
        if len(active) == 0:
            break
        v, f, sign = of_view[active], face[active], ahead[active]
        corner = faces[f]  # [A, 3]
        p = camera[v[:, None], corner]  # [A, 3, 3]
        side = p[..., 1] - v0[active, None] * p[..., 2]  # [A, 3]
        after, p_after = side.roll(-1, 1), p.roll(-1, 1)
        crossed = (side >= 0) != (after >= 0)  # [A, 3], two of them
        over = side * p_after[..., 2] - after * p[..., 2]  # the homogeneous crossing point is (u over, over)
        u = (side * p_after[..., 0] - after * p[..., 0]) / over
        z = over / (side - after)
        in_front = z >= NEAR
        t = torch.where(in_front, sign[:, None] * (u - u0[active, None]) * fu[v, None], torch.inf)
        slots = torch.arange(3, device=f.device)
        candidate = crossed & (slots != entered[active, None])
        # At the start two edges are crossed, one ahead and one behind of t = 0; one of them may be behind the eye.
        exit_slot = torch.where(candidate, torch.where(in_front, t, 0), -torch.inf).argmax(1)
        lost = ~candidate.any(1)  # a face seen edge-on: nothing to follow
        row = torch.arange(len(f), device=f.device)
        t_exit = t[row, exit_slot]
        inside = ~lost & (t_exit > 1)
        end[active[inside]] = f[inside]
        a, b = corner[row, exit_slot], corner[row, (exit_slot + 1) % 3]
        pa, pb = p[row, exit_slot], p[row, (exit_slot + 1) % 3]
        beyond = neighbours[f, exit_slot]
        far_corner = torch.where(beyond >= 0, faces[beyond].sum(1) - a - b, 0)
        plane = torch.linalg.cross(pa, pb - pa)
        this_side = (plane * (p[row, (exit_slot + 2) % 3] - pa)).sum(1)
        that_side = (plane * (camera[v, far_corner] - pa)).sum(1)
        # Not >=: a neighbour seen edge-on ends the sheet as well.
        silhouette = (beyond < 0) | ~(this_side * that_side < 0)
        found = ~lost & ~inside & silhouette
        steep, flat = plane[:, 0].abs() / fu[v], plane[:, 1].abs() / fv[v]
        fits = (steep >= flat) if axis == 0 else (steep > flat)
        keep = found & fits
        edge[active[keep]] = torch.stack([a, b], 1)[keep]
        onward = ~lost & ~inside & ~silhouette
        entered_slot = (neighbours_slot(faces, beyond, a, b))[onward]
        active, face_next = active[onward], beyond[onward]
        face[active], entered[active] = face_next, entered_slot
    return edge, end


def neighbours_slot(faces: Tensor, face: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Which edge (0, 1, 2) of faces `face` [A] joins vertices a and b [A], in either direction."""
    corner = faces[face.clamp_min(0)]
    other = (corner != a[:, None]) & (corner != b[:, None])
    return (other.to(torch.int64).argmax(1) + 1) % 3  # the edge opposite to the third corner


def _centre(pixel: Tensor, intrinsics: Tensor, height: int, width: int, axis: int) -> tuple[Tensor, Tensor]:
    """(u, v) [P] of the rays (u, v, 1) through flat pixels [P]; u is x for axis 0, y for axis 1."""
    of_view = torch.div(pixel, height * width, rounding_mode="floor")
    k = intrinsics[of_view]
    row = torch.div(pixel % (height * width), width, rounding_mode="floor")
    x = (pixel % width + 0.5 - k[:, 0, 2]) / k[:, 0, 0]
    y = (row + 0.5 - k[:, 1, 2]) / k[:, 1, 1]
    return (x, y) if axis == 0 else (y, x)


def crossing_positions(
    crossings: Crossings, vertices: Tensor, view: Tensor, intrinsics: Tensor, height: int, width: int, axis: int
) -> Tensor:
    """t [K] float64 in [0, 1], in pixels from `near`'s centre; differentiable to vertices [N, 3] and cameras."""
    of_view = torch.div(crossings.near, height * width, rounding_mode="floor")
    rotation, shift = view.double()[of_view, :3, :3], view.double()[of_view, :3, 3]
    flip = [1, 0, 2] if axis else [0, 1, 2]
    pa, pb = (
        (torch.einsum("kij,kj->ki", rotation, vertices.double()[crossings.edge[:, i]]) + shift)[:, flip]
        for i in range(2)
    )
    k = intrinsics.double()
    u0, v0 = _centre(crossings.near, k, height, width, axis)
    sa, sb = pa[:, 1] - v0 * pa[:, 2], pb[:, 1] - v0 * pb[:, 2]
    u = (sa * pb[:, 0] - sb * pa[:, 0]) / (sa * pb[:, 2] - sb * pa[:, 2])
    ahead = (crossings.far > crossings.near).to(u.dtype) * 2 - 1
    t = ahead * (u - u0) * k[of_view, axis, axis]
    return t + (t.clamp(0, 1) - t).detach()  # it is inside but for rounding


def antialias_torch(
    colours: Tensor,
    face_id: Tensor,
    depth: Tensor,
    vertices: Tensor,
    faces: Tensor,
    view: Tensor,
    intrinsics: Tensor,
    neighbours: Tensor | None = None,
) -> Tensor:
    """Blend pixels across silhouette edges; see the module's text.

    Args:
        colours: [V, H, W, D] premultiplied. face_id: [V, H, W], -1 for nothing. depth: [V, H, W], metres.
        vertices: [N, 3]. faces: [F, 3] int64. view: [V, 4, 4]. intrinsics: [V, 3, 3], pixels.
        neighbours: [F, 3] out of `face_neighbours`, None: computed.

    Returns:
        [V, H, W, D]; differentiable to colours, vertices, view and intrinsics (`depth` only orders the surfaces).
    """
    _, height, width = face_id.shape
    neighbours = face_neighbours(faces) if neighbours is None else neighbours
    image = colours.reshape(-1, colours.shape[-1])
    for axis in (0, 1):
        found = silhouette_crossings(face_id, depth, vertices, faces, neighbours, view, intrinsics, axis)
        t = crossing_positions(found, vertices, view, intrinsics, height, width, axis)
        outwards = t > 0.5  # the surface reaches into the far pixel
        share = torch.where(outwards, t - 0.5, 0.5 - t).to(image.dtype)
        into = torch.where(outwards, found.far, found.near)
        out_of = torch.where(outwards, found.near, found.far)
        image = image.index_add(0, into, share[:, None] * (image[out_of] - image[into]))
    return image.reshape(colours.shape)
