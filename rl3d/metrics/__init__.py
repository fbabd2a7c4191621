"""What a mesh is worth without looking at it: topology, quads, distances from a reference. No gradients.

Each function takes a `Mesh` or a `Surface` (prepared once for all of them); docs/mesh_metrics.md has every formula.
"""

from rl3d.metrics.connectivity import Topology, topology
from rl3d.metrics.geometry import PROTOCOL, Geometry, Protocol, Reference, compare, reference, sample_points
from rl3d.metrics.intersections import self_intersecting
from rl3d.metrics.loops import EdgeLoops, edge_loops
from rl3d.metrics.quads import Quads, TopologyScore, face_quality, pair_quads, topology_score
from rl3d.metrics.score import GATES, Gates, MeshScore, load_surface, score_file, score_mesh, worst_score
from rl3d.metrics.sets import SetScores, set_scores
from rl3d.metrics.surfaces import Surface, as_surface, surface

__all__ = [
    "GATES",
    "PROTOCOL",
    "EdgeLoops",
    "Gates",
    "Geometry",
    "MeshScore",
    "Protocol",
    "Quads",
    "Reference",
    "SetScores",
    "Surface",
    "Topology",
    "TopologyScore",
    "as_surface",
    "compare",
    "edge_loops",
    "face_quality",
    "load_surface",
    "pair_quads",
    "reference",
    "sample_points",
    "score_file",
    "score_mesh",
    "self_intersecting",
    "set_scores",
    "surface",
    "topology",
    "topology_score",
    "worst_score",
]
