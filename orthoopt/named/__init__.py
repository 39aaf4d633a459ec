"""One constructor a system: :class:`OrthoOpt` with the groups of a ready plan.

Each takes a model, named parameters, bare parameters, or param groups, in torch's argument order; ours follow as
keywords. A learning rate tuned for AdamW carries over, for updates are scaled to the size of AdamW's.
"""

from orthoopt.named.muon import Muon
from orthoopt.named.root import Root
from orthoopt.named.row_norm import RowNorm
from orthoopt.named.symmetry import Symmetry

__all__ = ["Muon", "Root", "RowNorm", "Symmetry"]
