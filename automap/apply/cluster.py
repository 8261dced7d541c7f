"""Many machines: an existing Dask cluster as an executor. Its workers must reach the same files, and have automap."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from automap.errors import FileError, MissingExtraError

_CONNECT_S = 20


@contextmanager
def cluster_executor(address: str) -> Iterator[Executor]:
    """The workers of the Dask scheduler at `address`; a task whose worker dies is given to another one.

    Raises:
        MissingExtraError: dask.distributed is not installed.
        FileError: there is no scheduler.
    """
    try:
        from distributed import Client
    except ImportError as problem:
        raise MissingExtraError(
            "a cluster needs dask.distributed", help="pip install 'automap-weights[cluster]'"
        ) from problem
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as problem:
        raise FileError(f"there is no scheduler at {address}: {problem}", help="write tcp://HOST:PORT") from problem
    with client:
        executor: Executor = client.get_executor(pure=False, retries=2)
        yield executor
