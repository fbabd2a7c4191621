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
  in [0, 1].
- An edge is used by the pass that it is steeper to (rows: at least 45 degrees in pixels), so that no area counts twice.

An edge is a silhouette if all faces that meet there lie on one side of it as the eye sees it, whatever their winding;
boundaries are the case of one face. Where surfaces pierce each other there is no edge, hence no antialiasing and no
gradient, and pixels at the picture's border are compared with those inside alone. All of it is computed in camera
space, without a division by a depth: edges may run through the near plane and behind the eye.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.render.mesh_torch import NEAR, camera_vertices

MAX_STEPS = 256  # faces that a segment of one pixel may cross before the search gives up
SLACK = 1e-7  # pixels that a face without a width may lie back by rounding


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


def adjacent_edges(vertices: Tensor, faces: Tensor) -> Tensor:
    """Which edges of other faces each edge of a face coincides with.

    Args:
        vertices: [N, 3]; those of exactly equal coordinates count as one, so that files' split vertices are joined.
        faces: [F, 3] int64. Edge k of face f, from corner k to corner k + 1, has the number 3 f + k.

    Returns:
        [F, 3] int64: the number of the next edge that joins the same two places, in a cycle through all of them; -1 at
        a boundary, and for faces that use a place twice.
    """
    n = max(len(vertices), 1)
    if faces.numel():
        _, place = torch.unique(vertices.detach() + 0.0, dim=0, return_inverse=True)  # + 0: -0 is 0
        faces = place[faces]
    after = faces.roll(-1, 1)
    proper = (faces != after).all(1).repeat_interleave(3)
    number = proper.nonzero()[:, 0]
    a, b = faces.reshape(-1)[number], after.reshape(-1)[number]
    key, order = torch.sort(torch.minimum(a, b) * n + torch.maximum(a, b), stable=True)
    number = number[order]
    _, group, count = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    first = count.cumsum(0) - count
    last = torch.arange(len(key), device=key.device) == (first + count - 1)[group]
    following = torch.where(last, number[first[group]], number.roll(-1))
    out = torch.full((len(proper),), -1, dtype=torch.int64, device=faces.device)
    out[number] = torch.where(count[group] == 1, -1, following)
    return out.reshape(-1, 3)


@torch.no_grad()
def silhouette_crossings(
    face_id: Tensor,
    depth: Tensor,
    vertices: Tensor,
    faces: Tensor,
    adjacent: Tensor,
    view: Tensor,
    intrinsics: Tensor,
    axis: int,
) -> Crossings:
    """The pairs of pixels between which a visible surface ends.

    Args:
        face_id: [V, H, W]. depth: [V, H, W]. vertices: [N, 3]. faces, adjacent: [F, 3].
        axis: 0 compares pixels of one row, 1 of one column.
    """
    _, height, width = face_id.shape
    index = torch.arange(face_id.numel(), device=face_id.device).reshape(face_id.shape)
    first, second = (index[..., :-1], index[..., 1:]) if axis == 0 else (index[:, :-1], index[:, 1:])
    ids = face_id.reshape(-1)
    z = torch.where(ids >= 0, depth.reshape(-1).double(), torch.inf)
    differs = ids[first] != ids[second]
    one, two = first[differs], second[differs]  # [P]
    forward = z[one] <= z[two]
    near, far = torch.where(forward, one, two), torch.where(forward, two, one)
    geometry = (camera_vertices(vertices.double(), view.double()), faces, adjacent, intrinsics.double())
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
    adjacent: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    axis: int,
) -> tuple[Tensor, Tensor]:
    """Follow the segments from pixels `start` [P] to `stop` [P] across the mesh until the sheet ends.

    The segment leaves a face through an edge at t. If another face at this edge carries the segment on, it is the next;
    if the edge's other faces all lie back, or there are none, the edge is a silhouette.

    Returns:
        edge [P, 2]: the vertices of the silhouette edge, -1 where there is none or where it belongs to the other pass;
        end [P]: the face that the segment ends in, -1 where it left the sheet.
    """
    edge = torch.full((len(start), 2), -1, dtype=torch.int64, device=start.device)
    end = torch.full_like(start, -1)
    of_view = torch.div(start, height * width, rounding_mode="floor")
    camera = camera[..., [1, 0, 2] if axis else [0, 1, 2]]  # (u, v, z): u runs along the segment
    fu, fv = intrinsics[of_view, axis, axis], intrinsics[of_view, 1 - axis, 1 - axis]
    u0, v0 = _centre(start, intrinsics, height, width, axis)
    scale = torch.where(stop > start, fu, -fu)

    def crossing(p: Tensor, q: Tensor, who: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where edges p q [A, 3] cross the rows of segments `who`: do they, t, and is that before the eye."""
        side, other = p[:, 1] - v0[who] * p[:, 2], q[:, 1] - v0[who] * q[:, 2]
        over = side * q[:, 2] - other * p[:, 2]  # the homogeneous crossing point is (u over, over)
        t = ((side * q[:, 0] - other * p[:, 0]) / over - u0[who]) * scale[who]
        in_front = over / (side - other) >= NEAR
        return (side >= 0) != (other >= 0), torch.where(in_front, t, torch.inf), in_front

    # In the first face two edges are crossed, one ahead and one behind of t = 0; one of them may be behind the eye.
    segment = torch.arange(len(start), device=start.device)
    score = torch.full((len(start), 3), -torch.inf, dtype=u0.dtype, device=u0.device)
    at = score.clone()
    for k in range(3):
        p, q = (camera[of_view, faces[ids[start], i % 3]] for i in (k, k + 1))
        crossed, at[:, k], in_front = crossing(p, q, segment)
        score[:, k] = torch.where(crossed, torch.where(in_front, at[:, k], 0), -torch.inf)
    best, slot = score.max(1)
    segment = (best > -torch.inf).nonzero()[:, 0]  # the others see a face edge-on: nothing to follow
    number = (3 * ids[start] + slot)[segment]
    t = at.gather(1, slot[:, None])[segment, 0]
    for _ in range(MAX_STEPS):
        inside = t > 1
        end[segment[inside]] = torch.div(number[inside], 3, rounding_mode="floor")
        segment, number, t = segment[~inside], number[~inside], t[~inside]
        if len(segment) == 0:
            break
        a, b, c = _corners(faces, number)
        v = of_view[segment]
        pa, pb = camera[v, a], camera[v, b]
        plane = torch.linalg.cross(pa, pb - pa)
        this_side = (plane * (camera[v, c] - pa)).sum(1)
        onward = torch.full_like(number, -1)
        t_next = t.clone()
        candidate = adjacent.reshape(-1)[number]
        while True:
            asked = ((candidate >= 0) & (candidate != number) & (onward < 0)).nonzero()[:, 0]
            if len(asked) == 0:
                break
            who, edge_number = segment[asked], candidate[asked]
            first, _, third = _corners(faces, edge_number)
            p, d = camera[v[asked], first], camera[v[asked], third]
            side = torch.stack([x[:, 1] - v0[who] * x[:, 2] for x in (p, d)])
            # The segment leaves through the edge between the third corner and the one on its other side.
            with_first = (side[0] >= 0) != (side[1] >= 0)
            exit_number = _turned(edge_number, torch.where(with_first, 2, 1))
            q, r = (camera[v[asked], x] for x in _corners(faces, exit_number)[:2])
            _, t_exit, in_front = crossing(q, r, who)
            that_side = (plane[asked] * (d - pa[asked])).sum(1)
            ahead = torch.where(in_front, t_exit >= t[asked] - SLACK, this_side[asked] * that_side < 0)
            onward[asked] = torch.where(ahead, exit_number, -1)
            t_next[asked] = torch.where(ahead, t_exit, t[asked])
            candidate[asked] = adjacent.reshape(-1)[edge_number]
        steep, flat = plane[:, 0].abs() / fu[segment], plane[:, 1].abs() / fv[segment]
        keep = (onward < 0) & ((steep >= flat) if axis == 0 else (steep > flat))
        edge[segment[keep]] = torch.stack([a, b], 1)[keep]
        more = onward >= 0
        segment, number, t = segment[more], onward[more], t_next[more]
    return edge, end


def _corners(faces: Tensor, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The vertices of edges `number` [A], and the third corner of their faces."""
    corners = faces.reshape(-1)
    return corners[number], corners[_turned(number, 1)], corners[_turned(number, 2)]


def _turned(number: Tensor, by: Tensor | int) -> Tensor:
    """The edges `by` places on in the same faces."""
    return number - number % 3 + (number + by) % 3


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
    adjacent: Tensor | None = None,
) -> Tensor:
    """Blend pixels across silhouette edges; see the module's text.

    Args:
        colours: [V, H, W, D] premultiplied. face_id: [V, H, W], -1 for nothing. depth: [V, H, W], metres.
        vertices: [N, 3]. faces: [F, 3] int64. view: [V, 4, 4]. intrinsics: [V, 3, 3], pixels.
        adjacent: [F, 3] out of `adjacent_edges`, None: computed.

    Returns:
        [V, H, W, D]; differentiable to colours, vertices, view and intrinsics (`depth` only orders the surfaces).
    """
    _, height, width = face_id.shape
    adjacent = adjacent_edges(vertices, faces) if adjacent is None else adjacent
    image = colours.reshape(-1, colours.shape[-1])
    for axis in (0, 1):
        found = silhouette_crossings(face_id, depth, vertices, faces, adjacent, view, intrinsics, axis)
        t = crossing_positions(found, vertices, view, intrinsics, height, width, axis)
        outwards = t > 0.5  # the surface reaches into the far pixel
        share = torch.where(outwards, t - 0.5, 0.5 - t).to(image.dtype)
        into = torch.where(outwards, found.far, found.near)
        out_of = torch.where(outwards, found.near, found.far)
        image = image.index_add(0, into, share[:, None] * (image[out_of] - image[into]))
    return image.reshape(colours.shape)
