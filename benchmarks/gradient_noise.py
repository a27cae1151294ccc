"""How noisy is the gradient of a rendered depth map, and does fitting suffer from it?

Each vertex of a depth-map mesh spans about a pixel, the regime in which renderers'
gradients get noisy. Two measurements on the CPU, ten minutes of CPU time:

1. Bias and noise. A bumpy depth map seen from the side, at triangle sizes of 1/4 to 4
   pixels. For a smooth loss on the rendered depth, the gradient with respect to each
   canonical depth is compared with float64 central differences of the same loss on a
   12x12-supersampled image, over random sub-pixel shifts. `slope` is the regression of
   ours on the truth (1 is unbiased), `noise` the rms residual over the rms truth. Truth
   steps by `--step` of depth, so it sees occlusions and outlines move; it is restricted
   to an interior window, without the mesh's own outline.

2. Fitting. The depth map is fitted by Adam, from a plane, to depth images of several
   views (targets 8x8 supersampled, plus noise). The rms error of the map in the middle,
   and its roughness (rms second difference of the error), after each number of steps.

Run: python -m benchmarks.gradient_noise --output=noise.json     (charts beside it)
     python -m benchmarks.gradient_noise --draw=noise.json       (the charts alone)
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import rasterizer
from benchmarks import charts, machine

# The authors' scheme is "hard 2x2" with the scene moved by half a pixel.
METHODS = {
    "hard 1x": {},
    "hard 2x2": {"supersample": 2},
    "hard 3x3": {"supersample": 3},
    "soft 1x, sigma .05": {"sigma": 0.05, "gamma": 0.003},
    "soft 1x, sigma .2": {"sigma": 0.2, "gamma": 0.003},
    "soft 2x2, sigma .05": {"supersample": 2, "sigma": 0.05, "gamma": 0.003},
}
BACKGROUND = 1.1


def bumpy(n: int) -> np.ndarray:
    """A dome with bumps, (n, n) depths about 1; the same surface at every n."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, n)] * 2, indexing="ij")
    dome = -0.05 * np.sqrt(np.maximum(0.0, 1.2 - x**2 - y**2))
    bumps = 0.006 * np.sin(5 * x + 1) * np.cos(6 * y) + 0.02 * np.exp(
        -30 * ((x - 0.1) ** 2 + y**2)
    )
    return 1.02 + dome - bumps


def project(depth, yaw, shift, *, size: int):
    """Depth map (n, n) to screen vertices (n, n, 3), field of view 10 degrees.

    The map spans the image of `size` pixels at yaw 0, turns about (0, 0, 1), and moves
    by `shift` pixels.
    """
    n = depth.shape[0]
    half = (size - 1) / 2
    focal = half / math.tan(math.radians(5.0))
    across = jnp.linspace(-half, half, n, dtype=depth.dtype) / focal
    x = across[None, :] * depth
    y = across[:, None] * depth
    z = depth - 1.0
    x, z = jnp.cos(yaw) * x + jnp.sin(yaw) * z, jnp.cos(yaw) * z - jnp.sin(yaw) * x
    z = z + 1.0
    screen = [focal * x / z + half + shift[0], focal * y / z + half + shift[1]]
    return jnp.stack([*screen, z], axis=-1)


def render(vertices, size: int, options):
    """Depth image, by the grid path where it can."""
    h, w, _ = vertices.shape
    if "sigma" in options:
        return rasterizer.render_depth(
            vertices.reshape(h * w, 3),
            rasterizer.grid_faces(h, w),
            (size, size),
            background=BACKGROUND,
            **options,
        )
    return rasterizer.render_grid_depth(
        vertices, (size, size), background=BACKGROUND, **options
    )


def bias_and_noise(spacing: float, yaw: float, *, size: int, probes: int, step: float):
    """One row a method: slope and noise of d loss / d depth for one triangle size."""
    n = round((size - 1) / spacing) + 1
    rng = np.random.default_rng(0)
    depth = bumpy(n)
    v, u = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    margin = size // 5
    window = np.zeros((size, size))
    window[margin:-margin, margin:-margin] = 1.0
    weight = window * (np.sin(0.9 * u + 0.4) + np.cos(0.7 * v + 0.2 * u))

    def loss(depth, shift, options):
        image = render(project(depth, yaw, shift, size=size), size, options)
        return jnp.sum(image.depth * jnp.asarray(weight, depth.dtype))

    inner = np.arange(n)[int(0.3 * n) : int(0.7 * n) + 1]
    picks = [(rng.choice(inner), rng.choice(inner)) for _ in range(probes)]
    shifts = rng.uniform(-0.5, 0.5, (3, 2))
    truth, ours = [], {name: [] for name in METHODS}
    with jax.enable_x64(True):
        fine = jax.jit(lambda d, s: loss(d, s, {"supersample": 12}))
        for shift in shifts:
            for i, j in picks:
                up, down = depth.copy(), depth.copy()
                up[i, j] += step
                down[i, j] -= step
                truth.append(float(fine(up, shift) - fine(down, shift)) / (2 * step))
    for name, options in METHODS.items():
        gradient = jax.jit(jax.grad(partial(loss, options=options)))
        for shift in shifts:
            g = gradient(depth.astype(np.float32), shift.astype(np.float32))
            g = np.asarray(g)
            ours[name] += [g[i, j] for i, j in picks]
    truth = np.array(truth)
    rows = []
    for name, values in ours.items():
        values = np.array(values)
        slope = float(truth @ values / (truth @ truth))
        residual = values - truth
        rows.append(
            {
                "spacing": spacing,
                "yaw_deg": math.degrees(yaw),
                "method": name,
                "slope": slope,
                "noise": float(np.sqrt(np.mean(residual**2) / np.mean(truth**2))),
            }
        )
    return rows


def fit(options, *, size: int, steps: list[int], image_noise: float, views: int):
    """Fits an (size, size) depth map; errors after each number of steps."""
    rng = np.random.default_rng(1)
    truth = bumpy(size)
    yaws = np.radians(np.linspace(-40, 40, views)).astype(np.float32)
    shifts = np.zeros((views, 2), np.float32)

    def images(depth, options):
        def one(yaw, shift):
            return render(project(depth, yaw, shift, size=size), size, options)

        return jax.vmap(one)(yaws, shifts)

    target = images(jnp.asarray(truth, jnp.float32), {"supersample": 8}).depth
    target = target + image_noise * rng.normal(size=target.shape).astype(np.float32)

    def loss(depth):
        image = images(depth, options)
        error = jnp.abs(image.depth - target)
        return jnp.sum(jnp.where(image.covered, error, 0.0)) / image.covered.sum()

    @jax.jit
    def update(depth, m, v, t):
        g = jax.grad(loss)(depth)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = 1e-3 * jnp.minimum(1.0, 60.0 / t)
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        return depth - rate * m_hat / (jnp.sqrt(v_hat) + 1e-12), m, v

    depth = jnp.full((size, size), truth.mean(), jnp.float32)
    m = v = jnp.zeros_like(depth)
    rows = []
    middle = slice(size // 6, -(size // 6))
    for t in range(1, max(steps) + 1):
        depth, m, v = update(depth, m, v, jnp.float32(t))
        if t in steps:
            error = (np.asarray(depth) - truth)[middle, middle]
            rough = np.diff(error, 2, axis=1)
            rows.append(
                {
                    "step": t,
                    "rms": float(np.sqrt(np.mean(error**2))),
                    "roughness": float(np.sqrt(np.mean(rough**2))),
                    "loss": float(loss(depth)),
                }
            )
    return rows


def draw_charts(gradients: list[dict]) -> dict[str, str]:
    """SVG documents: noise and bias against triangle size, for each yaw."""
    charts_of = {}
    for yaw_deg in sorted({row["yaw_deg"] for row in gradients}):
        noise: dict[str, list[tuple[float, float]]] = {}
        bias: dict[str, list[tuple[float, float]]] = {}
        for row in gradients:
            if row["yaw_deg"] == yaw_deg:
                spacing, off = row["spacing"], abs(row["slope"] - 1.0)
                noise.setdefault(row["method"], []).append((spacing, row["noise"]))
                bias.setdefault(row["method"], []).append((spacing, max(off, 1e-3)))
        for name, lines, label, rule in (
            ("noise", noise, "rms noise / rms truth", 1.0),
            ("bias", bias, "|slope - 1|, at least 0.001", None),
        ):
            charts_of[f"{name}_yaw{yaw_deg:.0f}"] = charts.line_chart(
                lines,
                title=f"Gradient of rendered depth, yaw {yaw_deg:.0f} degrees",
                x_label="triangle side, pixels",
                y_label=label,
                rule=rule,
            )
    return charts_of


def _write_charts(output: Path, gradients: list[dict]) -> None:
    for name, chart in draw_charts(gradients).items():
        output.with_name(f"{output.stem}_{name}.svg").write_text(chart)


def main():
    parser = argparse.ArgumentParser(
        description="How noisy is the gradient of a rendered depth map?"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--draw", type=Path, help="JSON file to draw, nothing else")
    parser.add_argument("--size", type=int, default=24, help="image side, pixels")
    parser.add_argument("--probes", type=int, default=16, help="vertices probed")
    parser.add_argument("--step", type=float, default=2e-3, help="of depth")
    parser.add_argument("--fit-steps", type=int, default=400)
    args = parser.parse_args()
    if args.draw:
        _write_charts(args.draw, json.loads(args.draw.read_text())["gradients"])
        return
    begin = time.time()

    gradients = []
    print(f"{'triangle':>8} {'yaw':>5}  {'method':26} {'slope':>7} {'noise':>7}")
    for spacing in (0.25, 0.5, 1.0, 2.0, 4.0):
        for yaw_deg in (0.0, 30.0):
            rows = bias_and_noise(
                spacing,
                math.radians(yaw_deg),
                size=args.size,
                probes=args.probes,
                step=args.step,
            )
            for row in rows:
                print(
                    f"{spacing:8} {yaw_deg:5}  {row['method']:26} "
                    f"{row['slope']:7.3f} {row['noise']:7.3f}",
                    flush=True,
                )
            gradients += rows

    fits = []
    steps = sorted({args.fit_steps // 4, args.fit_steps})
    print(f"\n{'noise':>6}  {'method':26} {'step':>5} {'rms':>9} {'roughness':>9}")
    for image_noise in (0.0, 0.003):
        for name, options in METHODS.items():
            for row in fit(
                options, size=32, steps=steps, image_noise=image_noise, views=5
            ):
                print(
                    f"{image_noise:6}  {name:26} {row['step']:5} {row['rms']:9.2e} "
                    f"{row['roughness']:9.2e}",
                    flush=True,
                )
                fits.append({"image_noise": image_noise, "method": name, **row})
    if args.output:
        with open(args.output, "w") as file:
            json.dump(
                {
                    "machine": machine.describe("numba"),
                    "seconds": time.time() - begin,
                    "arguments": {**vars(args), "output": None, "draw": None},
                    "gradients": gradients,
                    "fits": fits,
                },
                file,
                indent=1,
            )
        _write_charts(args.output, gradients)


if __name__ == "__main__":
    main()
