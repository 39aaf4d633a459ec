"""Resuming in other people's training loops: an interrupted run ends where an uninterrupted one does, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_integrations import Bigram, batches, tiny_llama
from torch import Tensor, nn
from torch.utils.data import DataLoader

import orthoopt

STEPS = 6


def the_same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("plan", [pytest.param("symmetry", marks=pytest.mark.slow), "dct_adamw"])
def test_accelerate_save_state_and_load_state(plan: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    data = list(batches())[:STEPS]

    def prepared(lr: float) -> tuple[Any, nn.Module, Any, Any]:
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True)
        model = Bigram()
        optimizer = orthoopt.OrthoOpt(orthoopt.param_groups(model, plan, lr=lr, weight_decay=0.1))
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
        return accelerator, *accelerator.prepare(model, optimizer, scheduler)

    def steps(prepared_: tuple[Any, nn.Module, Any, Any], some: list[Any]) -> None:
        accelerator, model, optimizer, scheduler = prepared_
        for batch in some:
            optimizer.zero_grad()
            accelerator.backward(model(batch))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()

    straight = prepared(1e-2)
    steps(straight, data[:3])
    straight[0].save_state(str(tmp_path / "state"))
    steps(straight, data[3:])
    resumed = prepared(1.0)
    with torch.no_grad():
        for param in resumed[1].parameters():
            param.zero_()
    resumed[0].load_state(str(tmp_path / "state"))
    steps(resumed, data[3:])
    assert the_same(straight[1], resumed[1])
    rates = [[group["lr"] for group in run[2].param_groups] for run in (straight, resumed)]
    assert rates[0] == rates[1]


# Of Lightning's own making: a deprecated import, few loader workers, an unused logger.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning", "ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore::FutureWarning:lightning")
def test_lightning_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = Bigram()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return self.model(batch)  # type: ignore[no-any-return]

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = orthoopt.Symmetry(self, lr=1e-2, weight_decay=0.1)
            scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def fit(most: int, resume: Path | None = None) -> tuple[nn.Module, Any]:
        trainer = lightning.Trainer(
            max_steps=most,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(tmp_path),
        )
        module = Module()
        trainer.fit(module, same, ckpt_path=resume and str(resume))
        return module, trainer

    # It does not resume its place among batches, so they are all one.
    same = DataLoader(list(batches())[:1] * STEPS, batch_size=None)  # type: ignore[arg-type]
    straight, _ = fit(STEPS)
    _, half = fit(STEPS // 2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, trainer = fit(STEPS, tmp_path / "half.ckpt")
    assert trainer.global_step == STEPS
    assert the_same(straight, resumed)


@pytest.mark.slow
def test_trainer_switches_over_from_its_adamw_in_the_middle(tmp_path: Path, capsys: Any) -> None:
    """``optimizer.pt`` of the Trainer's own AdamW, unnamed, in its two groups: decayed parameters, then the others."""
    transformers = pytest.importorskip("transformers")
    from test_integrations import Counting, trainer_arguments

    arguments = trainer_arguments(tmp_path)
    arguments.max_steps = arguments.save_steps = 2
    trainer = transformers.Trainer(model=tiny_llama(), args=arguments, train_dataset=Counting())
    trainer.train()
    model = trainer.model
    saved = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    decayed = set(trainer.get_decay_parameter_names(model))
    every = [name for name, _ in model.named_parameters()]
    names = [name for name in every if name in decayed] + [name for name in every if name not in decayed]
    optimizer = orthoopt.Muon(model, lr=1e-3)
    report = orthoopt.load_torch_state(optimizer, saved, names)
    assert {carried.how for carried in report} == {"momentum"}  # other betas: AdamW's 0.999 and Trainer's are not ours
    states = trainer.optimizer.optimizer.state
    for name, param in model.named_parameters():
        own = optimizer.state[param]
        moment = own["momentum_buffer"] if "momentum_buffer" in own else own["exp_avg"]
        assert torch.equal(moment, states[param]["exp_avg"]), name
