"""Alignment by sampled locations: the operator of LSTS (§3), as it is written and as it is computed.

Every cell p of a query attends over K locations p + o_k of a memory. The displacements o are the same everywhere, so
bilinear sampling is a fixed mix of whole shifts d (§15.1): with the matrix B of bilinear weights (K×D),

    corr_d(p) = ⟨f(p + d), g(p)⟩    s = B·corr    S = softmax(s)    w = Bᵀ·S    A(p) = Σ_d w_d(p)·R(p + d)

which is exact and needs no tensor of K×C×H×W elements. The shifts are those of a `Window`, a rectangle: B is then a
product of two small matrices, and all shifts of one row together are products of banded matrices. Cells are numbered
row by row on a padded canvas, where a shift is a difference of numbers; blocks of consecutive cells are compared with
the slightly longer blocks that their shifts reach. A rectangle has more shifts than the locations touch, and is still
several times faster than one pass over the channels per shift.

Suffixes: N frames, M memories, C channels of the memory, E of descriptors, H, W cells, K locations, D shifts.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Similarity = Literal["softmax", "scaled", "cosine"]
Border = Literal["zero", "mask"]

BLOCK = {"cuda": 32}
"""Cells per block by type of device; larger blocks waste more products and are larger matrices."""

DEFAULT_BLOCK = 16


# --- as written -------------------------------------------------------------------------------


def gather_bilinear(map_NCHW: Tensor, x_NHW: Tensor, y_NHW: Tensor) -> Tensor:
    """Sample maps at fractional cells, with explicit corners.

    The derivative by a whole-numbered coordinate is the one to the right.

    Args:
        map_NCHW: N may be 1, for all.
        x_NHW: columns, may lie outside. H and W are those of the result.
        y_NHW: rows.

    Returns:
        (N,C,H,W); each of the four corners that lies outside counts as zero.
    """
    frames = x_NHW.shape[0]
    map_NCHW = map_NCHW.expand(frames, -1, -1, -1)
    channels, height, width = map_NCHW.shape[1:]
    left, top = x_NHW.detach().floor(), y_NHW.detach().floor()
    right_share, low_share = x_NHW - left, y_NHW - top
    cells = map_NCHW.flatten(2)
    result: Tensor | None = None
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = left + dx, top + dy
            share = (right_share if dx else 1 - right_share) * (low_share if dy else 1 - low_share)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()
            corner = cells.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).unflatten(2, index.shape[1:])
            part = torch.where(inside[:, None], corner, 0) * share[:, None]
            result = part if result is None else result + part
    assert result is not None
    return result


def sample_reference(
    memory_MCHW: Tensor,
    descriptors_MEHW: Tensor,
    query_NEHW: Tensor,
    offsets_K2: Tensor,
    *,
    similarity: Similarity = "softmax",
    temperature: Tensor | float = 1.0,
    border: Border = "zero",
) -> tuple[Tensor, Tensor]:
    """Align memories with frames, one location after another (§3, literally); slow, for tests and comparison.

    Args:
        memory_MCHW: R; M is 1 or N.
        descriptors_MEHW: f(R).
        query_NEHW: g(Q).
        offsets_K2: x, y in cells.
        similarity: see `AlignmentConfig`; with `cosine`, f(R) is normalised before it is sampled.
        temperature: factor of `cosine`.
        border: see `AlignmentConfig`; where all locations of a cell lie outside, none is left out.

    Returns:
        A (N,C,H,W) and S (N,K,H,W).
    """
    frames, embed, height, width = query_NEHW.shape
    if similarity == "cosine":
        descriptors_MEHW = F.normalize(descriptors_MEHW, dim=1)
        query_NEHW = F.normalize(query_NEHW, dim=1) * temperature
    elif similarity == "scaled":
        query_NEHW = query_NEHW / math.sqrt(embed)
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=offsets_K2.dtype, device=offsets_K2.device),
        torch.arange(width, dtype=offsets_K2.dtype, device=offsets_K2.device),
        indexing="ij",
    )
    values, scores, outside = [], [], []
    for x, y in offsets_K2.unbind():
        x_NHW, y_NHW = (columns + x).expand(frames, -1, -1), (rows + y).expand(frames, -1, -1)
        values.append(gather_bilinear(memory_MCHW, x_NHW, y_NHW))
        scores.append((gather_bilinear(descriptors_MEHW, x_NHW, y_NHW) * query_NEHW).sum(1))
        outside.append((x_NHW < 0) | (x_NHW > width - 1) | (y_NHW < 0) | (y_NHW > height - 1))
    score_NKHW = torch.stack(scores, dim=1)
    if border == "mask":
        outside_NKHW = torch.stack(outside, dim=1)
        score_NKHW = score_NKHW.masked_fill(outside_NKHW & ~outside_NKHW.all(1, keepdim=True), -math.inf)
    share_NKHW = score_NKHW.softmax(dim=1)
    aligned = torch.stack(values, dim=1).mul(share_NKHW[:, :, None]).sum(1)
    return aligned, share_NKHW


# --- as computed ------------------------------------------------------------------------------


class Window(NamedTuple):
    """Rectangle of whole shifts that contains (0, 0); both ends are inside."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def columns(self) -> int:
        """Shifts along x."""
        return self.x1 - self.x0 + 1

    @property
    def rows(self) -> int:
        """Shifts along y."""
        return self.y1 - self.y0 + 1


class Canvas(NamedTuple):
    """How the cells of H×W maps are numbered: row by row with `pitch` cells per row, in blocks."""

    height: int
    width: int
    window: Window
    block: int
    images: int = 1
    """Maps below one another, each with the zeros that its shifts reach: several memories are one tall one."""

    @classmethod
    def of(cls, map_NCHW: Tensor, window: Window) -> "Canvas":
        """Return the canvas for maps of this size, on this device."""
        block = BLOCK.get(map_NCHW.device.type, DEFAULT_BLOCK)
        return cls(map_NCHW.shape[-2], map_NCHW.shape[-1], window, block)

    @property
    def pitch(self) -> int:
        """Cells per row: a shift out of a row ends in zeros, never in the next row's cells."""
        return self.width + self.window.columns - 1

    @property
    def rows(self) -> int:
        """Rows of query cells, over all images."""
        return (self.images - 1) * self.slot + self.height

    @property
    def blocks(self) -> int:
        """Blocks of query cells."""
        return -(-self.rows * self.pitch // self.block)

    @property
    def reach(self) -> int:
        """Memory cells per row of shifts that a block of query cells can reach."""
        return self.block + self.window.columns - 1

    @property
    def slot(self) -> int:
        """Rows of one laid out memory, with zeros for what the last blocks reach, wherever these begin."""
        blocks = -(-self.height * self.pitch // self.block) + -(-self.reach // self.block)
        return -(-((self.window.rows - 1) * self.pitch + blocks * self.block) // self.pitch)


def lay_out_memory(map_MCHW: Tensor, canvas: Canvas) -> Tensor:
    """(M,C,H,W) → (M,cells,C) with the zeros around it."""
    window = canvas.window
    below = canvas.slot - canvas.height + window.y0
    return F.pad(map_MCHW, (-window.x0, window.x1, -window.y0, below)).permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _lay_out_query(map_NCHW: Tensor, canvas: Canvas) -> Tensor:
    """(images·F,C,H,W) → (blocks,F·block,C), the F frames of each image side by side."""
    cells = canvas.blocks * canvas.block
    padded = F.pad(map_NCHW, (0, canvas.pitch - canvas.width, 0, canvas.slot - canvas.height))
    flat = padded.unflatten(0, (canvas.images, -1)).permute(1, 0, 3, 4, 2).flatten(1, 3)
    # The last block may end a little behind the last slot, if that is full to the brim.
    flat = F.pad(flat, (0, 0, 0, max(0, cells - flat.shape[1])))
    return flat[:, :cells].unflatten(1, (canvas.blocks, canvas.block)).transpose(0, 1).flatten(1, 2).contiguous()


def _take_up(blocks: Tensor, canvas: Canvas) -> Tensor:
    """(blocks,F,block,C) → (images·F,C,H,W), a view where there is one frame or one image."""
    flat = blocks.transpose(0, 1).flatten(1, 2)[:, : canvas.rows * canvas.pitch]
    if canvas.images > 1:
        flat = F.pad(flat, (0, 0, 0, (canvas.slot - canvas.height) * canvas.pitch))
    rows = flat.unflatten(1, (canvas.images, -1, canvas.pitch))[:, :, : canvas.height, : canvas.width]
    return rows.permute(1, 0, 4, 2, 3).flatten(0, 1)


def _reached(memory_LC: Tensor, row: int, canvas: Canvas) -> Tensor:
    """Return the memory cells that each block reaches by the shifts of one row, a view (blocks,C,reach)."""
    start = row * canvas.pitch
    length = (canvas.blocks - 1) * canvas.block + canvas.reach
    return memory_LC[start : start + length].unfold(0, canvas.reach, canvas.block)


def _bands(weight: Tensor, canvas: Canvas) -> Tensor:
    """(blocks,N,block,D) → (rows,blocks,N·block,reach): cell i has the weights of its shifts in columns i, i + 1, ….

    With one more column than `reach`, each row of the matrix starts one further to the right.
    """
    rows, columns = canvas.window.rows, canvas.window.columns
    padded = F.pad(weight.unflatten(3, (rows, columns)).movedim(3, 0), (0, canvas.block))
    flat = padded.flatten(-2)[..., : canvas.block * canvas.reach]
    return flat.unflatten(-1, (canvas.block, canvas.reach)).flatten(2, 3)


def _unbanded(band: Tensor, frames: int, canvas: Canvas) -> Tensor:
    """(blocks,N·block,reach) → (blocks,N,block,columns), the inverse of `_bands` for one row."""
    flat = band.unflatten(1, (frames, canvas.block)).flatten(-2)
    skewed = F.pad(flat, (0, canvas.block)).unflatten(-1, (canvas.block, canvas.reach + 1))
    return skewed[..., : canvas.window.columns]


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums are computed."""
    return torch.promote_types(dtype, torch.float32)


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type if x.device.type != "meta" else "cpu", enabled=False)


def _correlate(query: Tensor, memory_LC: Tensor, canvas: Canvas) -> Tensor:
    """Scalar products of query cells with all shifted memory cells, at least fp32: (blocks,N,block,D)."""
    with _no_autocast(query):
        frames = query.shape[1] // canvas.block
        dtype = at_least_fp32(query.dtype)
        query, memory_LC = query.to(dtype), memory_LC.to(dtype)
        rows = [
            _unbanded(torch.bmm(query, _reached(memory_LC, row, canvas)), frames, canvas)
            for row in range(canvas.window.rows)
        ]
        return torch.stack(rows, dim=3).flatten(3)


def _mix(weight: Tensor, memory_LC: Tensor, canvas: Canvas) -> Tensor:
    """Sums of shifted memory cells: (blocks,N·block,C) of the memory's type."""
    with _no_autocast(weight):
        band = _bands(weight, canvas).to(memory_LC.dtype)
        reached = [_reached(memory_LC, row, canvas).transpose(1, 2) for row in range(canvas.window.rows)]
        if memory_LC.dtype in (torch.bfloat16, torch.float16):
            # One product, whose sum is rounded once; sums of the rows' results would be rounded each time.
            return torch.bmm(band.movedim(0, 2).flatten(2), torch.cat(reached, dim=1))
        result = torch.bmm(band[0], reached[0])
        for row in range(1, canvas.window.rows):
            result = result.baddbmm_(band[row], reached[row])
        return result


def _spread(weight: Tensor, query: Tensor, canvas: Canvas) -> Tensor:
    """Adjoint of `_mix` in its memory: (cells,C), at least fp32."""
    with _no_autocast(weight):
        band = _bands(weight, canvas).to(query.dtype)
        cells, block = canvas.blocks * canvas.block, canvas.block
        shape = canvas.images * canvas.slot * canvas.pitch, query.shape[-1]
        result = torch.zeros(shape, dtype=at_least_fp32(query.dtype), device=query.device)
        for row in range(canvas.window.rows):
            part = torch.bmm(band[row].transpose(1, 2), query)
            # Blocks overlap: their first cells lie side by side, what reaches into the next block comes after.
            for first in range(0, canvas.reach, block):
                piece = part[:, first : first + block]
                start = row * canvas.pitch + first
                place = result[start : start + cells].unflatten(0, (canvas.blocks, block))
                place[:, : piece.shape[1]].add_(piece)
        return result


class _Correlate(torch.autograd.Function):
    """`_correlate`, which keeps only its inputs for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, memory_LC: Tensor, canvas: Canvas) -> Tensor:
        ctx.save_for_backward(query, memory_LC)
        ctx.canvas = canvas
        return _correlate(query, memory_LC, canvas)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        query, memory_LC = ctx.saved_tensors
        by_query = _mix(grad, memory_LC.to(grad.dtype), ctx.canvas).to(query.dtype)
        by_memory = _spread(grad, query.to(grad.dtype), ctx.canvas).to(memory_LC.dtype)
        return by_query, by_memory, None


class _Mix(torch.autograd.Function):
    """`_mix`, likewise."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, memory_LC: Tensor, canvas: Canvas) -> Tensor:
        ctx.save_for_backward(weight, memory_LC)
        ctx.canvas = canvas
        return _mix(weight, memory_LC, canvas)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, memory_LC = ctx.saved_tensors
        by_weight = _correlate(grad, memory_LC, ctx.canvas).to(weight.dtype)
        by_memory = _spread(weight, grad, ctx.canvas).to(memory_LC.dtype)
        return by_weight, by_memory, None


def bilinear_weights(offsets_K2: Tensor, window: Window) -> Tensor:
    """Return B (K,D), the weights of whole shifts in each location; D counts the window row by row.

    Made of floor and fraction: the derivative at a whole offset is the one to the right. (A hat function's would be
    zero there, and a grid would never move.)
    """
    factors = []
    for axis, first, last in ((1, window.y0, window.y1), (0, window.x0, window.x1)):
        place = offsets_K2[:, axis, None]
        shift = torch.arange(first, last + 1, dtype=place.dtype, device=place.device)
        left = place.detach().floor()
        share = place - left
        factor = torch.where(shift == left, 1 - share, 0) + torch.where(shift == left + 1, share, 0)
        # An offset that is not a number equals no shift, and must not pass for one that is never used.
        factors.append(factor + share * 0)
    return (factors[0][:, :, None] * factors[1][:, None, :]).flatten(1)


def _outside(offsets_K2: Tensor, canvas: Canvas) -> Tensor:
    """Return which locations to leave out, (blocks,1,block,K); none of a cell where all lie outside."""
    cell = torch.arange(canvas.blocks * canvas.block, device=offsets_K2.device)
    x = (cell % canvas.pitch)[:, None] + offsets_K2[:, 0]
    y = (cell // canvas.pitch % canvas.slot)[:, None] + offsets_K2[:, 1]
    outside = (x < 0) | (x > canvas.width - 1) | (y < 0) | (y > canvas.height - 1)
    return (outside & ~outside.all(1, keepdim=True)).unflatten(0, (canvas.blocks, 1, canvas.block))


def sample_factorised(
    memory_MLC: Tensor,
    descriptors_MLE: Tensor,
    query_NEHW: Tensor,
    offsets_K2: Tensor,
    canvas: Canvas,
    *,
    border: Border = "zero",
    shares: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Align memories with frames by whole shifts (§15.1). Equal to `sample_reference`.

    Similarities and softmax are computed in fp32 at least, whatever the types of the inputs and autocast.

    Args:
        memory_MLC: R, laid out by `lay_out_memory`. N is a multiple of M: of the frames, the first N / M belong to the
            first memory, and so on.
        descriptors_MLE: f(R), laid out likewise; normalised where that is wanted.
        query_NEHW: g(Q), times whatever the similarity is multiplied by.
        offsets_K2: x, y in cells; their corners must lie in the canvas's window.
        canvas: as the memories were laid out.
        border: see `AlignmentConfig`.
        shares: whether to return S.

    Returns:
        A (N,C,H,W) of the memory's type, and S (N,K,H,W) or None.

    Raises:
        ValueError: frames and memories that do not go together.
    """
    memories, frames = memory_MLC.shape[0], query_NEHW.shape[0]
    if frames % memories:
        raise ValueError(f"{frames} frames cannot share {memories} memories evenly; say which by rows")
    with _no_autocast(query_NEHW):
        dtype = at_least_fp32(query_NEHW.dtype)
        weights_KD = bilinear_weights(offsets_K2, canvas.window).to(dtype)
        # One product for all memories: a loop over them would launch as many small ones.
        canvas = canvas._replace(images=memories)
        laid_out = _lay_out_query(query_NEHW, canvas)
        score = _Correlate.apply(laid_out, descriptors_MLE.flatten(0, 1), canvas) @ weights_KD.T
        if border == "mask":
            score = score.masked_fill(_outside(offsets_K2, canvas), -math.inf)
        share = score.softmax(dim=-1)
        mixed = _Mix.apply(share @ weights_KD, memory_MLC.flatten(0, 1), canvas)
        aligned = _take_up(mixed.unflatten(1, (-1, canvas.block)), canvas)
        return aligned, _take_up(share, canvas) if shares else None
