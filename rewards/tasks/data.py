"""Rows of one's own data, wherever they are: a data set of the hub, a directory, or a file, as TRL's scripts take them.

Leaves out mixtures of data sets, and streaming.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lockstitch import files

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_split(name: str, split: str = "train", config: str | None = None) -> Any:
    """A split of a data set as a `datasets.Dataset`.

    Args:
        name: a name on the hub, a directory (of data files, or saved by `datasets`), or a `.jsonl`, `.json`, `.csv` or
            `.parquet` file, the first three also compressed (`.gz`).
        split: its split; a file, all of one, is asked for no other than `train`.
        config: its configuration on the hub.

    Raises `ValueError` for what is not there or cannot be read, naming bad lines of a file.
    """
    import pyarrow
    from datasets.exceptions import DatasetsError

    path = Path(name)
    if is_file_name(name):
        for option, said in (("dataset_config", config), ("split", None if split == "train" else split)):
            if said is not None:
                raise ValueError(f"{option}={said!r} would be ignored: {name!r} is a file, all of it one split")
        if path.suffix != ".parquet":
            return table_of(files.read_rows(path, dict), name)
        if not path.is_file():
            raise ValueError(f"dataset_name={name!r} is not a file")
    try:
        return _loaded(name, split, config)
    except StopIteration:
        why = "a file without rows"
    except (OSError, ConnectionError, ValueError, DatasetsError, pyarrow.ArrowException) as error:
        why = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(f"dataset_name={name!r} cannot be loaded: {why}")


def _loaded(name: str, split: str, config: str | None) -> Any:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    path = Path(name)
    if path.suffix == ".parquet" and is_file_name(name):
        return Dataset.from_parquet(name)
    if not ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        return load_dataset(name, config, split=split)
    saved = load_from_disk(name)
    if not isinstance(saved, DatasetDict):
        if split != "train":
            raise ValueError(f"split={split!r} would be ignored: it was saved as one split")
        return saved
    if split not in saved:
        raise ValueError(f"split {split!r} is not one of {', '.join(saved)}")
    return saved[split]


def table_of(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Rows as a `datasets.Dataset` with the columns of all of them: None where a row has none.

    Raises `ValueError` for a column whose values are of several types, with the file's `name`.
    """
    import pyarrow
    from datasets import Dataset

    columns = {
        column: [row.get(column) for row in rows] for column in dict.fromkeys(key for row in rows for key in row)
    }
    try:
        return Dataset.from_dict(columns)
    except (pyarrow.ArrowException, TypeError, OverflowError):
        for column, values in columns.items():
            try:
                Dataset.from_dict({column: values})
            except (pyarrow.ArrowException, TypeError, OverflowError) as error:
                raise ValueError(
                    f"{name}: the column {column!r} holds values of several types, where one is needed: {error}"
                ) from error
        raise


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
