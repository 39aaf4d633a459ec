"""What a run would read, as configured, and whether the Hub has it: nothing is downloaded but a description."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

from orthoopt.recipes.arguments import DataArguments
from orthoopt.recipes.errors import RecipeError, nearest

_SECONDS = 5.0  # for the Hub to answer


def describe_data(data: DataArguments) -> list[str]:
    """The corpus in words: what it is, and what is known of it. Raises `RecipeError` for what is known to be wrong."""
    name = data.data
    if name.startswith("builtin:"):
        return [name]
    path = Path(name.split(":", 1)[-1] if ":" in name else name)
    if path.exists():
        return [f"{name}, there"]
    if ":" in name or path.suffix or name.startswith((".", "/", "~")):
        raise RecipeError(f"--data {name}: there is no such file or folder")
    how = "streamed" if data.streaming else "downloaded"
    held = f"split {data.validation_split} held out" if data.validation_split else "documents held out of it"
    about = f"config {data.data_config}, " if data.data_config else ""
    line = f"{name}, {about}split {data.data_split}, column {data.text_column}, {how}, {held}"
    try:
        info = HfApi().dataset_info(name, timeout=_SECONDS)
    except RepositoryNotFoundError as error:
        raise RecipeError(f"--data {name}: the Hub has no such dataset, or not for you") from error
    except Exception as error:  # of whatever library reaches the Hub; `_unknown` says which
        return [line, _unknown(error)]
    card = info.card_data.to_dict() if info.card_data is not None else {}
    checked = _check_card(data, card)
    gated = f"gated ({info.gated}): accept its terms at huggingface.co/datasets/{name}" if info.gated else "open"
    return [line, f"on the Hub, {gated}; {checked}"]


def describe_tokenizer(data: DataArguments) -> list[str]:
    """The tokenizer in words. Raises `RecipeError` for one that is known not to be there."""
    name = data.tokenizer
    if name is None:
        return [f"byte-level BPE of {data.vocab_size:,} tokens, trained on the corpus"]
    if os.path.exists(name):
        return [f"{name}, there"]
    try:
        info = HfApi().model_info(name, timeout=_SECONDS)
    except RepositoryNotFoundError as error:
        raise RecipeError(f"--tokenizer {name}: the Hub has no such repository, or not for you") from error
    except Exception as error:  # as above
        return [name, _unknown(error)]
    files = {item.rfilename for item in info.siblings or ()}
    if files and "tokenizer.json" not in files:
        return [name, "on the Hub, without a tokenizer.json"]
    terms = f"gated ({info.gated}): accept its terms at huggingface.co/{name}, and log in" if info.gated else "open"
    return [name, f"on the Hub, {terms}"]


def _unknown(error: Exception) -> str:
    """Why nothing is known. Which errors there are changes with the library that huggingface_hub reaches the Hub by."""
    if isinstance(error, OfflineModeIsEnabled):
        return "not checked: offline"
    return f"not checked: the Hub cannot be reached ({type(error).__name__})"


def _check_card(data: DataArguments, card: Mapping[str, Any]) -> str:
    """Hold the options against the dataset's card, which need not say everything; what it confirms, in words."""
    confirmed = []
    configs = {item["config_name"]: item for item in card.get("configs") or () if "config_name" in item}
    if data.data_config and configs:
        if data.data_config not in configs:
            raise RecipeError(
                f"--data_config {data.data_config!r} is none of {data.data}'s: {sorted(configs)}"
                f"{nearest(data.data_config, configs)}"
            )
        confirmed.append("config")
    infos = card.get("dataset_info") or []
    infos = [infos] if isinstance(infos, Mapping) else infos
    own = [item for item in infos if item.get("config_name", data.data_config) == data.data_config] or infos
    features = {feature["name"] for item in own for feature in item.get("features") or () if "name" in feature}
    if features:
        if data.text_column not in features:
            raise RecipeError(
                f"--text_column {data.text_column!r} is none of {data.data}'s columns: {sorted(features)}"
                f"{nearest(data.text_column, features)}"
            )
        confirmed.append("column")
    chosen = configs.get(data.data_config or "default", {})
    files = chosen.get("data_files")
    splits = {item["split"] for item in files if "split" in item} if isinstance(files, list) else set()
    if splits:
        if data.data_split not in splits:
            raise RecipeError(f"--data_split {data.data_split!r} is none of {data.data}'s splits: {sorted(splits)}")
        confirmed.append("split")
    return f"its card has the {', '.join(confirmed)}" if confirmed else "its card does not say what it holds"
