"""What a model is trained on: the options of `orthoopt pretrain` beside model and run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from orthoopt.recipes.errors import RecipeError, nearest
from orthoopt.recipes.options import option as _option
from orthoopt.recipes.run_arguments import PretrainArguments

TOKEN_DTYPES = ("uint16", "uint32")
"""What token ids in plain files may be."""


@dataclass
class DataArguments:
    """What it is trained on."""

    _argument_group_name: ClassVar[str] = "data"

    data: str = _option(
        "builtin:stdlib",
        "builtin:stdlib, text:PATH (a file or folder of plain text), a .txt, .jsonl or .parquet file, "
        "a folder of them, tokens:PATH (a folder that orthoopt tokenize wrote, or .bin files of token ids), "
        "or the name of a Hugging Face dataset.",
    )
    data_config: str | None = _option(None, "The dataset's configuration, as in load_dataset(name, config).")
    data_split: str = _option("train", "The dataset's training split.")
    validation_split: str | None = _option(
        None,
        "The dataset's validation split; by default its own 'validation' or 'test', else documents held out.",
    )
    text_column: str = _option("text", "The column that holds the text.")
    streaming: bool = _option(False, "Read the dataset as a stream; needs --max_steps.")
    shuffle_window: int = _option(
        10_000, "With --streaming: how many documents are held in memory and shuffled among themselves."
    )
    block_size: int = _option(128, "Tokens per training example.")
    document_boundaries: bool = _option(
        False, "Keep documents in a block apart: attention stays within them, and their first tokens are not scored."
    )
    token_dtype: str = _option("uint16", "With tokens:PATH of plain .bin files: uint16 or uint32.")
    token_header_bytes: int = _option(0, "With tokens:PATH of plain .bin files: what to skip at the head of each.")
    validation_fraction: float = _option(0.05, "Share of the documents held out, chosen by a hash.")
    eval_blocks: int = _option(256, "How many held-out blocks, spread evenly, every evaluation scores.")
    tokenizer: str | None = _option(
        None,
        "A tokenizer's Hub name or folder; by default a byte-level BPE is trained on the corpus and cached.",
    )
    vocab_size: int = _option(4096, "Vocabulary of the trained tokenizer.")
    cache_dir: str | None = _option(
        None, "Where tokenizers and tokens are kept; by default orthoopt/ in $XDG_CACHE_HOME or ~/.cache."
    )


def check_data(data: DataArguments, training: PretrainArguments) -> None:
    """Check what the parser cannot. Raises `RecipeError`."""
    for option, low in (("block_size", 2), ("eval_blocks", 1), ("vocab_size", 257)):
        if getattr(data, option) < low:
            raise RecipeError(f"--{option} must be at least {low}, got {getattr(data, option)}")
    if not 0.0 < data.validation_fraction < 1.0:
        raise RecipeError(f"--validation_fraction must lie between 0 and 1, got {data.validation_fraction}")
    if data.shuffle_window < 1:
        raise RecipeError(f"--shuffle_window must be at least 1, got {data.shuffle_window}")
    if data.token_dtype not in TOKEN_DTYPES:
        raise RecipeError(
            f"--token_dtype {data.token_dtype!r} is not one of {list(TOKEN_DTYPES)}"
            f"{nearest(data.token_dtype, TOKEN_DTYPES)}"
        )
    if data.token_header_bytes < 0:
        raise RecipeError(f"--token_header_bytes must be at least 0, got {data.token_header_bytes}")
    if data.streaming and data.data.startswith(("tokens:", "text:", "builtin:")):
        raise RecipeError(f"--streaming true is for datasets, JSON lines and Parquet, not for --data {data.data}")
    if data.streaming and training.dataloader_num_workers > 0:
        raise RecipeError(
            "--dataloader_num_workers must be 0 with --streaming, got "
            f"{training.dataloader_num_workers}: a thread of each process reads and encodes ahead"
        )
