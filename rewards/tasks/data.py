"""Rows of one's own data, wherever they are: a data set of the hub, a directory, or a file, as TRL's scripts take them.

Leaves out mixtures of data sets, and streaming.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockstitch import files

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_split(name: str, split: str = "train", config: str | None = None) -> Any:
    """A split of a data set as a `datasets.Dataset`.

    Args:
        name: a name on the hub, a directory (of data files, or saved by `datasets`), or a `.jsonl`, `.json`, `.csv` or
            `.parquet` file, the first three also compressed (`.gz`).
        split: its split; a file is all of one.
        config: its configuration on the hub.

    Raises `ValueError` for what is not there or cannot be read, naming bad lines of a file.
    """
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    path = Path(name)
    if is_file_name(name):
        if config is not None:
            raise ValueError(f"dataset_config={config!r} would be ignored: {name!r} is a file")
        if path.suffix != ".parquet":
            return Dataset.from_list(files.read_rows(path, dict))
        if not path.is_file():
            raise ValueError(f"dataset_name={name!r} is not a file")
        return Dataset.from_parquet(name)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = load_from_disk(name)
            if not isinstance(saved, DatasetDict):
                return saved
            if split not in saved:
                raise ValueError(f"split {split!r} of {name!r} is not one of {', '.join(saved)}")
            return saved[split]
        return load_dataset(name, config, split=split)
    except (OSError, ConnectionError) as error:
        raise ValueError(f"dataset_name={name!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def is_file_name(name: str) -> bool:
    """Whether a name says a file of rows, there or not, rather than a directory or a data set of the hub."""
    path = Path(name)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return suffix in FORMATS and (path.is_file() or (not path.is_dir() and "/" not in name))


def renamed(rows: Any, columns: Mapping[str, str]) -> Any:
    """A data set with the columns that were asked for: `columns` says which of its own each one is.

    Raises `ValueError` for a column that is not there.
    """
    for wanted, there in columns.items():
        if there not in rows.column_names:
            raise ValueError(
                f"columns: there is no {there!r} to be {wanted!r}; there are {', '.join(rows.column_names)}"
            )
        if wanted != there:
            if wanted in rows.column_names:
                rows = rows.remove_columns(wanted)
            rows = rows.rename_column(there, wanted)
    return rows


def read_columns(text: str | None) -> dict[str, str]:
    """`question:problem,answer:solution` as a mapping from the names that are wanted to those that there are."""
    pairs = [part.partition(":") for part in (text or "").split(",") if part.strip()]
    for wanted, colon, there in pairs:
        if not (wanted.strip() and colon and there.strip()):
            raise ValueError(f"columns={text!r}: WANTED:THERE, with commas between several, such as question:problem")
    return {wanted.strip(): there.strip() for wanted, _, there in pairs}
