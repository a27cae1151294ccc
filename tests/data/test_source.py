"""Order, flips, resumption and placement of training batches."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from samples import BATCH, COUNT, SIZE, faces, make_config, truth_config, unit

from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.batches import FACTORS, LABELS
from unsup3d_jax.data.load import load_split
from unsup3d_jax.data.source import train_source
from unsup3d_jax.errors import UserError

ONE = jax.local_devices()[:1]


@pytest.fixture(params=["resident", "host", "streamed"])
def make_source(request, photos, tmp_path):
    """Makes a source of one of the three kinds; they must agree bit for bit."""

    def make(*, seed=0, start_step=0, batch_size=BATCH, flip=True):
        config = make_config(photos, tmp_path)
        config.data.flip, config.train.batch_size = flip, batch_size
        if request.param == "streamed":
            config.data.device_memory_mib = 0
        dataset = load_split(config, "train")
        config.data.device_memory_mib = 1 if request.param == "resident" else 0
        source = train_source(
            dataset,
            config,
            fields=("image",),
            devices=ONE,
            seed=seed,
            start_step=start_step,
        )
        assert source.resident == (request.param == "resident")
        assert dataset.is_streamed == (request.param == "streamed")
        return source

    return make


# Laws of the order, tried with one kind, for all give the same batches.
OF_ONE_KIND = pytest.mark.parametrize("make_source", ["host"], indirect=True)


def take(source, steps):
    return [np.asarray(next(source).image) for _ in range(steps)]


def identities(batches):
    """Which image each row is, and whether it is mirrored."""
    rows = np.rint(np.concatenate([b[0] for b in batches]) * 255).astype(int)
    index = rows[:, 0, 0, :].sum(-1) - 1
    mirrored = rows[:, 0, 0, 1] > 0
    return index, mirrored


# --- order and flips -----------------------------------------------------------


def test_batches_have_a_device_axis_and_unit_range(make_source):
    (batch,) = take(make_source(), 1)
    assert batch.shape == (1, BATCH, SIZE, SIZE, 3) and batch.dtype == np.float32
    np.testing.assert_allclose(batch * 255, np.rint(batch * 255), atol=1e-5)
    assert 0 < batch.max() <= COUNT / 255


@OF_ONE_KIND
def test_every_example_occurs_once_an_epoch_in_a_new_order(make_source):
    index, _ = identities(take(make_source(), 3 * COUNT))
    epochs = index[: (len(index) // COUNT) * COUNT].reshape(-1, COUNT)
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(e) for e in epochs}) == len(epochs)


def test_the_three_kinds_of_source_give_the_same_batches(photos, tmp_path):
    config = make_config(photos, tmp_path)
    found = []
    for load_mib, train_mib in ((1, 1), (1, 0), (0, 0)):
        config.data.device_memory_mib = load_mib
        dataset = load_split(config, "train")
        config.data.device_memory_mib = train_mib
        for flip, seed, steps in ((True, 3, 12), (False, 4, 4)):
            config.data.flip = flip
            source = train_source(
                dataset, config, fields=("image",), devices=ONE, seed=seed
            )
            found += take(source, steps)
    resident, host, streamed = np.split(np.stack(found), 3)
    np.testing.assert_array_equal(resident, host)
    np.testing.assert_array_equal(resident, streamed)


@OF_ONE_KIND
def test_the_same_seed_repeats_and_another_does_not(make_source):
    first, again = take(make_source(seed=5), 6), take(make_source(seed=5), 6)
    np.testing.assert_array_equal(first, again)
    other = take(make_source(seed=6), 9)
    assert not np.array_equal(first, other[:6])
    # Nor is the next seed the same order one epoch later.
    a, b = identities(take(make_source(seed=5), 9))[0], identities(other)[0]
    assert not np.array_equal(a[COUNT : 2 * COUNT], b[:COUNT])


@OF_ONE_KIND
def test_half_of_the_examples_are_mirrored(make_source):
    _, mirrored = identities(take(make_source(), 100))
    assert abs(mirrored.mean() - 0.5) < 0.08  # 3 sigma
    _, mirrored = identities(take(make_source(flip=False), 10))
    assert not mirrored.any()


@OF_ONE_KIND
def test_mirroring_depends_on_step_and_seed(make_source):
    _, one = identities(take(make_source(seed=1), 12))
    _, two = identities(take(make_source(seed=2), 12))
    assert len({tuple(row) for row in one.reshape(-1, BATCH)}) > 1
    assert not np.array_equal(one, two)


@OF_ONE_KIND
def test_an_example_is_not_mirrored_the_same_in_every_epoch(make_source):
    index, mirrored = identities(take(make_source(), 30))
    for i in range(COUNT):
        assert len(set(mirrored[index == i])) == 2


# --- resuming --------------------------------------------------------------------


# Epochs end in steps 3, 6, 9.
@pytest.mark.parametrize(
    "stop", [3, *(pytest.param(k, marks=pytest.mark.once) for k in (1, 8))]
)
def test_resuming_equals_not_having_stopped(make_source, stop):
    whole = take(make_source(), stop + 4)
    source = make_source()
    take(source, stop)
    state = json.loads(json.dumps(source.state()))
    assert state["step"] == stop
    restored = make_source()
    take(restored, 2)
    restored.restore(state)
    np.testing.assert_array_equal(take(restored, 4), whole[stop:])
    started = make_source(start_step=stop)
    np.testing.assert_array_equal(take(started, 4), whole[stop:])


def test_a_checkpoint_without_a_position_starts_at_the_beginning(make_source):
    source, fresh = make_source(), make_source()
    next(source)
    source.restore({})
    np.testing.assert_array_equal(next(source).image, next(fresh).image)


def test_resuming_on_another_data_set_is_refused(make_source):
    source = make_source()
    for key, value in (("digest", "?"), ("seed", 9), ("batch_size", 2)):
        with pytest.raises(UserError, match=key):
            source.restore(source.state() | {key: value})


def test_resuming_on_other_images_of_the_same_number_is_refused(photos, tmp_path):
    config = make_config(photos, tmp_path)
    dataset = load_split(config, "train")
    config.data.crop = (4,)
    other = load_split(config, "train")
    one, two = (
        train_source(d, config, fields=("image",), devices=ONE, seed=0)
        for d in (dataset, other)
    )
    with pytest.raises(UserError, match="digest"):
        two.restore(one.state())


def test_a_file_lost_while_training_is_named(photos, tmp_path):
    root = tmp_path / "copy" / "train"
    root.mkdir(parents=True)
    for path in photos.glob("train/*.png"):
        (root / path.name).write_bytes(path.read_bytes())
    config = make_config(root.parent, tmp_path)
    config.data.device_memory_mib = 0
    dataset = load_split(config, "train")
    (root / "07.png").unlink()
    source = train_source(dataset, config, fields=("image",), devices=ONE, seed=0)
    with pytest.raises(UserError, match="train/07.png: No such file"):
        take(source, 3)


# --- placement ---------------------------------------------------------------------


def test_a_resident_set_compiles_once(photos, tmp_path):
    config = make_config(photos, tmp_path)
    dataset = load_split(config, "train")
    source = train_source(dataset, config, fields=("image",), devices=ONE, seed=0)
    before = source._gather._cache_size()
    take(source, 9)
    # JAX 0.10.0 counts other sources' too, and may find one of theirs.
    assert max(before, 1) <= source._gather._cache_size() <= before + 1


@pytest.mark.once
def test_two_devices_share_the_batch_of_one():
    script = """
        import jax, numpy as np
        from configs import default
        from unsup3d_jax.data import dataset as ds
        from unsup3d_jax.data.source import train_source
        config = default.get_config()
        config.train.batch_size = 4
        image = np.arange(7, dtype=np.uint8)[:, None, None, None]
        image = np.tile(image, (1, 2, 2, 3)) * np.arange(1, 3, dtype=np.uint8)[:, None]
        dataset = ds.Dataset({"image": image}, ds.Report("x", "train", "", 7), "")
        for mib in (1, 0):
            config.data.device_memory_mib = mib
            one, two = (
                train_source(
                    dataset, config, fields=("image",), devices=devices, seed=1
                )
                for devices in (jax.devices()[:1], jax.devices())
            )
            mean = jax.pmap(lambda b: jax.lax.pmean(b.image.mean(), "d"), axis_name="d")
            for _ in range(5):
                a, b = next(one), next(two)
                assert b.image.shape == (2, 2, 2, 2, 3)
                assert [s.device.id for s in b.image.addressable_shards] == [0, 1]
                whole = np.asarray(a.image).reshape(b.image.shape)
                np.testing.assert_array_equal(b.image, whole)
                np.testing.assert_allclose(mean(b)[0], a.image.mean(), rtol=1e-5)
            if mib:  # each device gathers from its own copy
                plan = np.zeros((2, 2), np.int32)
                text = two._gather.lower(two._store, plan).compile().as_text()
                assert "all-" not in text and "collective" not in text
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ
        | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p) + os.pathsep + ".",
        },
        check=True,
    )


def test_errors_name_the_batch_size_and_the_missing_truth(photos, tmp_path):
    config = make_config(photos, tmp_path)
    dataset = load_split(config, "train")

    def make(devices=1, fields=("image",)):
        train_source(
            dataset,
            config,
            fields=fields,
            devices=ONE * devices,
            seed=0,
        )

    with pytest.raises(UserError, match="batch_size: 4 .* 3 devices"):
        make(devices=3)
    config.train.batch_size = COUNT + 1
    with pytest.raises(UserError, match="larger than the training set of 11"):
        make()
    config.train.batch_size = 0
    with pytest.raises(UserError, match="batch_size"):
        make()
    config.train.batch_size = COUNT
    make()
    with pytest.raises(UserError, match="no true view"):
        make(fields=("image", "view"))


# --- ground truth ----------------------------------------------------------------


def test_only_the_fields_asked_for_reach_the_devices(tmp_path):
    config = truth_config(tmp_path)
    dataset = ds.Dataset(faces(6), ds.Report("open_faces", "train", "", 6), "")
    for fields in (("image",), ("image", "view"), FACTORS):
        source = train_source(dataset, config, fields=fields, devices=ONE, seed=0)
        batch = next(source)
        found = [n for n in (*FACTORS, *LABELS) if getattr(batch, n) is not None]
        assert tuple(found) == fields


@pytest.mark.parametrize("mib", [1, 0])
def test_ground_truth_stays_with_its_image_and_is_mirrored_with_it(tmp_path, mib):
    config = truth_config(tmp_path)
    config.data.device_memory_mib = mib
    arrays = faces(6)
    arrays["image"][:] = arrays["image"] // 2
    arrays["image"][:, 0, 0, 0], arrays["image"][:, 0, -1, 0] = np.arange(6), 255
    dataset = ds.Dataset(arrays, ds.Report("open_faces", "train", "", 6), "")
    source = train_source(dataset, config, fields=FACTORS, devices=ONE, seed=0)
    seen = set()
    for _ in range(6):
        batch = jax.tree.map(lambda x: np.asarray(x)[0], next(source))
        for row in range(BATCH):
            flip = batch.image[row, 0, 0, 0] == 1.0
            plain = batch.image[row, :, ::-1] if flip else batch.image[row]
            i = int(round(float(plain[0, 0, 0]) * 255))
            step = -1 if flip else 1
            np.testing.assert_array_equal(plain, unit(arrays["image"][i]))
            for name in ("depth", "mask"):
                got = getattr(batch, name)[row][:, ::step]
                np.testing.assert_array_equal(got, arrays[name][i])
            sign = np.array([1, step, step, step, 1, 1], np.float32)
            np.testing.assert_array_equal(batch.view[row] * sign, arrays["view"][i])
            sign = np.array([1, 1, step, 1, 1], np.float32)
            np.testing.assert_array_equal(batch.light[row] * sign, arrays["light"][i])
            seen.add((i, bool(flip)))
    assert len(seen) > 8


@pytest.mark.parametrize("mib", [1, 0])
def test_keypoints_change_places_where_the_set_knows_how(tmp_path, mib):
    config = truth_config(tmp_path)
    config.data.device_memory_mib = mib
    arrays = faces(6)
    arrays["keypoints"] = np.zeros((6, 2, 3), np.float32)
    arrays["keypoints"][:, :, 0] = [1, 2]  # u
    arrays["identity"] = np.arange(6, dtype=np.int32)
    report = ds.Report("open_faces", "train", "", 6)
    fields = ("image", "keypoints", "identity")
    for flip, mirrored in (((), [6, 5]), ((1, 0), [5, 6])):
        dataset = ds.Dataset(arrays, report, "", keypoint_flip=flip)
        source = train_source(dataset, config, fields=fields, devices=ONE, seed=0)
        found = {
            tuple(u)
            for _ in range(9)
            for u in next(source).keypoints[0, :, :, 0].tolist()
        }
        assert found == {(1.0, 2.0), tuple(map(float, mirrored))}


@pytest.mark.parametrize("mib", [1, 0])
def test_latent_codes_are_for_training_without_mirrors(tmp_path, mib):
    config = truth_config(tmp_path)
    config.data.device_memory_mib = mib
    arrays = faces(6)
    arrays["latent"] = np.arange(6, dtype=np.float32)[:, None]
    dataset = ds.Dataset(arrays, ds.Report("x", "train", "", 6), "")
    options = {"fields": ("image", "latent"), "devices": ONE, "seed": 0}
    with pytest.raises(UserError, match="data.flip: a latent code"):
        train_source(dataset, config, **options)
    config.data.flip = False
    batch = next(train_source(dataset, config, **options))
    index = np.asarray(batch.latent)[0, :, 0].astype(int)
    np.testing.assert_array_equal(batch.image[0], unit(arrays["image"][index]))
    # With a mirror image of the code images are mirrored again.
    config.data.flip = True
    dataset = dataclasses.replace(dataset, latent_mirror=-np.eye(1, dtype=np.float32))
    source = train_source(dataset, config, **options)
    codes = {code for _ in range(9) for code in next(source).latent.ravel().tolist()}
    assert min(codes) < 0 < max(codes)
