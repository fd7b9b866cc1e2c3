"""GridLayout: where the vertices of a multi-resolution grid lie in one table of rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

from ..errors import InputError

PRIMES = (1, 2654435761, 805459861, 3674653429)


@dataclass(frozen=True)
class GridLayout:
    """Level l has N_l + 1 vertices along each axis of the unit cube: dense while they fit in 2^log2_table rows, hashed above.

    Rows of all levels are concatenated in one table [rows, features]. With s the strides of a C-ordered lattice (last axis fastest)
    and p the primes, vertex i of a level is row  offset + sum_d i_d s_d  (dense)  or  offset + (xor_d i_d p_d mod 2^log2_table)  (hashed).
    So the rows of a dense level are that lattice: `table[a:b].reshape(*(N + 1), features)`.
    Müller et al. 2022, "Instant neural graphics primitives", section 3 and equation 4.

    Args:
        resolutions: cells N of each level along each of the 1 to 4 axes.
        log2_table: no level has more than 2^log2_table rows; at most 30.
        features: numbers stored at each vertex.

    Raises:
        InputError: if a number is out of range or the levels have different dimensions.
    """

    resolutions: tuple[tuple[int, ...], ...]
    log2_table: int
    features: int = 2

    def __post_init__(self) -> None:
        cells = tuple(tuple(int(n) for n in level) for level in self.resolutions)
        object.__setattr__(self, "resolutions", cells)
        if not cells or len({len(level) for level in cells}) != 1 or not 1 <= len(cells[0]) <= 4:
            raise InputError(f"a grid needs levels of one dimension, 1 to 4, not {cells}")
        if not all(1 <= n <= 2**22 for level in cells for n in level):
            raise InputError(f"a level has 1 to 2^22 cells along an axis, not {cells}", "single precision cannot tell finer cells apart")
        if not 1 <= self.log2_table <= 30 or self.features < 1:
            raise InputError(f"log2_table must be 1 to 30 and features at least 1, not {self.log2_table} and {self.features}")

    @classmethod
    def geometric(cls, dim: int, levels: int, coarsest: int, finest: int, log2_table: int, features: int = 2) -> GridLayout:
        """N_l = round(coarsest (finest / coarsest)^(l / (levels - 1))), the same along every axis."""
        growth = (finest / coarsest) ** (1 / max(levels - 1, 1))
        return cls(tuple((round(coarsest * growth**level),) * dim for level in range(levels)), log2_table, features)

    @property
    def dim(self) -> int:
        return len(self.resolutions[0])

    @property
    def levels(self) -> int:
        return len(self.resolutions)

    @property
    def width(self) -> int:
        """Columns of the encoding: levels x features, level-major."""
        return self.levels * self.features

    @cached_property
    def hashed(self) -> tuple[bool, ...]:
        return tuple(self._vertices(level) > 2**self.log2_table for level in range(self.levels))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First row of each level, and the number of rows at the end."""
        sizes = (2**self.log2_table if self.hashed[level] else self._vertices(level) for level in range(self.levels))
        return (0, *itertools.accumulate(sizes))

    @property
    def rows(self) -> int:
        return self.offsets[-1]

    def multipliers(self, level: int) -> tuple[int, ...]:
        """What one step along each axis multiplies: strides of a dense level, primes of a hashed one."""
        if self.hashed[level]:
            return PRIMES[: self.dim]
        strides = [1]
        for n in reversed(self.resolutions[level][1:]):
            strides.insert(0, strides[0] * (n + 1))
        return tuple(strides)

    def _vertices(self, level: int) -> int:
        product = 1
        for n in self.resolutions[level]:
            product *= n + 1
        return product
