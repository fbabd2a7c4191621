"""From a few views to a scene: per-sample fits and feed-forward networks, behind one protocol."""

from rl3d.reconstruct.protocol import Reconstructor as Reconstructor
