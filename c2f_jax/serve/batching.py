"""Requests that arrive together are answered by one call of the model."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

Look = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]  # a batch -> what is said of each image


class Batcher:
    """While the model is busy images gather; then as many as there are go together, filled up to one of a few sizes.

    Nothing waits for others to come: an image that is alone is answered alone.
    """

    def __init__(self, look: Look, sizes: Sequence[int]):
        """look: the model, compiled for batches of each of `sizes`, in ascending order."""
        self._look, self._sizes = look, tuple(sizes)
        self._waiting: asyncio.Queue[tuple[np.ndarray, np.ndarray, asyncio.Future]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def __call__(self, image: np.ndarray, window: np.ndarray) -> dict[str, np.ndarray]:
        """Of a raw image [R, R, 3] and its window [4], what the model says."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((image, window, future))
        return await future

    async def run(self) -> None:
        """Answers until it is cancelled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._sizes[-1] and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [entry for entry in batch if not entry[2].done()]  # whoever asked has left
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: list[tuple[np.ndarray, np.ndarray, asyncio.Future]]) -> None:
        size = next(size for size in self._sizes if size >= len(batch))
        rows = [batch[min(i, len(batch) - 1)] for i in range(size)]
        arrays = {"image": np.stack([row[0] for row in rows]), "window": np.stack([row[1] for row in rows])}
        try:
            said = await asyncio.get_running_loop().run_in_executor(self._thread, self._look, arrays)
        except Exception as error:  # each who asked is told; the next batch may do
            for *_, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for i, (*_, future) in enumerate(batch):
            if not future.done():
                future.set_result({name: value[i] for name, value in said.items()})
