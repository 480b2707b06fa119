"""Loads the files of a request's images, which are given in base64 or as addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp

from schema.errors import ImageDownloadError, TaskArgsInvalid, TaskError
from schema.message import is_address
from serve_app.replicas.images.fetch import Budget, Fetcher
from serve_app.replicas.images.files import read_image


async def load_images(
    images: Sequence[str], params: Sequence[str], fetcher: Fetcher | None
) -> list[str | bytes]:
    """``images``, with the files in the places of their addresses; base64 stays as it is.

    All are fetched at the same time, within one deadline and one budget. The first failure ends
    the others; cancelling ends all of them. ``params`` are the images' paths in the task;
    ``fetcher`` is None if no addresses are allowed.

    Raises:
        TaskArgsInvalid: an address is refused.
        ImageDownloadError: a host failed, or was too slow.
    """
    if not any(map(is_address, images)):
        return list(images)
    if fetcher is None:
        raise TaskArgsInvalid("addresses of images are not allowed by configuration")
    deadline = asyncio.get_running_loop().time() + fetcher.args.timeout_s
    budget = Budget.of(fetcher.args)
    try:
        async with fetcher.session() as session, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_load(image, param, fetcher, session, deadline, budget))
                for image, param in zip(images, params, strict=True)
            ]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _load(
    image: str,
    param: str,
    fetcher: Fetcher,
    session: aiohttp.ClientSession,
    deadline: float,
    budget: Budget,
) -> str | bytes:
    if not is_address(image):
        return image
    try:
        async with asyncio.timeout_at(deadline):
            if image.partition(":")[0].lower() == "file":
                roots = fetcher.args.file_roots
                return await asyncio.to_thread(read_image, image, roots, budget)
            return await fetcher.fetch(session, image, budget)
    except TimeoutError:
        seconds = f"{fetcher.args.timeout_s:g} seconds"
        raise ImageDownloadError(
            f"{param} was not delivered: the request's images took more than {seconds}", param
        ) from None
    except TaskError as error:
        raise type(error)(f"{param} {error.message}", param) from error
