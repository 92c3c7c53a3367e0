"""A hub repository's components, fetched into the hub's cache as a folder; all else is loaded from folders."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download

from sd35h5.errors import CaptureError, ConfigError
from sd35h5.weights.model_facts import base_path, hub_sentence
from sd35h5.weights.weight_sets import files_to_fetch


def local_base(
    model_id: str, subfolders: Collection[str], option: str = "--model_id", variant: str = ""
) -> Path:
    """The folder or file that a model is, fetched from the hub if need be.

    Args:
        subfolders: those that are needed; nothing else is downloaded.
        variant: of the weights, in the folders that have it.

    Raises:
        CaptureError: the hub refuses or is not there, and the cache does not have it.
        ConfigError: neither a path nor a hub id.
    """
    base = base_path(model_id, option)
    if base is not None:
        return base
    failed: Exception | None = None
    for cached_only in (False, True):
        try:
            listed = [] if cached_only else list_repo_files(model_id)  # in the cache there is what there is
            patterns = files_to_fetch(listed, subfolders, variant)
            return Path(snapshot_download(model_id, allow_patterns=patterns, local_files_only=cached_only))
        except ConfigError:
            raise
        except Exception as error:  # the hub's and its client's errors have no common parent
            failed = failed or error
    first = str(failed).strip().split("\n")[0][:200]
    raise CaptureError(f"{hub_sentence(model_id, failed)} ({first})") from failed
