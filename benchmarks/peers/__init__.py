"""Other renderers behind one small interface; each is used only if it is installed."""

from collections.abc import Callable, Iterable

from benchmarks.peers import deodr, embree, jaxrenderer, native, torch_peers
from benchmarks.peers.types import Calls, Peer, Queue, Scene, Unavailable

__all__ = ["LOADERS", "Calls", "Peer", "Queue", "Scene", "Unavailable", "load_all"]

# name -> loads the peer, or raises Unavailable
LOADERS: dict[str, Callable[[], Peer]] = {
    "C++ loop": native.load,
    "DEODR": deodr.load,
    "Embree": embree.load,
    "PyTorch3D": torch_peers.load_pytorch3d,
    "jaxrenderer": jaxrenderer.load,
    "nvdiffrast": torch_peers.load_nvdiffrast,
    "neural_renderer": torch_peers.load_neural_renderer,
}


def load_all(
    names: Iterable[str] = tuple(LOADERS),
) -> tuple[list[Peer], dict[str, str]]:
    """Those of `names` that can run here, and for each of the others why not."""
    found, missing = [], {}
    for name in names:
        load = LOADERS[name]
        try:
            found.append(load())
        except Unavailable as reason:
            missing[name] = str(reason).strip().splitlines()[0]
    return found, missing
