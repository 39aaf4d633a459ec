"""The page of `orthoopt bench finetune`: what every arm reached on the new text and lost on the old."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orthoopt.bench import tables

_HEADER = ("arm", "trained", "best lr", "new text", "minus adamw", "old text", "rise of old", "minus adamw")


def page(result: Mapping[str, Any]) -> str:
    """Markdown: a table a base, then every learning rate that was tried."""
    parts = []
    for plan, base in result["bases"].items():
        before, scored = base["before"], base["scored"]
        parts.append(f"## Pretrained with {plan}")
        parts.append(
            f"{base['pretraining']['steps']} steps, {base['pretraining']['tokens']:,} tokens of "
            f"{base['pretraining']['corpus']['name']}, then {base['steps']} steps, {base['tokens']:,} tokens of "
            f"{base['corpus']['name']}. Losses in nats per token, means of {result['settings']['seeds']} seeds; "
            f"brackets are 95% intervals of differences within seeds. Before fine-tuning: new text "
            f"{before['new_loss']:.3f} ({scored['blocks']} blocks), old text {before['old_loss']:.3f}."
        )
        parts.append(tables.markdown(_HEADER, [_cells(name, base) for name in base["arms"]]))
        parts.append("Every learning rate tried, seed 0: new text / rise of the old.")
        rows = [
            (name, ", ".join(f"{row['learning_rate']:g}: {_loss(row['new_loss'])} / {_signed(row['forgotten'])}"
                             for row in arm["grid"]))
            for name, arm in base["arms"].items()
        ]  # fmt: skip
        parts.append(tables.markdown(("arm", "rates"), rows, left=2))
    return tables.document("Plans in fine-tuning", dict(result), parts)


def _cells(name: str, base: Mapping[str, Any]) -> tuple[str, ...]:
    arm = base["arms"][name]
    return (
        name,
        f"{arm['trainable']:,}",
        f"{arm['best_learning_rate']:g}",
        _loss(arm["new_loss"]["mean"]),
        _difference(base, "new_loss", name),
        _loss(arm["old_loss"]["mean"]),
        _signed(arm["forgotten"]["mean"]),
        _difference(base, "old_loss", name),
    )


def _difference(base: Mapping[str, Any], key: str, name: str) -> str:
    """The difference from AdamW with its interval, empty for AdamW itself."""
    for row in base["differences"][key]:
        if row["between"][0] == name:
            mean, interval = row["difference"]["mean"], row["difference"]["ci95"]
            return _signed(mean) + (f" [{_signed(interval[0])}, {_signed(interval[1])}]" if interval else "")
    return ""


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"
