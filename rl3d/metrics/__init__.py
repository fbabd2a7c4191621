"""What a mesh is worth without looking at it: topology, quads, distances from a reference. numpy; no gradients.

Each function takes a `Mesh` or a `Surface` (prepared once for all of them); docs/mesh_metrics.md has every formula.
"""

from rl3d.metrics.geometry import PROTOCOL, Geometry, Protocol, Reference, compare, reference, sample_points
from rl3d.metrics.quads import Quads, TopologyScore, face_quality, pair_quads, topology_score
from rl3d.metrics.surface import Surface, as_surface, surface
from rl3d.metrics.topology import Topology, topology

__all__ = [
    "PROTOCOL",
    "Geometry",
    "Protocol",
    "Quads",
    "Reference",
    "Surface",
    "Topology",
    "TopologyScore",
    "as_surface",
    "compare",
    "face_quality",
    "pair_quads",
    "reference",
    "sample_points",
    "surface",
    "topology",
    "topology_score",
]
