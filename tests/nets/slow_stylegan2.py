"""StyleGAN2 as it is defined, slow and obvious: float64 numpy, a pixel at a time.

Karras et al., CVPR 2020. Takes the parameters of `unsup3d_jax.nets.stylegan2`.
"""

import numpy as np

FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64.0


def correlate(x, kernel, stride=1):
    """No padding: (h, w, i) and (kh, kw, i, o) -> (h2, w2, o)."""
    size = kernel.shape[0]
    rows = (x.shape[0] - size) // stride + 1
    columns = (x.shape[1] - size) // stride + 1
    out = np.zeros((rows, columns, kernel.shape[-1]))
    for r in range(rows):
        for c in range(columns):
            window = x[stride * r :, stride * c :][:size, :size]
            out[r, c] = np.tensordot(window, kernel, 3)
    return out


def transposed(x, kernel):
    """Stride 2, no padding: (h, w, i) and (3, 3, i, o) -> (2h + 1, 2w + 1, o)."""
    h, w, _ = x.shape
    out = np.zeros((2 * h + 1, 2 * w + 1, kernel.shape[-1]))
    for r in range(h):
        for c in range(w):
            out[2 * r : 2 * r + 3, 2 * c : 2 * c + 3] += np.tensordot(
                x[r, c], kernel, ((0,), (2,))
            )
    return out


def pad(x, before, after=None):
    ends = (before, before if after is None else after)
    return np.pad(x, (ends, ends, (0, 0)))


def blur(x, before, after=None, gain=1.0):
    """The filter as a true convolution of each channel."""
    x = pad(x, before, after)
    turned = gain * FILTER[::-1, ::-1, None, None]
    return np.concatenate(
        [correlate(x[..., c : c + 1], turned) for c in range(x.shape[-1])], -1
    )


def upsample(x):
    h, w, c = x.shape
    zeros = np.zeros((2 * h, 2 * w, c))
    zeros[::2, ::2] = x
    return blur(zeros, 2, 1, gain=4.0)


def downsample(x):
    return blur(x, 1)[::2, ::2]


def up_convolve(x, kernel):
    return blur(transposed(x, kernel), 1, gain=4.0)


def down_convolve(x, kernel):
    return correlate(blur(x, 2), kernel, stride=2)


def activate(x, bias):
    x = x + bias
    return np.sqrt(2.0) * np.where(x > 0, x, 0.2 * x)


def dense(kernel, x, rate=1.0):
    return x @ kernel * rate / np.sqrt(kernel.shape[0])


def map_latent(mapping, z, rate, first=0, last=None):
    for step in range(len(mapping) + 1)[first:last]:
        if step == 0:
            z = z / np.sqrt((z**2).mean() + 1e-8)
        else:
            layer = mapping[f"dense_{step - 1}"]
            z = activate(dense(layer["kernel"], z, rate), layer["bias"] * rate)
    return z


def modulated(layer, w, is_rgb=False):
    """The kernel that this one image is convolved with."""
    style = dense(layer["style_kernel"], w) + layer["style_bias"]
    kernel = layer["kernel"][None, None] if is_rgb else layer["kernel"]
    kernel = kernel / np.sqrt(np.prod(kernel.shape[:3])) * style[:, None]
    if is_rgb:
        return kernel
    return kernel / np.sqrt((kernel**2).sum((0, 1, 2)) + 1e-8)


def synthesise_one(params, w, noise):
    """W+ (n, style) -> (h, w, 3)."""

    def styled(layer, x, w, noise, up=False):
        kernel = modulated(layer, w)
        x = up_convolve(x, kernel) if up else correlate(pad(x, 1), kernel)
        if noise is not None:
            x = x + layer["noise"] * noise[..., None]
        return activate(x, layer["bias"])

    def to_rgb(layer, x, w):
        return correlate(x, modulated(layer, w, is_rgb=True)) + layer["bias"]

    maps = iter(noise if noise is not None else [None] * 99)
    block = params["block_0"]
    x = styled(block["conv"], params["constant"], w[0], next(maps))
    rgb = to_rgb(block["rgb"], x, w[1])
    for n in range(1, len(params) - 1):
        block = params[f"block_{n}"]
        x = styled(block["up"], x, w[2 * n - 1], next(maps), up=True)
        x = styled(block["conv"], x, w[2 * n], next(maps))
        rgb = upsample(rgb) + to_rgb(block["rgb"], x, w[2 * n + 1])
    return rgb


def conv(layer, x):
    kernel = layer["kernel"] / np.sqrt(np.prod(layer["kernel"].shape[:3]))
    return activate(correlate(pad(x, 1), kernel), layer["bias"])


def features_one(params, x, count):
    rgb, maps = params["rgb"], []
    x = activate(dense(rgb["kernel"], x), rgb["bias"])
    for n in range(count):
        block = params[f"block_{n}"]
        down, skip = block["down"], block["skip"]["kernel"]
        kernel = down["kernel"] / np.sqrt(np.prod(down["kernel"].shape[:3]))
        y = activate(down_convolve(conv(block["conv"], x), kernel), down["bias"])
        x = (y + dense(skip, downsample(x))) / np.sqrt(2.0)
        maps.append(x)
    return maps


def discriminate(params, images):
    blocks = len(params) - 4
    maps = np.stack([features_one(params, x, blocks)[-1] for x in images])
    group = min(len(maps), 4)
    out = []
    for i, x in enumerate(maps):
        several = maps[i % (len(maps) // group) :: len(maps) // group]
        deviation = np.sqrt(several.var(0) + 1e-8).mean()
        x = np.concatenate([x, np.full((*x.shape[:2], 1), deviation)], -1)
        x = conv(params["conv"], x).reshape(-1)
        first, last = params["dense_0"], params["dense_1"]
        x = activate(dense(first["kernel"], x), first["bias"])
        out.append(dense(last["kernel"], x)[0] + last["bias"][0])
    return np.array(out)
