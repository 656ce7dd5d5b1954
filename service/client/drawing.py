"""Drawing a large set of pictures with a running service, many requests at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from service.client.picture_set import PictureSet, Portion
from service.client.remote import Remote

_PORTION = 8  # pictures of one request: a worker's batch is filled by several
_MOST_REQUESTS = 64


def draw_set(
    remote: Remote,
    pictures: PictureSet,
    *,
    model: str,
    portion_size: int,
    parallel: int,
    on_drawn: Callable[[int], None],
) -> int:
    """Draw what the set lacks; returns how many that were. `on_drawn` hears the pictures of each answer.

    Raises InputError or Unavailable as `Remote` and `PictureSet` do; what was drawn by then is there.
    """
    portions = pictures.missing(portion_size)
    running: set[Future[int]] = set()
    drawn = 0

    def draw(portion: Portion) -> int:
        pictures.save(remote.generate(portion.body(pictures.plan, model)))
        return portion.count

    with ThreadPoolExecutor(parallel, "draw") as pool:
        try:
            while True:
                running |= {pool.submit(draw, one) for one in islice(portions, parallel - len(running))}
                if not running:
                    return drawn
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    on_drawn(future.result())
                    drawn += future.result()
        except BaseException:
            remote.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def draw_with_progress(
    remote: Remote, pictures: PictureSet, info: dict[str, Any], parallel: int | None, console: Console
) -> None:
    """Draw what the set lacks with a progress bar; `info` is the service's. Raises as `draw_set`.

    By default twice as many pictures are asked for as the workers draw at a time, so that none waits for us.
    """
    size = min(_PORTION, int(info["limits"]["max_images"]))
    requests = parallel or max(1, min(_MOST_REQUESTS, -(-2 * remote.slots() // size)))
    missing = sum(portion.count for portion in pictures.missing(size))
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("Drawing", total=len(pictures), completed=len(pictures) - missing)
        try:
            draw_set(
                remote,
                pictures,
                model=info["model"],
                portion_size=size,
                parallel=requests,
                on_drawn=lambda count: bar.advance(task, count),
            )
        except KeyboardInterrupt:
            bar.stop()
            console.print("stopped; the same command goes on from here")
            raise
