import errno
import gc
import json
import os
import pathlib
import resource
import shutil
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from tests.training import program
from zoo.training import Checkpointer, checkpoint, init_state, make_mesh
from zoo.training.checkpoint import read_manifest
from zoo.training.digest import checksum
from zoo.training.state import abstract_state

RULES = (("kernel$", PartitionSpec(None, ("fsdp", "model"))),)
CARRY = jax.ShapeDtypeStruct((program.ROWS, 3), jnp.float32)


def abstract_on(devices, rules=RULES):
    return abstract_state(
        program.init_parameters,
        program.OPTIMIZER,
        mesh=make_mesh(data=1, fsdp=-1, devices=jax.devices()[:devices]),
        rules=rules,
        carry=CARRY,
    )


def assert_same(state, expected):
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            assert one.dtype == other.dtype
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def state():
    return program.new_state(make_mesh(data=2, fsdp=2, model=2), rules=RULES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """A folder with the steps 2, 4 and 6; made once, copied by who damages it."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpointer(folder) as checkpointer:
        for step in (2, 4, 6):
            assert checkpointer.save(at(state, step), position={"batch": step, "epoch": None})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved folder, to be damaged."""
    return shutil.copytree(saved, tmp_path / "copy")


def at(state, step):
    return state._replace(step=jax.device_put(jnp.int32(step), state.step.sharding))


def test_restores_to_the_shardings_of_like(saved, state):
    like = abstract_on(8)  # on fewer devices: below, after damage
    with Checkpointer(saved) as checkpointer:
        restored, position = checkpointer.restore(like)
    assert position == {"batch": 6, "epoch": None}
    assert restored.abstract == like
    assert_same(restored, at(state, 6))


def test_keeps_the_newest_and_replaces_none(tmp_path, state):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.restore(state) is None
        assert checkpointer.steps() == []
        for step in (1, 2, 3):
            checkpointer.save(at(state, step), position=step)
        assert not checkpointer.save(at(state, 3), position="again")
        checkpointer.wait()
        assert checkpointer.steps() == [2, 3]
        assert checkpointer.restore(state)[1] == 3
        with pytest.raises(ValueError, match=r"newest checkpoint, 3, .* got 1; discard\(1\)"):
            checkpointer.save(at(state, 1), position=None)
        with pytest.raises(TypeError, match="JSON"):
            checkpointer.save(at(state, 4), position={"batch": np.zeros(3)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpointer(tmp_path, keep=0)


def test_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    """What is on disk is the state that was saved, though its memory is written over meanwhile."""
    mesh = make_mesh(devices=jax.devices()[:1])
    add = jax.jit(
        lambda state: state._replace(
            step=state.step + 1, parameters=jax.tree.map(lambda leaf: leaf + 1, state.parameters)
        ),
        donate_argnums=0,
    )
    state = init_state(
        lambda key: {"kernel": jnp.zeros((256, 256))},
        optax.sgd(0.1),
        key=jax.random.key(0),
        mesh=mesh,
    )
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        for _ in range(3):
            state = add(state)
            checkpointer.save(state, position=None)
            for _ in range(5):
                state = add(state)
        restored, _ = checkpointer.restore(state.abstract)
    assert restored.step == 13
    np.testing.assert_array_equal(restored.parameters["kernel"], 13.0)


def test_other_keys_and_dtypes_come_back(tmp_path):
    mesh = make_mesh(devices=jax.devices()[:2])
    parameters = {"scalar": jnp.float32(2.5), "list": [jnp.arange(3.0), {"a": jnp.ones((2, 1))}]}
    others = {
        "bfloat16": jnp.arange(5, dtype=jnp.bfloat16),
        "bool": jnp.array([True, False, True]),
        "int8": jnp.array([-1, 7], jnp.int8),
        "uint32": jnp.array([2**32 - 1], jnp.uint32),
        "complex": jnp.array([1 + 2j], jnp.complex64),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "none": None,
    }
    state = init_state(
        lambda key: parameters,
        optax.GradientTransformation(lambda _: others, lambda *_: None),
        key=jax.random.key(4, impl="rbg"),
        mesh=mesh,
        init_model_state=lambda key: {"norm": {"mean": jnp.arange(3.0)}},
    )
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state, position=[1, "two", {"three": 3.5}])
        restored, position = checkpointer.restore(state.abstract)
    assert position == [1, "two", {"three": 3.5}]
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert restored.abstract == state.abstract
    assert_same(restored, state)


# Damage


def files(folder, pattern):
    return sorted(path for path in pathlib.Path(folder).glob(pattern) if path.is_file())


def flip_bit(path, where=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "data truncated": lambda folder: truncate(
        max(files(folder, "parameters/**/d/*"), key=lambda path: path.stat().st_size)
    ),
    "metadata deleted": lambda folder: (folder / "parameters" / "_METADATA").unlink(),
    "item deleted": lambda folder: shutil.rmtree(folder / "loop"),
    "manifest truncated": lambda folder: truncate(*files(folder, "manifest/data.json")),
    "manifest flipped": lambda folder: flip_bit(*files(folder, "manifest/data.json")),
    "all deleted but the folder": lambda folder: [
        shutil.rmtree(path) if path.is_dir() else path.unlink() for path in folder.iterdir()
    ],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_newest_is_reported_and_the_one_before_is_used(folder, state, damage):
    damage(folder / "6")
    with Checkpointer(folder) as checkpointer:
        with pytest.warns(UserWarning, match=r"/6 is damaged and passed over: .*\w+"):
            restored, position = checkpointer.restore(abstract_on(2))
        assert position["batch"] == 4
        assert_same(restored, at(state, 4))
        # the damaged one does not stand in the way of the run that continues
        assert checkpointer.save(at(state, 6), position=66)
        assert checkpointer.restore(abstract_on(1))[1] == 66


@pytest.mark.slow
def test_flipped_bit_in_the_data_is_found_wherever_it_is(saved, tmp_path, state):
    """Each flip either is found or leaves the state as it was saved."""
    found = 0
    for path in files(saved / "6", "*/**/d/*"):
        for where in (0.1, 0.5, 0.9):
            folder = tmp_path / f"{path.name}-{where}"
            shutil.copytree(saved, folder)
            flip_bit(folder / path.relative_to(saved), where)
            with (
                Checkpointer(folder) as checkpointer,
                warnings.catch_warnings(record=True) as caught,
            ):
                warnings.simplefilter("always")
                restored, position = checkpointer.restore(abstract_on(1))
            reported = any("/6 is damaged" in str(warning.message) for warning in caught)
            assert position["batch"] == (4 if reported else 6)
            assert len(caught) == reported
            assert_same(restored, at(state, position["batch"]))
            found += reported
    assert found


def test_changed_value_is_found_by_its_checksum(folder, tmp_path, state):
    """A complete checkpoint whose numbers are not those described."""
    other = jax.tree.map(lambda leaf: leaf, at(state, 6))
    kernel = other.parameters["layer"]["kernel"]
    changed = jax.device_put(kernel.at[1, 2].add(1e-6), kernel.sharding)
    with Checkpointer(tmp_path / "other") as checkpointer:
        parameters = {"layer": state.parameters["layer"] | {"kernel": changed}}
        checkpointer.save(other._replace(parameters=parameters), position=0)
    shutil.rmtree(folder / "6" / "parameters")
    shutil.copytree(tmp_path / "other" / "6" / "parameters", folder / "6" / "parameters")
    with Checkpointer(folder) as checkpointer:
        with pytest.warns(UserWarning, match="does not match in parameters/layer/kernel$"):
            assert checkpointer.restore(abstract_on(1))[1]["batch"] == 4


@pytest.mark.slow
def test_all_damaged_lists_each(folder):
    for step in (2, 4, 6):
        (folder / str(step) / "manifest" / "data.json").unlink()
    message = r"(?s)every.*step 6: .*step 4: .*step 2: .*remove"
    with Checkpointer(folder) as checkpointer:
        with pytest.warns(UserWarning, match="damaged"), pytest.raises(RuntimeError, match=message):
            checkpointer.restore(abstract_on(1))
        assert checkpointer.steps() == [2, 4, 6]


def test_another_model_is_an_error_and_not_damage(saved):
    like = abstract_on(1)
    wide = jax.ShapeDtypeStruct((3, 5), jnp.float32, sharding=like.step.sharding)
    layer = like.parameters["layer"]
    message = (
        r"optimizer_state/0/count is only in the checkpoint; parameters/extra is not in the "
        r"checkpoint; parameters/layer/kernel is float32\[3, 4\] in the checkpoint, "
        r"float32\[3, 5\] here\. Use"
    )
    other = like._replace(
        parameters={"layer": layer | {"kernel": wide}, "extra": wide},
        optimizer_state=(like.optimizer_state[0]._replace(count=None), optax.EmptyState()),
    )
    with Checkpointer(saved) as checkpointer, pytest.raises(ValueError, match=message):
        checkpointer.restore(other)


def test_leftovers_of_a_killed_save_are_ignored_and_removed_by_the_next(folder, state):
    leftover = folder / "6.orbax-checkpoint-tmp"
    (folder / "6").rename(leftover)
    (leftover / "loop").rename(leftover / "loop.orbax-checkpoint-tmp")
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.steps() == [2, 4]
        assert checkpointer.restore(abstract_on(1))[1]["batch"] == 4
        assert leftover.exists()  # who reads may have come beside the one who is saving
        checkpointer.save(at(state, 6), position={"batch": 66})
        assert checkpointer.restore(abstract_on(1))[1]["batch"] == 66
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4", "6"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "complex64"])
def test_checksum_sees_every_element_and_its_place(dtype):
    random = np.random.default_rng(0).integers(0, 2, (4, 6))
    compiled = jax.jit(checksum)

    def of(array):
        return int(compiled(jnp.asarray(array.astype(dtype))))

    expected = of(random)
    for index in np.ndindex(4, 6):
        changed = random.copy()
        changed[index] ^= 1
        assert of(changed) != expected
    assert of(random[::-1]) != expected
    assert compiled(random.astype(dtype)).dtype == jnp.uint32
    mesh = make_mesh(data=2, model=2, devices=jax.devices()[:4])
    place = jax.sharding.NamedSharding(mesh, PartitionSpec("data", "model"))
    assert compiled(jax.device_put(random.astype(dtype), place)) == expected


# What the system refuses is no damage

REFUSED = [
    OSError(errno.EMFILE, "Too many open files"),
    PermissionError(errno.EACCES, "Permission denied"),
    ValueError("PERMISSION_DENIED: opening [os_error_code='13'] Permission denied"),  # TensorStore
    MemoryError(),
]


def refusing(load, place, error):
    """Orbax's method, which is refused this part of step 6."""

    def refuse(self, step, items):
        if step == 6 and place in items:
            raise RuntimeError("Orbax wraps it") from error
        return load(self, step, items)

    return refuse


@pytest.mark.slow
def test_what_the_system_refuses_ends_the_run_and_leaves_the_checkpoint(folder, state, monkeypatch):
    with Checkpointer(folder) as checkpointer:
        orbax, name = type(checkpointer._orbax), "load_checkpointables"
        for error, place in zip(REFUSED, ["manifest", "parameters"] * 2, strict=True):
            with monkeypatch.context() as patch:
                patch.setattr(orbax, name, refusing(getattr(orbax, name), place, error))
                with pytest.raises(OSError, match=r"cannot be read: .*left as it is") as caught:
                    checkpointer.restore(abstract_on(1))
            expected = {ValueError: errno.EACCES, MemoryError: errno.ENOMEM}.get(type(error))
            assert caught.value.errno == (expected or error.errno)
        checkpointer.save(at(state, 8), position=None)
        assert checkpointer.steps() == [4, 6, 8]


def test_files_that_may_not_be_opened_are_not_taken_for_missing(folder, monkeypatch):
    """To Orbax they seem not to be there."""

    def forbidden(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    shutil.rmtree(folder / "6" / "loop")
    monkeypatch.setattr(checkpoint, "open", forbidden, raising=False)
    with (
        Checkpointer(folder) as checkpointer,
        pytest.raises(PermissionError, match="cannot be read: Permission denied"),
    ):
        checkpointer.restore(abstract_on(1))


def test_a_failed_save_names_the_folder(tmp_path, state, monkeypatch):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(at(state, 1), position=1)

        def full(*_, **__):
            raise RuntimeError("Orbax wraps it") from OSError(errno.ENOSPC, "No space left")

        with monkeypatch.context() as patch:
            patch.setattr(type(checkpointer._orbax), "save_checkpointables_async", full)
            with pytest.raises(OSError, match=r"could not be saved \(No space left") as caught:
                checkpointer.save(at(state, 2), position=2)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
        assert checkpointer.restore(state)[1] == 1


def test_a_save_that_fails_in_the_background_is_one_error(tmp_path, state, capfd):
    """At the next save, or at the end; a file may not grow beyond a limit, as on a full disk."""

    def save(error=None):
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(at(state, 1), position=1)
            if error is not None:
                raise error

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(OSError, match=r"not be saved \(File too large\)") as caught:
            save()
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path))
        with pytest.raises(KeyError):  # what led to the end is not hidden
            save(KeyError())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert "Traceback" not in "".join(capfd.readouterr())
    save()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize(
    "manifest",
    [None, 3, [], {}, {"content": {}}, {"content": {"leaves": {}}, "crc32": 0}, {"crc32": 1}],
)
def test_manifests_of_another_form(manifest):
    with pytest.raises(ValueError, match="does not match"):
        read_manifest(manifest)
    content = {"leaves": {"a": {}}, "position": None}
    crc = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    with pytest.raises(ValueError, match="another version"):
        read_manifest({"content": content, "crc32": crc})
