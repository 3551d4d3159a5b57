from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vl.engine.images import ImageFeatures


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=30), st.integers(0, 60))
def test_those_used_last_are_there_within_the_limit(calls: list[tuple[int, int]], limit: int) -> None:
    kept, sizes, order = ImageFeatures(limit), dict[int, int](), list[int]()
    for image, size in calls:
        digest = bytes([image])
        found = kept.get(digest)
        assert (found is not None) == (image in order)
        if found is not None:
            assert found.tolist() == [[image]] * sizes[image]
            order.remove(image)
            order.append(image)
        elif 4 * size <= limit:
            sizes[image] = size
            order.append(image)
        whole = torch.full((2 * size, 1), image, dtype=torch.float32)
        kept.put(digest, whole[:size])
        while sum(4 * sizes[other] for other in order) > limit:
            order.pop(0)
        assert kept.nbytes == sum(4 * sizes[other] for other in order) <= max(limit, 0)
    kept.clear()
    assert kept.nbytes == 0
    assert all(kept.get(bytes([image])) is None for image in range(6))


def test_a_part_of_a_tensor_does_not_keep_the_whole() -> None:
    kept, whole = ImageFeatures(1000), torch.zeros(100, 1)
    kept.put(b"part", whole[:10])
    kept.put(b"whole", whole)
    part, same = kept.get(b"part"), kept.get(b"whole")
    assert part is not None
    assert part.untyped_storage().nbytes() == 40
    assert same is whole
