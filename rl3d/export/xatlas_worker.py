"""A process of its own around xatlas: run as a script, arrays in on stdin, arrays out on stdout (`.npz`, no pickles).

xatlas cannot be interrupted and ends its process on some broken meshes; here neither reaches the caller. Imports numpy
and xatlas only, so that it starts in a fraction of a second.
"""

from __future__ import annotations

import io
import sys

import numpy as np
import xatlas


def main() -> None:
    with np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False) as given:
        vertices, faces = given["vertices"], given["faces"]
        resolution, padding, max_cost = int(given["resolution"]), int(given["padding"]), float(given["max_cost"])
    charts = xatlas.ChartOptions()
    charts.max_cost = max_cost
    pack = xatlas.PackOptions()
    pack.resolution = resolution
    pack.padding = padding
    pack.bilinear = True
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    atlas.generate(charts, pack)
    source, face_uvs, uvs = atlas[0]
    out = io.BytesIO()
    counts = np.array([atlas.chart_count, atlas.atlas_count])
    np.savez(out, source=source, face_uvs=face_uvs, uvs=uvs, counts=counts, utilization=atlas.get_utilization(0))
    sys.stdout.buffer.write(out.getvalue())


if __name__ == "__main__":
    main()
