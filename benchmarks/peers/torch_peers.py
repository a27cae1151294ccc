"""PyTorch3D, nvdiffrast and neural_renderer: renderers behind PyTorch.

None of the three comes as a wheel for a plain CPU installation, so that these adapters
run only where somebody has built them. nvdiffrast and neural_renderer need a GPU;
what they are handed is checked without one, against a model of them, by
`tests/test_peers.py`.
"""

import importlib
import importlib.metadata
import time

import numpy as np

from benchmarks.peers.types import Calls, Peer, Queue, Scene, Unavailable


def _import(name: str, *, cuda: bool):
    """Module `name`, and torch.

    Raises:
        Unavailable: if either is missing or broken, or there is no CUDA where it is
            needed.
    """
    try:
        import torch

        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Unavailable(f"not installed (no module {error.name})") from error
    except Exception as error:
        raise Unavailable(f"cannot be loaded: {error}") from error
    if cuda and not torch.cuda.is_available():
        raise Unavailable("installed, but needs a CUDA GPU")
    return module, torch


def _version(distribution: str, module) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return getattr(module, "__version__", "unknown")


def _calls(torch, scene: Scene, device: str, to_input, draw) -> Calls:
    """Calls of a renderer.

    Args:
        to_input: (B, V, 3) pixels and depth -> the renderer's own coordinates;
            differentiable. On a GPU this is left out of the `queue`: who uses the
            renderer has projected straight to its coordinates.
        draw: those -> (B, H, W) depth, differentiable.
    """
    vertices = torch.tensor(scene.vertices, device=device)
    cotangent = torch.tensor(scene.cotangent, device=device)
    inputs = to_input(vertices).detach().contiguous().requires_grad_()

    def start_forward():
        with torch.no_grad():
            return draw(inputs)

    def start_gradient():
        depth = draw(inputs)
        return depth.detach(), *torch.autograd.grad(depth, inputs, cotangent)

    def forward():
        with torch.no_grad():
            return draw(to_input(vertices)).cpu().numpy()

    def gradient():
        leaf = vertices.detach().requires_grad_()
        depth = draw(to_input(leaf))
        (pulled,) = torch.autograd.grad(depth, leaf, cotangent)
        return depth.detach().cpu().numpy(), pulled.cpu().numpy()

    if device != "cuda":
        return Calls(forward, gradient)
    queue = Queue(start_forward, start_gradient, lambda _: torch.cuda.synchronize())
    return Calls(forward, gradient, queue, _device_costs(torch, queue))


def _device_costs(torch, queue: Queue) -> dict[str, float]:
    """Seconds of the first calls, and the device memory that they leave in use.

    Memory is what the driver says is gone, since nvdiffrast's buffers are not
    PyTorch's; it includes results, and what the context took before.
    """
    costs = {}
    for what, start in (("forward", queue.forward), ("gradient", queue.gradient)):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        began = time.perf_counter()
        queue.wait(start())
        costs[f"compile_{what}_s"] = time.perf_counter() - began
        costs[f"temp_{what}_mib"] = (free - torch.cuda.mem_get_info()[0]) / 2**20
    return costs


def load_pytorch3d() -> Peer:
    """Its rasterizer, one face a pixel, no blur; the CPU has brute force only."""
    package, torch = _import("pytorch3d", cuda=False)
    try:
        from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
        from pytorch3d.structures import Meshes
    except Exception as error:
        raise Unavailable(f"cannot be loaded: {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def prepare(scene: Scene) -> Calls:
        height, width = scene.size
        faces = torch.tensor(scene.faces.astype(np.int64), device=device)
        side = min(scene.size)
        size = torch.tensor([width, height], device=device)

        def to_input(vertices):
            # Its axes point left and up, the shorter side spans [-1, 1].
            xy = (size - 1 - 2 * vertices[..., :2]) / side
            return torch.cat([xy, vertices[..., 2:]], dim=-1)

        def draw(points):
            meshes = Meshes(verts=list(points), faces=[faces] * scene.batch)
            found, depth, *_ = rasterize_meshes(
                meshes,
                image_size=(height, width),
                blur_radius=0.0,
                faces_per_pixel=1,
                perspective_correct=True,
            )
            depth = torch.where(found >= 0, depth, scene.background)
            return depth[..., 0]

        return _calls(torch, scene, device, to_input, draw)

    return Peer(
        name="PyTorch3D",
        version=_version("pytorch3d", package),
        device=f"{device}, {torch.get_num_threads()} threads",
        prepare=prepare,
        differs="strict edges",
    )


def clip_matrix(size: tuple[int, int], near: float, far: float) -> np.ndarray:
    """(4, 4) M that takes (x z, y z, z, 1) to nvdiffrast's clip coordinates (rows).

    x, y are pixels with centres on integers. Its image spans [-1, 1], so that the
    centre of column j lies at (2 j + 1) / width - 1, and rows are counted in the
    direction of its y: neither is flipped. w is the depth; its z / w is linear in
    1 / z, as it takes it to be linear on the screen, from -1 at `near` to 1 at `far`.
    """
    height, width = size
    span = far - near
    return np.array(
        [
            [2.0 / width, 0.0, 1.0 / width - 1.0, 0.0],
            [0.0, 2.0 / height, 1.0 / height - 1.0, 0.0],
            [0.0, 0.0, (far + near) / span, -2.0 * far * near / span],
            [0.0, 0.0, 1.0, 0.0],
        ]
    )


def load_nvdiffrast() -> Peer:
    """rasterize + interpolate of the depth, as its users do."""
    dr, torch = _import("nvdiffrast.torch", cuda=True)
    context = dr.RasterizeCudaContext()

    def prepare(scene: Scene) -> Calls:
        faces = torch.tensor(scene.faces, dtype=torch.int32, device="cuda")
        z = scene.vertices[..., 2]
        matrix = clip_matrix(scene.size, 0.9 * float(z.min()), 1.1 * float(z.max()))
        matrix = torch.tensor(matrix, device="cuda")

        def to_input(vertices):
            v = vertices.double()
            z = v[..., 2:]
            rows = torch.cat([v[..., :2] * z, z, torch.ones_like(z)], dim=-1)
            return (rows @ matrix.T).float().contiguous()

        def draw(clip):
            found, _ = dr.rasterize(context, clip, faces, scene.size, grad_db=False)
            depth, _ = dr.interpolate(clip[..., 3:].contiguous(), found, faces)
            return torch.where(found[..., 3] > 0, depth[..., 0], scene.background)

        return _calls(torch, scene, "cuda", to_input, draw)

    return Peer(
        name="nvdiffrast",
        version=_version("nvdiffrast", dr),
        device=torch.cuda.get_device_name(),
        prepare=prepare,
        differs="vertices snapped to 1/16 px, top-left rule on edges; waits for the "
        "GPU within a call; gradients added in a race",
    )


def ndc(vertices, size: int, stack):
    """Pixels and depth (..., 3) to neural_renderer's screen: y up, image in [-1, 1].

    Args:
        stack: puts three arrays together along a new last axis.
    """
    x = (2.0 * vertices[..., 0] + 1.0) / size - 1.0
    y = 1.0 - (2.0 * vertices[..., 1] + 1.0) / size
    return stack([x, y, vertices[..., 2]])


def load_neural_renderer() -> Peer:
    """The renderer of the authors' code, at one sample a pixel and without a camera.

    Faces are there twice, once turned, as its own `fill_back` makes them: it draws
    front faces only.
    """
    renderer, torch = _import("neural_renderer", cuda=True)

    def prepare(scene: Scene) -> Calls:
        height, width = scene.size
        if height != width:
            raise Unavailable("draws square images only")
        both = np.concatenate([scene.faces, scene.faces[:, ::-1]])
        faces = torch.tensor(both, dtype=torch.int32, device="cuda")
        faces = faces.expand(scene.batch, -1, -1)
        far = 100.0

        def to_input(vertices):
            return ndc(vertices, width, lambda v: torch.stack(v, dim=-1))

        def draw(points):
            depth = renderer.rasterize_depth(
                renderer.vertices_to_faces(points, faces),
                width,
                anti_aliasing=False,
                near=1e-3,
                far=far,
            )
            return torch.where(depth < far, depth, scene.background)

        return _calls(torch, scene, "cuda", to_input, draw)

    return Peer(
        name="neural_renderer",
        version=_version("neural_renderer_pytorch", renderer),
        device=torch.cuda.get_device_name(),
        prepare=prepare,
        differs="float32 coverage; every face tested at every pixel; gradients added "
        "in a race",
    )
