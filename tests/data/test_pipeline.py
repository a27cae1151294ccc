"""Order, flips, resumption and placement of batches."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import default
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data import images, pipeline
from unsup3d_jax.errors import UserError
from unsup3d_jax.formation import geometry, lighting
from unsup3d_jax.formation.types import Batch

COUNT, SIZE, BATCH = 11, 8, 4  # the batch does not divide the set


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Image i is red = i on its left half, green = i on its right half."""
    root = tmp_path_factory.mktemp("photos") / "train"
    root.mkdir()
    for i in range(COUNT):
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        pixels[:, : SIZE // 2, 0] = pixels[:, SIZE // 2 :, 1] = i + 1
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    (root / "05_broken.png").write_bytes(b"")
    return root.parent


@pytest.fixture(params=["resident", "host", "streamed"])
def make_source(request, photos, tmp_path):
    """Makes a source of one of the three kinds; they must agree bit for bit."""

    def make(*, seed=0, start_step=0, batch_size=BATCH, flip=True):
        config = make_config(photos, tmp_path)
        config.data.flip, config.train.batch_size = flip, batch_size
        if request.param == "streamed":
            config.data.device_memory_mib = 0
        dataset = pipeline.load_split(config, "train")
        config.data.device_memory_mib = 1 if request.param == "resident" else 0
        source = pipeline.train_source(
            dataset,
            config,
            devices=jax.local_devices()[:1],
            seed=seed,
            start_step=start_step,
        )
        assert source.resident == (request.param == "resident")
        assert dataset.is_streamed == (request.param == "streamed")
        return source

    return make


def make_config(photos, tmp_path):
    config = default.get_config()
    config.data.path, config.data.split = str(photos), "folder"
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.image_size, config.data.min_images = SIZE, 1
    config.train.batch_size = BATCH
    return config


def take(source, steps):
    return [np.asarray(next(source).image) for _ in range(steps)]


def unit(pixels):
    return pixels.astype(np.float32) * np.float32(1 / 255)


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


def test_every_example_occurs_once_an_epoch_in_a_new_order(make_source):
    index, _ = identities(take(make_source(), 3 * COUNT))
    epochs = index[: (len(index) // COUNT) * COUNT].reshape(-1, COUNT)
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(e) for e in epochs}) == len(epochs)


def test_the_three_kinds_of_source_give_the_same_batches(photos, tmp_path):
    config = make_config(photos, tmp_path)
    sources = []
    for load_mib, train_mib in ((1, 1), (1, 0), (0, 0)):
        config.data.device_memory_mib = load_mib
        dataset = pipeline.load_split(config, "train")
        config.data.device_memory_mib = train_mib
        sources.append(
            pipeline.train_source(
                dataset, config, devices=jax.local_devices()[:1], seed=3
            )
        )
    resident, host, streamed = (np.stack(take(s, 7)) for s in sources)
    np.testing.assert_array_equal(resident, host)
    np.testing.assert_array_equal(resident, streamed)


def test_the_same_seed_repeats_and_another_does_not(make_source):
    first, again = take(make_source(seed=5), 6), take(make_source(seed=5), 6)
    np.testing.assert_array_equal(first, again)
    other = take(make_source(seed=6), 9)
    assert not np.array_equal(first, other[:6])
    # Nor is the next seed the same order one epoch later.
    a, b = identities(take(make_source(seed=5), 9))[0], identities(other)[0]
    assert not np.array_equal(a[COUNT : 2 * COUNT], b[:COUNT])


def test_half_of_the_examples_are_mirrored(make_source):
    _, mirrored = identities(take(make_source(), 100))
    assert abs(mirrored.mean() - 0.5) < 0.08  # 3 sigma
    _, mirrored = identities(take(make_source(flip=False), 10))
    assert not mirrored.any()


def test_mirroring_depends_on_step_and_seed(make_source):
    _, one = identities(take(make_source(seed=1), 12))
    _, two = identities(take(make_source(seed=2), 12))
    assert len({tuple(row) for row in one.reshape(-1, BATCH)}) > 1
    assert not np.array_equal(one, two)


def test_an_example_is_not_mirrored_the_same_in_every_epoch(make_source):
    index, mirrored = identities(take(make_source(), 30))
    for i in range(COUNT):
        assert len(set(mirrored[index == i])) == 2


# --- resuming --------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 8])  # epochs end in steps 3, 6, 9
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
    jax.tree.map(np.testing.assert_array_equal, next(source), next(fresh))


def test_resuming_on_another_data_set_is_refused(make_source):
    source = make_source()
    for key, value in (("digest", "?"), ("seed", 9), ("batch_size", 2)):
        with pytest.raises(UserError, match=key):
            source.restore(source.state() | {key: value})


def test_resuming_on_other_images_of_the_same_number_is_refused(photos, tmp_path):
    config = make_config(photos, tmp_path)
    dataset = pipeline.load_split(config, "train")
    config.data.crop = (4,)
    other = pipeline.load_split(config, "train")
    one, two = (
        pipeline.train_source(d, config, devices=jax.local_devices()[:1], seed=0)
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
    dataset = pipeline.load_split(config, "train")
    (root / "07.png").unlink()
    source = pipeline.train_source(
        dataset, config, devices=jax.local_devices()[:1], seed=0
    )
    with pytest.raises(UserError, match="train/07.png: No such file"):
        take(source, 3)


# --- placement ---------------------------------------------------------------------


def test_a_resident_set_compiles_once(photos, tmp_path):
    config = make_config(photos, tmp_path)
    dataset = pipeline.load_split(config, "train")
    source = pipeline.train_source(
        dataset, config, devices=jax.local_devices()[:1], seed=0
    )
    before = source._gather._cache_size()
    take(source, 9)
    # JAX 0.10.0 counts other sources' too, and may find one of theirs.
    assert max(before, 1) <= source._gather._cache_size() <= before + 1


def test_two_devices_share_the_batch_of_one():
    script = """
        import jax, numpy as np
        from configs import default
        from unsup3d_jax.data import dataset as ds, pipeline
        config = default.get_config()
        config.train.batch_size = 4
        image = np.arange(7, dtype=np.uint8)[:, None, None, None]
        image = np.tile(image, (1, 2, 2, 3)) * np.arange(1, 3, dtype=np.uint8)[:, None]
        dataset = ds.Dataset({"image": image}, ds.Report("x", "train", "", 7), "")
        for mib in (1, 0):
            config.data.device_memory_mib = mib
            one, two = (
                pipeline.train_source(dataset, config, devices=devices, seed=1)
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
    dataset = pipeline.load_split(config, "train")

    def make(devices=1):
        pipeline.train_source(
            dataset, config, devices=jax.local_devices()[:1] * devices, seed=0
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
    config.model.oracle_view = True
    with pytest.raises(UserError, match="no true view"):
        make()


# --- ground truth -------------------------------------------------------------------


def faces(count, *, size=SIZE, **_):
    """Arrays as a rendered set gives them."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        "depth": rng.uniform(0.9, 1.1, (count, size, size)).astype(np.float32),
        "mask": rng.random((count, size, size)) < 0.5,
        "view": rng.uniform(-0.5, 0.5, (count, 6)).astype(np.float32),
        "light": rng.uniform(-0.5, 0.5, (count, 5)).astype(np.float32),
        "normal": rng.random((count, size, size, 3)).astype(np.float32),
    }


def truth_config(tmp_path):
    config = default.get_config()
    config.data.name, config.data.image_size = "open_faces", SIZE
    config.data.cache_dir = str(tmp_path)
    config.train.batch_size = BATCH
    return config


def test_open_faces_are_loaded_with_the_options_of_the_config(tmp_path, monkeypatch):
    from unsup3d_jax.data import open_faces

    calls = []

    def load(split, *, count, **options):
        calls.append((split, count, options))
        return faces(count)

    monkeypatch.setattr(open_faces, "load", load)
    config = truth_config(tmp_path)
    config.data.count_val, config.data.max_images, config.data.seed = 9, 6, 3
    config.data.pose, config.data.perturb = "natural", True
    dataset = pipeline.load_split(config, "val")
    ((split, count, options),) = calls
    assert (split, count, len(dataset)) == ("val", 6, 6)
    assert {k: options[k] for k in ("image_size", "seed", "pose", "asymmetry")} == {
        "image_size": SIZE, "seed": 3, "pose": "natural", "asymmetry": 1.0,
    }  # fmt: skip
    assert options["perturb"] is True
    assert str(options["cache_dir"]) == str(tmp_path)


def test_options_that_open_faces_refuses_are_user_errors(tmp_path):
    config = truth_config(tmp_path)
    config.data.pose = "sideways"
    with pytest.raises(UserError, match="config.data, open_faces: pose"):
        pipeline.load_split(config, "train")


@pytest.mark.parametrize(
    "section, name, value, allowed",
    [
        ("view", "fov_deg", 20.0, False),
        ("view", "rotation_centre_depth", 1.1, False),
        ("depth", "min", 0.95, False),
        ("depth", "max", 1.05, False),
        ("depth", "min", 0.8, True),  # reaches the faces, and more
    ],
)
def test_open_faces_are_refused_through_another_camera(
    tmp_path, monkeypatch, section, name, value, allowed
):
    from unsup3d_jax.data import open_faces

    monkeypatch.setattr(open_faces, "load", lambda split, *, count, **_: faces(3))
    config = truth_config(tmp_path)
    config[section][name] = value
    if allowed:
        assert len(pipeline.load_split(config, "train")) == 3
    else:
        with pytest.raises(UserError, match=rf"{section}\.{name} must be .*{value}"):
            pipeline.load_split(config, "train")


@pytest.mark.slow
def test_open_faces_render(tmp_path):
    config = truth_config(tmp_path)
    config.data.image_size, config.data.count_train = 16, 5
    dataset = pipeline.load_split(config, "train")
    assert dataset.arrays["image"].shape == (5, 16, 16, 3)
    assert set(pipeline.FIELDS) == set(dataset.arrays)


def test_only_the_fields_that_training_needs_reach_the_devices(tmp_path):
    config = truth_config(tmp_path)
    dataset = ds.Dataset(faces(6), ds.Report("open_faces", "train", "", 6), "")

    def present():
        source = pipeline.train_source(
            dataset, config, devices=jax.local_devices()[:1], seed=0
        )
        batch = next(source)
        return {n for n in pipeline.FIELDS if getattr(batch, n) is not None}

    assert present() == {"image"}
    config.model.oracle_view = True
    assert present() == {"image", "view"}
    config.model.oracle_light = True
    config.model.supervision = "depth"
    assert present() == set(pipeline.FIELDS)


@pytest.mark.parametrize("mib", [1, 0])
def test_ground_truth_stays_with_its_image_and_is_mirrored_with_it(tmp_path, mib):
    config = truth_config(tmp_path)
    config.model.supervision, config.model.oracle_view = "depth", True
    config.model.oracle_light, config.data.device_memory_mib = True, mib
    arrays = faces(6)
    arrays["image"][:] = arrays["image"] // 2
    arrays["image"][:, 0, 0, 0], arrays["image"][:, 0, -1, 0] = np.arange(6), 255
    dataset = ds.Dataset(arrays, ds.Report("open_faces", "train", "", 6), "")
    source = pipeline.train_source(
        dataset, config, devices=jax.local_devices()[:1], seed=0
    )
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


def test_mirrored_viewpoint_and_light_describe_the_mirrored_scene():
    view = jnp.array([[0.3, -0.4, 0.2, 0.05, -0.02, 0.03]])
    light = jnp.array([[0.4, 0.6, 0.48, 0.6, 0.64]])
    image = jnp.zeros((1, 2, 2, 3))
    other = pipeline.mirror(Batch(image=image, view=view, light=light))
    points = jax.random.normal(jax.random.key(0), (20, 3)) * 0.1 + jnp.array([0, 0, 1])
    reflect = jnp.array([-1.0, 1.0, 1.0])
    moved = geometry.transform(points, view[0], centre_depth=1.0)
    mirrored = geometry.transform(points * reflect, other.view[0], centre_depth=1.0)
    np.testing.assert_allclose(mirrored, moved * reflect, atol=1e-6)
    canonical = lighting.to_canonical(light[0], view[0])
    np.testing.assert_allclose(
        lighting.to_canonical(other.light[0], other.view[0])[2:],
        canonical[2:] * reflect,
        atol=1e-6,
    )


# --- evaluation ------------------------------------------------------------------


@pytest.mark.parametrize("mib", [1, 0], ids=["memory", "streamed"])
def test_eval_batches_cover_the_set_once_in_order(photos, tmp_path, mib):
    config = make_config(photos, tmp_path)
    config.data.device_memory_mib = mib
    dataset = pipeline.load_split(config, "train")
    batches = list(pipeline.eval_batches(dataset, 4))
    assert [count for _, count in batches] == [4, 4, 3]
    assert all(batch.image.shape == (4, SIZE, SIZE, 3) for batch, _ in batches)
    got = np.concatenate([np.asarray(b.image)[:n] for b, n in batches])
    for i in range(COUNT):
        path = photos / "train" / f"{i:02d}.png"
        want, _ = images.read_image(path, crop=(), image_size=SIZE)
        np.testing.assert_array_equal(got[i], unit(want))
    last = batches[-1][0].image
    np.testing.assert_array_equal(last[3], last[2])


def test_eval_batches_hold_all_that_is_known():
    arrays = faces(5)
    dataset = ds.Dataset(arrays, ds.Report("open_faces", "val", "", 5), "")
    (first, n), (second, m) = pipeline.eval_batches(dataset, 3)
    assert (n, m) == (3, 2)
    for name in pipeline.FIELDS[1:]:
        got = np.concatenate([getattr(first, name)[:n], getattr(second, name)[:m]])
        np.testing.assert_array_equal(got, arrays[name])
    assert first.mask.dtype == jnp.bool_ and isinstance(first.image, jax.Array)
    with pytest.raises(ValueError, match="batch_size"):
        next(pipeline.eval_batches(dataset, 0))
