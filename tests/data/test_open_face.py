"""The open face model, its renderings and their cache."""

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rasterizer import rasterize
from unsup3d_jax.data import array_files, tiles
from unsup3d_jax.data.open_face import (
    appearance,
    cache,
    model,
    processes,
    render,
    scene,
    sheet,
    truth,
)
from unsup3d_jax.data.open_face import dataset as open_faces
from unsup3d_jax.data.open_face.model import LANDMARK_FLIP, of_one_number
from unsup3d_jax.data.open_face.topology import boundary_loops
from unsup3d_jax.formation import geometry

SIZE = 64
COUNT = render.chunk_size(SIZE)  # one chunk, one compilation
FLIP = np.float32([-1, 1, 1])


@pytest.fixture(scope="module")
def head():
    return model.load_model()


@pytest.fixture(scope="module")
def faces():
    return open_faces.load("train", image_size=SIZE, count=COUNT, pose="mixed")


def interior(mask):
    """Pixels whose 3 x 3 neighbourhood lies on the face."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    h, w = mask.shape[1:]
    shifts = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return np.logical_and.reduce(shifts)


def depth_normals(depth):
    """(-z_x, -z_y, 1) / |.| from central differences of lifted points."""
    size = depth.shape[-1]
    axis = (np.arange(size) - (size - 1) / 2) * 2 * np.tan(np.radians(5)) / (size - 1)
    points = np.stack([depth * axis, depth * axis[:, None], depth], axis=-1)
    along_x = np.zeros_like(points)
    along_y = np.zeros_like(points)
    along_x[:, :, 1:-1] = points[:, :, 2:] - points[:, :, :-2]
    along_y[:, 1:-1] = points[:, 2:] - points[:, :-2]
    normal = np.cross(along_x, along_y)
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True).clip(1e-12)


# The model file.


def test_model_file_is_small_and_carries_its_licence():
    assert model.MODEL_PATH.stat().st_size < 1.5e6
    licence = model.MODEL_PATH.with_name("LICENSE-CC0.md").read_text()
    for words in ("makehumancommunity", "CC0 1.0 Universal", "Affirmer", "artist-made"):
        assert words in licence


def test_mesh_has_the_counts_of_the_recipe(head):
    assert head.rest.shape == (3410, 3) and head.faces.shape == (6772, 3)
    assert head.identity.shape == (70, 3412, 3)
    assert head.expression.shape == (24, 3412, 3)
    assert np.bincount(head.labels).tolist() == [6460, 104, 104, 104]


def test_mesh_is_manifold_with_one_boundary(head):
    edges = np.sort(head.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, uses = np.unique(edges, axis=0, return_counts=True)
    assert set(uses) == {1, 2}
    loops = boundary_loops([list(f) for f in head.faces.tolist()])
    assert [len(loop) for loop in loops] == [46]
    a, b, c = (1000 * head.mean[head.faces[:, i]] for i in range(3))  # millimetres
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    assert area.min() > 1e-4


def test_mirror_is_exact(head):
    mirror = head.mirror
    np.testing.assert_array_equal(mirror[mirror], np.arange(3412))
    np.testing.assert_array_equal(head.mean[mirror] * FLIP, head.mean)
    np.testing.assert_array_equal(head.rest[mirror[:-2]] * FLIP, head.rest)
    np.testing.assert_array_equal(head.occlusion[mirror[:-2]], head.occlusion)
    flipped = head.identity[:, mirror] * FLIP
    np.testing.assert_array_equal(flipped[:60], head.identity[:60])
    np.testing.assert_array_equal(flipped[60:], -head.identity[60:])
    np.testing.assert_array_equal(
        mirror[head.landmarks], head.landmarks[np.array(LANDMARK_FLIP)]
    )

    def rows(faces):
        return {tuple(sorted(f)) for f in faces.tolist()}

    assert rows(mirror[head.faces]) == rows(head.faces)


def test_image_left_landmarks_are_the_right_of_the_subject(head):
    points = head.mean[head.landmarks]
    assert points[0, 0] < 0 < points[16, 0] and points[36, 0] < 0 < points[45, 0]
    assert points[8, 1] < points[57, 1] < points[51, 1] < points[30, 1] < points[27, 1]


# Draws.


def test_splits_and_seeds_share_no_face():
    chosen = [
        set(open_faces.split_seeds(split, count=1000, seed=seed))
        for split in open_faces.SPLITS
        for seed in (0, 1)
    ]
    assert len(set.union(*chosen)) == 6 * 1000


def test_a_seed_always_draws_the_same_numbers():
    # Philox 4x64 with key (seed, topic): a golden of numpy's own documented stream.
    first, second = (model.Draws(np.array([7, 8]), "shape", 4).unit(4) for _ in "ab")
    np.testing.assert_array_equal(first, second)
    stream = int.from_bytes(b"shape   ", "little")
    direct = np.random.Generator(np.random.Philox(key=[8, stream])).random(4)
    np.testing.assert_array_equal(first[1], direct)
    assert np.abs(first - model.Draws(np.array([7, 8]), "light", 4).unit(4)).min() > 0


@pytest.mark.parametrize("pose, spread", [("natural", 19.8), ("mixed", 30.5)])
def test_pose_spread(pose, spread):
    draws = model.Draws(np.arange(4000), "pose", scene.POSE_DRAWS)
    view, scale = scene.sample_pose(draws, pose)
    pitch, yaw, roll = np.degrees(view[:, :3]).T
    assert abs(yaw.std() - spread) < 1.0 and abs(yaw.mean()) < 1.5
    assert np.abs(yaw).max() <= 60 + 1e-9 and np.abs(pitch).max() <= 20 + 1e-9
    assert abs(roll.std() - 7.9) < 0.5
    assert scale.min() >= 0.86 and scale.max() <= 0.99


# Pictures and their truth.


def test_arrays_have_the_promised_types_and_shapes(faces):
    pixels = (COUNT, SIZE, SIZE)
    promised = {
        "image": (np.uint8, (*pixels, 3)),
        "albedo": (np.uint8, (*pixels, 3)),
        "depth": (np.float32, pixels),
        "mask": (np.bool_, pixels),
        "normal": (np.float32, (*pixels, 3)),
        "light": (np.float32, (COUNT, 5)),
        "view": (np.float32, (COUNT, 6)),
        "keypoints": (np.float32, (COUNT, 68, 3)),
        "keypoints_visible": (np.bool_, (COUNT, 68)),
        "seed": (np.int64, (COUNT,)),
    }
    assert {k: (v.dtype, v.shape) for k, v in faces.items()} == promised


def test_depth_lies_in_range_and_gives_the_mask(faces):
    depth, mask = faces["depth"], faces["mask"]
    np.testing.assert_array_equal(mask, depth < open_faces.FAR)
    assert (depth[~mask] == np.float32(open_faces.FAR)).all()
    assert depth[mask].min() > 0.9
    fill = mask.mean((1, 2))
    assert 0.65 < fill.mean() < 0.85 and fill.min() > 0.4
    assert (faces["albedo"][~interior(mask) & ~mask] == 0).mean() > 0.9


def test_normals_agree_with_depth(faces):
    normal, mask = faces["normal"], faces["mask"]
    np.testing.assert_allclose(np.linalg.norm(normal[mask], axis=-1), 1, atol=1e-5)
    assert (normal[mask][:, 2] > 0).all() and (normal[~mask] == 0).all()
    inside = interior(mask)
    cosine = (normal * depth_normals(faces["depth"])).sum(-1)[inside]
    assert np.median(np.degrees(np.arccos(cosine.clip(-1, 1)))) < 3.0


def test_image_is_shading_times_albedo(faces):
    light = faces["light"][:, :, None, None]
    np.testing.assert_allclose(np.linalg.norm(faces["light"][:, 2:], axis=1), 1, 1e-5)
    lambert = np.einsum("nhwc,nc->nhw", faces["normal"], faces["light"][:, 2:])
    shading = light[:, 0] + light[:, 1] * np.maximum(lambert, 0.0)
    predicted = (shading[..., None] * faces["albedo"] / 255.0).clip(0, 1)
    gap = np.abs(predicted - faces["image"] / 255.0)[interior(faces["mask"])]
    assert gap.mean() < 0.003


def test_the_same_seed_gives_the_same_bits_in_any_batch(faces):
    few = open_faces.load("train", image_size=SIZE, count=3, pose="mixed")
    for name, array in few.items():
        np.testing.assert_array_equal(array, faces[name][:3], err_msg=name)


def test_visible_keypoints_lie_on_the_depth_map(faces):
    shown = faces["keypoints_visible"]
    assert 0.6 < shown.mean() < 1.0
    assert shown[:, 30].mean() > 0.9  # the tip of the nose
    for points, visible, depth in zip(
        faces["keypoints"], shown, faces["depth"], strict=True
    ):
        column, row = np.round(points[visible, :2]).astype(int).T
        gap = points[visible, 2] - depth[row, column]
        assert gap.max() < render.LANDMARK_TOLERANCE + 1e-6
        assert np.median(np.abs(gap)) < 0.002


def test_view_takes_keypoints_back_to_a_symmetric_face():
    """p = R (q - o) + o + t undone leaves x -> -x symmetry: order, signs and pivot."""
    faces = open_faces.load("val", image_size=SIZE, count=4, asymmetry=0.0)
    points, view = faces["keypoints"], faces["view"]
    focal = (SIZE - 1) / (2 * np.tan(np.radians(5)))
    lifted = (points[..., :2] - (SIZE - 1) / 2) * points[..., 2:] / focal
    camera = np.concatenate([lifted, points[..., 2:]], axis=-1)
    moved = camera - view[:, None, 3:] - [0, 0, 1]
    canonical = np.einsum("nki,nij->nkj", moved, scene.rotation(view))  # R^T p
    np.testing.assert_allclose(canonical[:, LANDMARK_FLIP] * FLIP, canonical, atol=2e-6)
    assert (canonical[:, 30, 2] < -0.05).all()  # the nose is towards the camera
    assert (canonical[:, 8, 1] > canonical[:, 27, 1]).all()  # y down


def render_views(head, views, lights):
    """The first symmetric test face in given views and lights: float pictures."""
    seeds = np.repeat(open_faces.split_seeds("test", count=1), COUNT)
    mesh = render.make_mesh(head, model.basis(head, asymmetry=0.0))
    people = model.sample_people(head, of_one_number(seeds), asymmetry=0.0)
    look = appearance.sample_appearance(head, seeds, people.attributes, asymmetry=0.0)
    heads = render.shape_heads(mesh, people.coefficients, look)
    where = scene.sample_scenes(
        of_one_number(seeds), *map(np.asarray, heads[:2]), pose="natural"
    )
    view, light = where.view.copy(), where.light.copy()
    view[:] = 0.0
    view[: len(views), :3], light[: len(lights)] = views, lights
    turn = scene.rotation(view).astype(np.float32)
    where = where._replace(view=view, light=light)
    pictures = render.render_chunk(mesh, heads, look, where, turn, size=SIZE)
    return jax.tree.map(np.asarray, pictures)


@pytest.fixture(scope="module")
def turned(head):
    frontal = (0.5, 0.5, 0.0, 0.0, 1.0)
    views = [(0, 0, 0), (0, 0.4, 0), (0.3, 0, 0), (0, 0, 0.3), (0, 0, 0), (0, 0, 0)]
    lights = [frontal] * 4 + [(0.3, 0.7, 0.0, 0.8, 0.6), (0.3, 0.7, 0.8, 0.0, 0.6)]
    return render_views(head, np.float32(views), np.float32(lights))


def test_signs_of_the_rotations(turned):
    front, yawed, pitched, rolled = turned.keypoints[:4]
    eyes = [36, 45]
    assert abs(front[30, 0] - front[eyes, 0].mean()) < 0.01
    assert yawed[30, 0] < yawed[eyes, 0].mean() - 2  # nose to the image's left
    assert pitched[30, 1] > front[30, 1] + 2  # nose down
    assert rolled[27, 0] > rolled[8, 0] + 5  # clockwise: the brow right of the chin


def test_light_brightens_the_side_it_comes_from(turned):
    """Relative to a frontal light, so that albedo cancels; y is down, x right."""
    face = turned.mask[0]
    from_above, from_left = (
        np.where(face, lit.mean(-1) / turned.image[0].mean(-1), np.nan)
        for lit in turned.image[4:6]
    )
    middle = slice(SIZE // 2 - 4, SIZE // 2 + 4)
    upper, lower = from_above[4:14, middle], from_above[-10:, middle]
    assert np.nanmedian(upper) > 1.3 * np.nanmedian(lower)
    left, right = np.array_split(from_left[20:40], 2, axis=1)
    assert np.nanmedian(left) > 1.3 * np.nanmedian(right)


def test_asymmetry_zero_is_a_mirror_image(head, turned):
    depth, albedo = turned.depth[0], turned.albedo[0]
    assert (np.abs(depth - depth[:, ::-1]) < 1e-5).mean() > 0.995
    assert np.quantile(np.abs(albedo - albedo[:, ::-1]), 0.995) < 1e-3
    seeds = np.arange(8)
    still = model.sample_people(head, of_one_number(seeds), asymmetry=0.0).coefficients
    points = head.mean + np.einsum(
        "nk,kvc->nvc", still, model.basis(head, asymmetry=0.0)
    )
    np.testing.assert_allclose(points[:, head.mirror] * FLIP, points, atol=1e-7)
    lively = model.sample_people(head, of_one_number(seeds), asymmetry=1.0).coefficients
    assert np.abs(lively[:, 60:70]).mean() > 0.3


def test_back_faces_do_not_show(head):
    """A flipped winding or culling sign would show the inside of the head."""
    seeds = np.arange(COUNT)
    mesh = render.make_mesh(head, model.basis(head, asymmetry=1.0))
    people = model.sample_people(head, of_one_number(seeds), asymmetry=1.0)
    look = appearance.sample_appearance(head, seeds, people.attributes, asymmetry=1.0)
    heads = jax.tree.map(
        np.asarray, render.shape_heads(mesh, people.coefficients, look)
    )
    where = scene.sample_scenes(of_one_number(seeds), *heads[:2], pose="mixed")
    turn = scene.rotation(where.view) * [1, -1, -1]
    camera = where.scale[:, None, None] * heads.vertices @ np.swapaxes(turn, 1, 2)
    camera += where.view[:, None, 3:] + np.float32([0, 0, 1])
    screen = np.asarray(render.to_pixels(camera.astype(np.float32), SIZE))
    draw = jax.jit(lambda v: rasterize(v, mesh.faces, (SIZE, SIZE)).face_index)
    index = np.asarray(draw(screen))
    (ax, ay), (bx, by), (cx, cy) = (
        np.moveaxis(screen[:, head.faces[:, i], :2], -1, 0) for i in range(3)
    )
    # Negative in front: pixel y grows downward.
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    seen = np.concatenate([area[i][index[i][index[i] >= 0]] for i in range(COUNT)])
    assert (seen > 0).mean() < 2e-4


# The patch.


@pytest.mark.once
def test_patch_changes_the_image_alone():
    options = {"image_size": SIZE, "count": COUNT, "pose": "natural"}
    plain = open_faces.load("test", **options)
    patched = open_faces.load("test", perturb=True, **options)
    covered = patched.pop("perturb")
    for name in patched.keys() - {"image"}:
        np.testing.assert_array_equal(patched[name], plain[name], err_msg=name)
    np.testing.assert_array_equal(patched["image"][~covered], plain["image"][~covered])
    height, width = covered.any(2).sum(1), covered.any(1).sum(1)
    np.testing.assert_array_equal(height * width, covered.sum((1, 2)))  # a rectangle
    for extent in (height, width):
        assert extent.min() >= 0.2 * SIZE - 1 and extent.max() <= 0.5 * SIZE + 1
    for before, after, where in zip(
        plain["image"], patched["image"], covered, strict=True
    ):
        # after = (1 - alpha) before + alpha color: contrast shrinks by 1 - alpha.
        slope = np.polyfit(before[where][:, 0], after[where][:, 0], 1)[0]
        assert -0.05 < slope < 0.55


# The cache.


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, faces, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    made = open_faces.load(
        "train", image_size=SIZE, count=3, cache_dir=tmp_path / "cache"
    )
    np.testing.assert_array_equal(made["image"], faces["image"][:3])
    assert "cannot cache" in caplog.text


@pytest.mark.once
def test_only_the_fields_asked_for_are_returned(tmp_path, faces):
    for _ in ("made", "read from the cache"):
        some = open_faces.load(
            "train",
            image_size=SIZE,
            count=3,
            cache_dir=tmp_path,
            fields=("image", "mask"),
        )
        assert some.keys() == {"image", "mask"}
        np.testing.assert_array_equal(some["mask"], faces["mask"][:3])
    with pytest.raises(ValueError, match="colour"):
        open_faces.load("train", image_size=SIZE, count=3, fields=("colour",))


def test_cache_returns_what_was_made(tmp_path, faces, caplog):
    options = {"image_size": SIZE, "count": 3, "pose": "mixed", "cache_dir": tmp_path}
    made = open_faces.load("train", **options)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    kept = open_faces.load("train", **options)
    assert path.stat().st_mtime_ns == stamp and list(tmp_path.iterdir()) == [path]
    for name, array in made.items():
        np.testing.assert_array_equal(array, kept[name], err_msg=name)
        np.testing.assert_array_equal(array, faces[name][:3], err_msg=name)
        assert array.dtype == kept[name].dtype

    # Of other damages tests/data/test_array_files.py knows.
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = open_faces.load("train", **options)
    assert "damaged" in caplog.text
    np.testing.assert_array_equal(again["image"], made["image"])
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


def test_other_options_are_other_files():
    request = {"image_size": 64, "pose": "mixed", "count": 10, "seed": 0}
    names = {
        cache._fingerprint(request | change)
        for change in ({}, {"pose": "natural"}, {"count": 11}, {"image_size": 32})
    }
    assert len(names) == 4


def test_racing_writers_never_show_half_a_file(tmp_path, capsys):
    path = tmp_path / "faces.npz"
    arrays = {"image": np.arange(200_000)}
    array_files.write(path, arrays)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        writes = [pool.submit(array_files.write, path, arrays) for _ in range(20)]
        while not all(w.done() for w in writes):
            stored = array_files.read(path)
            np.testing.assert_array_equal(stored["image"], arrays["image"])
        for write in writes:
            write.result()
    assert list(tmp_path.iterdir()) == [path] and capsys.readouterr().err == ""


# Errors and the contact sheet.


@pytest.mark.parametrize(
    "change, words",
    [
        ({"split": "dev"}, "split must be"),
        ({"count": 0}, "count"),
        ({"pose": "frontal"}, "pose must be"),
        ({"asymmetry": -1.0}, "asymmetry"),
        ({"image_size": 4}, "image_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_named(change, words):
    arguments = {"split": "train", "image_size": SIZE, "count": 2} | change
    with pytest.raises(ValueError, match=words):
        open_faces.load(arguments.pop("split"), **arguments)


def test_contact_sheet_shows_images_and_layers(faces):
    got = sheet.contact_sheet(faces, columns=8)
    step = SIZE + tiles.GAP
    assert got.shape == ((COUNT // 8 + 4) * step + 2, 8 * step + 2, 3)
    corner = got[2:step, 2:step]
    np.testing.assert_array_equal(corner, faces["image"][0])
    below = got[2 + COUNT // 8 * step :][:SIZE, 2:step]
    np.testing.assert_array_equal(below, faces["albedo"][0])


# The camera, and several views of one person.


def test_the_camera_is_that_of_the_project():
    """numpy and float64 here, JAX and float32 there; one convention."""
    rng = np.random.default_rng(0)
    view = rng.uniform(-0.5, 0.5, (4, 6)).astype(np.float32)
    turns = scene.rotation(view.astype(np.float64))
    points = rng.uniform(-0.1, 0.1, (5, 3)).astype(np.float32)
    centre = np.float32([0, 0, scene.CENTRE_DEPTH])
    for one, turn in zip(view, turns, strict=True):
        np.testing.assert_allclose(
            turn, geometry.rotation_matrix(jnp.asarray(one[:3])), atol=1e-6
        )
        moved = points @ turn.T + centre + one[3:]
        np.testing.assert_allclose(
            moved,
            geometry.transform(
                jnp.asarray(points) + centre,
                jnp.asarray(one),
                centre_depth=scene.CENTRE_DEPTH,
            ),
            atol=1e-6,
        )


@pytest.fixture(scope="module")
def several():
    return open_faces.load_views("train", image_size=SIZE, count=3, views=4)


def test_views_begin_with_the_picture_of_the_single_set(faces, several):
    np.testing.assert_array_equal(several["identity"], np.repeat([0, 1, 2], 4))
    assert several["identity"].dtype == np.int32
    for name in faces:
        np.testing.assert_array_equal(several[name][::4], faces[name][:3], name)


def test_views_of_a_person_differ_in_all_but_the_person(head, several):
    for name in ("view", "light"):
        assert len(np.unique(several[name], axis=0)) == 12
    people = open_faces.split_seeds("train", count=3)
    seeds = open_faces.view_seeds(people, views=4)
    drawn = model.sample_people(head, seeds, asymmetry=1.0).coefficients
    identity, expression = np.split(drawn.reshape(3, 4, -1), [70], axis=2)
    np.testing.assert_array_equal(identity, identity[:, :1].repeat(4, 1))
    assert all(len(np.unique(e, axis=0)) > 1 for e in expression)
    # No view draws from a number that is another's, in any split.
    numbers = {n for s in open_faces.SPLITS for n in open_faces.split_seeds(s, count=9)}
    assert not numbers & set(seeds.pose.reshape(3, 4)[:, 1:].ravel().tolist())


@pytest.mark.once
def test_fewer_views_are_a_prefix_and_only_what_is_asked_for_varies(several):
    few = open_faces.load_views(
        "train", image_size=SIZE, count=2, views=2, fields=("image", "identity")
    )
    assert few.keys() == {"image", "identity"}
    np.testing.assert_array_equal(few["image"], several["image"][[0, 1, 4, 5]])
    lit = open_faces.load_views(
        "train", image_size=SIZE, count=2, views=3, vary=("light",)
    )
    for name in ("view", "keypoints", "depth", "albedo", "mask"):
        np.testing.assert_array_equal(lit[name][0], lit[name][2], err_msg=name)
    assert len(np.unique(lit["light"], axis=0)) == 6


def test_views_are_cached_apart_from_single_faces(tmp_path, several):
    options = {"image_size": SIZE, "count": 1, "cache_dir": tmp_path}
    made = open_faces.load_views("train", views=2, **options)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    kept = open_faces.load_views("train", views=2, **options)
    assert path.stat().st_mtime_ns == stamp
    for name, array in made.items():
        np.testing.assert_array_equal(array, kept[name], err_msg=name)
    for change in ({"views": 0}, {"views": 2, "vary": ("age",)}):
        with pytest.raises(ValueError, match="views|vary"):
            open_faces.load_views("train", **options, **change)


# What they are made from.


def test_the_truth_of_pictures_is_known_without_them(head, several, tmp_path):
    options = {"image_size": SIZE, "count": 3, "views": 4, "cache_dir": tmp_path}
    known = truth.load("train", **options)
    np.testing.assert_array_equal(known["view"], several["view"])
    points = head.mean + np.einsum(
        "nk,kvc->nvc", known["coefficients"], model.basis(head, asymmetry=1.0)
    )
    camera = (known["scale"][:, None, None] * points[:, head.landmarks]) * [1, -1, -1]
    camera = camera @ np.swapaxes(scene.rotation(known["view"].astype(float)), 1, 2)
    camera += known["view"][:, None, 3:] + [0, 0, scene.CENTRE_DEPTH]
    np.testing.assert_allclose(
        render.to_pixels(camera, SIZE), several["keypoints"], rtol=1e-5, atol=1e-4
    )
    # Kept, and of the single pictures where there is one of each.
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    truth.load("train", **options)
    assert path.stat().st_mtime_ns == stamp
    single = truth.load("train", image_size=SIZE, count=3)
    for name, array in known.items():
        np.testing.assert_array_equal(array[::4], single[name], name)


# Several processes.


@pytest.mark.slow
def test_faces_are_the_same_by_however_many_processes_they_are_rendered():
    seeds = of_one_number(open_faces.split_seeds("train", count=5))
    options = {"image_size": 16, "pose": "mixed", "asymmetry": 1.0, "perturb": True}
    alone = processes.compact(seeds, **options, processes=1)
    shared = processes.compact(seeds, **options, processes=2)
    assert alone.keys() == shared.keys()
    for name, array in alone.items():
        np.testing.assert_array_equal(shared[name], array, err_msg=name)


def test_a_process_that_fails_is_named(monkeypatch):
    seeds = of_one_number(open_faces.split_seeds("train", count=4))
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with status 1"):
        processes.compact(
            seeds,
            image_size=16,
            pose="mixed",
            asymmetry=1.0,
            perturb=False,
            processes=2,
        )
