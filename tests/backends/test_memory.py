"""Pieces of memory: one tensor's at a time, used again, given back."""

import gc
import sys

import pytest
import torch

from darts_sg.backends.cpp.memory import SMALLEST, Pool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the heap has all of it")
MIB = 2**20


def test_a_piece_is_used_again_when_nothing_shares_it_any_more() -> None:
    pool = Pool()
    first = pool.take(8 * MIB)
    address, view = first.data_ptr(), first.view(torch.float32)[5:]
    del first
    second = pool.take(8 * MIB)
    assert second.data_ptr() != address
    view.fill_(1.0)
    second.zero_()
    assert view.sum() == len(view)
    del view
    assert pool.take(7 * MIB).data_ptr() == address


def test_the_smallest_piece_that_is_large_enough_is_taken() -> None:
    pool = Pool()
    pieces = {size: pool.take(size * MIB) for size in (16, 8, 32)}
    addresses = {size: piece.data_ptr() for size, piece in pieces.items()}
    pieces.clear()
    taken = [pool.take(size * MIB) for size in (10, 5, 6)]
    assert [t.data_ptr() for t in taken] == [addresses[16], addresses[8], addresses[32]]
    assert [t.untyped_storage().nbytes() for t in taken] == [10 * MIB, 5 * MIB, 6 * MIB]


def test_pieces_that_are_too_small_are_given_back() -> None:
    pool = Pool()
    pool.take(8 * MIB).fill_(1)
    pool.take(16 * MIB).fill_(1)
    assert _resident(pool) == [16]
    pool.release()
    assert _resident(pool) == []


def test_a_larger_piece_takes_the_place_of_small_ones_and_no_more() -> None:
    pool = Pool()
    pieces = [pool.take(size * MIB) for size in (6, 8, 10, 12)]
    del pieces
    larger = pool.take(14 * MIB)
    assert sorted(_resident(pool)) == [10, 12]  # 6 and 8 made room
    del larger
    assert sorted(_resident(pool)) == [10, 12, 14]


def test_saved_tensors_keep_their_piece_until_the_backward_pass() -> None:
    pool = Pool()
    weight = torch.ones(2 * MIB, requires_grad=True)
    x = pool.take(8 * MIB).view(torch.float32).fill_(3.0)
    loss = (weight * x).sum()
    address = x.data_ptr()
    del x
    assert pool.take(8 * MIB).data_ptr() != address
    loss.backward()
    del loss
    gc.collect()
    assert weight.grad is not None
    assert weight.grad.eq(3).all()
    both = [pool.take(8 * MIB), pool.take(8 * MIB)]
    assert address in {piece.data_ptr() for piece in both}


def test_little_comes_from_the_heap_and_too_much_from_nowhere() -> None:
    pool = Pool()
    assert pool.take(SMALLEST - 1).numel() == SMALLEST - 1
    assert _resident(pool) == []
    with pytest.raises(MemoryError, match="not enough memory"):
        pool.take(2**60)


def _resident(pool: Pool) -> list[int]:
    """MiB of the pieces that are free."""
    return [len(piece) // MIB for piece in pool._free]
