"""PyTorch3D, nvdiffrast and neural_renderer: renderers behind PyTorch.

None of the three comes as a wheel for a plain CPU installation, so that these adapters
run only where somebody has built them.
"""

import importlib
import importlib.metadata

import numpy as np

from benchmarks.peers.types import Calls, Peer, Scene, Unavailable


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


def _calls(torch, scene: Scene, device: str, draw) -> Calls:
    """Calls of `draw`: (B, V, 3) tensor to (B, H, W) depth, differentiable."""
    vertices = torch.tensor(scene.vertices, device=device)
    cotangent = torch.tensor(scene.cotangent, device=device)

    def forward():
        with torch.no_grad():
            return draw(vertices).cpu().numpy()

    def gradient():
        leaf = vertices.clone().requires_grad_()
        depth = draw(leaf)
        (pulled,) = torch.autograd.grad(depth, leaf, cotangent)
        return depth.detach().cpu().numpy(), pulled.cpu().numpy()

    return Calls(forward, gradient)


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

        def draw(vertices):
            # Its axes point left and up, the shorter side spans [-1, 1].
            xy = (size - 1 - 2 * vertices[..., :2]) / side
            points = torch.cat([xy, vertices[..., 2:]], dim=-1)
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

        return _calls(torch, scene, device, draw)

    return Peer(
        name="PyTorch3D",
        version=_version("pytorch3d", package),
        device=f"{device}, {torch.get_num_threads()} threads",
        prepare=prepare,
        differs="strict edges",
    )


def load_nvdiffrast() -> Peer:
    """rasterize + interpolate of the depth, as its users do."""
    dr, torch = _import("nvdiffrast.torch", cuda=True)
    context = dr.RasterizeCudaContext()

    def prepare(scene: Scene) -> Calls:
        height, width = scene.size
        faces = torch.tensor(scene.faces, dtype=torch.int32, device="cuda")
        far = float(scene.vertices[..., 2].max()) * 2.0

        def draw(vertices):
            z = vertices[..., 2:]
            x = (2.0 * vertices[..., :1] + 1.0) / width - 1.0
            y = (2.0 * vertices[..., 1:2] + 1.0) / height - 1.0
            clip = torch.cat([x * z, y * z, (2.0 * z / far - 1.0) * z, z], dim=-1)
            found, _ = dr.rasterize(context, clip.contiguous(), faces, scene.size)
            depth, _ = dr.interpolate(z.contiguous(), found, faces)
            return torch.where(found[..., 3] > 0, depth[..., 0], scene.background)

        calls = _calls(torch, scene, "cuda", draw)

        def forward():
            out = calls.forward()
            torch.cuda.synchronize()
            return out

        return Calls(forward, calls.gradient)

    return Peer(
        name="nvdiffrast",
        version=_version("nvdiffrast", dr),
        device=torch.cuda.get_device_name(),
        prepare=prepare,
        differs="top-left rule on edges",
    )


def load_neural_renderer() -> Peer:
    """The renderer of the authors' code, at one sample a pixel."""
    renderer, torch = _import("neural_renderer", cuda=True)

    def prepare(scene: Scene) -> Calls:
        height, width = scene.size
        if height != width:
            raise Unavailable("draws square images only")
        faces = torch.tensor(scene.faces.astype(np.int64), device="cuda")

        def draw(vertices):
            # Its y points up.
            x = (2.0 * vertices[..., 0] + 1.0) / width - 1.0
            y = 1.0 - (2.0 * vertices[..., 1] + 1.0) / height
            points = torch.stack([x, y, vertices[..., 2]], dim=-1)
            depth = renderer.rasterize_depth(
                points[:, faces], width, anti_aliasing=False, near=1e-3, far=100.0
            )
            return torch.where(depth < 100.0, depth, scene.background)

        return _calls(torch, scene, "cuda", draw)

    return Peer(
        name="neural_renderer",
        version=_version("neural_renderer_pytorch", renderer),
        device=torch.cuda.get_device_name(),
        prepare=prepare,
        differs="approximate gradient by design",
    )
