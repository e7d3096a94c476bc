"""Thumbnails of an album: a run of another workflow for each image, four at a time, and one for the contact sheet.

The third image is broken. The album fails and says so; mended and started again, only that image is made once more.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fsmworkflow import Engine, RunFailed, Workflow, WorkflowContext, field

SIZES = {"dawn.jpg": 4000, "noon.jpg": 3000, "dusk.jpg": 0, "night.jpg": 2000, "moon.jpg": 1000, "sun.jpg": 5000}


# -- one image: a workflow of its own, with two steps
image = Workflow("image")


@image.step(initial=True, then="shrink")
async def measure(ctx: WorkflowContext) -> None:
    name = ctx.data["item"]
    ctx.data["width"] = 1500 if Path(f"{name}.mended").exists() else SIZES[name]
    if not ctx.data["width"]:
        raise ValueError(f"{name} is no image")
    print(f"  measured {name}")


@image.step(then="small")
async def shrink(ctx: WorkflowContext) -> None:
    ctx.data["thumb"] = f"{ctx.data['item']} at {min(ctx.data['width'], 160)}"


image.final("small")


# -- all of them, and a sheet of what came back
sheet = Workflow("sheet")


@sheet.step(initial=True, then="printed")
async def arrange(ctx: WorkflowContext) -> None:
    ctx.data["rows"] = [ctx.data["thumbs"][n : n + 3] for n in range(0, len(ctx.data["thumbs"]), 3)]


sheet.final("printed")

album = Workflow("album")
album.each("thumbs", image, over=field("images"), into="thumbs", concurrency=4, then="sheet", initial=True)


def what_is_arranged(data: Any) -> dict[str, Any]:
    return {"thumbs": [one["thumb"] for one in data["thumbs"]]}


album.child("sheet", sheet, data=what_is_arranged, into="sheet", then="ready")
album.final("ready")


async def main() -> None:
    async with Engine("sqlite:///album.db", workflows=[album]) as engine:
        try:
            run = await engine.run(album, {"images": list(SIZES)}, key="summer")
        except RunFailed as failed:
            print(failed.run.error and failed.run.error.message)
            Path("dusk.jpg.mended").touch()
            run = await engine.run(album, key="summer")
        for row in run.data["sheet"]["rows"]:
            print(", ".join(row))


if __name__ == "__main__":
    asyncio.run(main())
