"""How much of the sampling rate a partition keeps while it is behind. Pure.

Behind is measured in records: published to the partition and not finished, its end offset minus the offset up
to which all is finished. That is what the group must work off, and it is measured for the metrics anyway,
every five seconds by one request for all partitions. The age of chunks would be told in seconds, but a
record's timestamp is its producer's word: a clock that is wrong, or a producer that wants its video looked at
less, would thin the sampling of everybody in the partition.

What holds while it thins: a chunk is counted once, whole, at the rate that its score update states
(`sampling_rate`), and at that rate the same frames are drawn in every replay. What does not: which rate is in
force depends on the load, so two runs over the same chunks may differ, as may, at least once, two updates of
one chunk. With `lag_policy = "none"` scores depend on the chunks alone.
"""

from __future__ import annotations

SHARES = (1.0, 0.5, 0.25, 0.125)
"""Of `sample.frames_per_second`, step by step. The last is the floor: one frame in two seconds by default."""


class Thinning:
    """The step that one partition is at; it begins at the first.

    Step n is entered when the lag reaches `from_lag * 2 ** (n - 1)` records, whatever the step before, and
    left for the one before when the lag falls below half of that; between the two nothing changes.
    """

    def __init__(self, from_lag: int) -> None:
        """from_lag: records, > 0."""
        self._from_lag = from_lag
        self._step = 0

    @property
    def share(self) -> float:
        """Of `sample.frames_per_second` to sample at, one of SHARES."""
        return SHARES[self._step]

    def update(self, lag: int) -> bool:
        """Take note of a lag in records; whether `share` has changed."""
        before = self._step
        while self._step + 1 < len(SHARES) and lag >= self._enters(self._step + 1):
            self._step += 1
        while self._step > 0 and 2 * lag < self._enters(self._step):
            self._step -= 1
        return self._step != before

    def _enters(self, step: int) -> int:
        return self._from_lag << (step - 1)
