"""A workflow that drafts an article, waits for a person, and publishes it. Try it: see README.md."""

from __future__ import annotations

from fsmworkflow import Engine, Retry, Workflow, WorkflowContext, field

article = Workflow("article", keep="90d")


async def write(prompt: str) -> str:
    """Call the language model, or whatever costs money, here."""
    return f"An essay. {prompt}"


@article.step(initial=True, then="review", retry=Retry(attempts=5), timeout="60s")
async def draft(ctx: WorkflowContext) -> None:
    ctx.data["text"] = await ctx.call(write, f"Write about {ctx.data['topic']}.")  # remembered: never paid for twice
    ctx.data["drafts"] = (ctx.data.get("drafts") or 0) + 1


article.wait(
    "review",
    on={"approved": "publish", "rejected": [(field("drafts") < 3, "draft"), "dropped"]},
    after={"3d": "dropped"},
)


@article.step(then="published")
async def publish(ctx: WorkflowContext) -> None:
    ctx.data["place"] = f"articles/{ctx.idempotency_key}.txt"  # the same on every attempt


article.final("published")
article.final("dropped", outcome="failed")


def engine() -> Engine:
    """What `fsmworkflow ... app:engine` opens."""
    return Engine("sqlite:///articles.db", workflows=[article])
