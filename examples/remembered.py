"""Calls that cost money are made once, though their step crashes and runs again.

`ctx.call` keeps what a call returned as soon as it returned it. The next attempt of the step is given the kept answers
and pays only for the calls that were still missing.
"""

from __future__ import annotations

import asyncio
import logging

from fsmworkflow import Engine, RunFailed, Workflow, WorkflowContext

paid: list[str] = []  # each call that was really made
printer_jammed = True


async def llm(prompt: str) -> str:
    paid.append(prompt)
    return f"answer {len(paid)} to: {prompt}"


poster = Workflow("poster")


@poster.step(initial=True, then="done")
async def make(ctx: WorkflowContext) -> None:
    ctx.data["name"] = await ctx.call(llm, "name a bicycle")
    samples = [ctx.call(llm, "a slogan for it") for _ in range(5)]  # five samples of one prompt are five calls
    ctx.data["slogans"] = await asyncio.gather(*samples)
    print(f"  {len(paid)} calls paid for; now to the printer")
    if printer_jammed:
        raise OSError("the printer is jammed")
    ctx.data["picture"] = await ctx.remember("picture", lambda: llm(f"draw {ctx.data['name']}"))  # for lambdas: a name


poster.final("done")


async def main() -> None:
    global printer_jammed
    async with Engine("memory://", workflows=[poster]) as engine:
        try:
            print("first time:")
            await engine.run(poster, {}, key="poster-1")
        except RunFailed as failed:
            print(f"  {failed.__cause__}")
        printer_jammed = False
        print("second time:")
        run = await engine.run(poster, {}, key="poster-1")
    print(f"{run.state}: {len(set(run.data['slogans']))} different slogans, {len(paid)} calls paid for in all")


if __name__ == "__main__":
    logging.getLogger("fsmworkflow").setLevel(logging.CRITICAL)  # the failure is told above, in our own words
    asyncio.run(main())
