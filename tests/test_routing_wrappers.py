"""Wrappers put components into names and modules between modules; what they wrap stays what it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import convnets
import mamba_code
import models
import pytest
import titan_code
import torch
import torch.distributed as dist
import vits
import x_code
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from orthoopt.naming import clean_name
from orthoopt.roles import classify, roles

MODELS: dict[str, Callable[[], nn.Module]] = {
    "Llama": lambda: models.llama("cpu"),
    "tied Llama": lambda: models.llama("cpu", tie_word_embeddings=True),
    "OLMoE": lambda: models.olmoe("cpu"),
    "torchtitan's mixture": lambda: titan_code.TitanTransformer(moe=True),
    "x-transformers": lambda: x_code.XTransformer(glu=True),
    "mamba": lambda: mamba_code.MambaLMHeadModel(mamba_code.Mamba()),
    "vision transformer": lambda: vits.VisionTransformer(vits.GluMlp, pooled=True),
    "ConvNeXt": convnets.ConvNeXt,
    "SqueezeNet": convnets.SqueezeNet,
}


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():  # of torch's own making: what compiling imports is deprecated
        warnings.simplefilter("ignore")
        return torch.compile(model)


def data_parallel(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp(model: nn.Module, use_orig_params: bool = True) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():  # one rank has nothing to shard with, as it says
        warnings.simplefilter("ignore")
        return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))


def fully_sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))


def each_child(
    wrap: Callable[[nn.Module], nn.Module], kinds: type | tuple[type, ...]
) -> Callable[[nn.Module], nn.Module]:
    """Replace every module of these kinds by its wrapped self, from the leaves up."""

    def replace(model: nn.Module) -> nn.Module:
        for name, child in list(model.named_children()):
            replace(child)
            if isinstance(child, kinds) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
                setattr(model, name, wrap(child))
        return model

    return replace


def chain(*steps: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def apply(model: nn.Module) -> nn.Module:
        for step in steps:
            model = step(model)
        return model

    return apply


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": compiled,
    "torch.compile of layers": each_child(compiled, (nn.Linear, nn.MultiheadAttention)),
    "DDP": data_parallel,
    "FSDP": fsdp,
    "fully_shard": fully_sharded,
    "checkpointed layers": each_child(checkpoint_wrapper, (nn.Linear, nn.Conv2d, nn.Embedding)),
    "checkpointed blocks": each_child(checkpoint_wrapper, nn.Module),
    "average": AveragedModel,
    "DataParallel": nn.DataParallel,
    "DDP of compiled checkpoints": chain(each_child(checkpoint_wrapper, nn.Linear), compiled, data_parallel),
    "compiled FSDP of checkpoints": chain(each_child(checkpoint_wrapper, nn.Linear), fsdp, compiled),
}


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_routed_as_it_was(wrapper: str, which: str) -> None:
    plain = classify(MODELS[which]())
    wrapped = classify(WRAPPERS[wrapper](MODELS[which]()))
    assert [clean_name(str(c.name)) for c in wrapped] == [str(c.name) for c in plain]
    for one, two in zip(plain, wrapped, strict=True):
        assert (one.role, one.view, one.per_head) == (two.role, two.view, two.per_head), two
        if one.role != "tied_embedding":  # its reason names the other tensor
            assert one.reason == two.reason


@pytest.mark.parametrize("which", ["Llama", "OLMoE", "torchtitan's mixture", "ConvNeXt"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_so_are_its_names(wrapper: str, which: str) -> None:
    plain = roles(MODELS[which]().named_parameters())
    wrapped = roles(WRAPPERS[wrapper](MODELS[which]()).named_parameters())
    assert [entry[1:] for entry in plain] == [entry[1:] for entry in wrapped]


def test_parameters_that_fsdp_flattens_are_listed_as_unknown() -> None:
    (entry,) = roles(fsdp(models.llama("cpu"), use_orig_params=False))
    assert entry.role == "unknown" and "use_orig_params=True" in entry.reason


def test_a_module_of_a_users_own_called_module_is_no_wrapper_less() -> None:
    model = nn.ModuleDict(
        {"module": nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)})})}
    )
    assert [e.role for e in roles(model) if e.name.endswith("weight")] == ["mlp_in", "mlp_out"]
