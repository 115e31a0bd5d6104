"""Checkpoints: saved in the background, visible only when complete, checked when read.

The only file that knows Orbax. A checkpoint of step s is the folder ``<directory>/<s>``:

    parameters/   the parameters (readable alone with Orbax)
    loop/         optimiser state, step, key, count of refused steps, carry
    manifest/     JSON: shape, dtype and checksum of each array, the data position

What a disk or a cut-off copy broke is found by the checksums before it is trained on.
"""

import errno
import functools
import gc
import json
import logging
import os
import pathlib
import re
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from zoo import _checks as checks
from zoo import extras
from zoo._paths import path_name
from zoo.training import remote
from zoo.training.digest import describe, is_key
from zoo.training.state import TrainState


class Checkpointer:
    """The checkpoints of one run.

    Every method is to be called by all processes. Use it as a context manager, so that a save in
    the background ends before the program does.

    Args:
        directory: created if absent; a path, or a bucket that ``etils.epath`` knows (``gs://…``).
        keep: how many of the newest checkpoints stay.

    Raises:
        ValueError: if keep < 1.
        ImportError: without the extra ``train``.

    >>> import tempfile, optax
    >>> from zoo.training import init_state, make_mesh
    >>> init = lambda key: {"kernel": jax.numpy.zeros((3, 1))}
    >>> state = init_state(init, optax.sgd(0.1), key=jax.random.key(0), mesh=make_mesh())
    >>> with tempfile.TemporaryDirectory() as folder, Checkpointer(folder) as checkpointer:
    ...     _ = checkpointer.save(state, position={"batch": 0})
    ...     restored, position = checkpointer.restore(state)
    >>> position
    {'batch': 0}
    """

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 3) -> None:
        checks.count("keep", keep, at_least=1)
        orbax = extras.require("orbax.checkpoint.experimental.v1", "train")
        self.directory = extras.require("etils.epath", "train").Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        _say_failed_saves_once()
        registry = orbax.handlers.local_registry()
        registry.add(orbax.handlers.JsonHandler, checkpointable_name="manifest")
        context = orbax.Context()
        context.checkpointables.registry = registry
        self._orbax = orbax.training.Checkpointer(
            self.directory,
            context=context,
            preservation_policy=orbax.training.preservation_policies.LatestN(keep),
        )
        self._damaged: list[int] = []
        self._owns_directory = False

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OSError:
            if error is None:  # else it has been said, or what led here has
                raise

    @property
    def place(self) -> str:
        """Where the checkpoints are kept, as the user named it."""
        return remote.url_of(self.directory) or str(self.directory)

    def steps(self) -> list[int]:
        """The steps of the checkpoints, ascending; those still being saved are among them."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def save(self, state: TrainState, *, position: Any) -> bool:
        """Starts saving; returns once the state is copied, so the next step may donate it.

        Args:
            state: what to save; its step names the checkpoint.
            position: of the data, anything JSON holds; the same on every process.

        Returns:
            Whether a save began; False if this step is saved already.

        Raises:
            TypeError: if the position is not JSON.
            ValueError: if it differs between processes, or a later step is saved already.
            OSError: if this save or an earlier one in the background failed (a full disk).
        """
        step = int(state.step)
        self._make_room()
        if step in self.steps():
            return False
        if step < (latest := max(self.steps(), default=step)):
            raise ValueError(
                f"step must be more than that of the newest checkpoint, {latest}, which would be "
                f"restored in its place, got {step}; discard({step}) removes the later ones"
            )
        text = json.dumps({"leaves": describe(state), "position": position}, sort_keys=True)
        crc = zlib.crc32(text.encode())
        if len(np.unique(multihost_utils.process_allgather(np.uint32(crc)))) > 1:
            raise ValueError(f"position must be the same on every process, got here {position!r}")
        manifest = {"content": json.loads(text), "crc32": crc}
        items = {**_items(state), "manifest": manifest}
        with _named(self.directory):
            self._orbax.save_checkpointables_async(step, items, force=True)
        if remote.is_staged(self.directory):
            self.wait()
            try:
                remote.publish(self.directory)
            except OSError as error:  # the next checkpoint may get through
                warnings.warn(str(error), stacklevel=2)
        return True

    def restore(self, like: TrainState) -> tuple[TrainState, Any] | None:
        """Reads the newest checkpoint that is not damaged.

        Args:
            like: a state of arrays or of ``jax.ShapeDtypeStruct``: its shapes must be those
                saved, its shardings say where the arrays go, on any number of devices.

        Returns:
            The state and the data position; None when there is no checkpoint.

        Raises:
            ValueError: if the checkpoint belongs to another model or optimiser.
            RuntimeError: if every checkpoint is damaged.
            OSError: if the system refuses to read one (no permission, too many open files).
        """
        self.wait()
        reasons: dict[int, str] = {}
        for step in reversed(self.steps()):
            result, reason = self._read(step, like)
            if reason is None:
                self._damaged = list(reasons)
                return result
            reasons[step] = reason
            warnings.warn(
                f"checkpoint {self.directory / str(step)} is damaged and passed over: {reason}",
                stacklevel=2,
            )
        if reasons:
            lines = "".join(f"\n  step {step}: {reason}" for step, reason in reasons.items())
            raise RuntimeError(
                f"every checkpoint in {self.directory} is damaged:{lines}\n"
                "Restore the folder from a copy, or remove it to start from step 0."
            )
        return None

    def discard(self, step: int) -> None:
        """Removes the checkpoints of this step and of later ones."""
        for later in [saved for saved in self.steps() if saved >= step]:
            self._orbax.delete(later, missing_ok=True)

    def wait(self) -> None:
        """Waits until what was saved is on disk; an OSError if a save failed."""
        with _named(self.directory):
            self._orbax.wait()

    def close(self) -> None:
        """Waits and releases the folder; an OSError if a save failed."""
        with _named(self.directory):
            self._orbax.close()

    def _make_room(self) -> None:
        """Removes what is in the way, only when saving: another process may be reading."""
        for step in self._damaged:  # they would count as the newest
            self._orbax.delete(step, missing_ok=True)
        self._damaged.clear()
        if self._owns_directory:
            return
        self._owns_directory = True
        # Not left to Orbax (0.12): it removes a folder and what is in it at the same time, and may
        # fail on what is gone already.
        if jax.process_index() == 0:
            for leftover in self.directory.glob("*.orbax-checkpoint-tmp"):
                leftover.rmtree()
        multihost_utils.sync_global_devices("leftovers of killed saves are removed")

    def _read(self, step: int, like: TrainState) -> tuple[Any, str | None]:
        """Gives the state and position, or why this checkpoint is damaged."""
        items, problem = self._load(step, {"manifest": None})
        content: Any = None
        if problem is None:
            try:
                content = read_manifest(items["manifest"])
            except ValueError as error:
                problem = str(error)
        if reason := _agreed(problem):
            return None, f"manifest: {reason}"
        leaves = content["leaves"]
        _check_same_model(leaves, like, self.directory / str(step))
        items, problem = self._load(step, _items(like))
        if problem is None:
            state = _from_items(items, like, leaves)
            found = describe(state)
            wrong = [name for name in leaves if leaves[name] != found[name]]
            problem = f"the checksum does not match in {', '.join(wrong)}" if wrong else None
        if reason := _agreed(problem):
            return None, reason
        return (state, content["position"]), None

    def _load(self, step: int, items: dict[str, Any]) -> tuple[Any, str | OSError | None]:
        """Gives what Orbax reads, or why it cannot: an OSError is no damage of the checkpoint."""
        with _quiet():
            try:
                return self._orbax.load_checkpointables(step, items), None
            except Exception as error:
                problem = _refused(self.directory / str(step)) or _cause(error)
            gc.collect()  # Orbax leaves coroutines behind, which complain when they are collected
            return None, problem


def read_manifest(manifest: Any) -> dict[str, Any]:
    """The content of a manifest.

    Args:
        manifest: what JSON holds, of any form.

    Raises:
        ValueError: if the checksum or the form is not that of ``Checkpointer.save``.
    """
    content = manifest.get("content") if isinstance(manifest, dict) else None
    if not isinstance(content, dict) or manifest.get("crc32") != zlib.crc32(
        json.dumps(content, sort_keys=True).encode()
    ):
        raise ValueError("its checksum does not match")
    leaves = content.get("leaves")
    complete = isinstance(leaves, dict) and all(
        isinstance(leaf, dict) and {"shape", "dtype", "checksum"} <= leaf.keys()
        for leaf in leaves.values()
    )
    if not complete or "position" not in content:
        raise ValueError("it was written by another version")
    return content


def _items(state: TrainState) -> dict[str, Any]:
    """What Orbax gets: typed keys as numbers, and the fields in items that are never empty."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return jax.random.key_data(leaf) if is_key(leaf) else leaf
        data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)

    loop = jax.tree.map(plain, state)._asdict()
    return {"parameters": loop.pop("parameters"), "loop": loop}


def _from_items(items: dict[str, Any], like: TrainState, leaves: dict[str, Any]) -> TrainState:
    def typed(path: tuple[Any, ...], target: Any, leaf: jax.Array) -> jax.Array:
        if not is_key(target):
            return leaf
        key = jax.random.wrap_key_data(leaf, impl=leaves[path_name(path)]["implementation"])
        return jax.device_put(key, target.sharding)

    state = TrainState(parameters=items["parameters"], **items["loop"])
    return jax.tree_util.tree_map_with_path(typed, like, state)


def _check_same_model(saved: dict[str, Any], like: TrainState, directory: pathlib.Path) -> None:
    wanted = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(like)}
    problems = [f"{name} is only in the checkpoint" for name in saved.keys() - wanted.keys()]
    problems += [f"{name} is not in the checkpoint" for name in wanted.keys() - saved.keys()]
    for name in saved.keys() & wanted.keys():
        before = f"{saved[name]['dtype']}{saved[name]['shape']}"
        now = f"{wanted[name].dtype}{list(wanted[name].shape)}"
        if before != now:
            problems.append(f"{name} is {before} in the checkpoint, {now} here")
    if problems:
        raise ValueError(
            f"checkpoint {directory} belongs to another model, optimiser or batch size: "
            f"{'; '.join(sorted(problems))}. Use the settings it was made with, or another folder."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the pages that Orbax prints about a failure: ours is one line."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@functools.cache
def _say_failed_saves_once() -> None:
    """Holds back the pages that Orbax's threads print about a failed save, which is raised too."""
    logging.getLogger("absl").addFilter(
        lambda record: not (record.exc_info and "orbax" in record.pathname)
    )
    hook = sys.unraisablehook

    def without_coroutines(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = without_coroutines


# What the system refuses says nothing about the checkpoint, and may be granted tomorrow. Files that
# are missing or of another kind are damage.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_REFUSED = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNAUTHENTICATED")


def _cause(error: BaseException) -> str | OSError:
    """The innermost error's first line (Orbax wraps it several times), or what the system said."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = str(error).splitlines()[0][:300] if str(error) else ""
    number = error.errno if isinstance(error, OSError) else None
    text = text.removeprefix(f"[Errno {number}] ")
    if isinstance(error, MemoryError) or (number is not None and number not in _DAMAGE):
        return OSError(number or errno.ENOMEM, text or os.strerror(errno.ENOMEM))
    found = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's words for it
    if found and int(found[1]) not in _DAMAGE:
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if text.startswith(_REFUSED):
        return OSError(errno.EACCES, text)
    return f"{type(error).__name__}: {text[:200]}"


def _refused(folder: Any) -> OSError | None:
    """What the system says when the files of a folder are opened; to Orbax some seem not to be."""

    def fail(error: OSError) -> None:
        raise error

    try:
        for inside, _, files in os.walk(os.fspath(folder), onerror=fail):
            for file in files:
                with open(os.path.join(inside, file), "rb"):
                    pass
    except OSError as error:
        return None if error.errno in _DAMAGE else error
    return None


def _agreed(problem: str | OSError | None) -> str | None:
    """Why a checkpoint is damaged on this process or another; raises what the system refused."""
    code = 0 if problem is None else 2 if isinstance(problem, OSError) else 1
    worst = code
    if jax.process_count() > 1:  # one process may have read what another could not
        worst = int(multihost_utils.process_allgather(np.int32(code)).max())
    if worst == 2:
        own = problem if isinstance(problem, OSError) else OSError(errno.EIO, "on another process")
        raise OSError(
            own.errno,
            f"a checkpoint cannot be read: {own.strerror}. It is left as it is: the same command "
            "continues from it when the system allows it",
        )
    if worst == 1:
        return problem if isinstance(problem, str) else "unreadable on another process"
    return None


@contextmanager
def _named(directory: Any) -> Iterator[None]:
    """Names the folder that could not be written."""
    try:
        yield
    except Exception as error:
        cause = _cause(error)
        reason, number = (cause.strerror, cause.errno) if isinstance(cause, OSError) else (cause, 0)
        text = f"a checkpoint could not be saved ({reason}); those before it are complete"
        raise OSError(number or errno.EIO, text, str(directory)) from error
