"""Compiled functions hold the ops as custom ops, without a graph break; interpreted."""

from __future__ import annotations

import pytest
import torch
from interpreter import interpreted, needs_triton
from torch import Tensor
from torch.fx import GraphModule

from orthoopt.kernels import triton_dispatch, triton_gram
from orthoopt.kernels import triton_products as products

pytestmark = [needs_triton, interpreted]

TRIPLES = ((3.4445, -4.7750, 2.0315),) * 3


def iteration(x: Tensor, scale: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    a = products.syrk(x, alpha=scale)
    b = products.symm_poly(a, -4.775, scale)
    c = products.symm_matmul(a, b, c=a, beta=3.4445)
    y = products.axpy_matmul(x, b, 3.4445, out=out)
    z = triton_gram.small_gram(x, TRIPLES, dtype=torch.float32)
    assert z is not None
    return a, b, c, y, z


def test_no_graph_break_and_the_same_bits() -> None:
    x, scale = torch.randn(2, 20, 33), torch.tensor([0.02, 0.03])
    graphs = []

    def keep(graph: GraphModule, inputs: list[Tensor]) -> GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(iteration, backend=keep, fullgraph=True)
    expected = iteration(x, scale, torch.empty_like(x))
    for _ in range(2):
        for got, wanted in zip(compiled(x, scale, torch.empty_like(x)), expected, strict=True):
            assert torch.equal(got, wanted)
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes if "orthoopt" in str(node.target)]
    assert len(called) == 5 and sum("symmetric_product" in name for name in called) == 3


def test_eager_calls_pass_the_custom_ops_by(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a custom op was called")

    monkeypatch.setattr(triton_dispatch, "_symmetric_op", forbidden)
    monkeypatch.setattr(triton_dispatch, "_axpy_op", forbidden)
    monkeypatch.setattr(triton_gram, "_small_gram_op", forbidden)
    x = torch.randn(2, 20, 33)
    iteration(x, torch.tensor([0.02, 0.03]), torch.empty_like(x))


@pytest.mark.parametrize("tensors", [False, True])
def test_the_custom_ops_are_what_their_schemas_say(tensors: bool) -> None:
    """Nothing but ``out`` is written, on strides too; the graph of a compiler gives the same."""
    x, scales = torch.randn(2, 33, 20).mT, torch.tensor([0.02, 0.03]) if tensors else None
    a = products.syrk(x)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    numbers = (0.5, scales, -1.5, scales)
    for op, arguments in (
        (triton_dispatch._symmetric_op, ("syrk", x, x, None, *numbers, torch.empty_like(a))),
        (triton_dispatch._symmetric_op, ("symm_matmul", a, a.clone(), a.clone(), *numbers, torch.empty_like(a))),
        (triton_dispatch._axpy_op, (x, a, *numbers, torch.empty_like(x))),
        (triton_gram._small_gram_op, (x, sum(TRIPLES, ()), 1.0, tensors, False, 0, torch.empty_like(x))),
    ):
        torch.library.opcheck(op, arguments, test_utils=tests)
