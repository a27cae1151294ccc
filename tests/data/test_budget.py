"""Memory that threads share."""

import concurrent.futures
import threading
import time

import numpy as np
import pytest
from PIL import Image

from unsup3d_jax.data import budget, damage, images


def test_the_sum_stays_below_the_total_and_one_alone_may_exceed_it():
    shared, lock = budget.Budget(100), threading.Lock()
    held, most = [], [0]

    def use(need):
        with shared.hold(need):
            with lock:
                held.append(need)
                most[0] = max(most[0], sum(held) if len(held) > 1 else 0)
            time.sleep(0.002)
            with lock:
                held.remove(need)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [60, 30, 30, 250, 10, 100, 70, 20] * 4, timeout=30))
    assert 60 < most[0] <= 100


def test_what_fails_gives_back_what_it_held():
    shared = budget.Budget(10)
    for _ in range(3):
        with pytest.raises(KeyError), shared.hold(8):
            raise KeyError
    with shared.hold(8), shared.hold(2):
        pass


def test_large_photos_are_decoded_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MEMORY", budget.Budget(3 << 20))
    checked, running, most = damage.check, [], [0]

    def check(path, image):
        running.append(path)
        most[0] = max(most[0], len(running))
        time.sleep(0.01)
        checked(path, image)
        running.remove(path)

    monkeypatch.setattr(damage, "check", check)
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        Image.new("RGB", (400, 500), (i, 0, 0)).save(path)  # 2.4 MB at the peak

    def red(path):
        return images.read_image(path, crop=(), image_size=4)[0][0, 0, 0]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(red, paths, timeout=30)) == list(range(8))
        assert most[0] == 1
        monkeypatch.setattr(images, "_MEMORY", budget.Budget(100 << 20))
        assert list(pool.map(red, paths, timeout=30)) == list(range(8))
    assert most[0] > 1


def test_what_an_image_needs_follows_its_pixels(tmp_path):
    path = tmp_path / "x"

    def each(mode, kind, **options):
        Image.new(mode, (100, 100)).save(path, kind, **options)
        with Image.open(path) as image:
            return (images._bytes_needed(image, path) - path.stat().st_size) / 100**2

    assert each("L", "PNG") == 6 and each("RGB", "PNG") == 12
    assert each("I;16", "PNG") == 12 and each("RGBA", "PNG") == 24
    assert each("RGB", "JPEG") == 12 and each("RGB", "JPEG", progressive=True) == 18
    assert each("RGB", "WEBP") == 24


def test_photos_of_108_megapixels_are_admitted():
    assert 12_000 * 9_000 <= images.MAX_PIXELS < np.iinfo(np.int32).max
