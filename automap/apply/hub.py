"""`hf://ORG/NAME[@REVISION][/FILE]`: the copy in the hub's cache where there is one, else the repository itself.

A repository is read at the commit that its revision is when the run begins, whatever is pushed to it meanwhile.
"""

from __future__ import annotations

from pathlib import Path

from automap.errors import FileError

_SCHEME = "hf://"
_OTHER_KINDS = ("datasets/", "spaces/", "kernels/", "buckets/")  # left to the hub's own file system


def hub_place(spec: str) -> str:
    """The spec with a `hf://` repository replaced by its folder in the cache if that has weights, else by its commit.

    Raises:
        FileError: the repository is not in the cache, and the hub does not have it or is not to be asked.

    Example:
        >>> hub_place("run7.pt:model")
        'run7.pt:model'
    """
    if not spec.startswith(_SCHEME) or spec.removeprefix(_SCHEME).startswith(_OTHER_KINDS):
        return spec
    from huggingface_hub import constants

    repository, revision, file = _split(spec)
    folder = _cached(repository, revision)
    if folder is not None and _has_weights(folder, file):
        return str(folder / file) if file else str(folder)
    if constants.HF_HUB_OFFLINE:
        raise FileError(f"{spec} is not in the local cache, and the hub is off-line (HF_HUB_OFFLINE)")
    commit = _commit(repository, revision)
    return f"{_SCHEME}{repository}@{commit}" + (f"/{file}" if file else "")


def _split(spec: str) -> tuple[str, str | None, str]:
    """Repository, revision and file of a spec."""
    organisation, _, rest = spec.removeprefix(_SCHEME).partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    if not organisation or not name:
        raise FileError(f"{spec} names no repository", help="write hf://ORG/NAME, with @REVISION or /FILE behind it")
    return f"{organisation}/{name}", revision or None, file


def _cached(repository: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as problem:
        raise FileError(f"hf://{repository} names no repository: {problem}") from problem


def _commit(repository: str, revision: str | None) -> str:
    """The commit that a revision of a repository on the hub is now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    spec = f"{_SCHEME}{repository}"
    try:
        commit = HfApi().model_info(repository, revision=revision).sha
    except GatedRepoError as problem:
        raise FileError(f"{spec} is gated: its terms have to be accepted on its page first") from problem
    except RepositoryNotFoundError as problem:
        advice = "check the name; a private one needs `hf auth login`"
        raise FileError(f"the hub has no repository {spec}", help=advice) from problem
    except RevisionNotFoundError as problem:
        raise FileError(f"{spec} has no revision {revision}") from problem
    except Exception as problem:  # whatever the hub's client of the day raises where there is no network
        raise FileError(f"{spec} cannot be reached: {' '.join(str(problem).split())[:200]}") from problem
    assert commit is not None
    return commit


def _has_weights(folder: Path, file: str) -> bool:
    """Whether the cache has what is asked for, with all shards of an index."""
    from automap.apply.index import file_in_folder, read_index
    from automap.apply.places import Place
    from automap.errors import CheckpointError

    if file and ".." not in file.split("/"):
        return (folder / file.partition(":")[0]).is_file()
    try:
        found = file_in_folder(Place(str(folder)))
        names = set(read_index(found).weight_map.values()) if found.name.endswith(".index.json") else set()
    except CheckpointError:
        return False
    return all((folder / name).is_file() for name in names)
