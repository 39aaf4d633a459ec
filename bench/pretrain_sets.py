"""Ready comparisons of `orthoopt bench pretrain`: a config, arms and a budget under a name."""

from __future__ import annotations

from typing import NamedTuple

_ARMS = (
    "torch.optim.AdamW,torch.optim.AdamW+embedding_x10,torch.optim.Muon+embedding_x10,"
    "pytorch_optimizer.SOAP+embedding_x10,muon,symmetry,symmetry_hybrid,root,hybrid_auon"
)


class Comparison(NamedTuple):
    """What a set stands for; each value has an option of the same name that replaces it."""

    about: str
    config: str
    arms: str
    trials: int
    seeds: int = 3


SETS = {
    "quick": Comparison("AdamW against symmetry on the default recipe", "default", "torch.optim.AdamW,symmetry", 5),
    "dense": Comparison("a small dense model; an hour on two CPU cores", "bench_dense", _ARMS, 6),
    "moe": Comparison("a small mixture of experts; an hour on two CPU cores", "bench_moe", _ARMS, 6),
    "overnight": Comparison("the default recipe; a night on two CPU cores", "default", _ARMS, 9, 5),
    "gpu": Comparison("124M parameters on WikiText-103, for a GPU", "bench_gpu_dense", _ARMS, 7),
    "gpu_moe": Comparison("a mixture of experts on WikiText-103, for a GPU", "bench_gpu_moe", _ARMS, 7),
}
DEFAULT = "dense"
