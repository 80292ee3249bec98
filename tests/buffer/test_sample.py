from __future__ import annotations

import numpy as np

from buffer.sample import IDENTITY_DTYPE, Identity


def test_identities_survive_an_array_and_equal_rows_are_equal_names() -> None:
    names = [Identity(65535, 2**32 - 1, 0, 7), Identity(0, 1, 2**32 - 1, 7)]
    array = np.array([*names, names[0]], dtype=IDENTITY_DTYPE)
    assert [Identity(*row) for row in array.tolist()] == [*names, names[0]]
    assert array[0] == array[2]
    assert array[0] != array[1]
    assert len(np.unique(array)) == 2
