"""One line changes in other people's training code: `orthoopt.Symmetry(...)` where `torch.optim.AdamW(...)` stood."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from docs_blocks import ROOT, run_blocks
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import orthoopt

VOCABULARY = 32
# Each test's loss starts near ln 32 = 3.47 and the sequences below are predictable: a working optimizer halves it in
# these steps, and no noise of a batch (about 0.05) takes it down by 1.
STEPS = 40
MARGIN = 1.0


class Counting(Dataset[dict[str, Tensor]]):
    """Sequences that count upwards modulo the vocabulary from a random start."""

    def __len__(self) -> int:
        return 16 * STEPS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = torch.randint(VOCABULARY, (1,), generator=torch.Generator().manual_seed(index))
        ids = (start + torch.arange(12)) % VOCABULARY
        return {"input_ids": ids, "labels": ids.clone()}


def tiny_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )


class Bigram(nn.Module):
    """An embedding, a hidden layer and a head: plain torch."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.hidden = nn.Linear(32, 64)
        self.head = nn.Linear(64, VOCABULARY)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        ids = batch["input_ids"]
        logits = self.head(self.hidden(self.embedding(ids[:, :-1])).relu())
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def batches() -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Counting(), batch_size=16)


def assert_learned(losses: list[float]) -> None:
    assert losses[0] > 3.0, "the model had nothing to learn"
    assert losses[-1] < losses[0] - MARGIN, losses


def trainer_arguments(path: Path):
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(path),
        per_device_train_batch_size=16,
        max_steps=STEPS,
        logging_steps=1,
        save_strategy="steps",
        save_steps=STEPS // 2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )


def losses_of(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_trainer_with_an_instance(tmp_path, capsys) -> None:
    from transformers import Trainer

    model = tiny_llama()
    optimizer = orthoopt.Symmetry(model, lr=1e-2, weight_decay=0.1)
    trainer = Trainer(
        model=model, args=trainer_arguments(tmp_path), train_dataset=Counting(), optimizers=(optimizer, None)
    )
    trainer.train()
    assert_learned(losses_of(trainer))


def test_trainer_with_the_factory_trains_and_resumes(tmp_path, capsys) -> None:
    from transformers import Trainer

    def train(resume: str | None = None):
        trainer = Trainer(
            model=tiny_llama(),
            args=trainer_arguments(tmp_path),
            train_dataset=Counting(),
            optimizer_cls_and_kwargs=(orthoopt.hf.OptimizerFactory, {"plan": "symmetry", "lr": 1e-2}),
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    straight = train()
    assert_learned(losses_of(straight))
    optimizer = straight.optimizer.optimizer
    assert type(optimizer) is orthoopt.OrthoOpt
    assert {group["rule"] for group in optimizer.param_groups} >= {"spectral", "row_norm", "adamw"}
    resumed = train(str(tmp_path / f"checkpoint-{STEPS // 2}"))
    for one, two in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_factory_takes_what_is_not_given_from_training_arguments(tmp_path) -> None:
    arguments = trainer_arguments(tmp_path)
    arguments.learning_rate, arguments.weight_decay = 0.25, 0.5
    factory = orthoopt.hf.OptimizerFactory()
    taken = factory(Bigram(), arguments, plan="muon")
    hidden = next(group for group in taken.param_groups if group["rule"] == "spectral")
    assert (hidden["lr"], hidden["weight_decay"]) == (0.25, 0.5)
    given = factory(Bigram(), arguments, plan="muon", lr=0.125, weight_decay=0.0)
    hidden = next(group for group in given.param_groups if group["rule"] == "spectral")
    assert (hidden["lr"], hidden["weight_decay"]) == (0.125, 0.0)
    with pytest.raises(TypeError, match="learning_rate"):
        factory(Bigram(), learning_rate=1.0)
    with pytest.raises(ValueError, match="symetry"):
        factory(Bigram(), plan="symetry")


def test_accelerate_loop() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=1)
    model = tiny_llama()
    optimizer = orthoopt.Symmetry(model, lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, batches(), scheduler)
    losses = []
    for batch in data:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert_learned(losses)


# Of Lightning's own making: a deprecated import, few loader workers, an unused logger.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning", "ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore::FutureWarning:lightning")
def test_lightning_module(tmp_path) -> None:
    import lightning

    losses: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_llama()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            loss = self.model(**batch).loss
            losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            optimizer = orthoopt.Symmetry(self, lr=1e-2, weight_decay=0.1)
            scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        default_root_dir=str(tmp_path),
    )
    trainer.fit(Module(), batches())
    assert_learned(losses)


def train_bare(optimizer: torch.optim.Optimizer, model: nn.Module, spoil: Callable[[int], bool] = lambda _: False):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    losses = []
    for step, batch in enumerate(batches()):
        optimizer.zero_grad()
        loss = model(batch)
        scaler.scale(loss * float("inf") if spoil(step) else loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses, scaler


def test_bare_loop_with_grad_scaler() -> None:
    model = Bigram()
    optimizer = orthoopt.Symmetry(model, lr=1e-2, weight_decay=0.1)
    losses, scaler = train_bare(optimizer, model)
    assert_learned(losses)
    assert scaler.get_scale() == 2.0**10  # no step was skipped


def test_grad_scaler_skips_overflow_and_the_optimizer_stays_whole() -> None:
    model = Bigram()
    optimizer = orthoopt.Symmetry(model, lr=1e-2, weight_decay=0.1)
    losses, scaler = train_bare(optimizer, model, spoil=lambda step: step == 5)
    assert scaler.get_scale() == 2.0**9
    assert_learned(losses)
    assert all(torch.isfinite(param).all() for param in model.parameters())


def test_the_checkpoint_of_a_bare_loop_goes_on(tmp_path) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[dict[str, Tensor]]) -> None:
        for batch in data:
            optimizer.zero_grad()
            model(batch).backward()
            optimizer.step()

    data = list(batches())[:6]
    torch.manual_seed(0)
    model = Bigram()
    optimizer = orthoopt.Symmetry(model, lr=1e-2, weight_decay=0.1)
    steps(model, optimizer, data[:3])
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    steps(model, optimizer, data[3:])
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    other = Bigram()
    other.load_state_dict(state["model"])
    resumed = orthoopt.Symmetry(other, lr=1.0, weight_decay=0.0)
    resumed.load_state_dict(state["optimizer"])
    steps(other, resumed, data[3:])
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


# What torchrun sets for one process of one.
TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@pytest.fixture
def one_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As under torchrun with one process; the process group that is made is gone afterwards."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    yield
    if "accelerate" in sys.modules:  # it remembers for the whole process what it was started under
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning", "ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore::FutureWarning:lightning")
def test_every_line_of_the_page_on_swapping(
    one_of_one: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / "docs" / "swap.md")
