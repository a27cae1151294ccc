"""What does the work in XLA's programs: the work list, or kernels."""

import dataclasses
from collections.abc import Callable
from functools import partial

from . import sums, worklist
from .batching import fold_vmap


@dataclasses.dataclass(frozen=True)
class Engine:
    """The parts that differ; static.

    Attributes:
        visible_faces: `worklist.visible_faces`, or what does the same.
        sum_by_face: `sums.sum_by_face`, or what does the same.
        sum_rows: `sums.sum_rows_in_order`, or what does the same.
        apart: `worklist.apart`, where that pays.
    """

    visible_faces: Callable
    sum_by_face: Callable
    sum_rows: Callable
    apart: Callable


LIST = Engine(
    worklist.visible_faces, sums.sum_by_face, sums.sum_rows_in_order, worklist.apart
)


def _together(worthwhile, stage: Callable, *args):
    """`worklist.apart` on GPUs, where a conditional waits for the host."""
    del worthwhile
    return stage(*args)


def by_kernels(*, interpret: bool) -> Engine:
    def visible_faces(*args, **kwargs):
        from . import kernels  # needs Pallas with Triton

        return kernels.visible_faces(*args, **kwargs, interpret=interpret)

    def sum_by_face(*args, **kwargs):
        from . import kernels

        sums = partial(kernels.face_sums, **kwargs, interpret=interpret)
        return fold_vmap(sums)(*args)

    def sum_rows(values, ids, count):
        from . import kernels

        sums = partial(kernels.sum_rows, count=count, interpret=interpret)
        return fold_vmap(sums)(values, ids)

    return Engine(visible_faces, sum_by_face, sum_rows, _together)


KERNELS = by_kernels(interpret=False)
INTERPRETED = by_kernels(interpret=True)
