"""One constructor a system: :class:`OrthoOpt` with the groups of a ready plan.

Each takes a model, named parameters, bare parameters, or param groups, in torch's argument order; ours follow as
keywords. A learning rate tuned for AdamW carries over, for updates are scaled to the size of AdamW's; only Scion's has
the paper's units.
"""

from orthoopt.named.auon import AuON
from orthoopt.named.dct_adamw import DCTAdamW
from orthoopt.named.dion2 import Dion2
from orthoopt.named.hybrid_auon import HybridAuON
from orthoopt.named.muon import Muon
from orthoopt.named.polargrad import PolarGrad
from orthoopt.named.root import Root
from orthoopt.named.row_norm import RowNorm
from orthoopt.named.scion import Scion
from orthoopt.named.ssd import SSD
from orthoopt.named.symmetry import Symmetry
from orthoopt.named.trion import Trion

__all__ = [
    "SSD",
    "AuON",
    "DCTAdamW",
    "Dion2",
    "HybridAuON",
    "Muon",
    "PolarGrad",
    "Root",
    "RowNorm",
    "Scion",
    "Symmetry",
    "Trion",
]
