"""An article is drafted until a judge likes it, then published. The same workflow as data: article_as_data.py.

The language model, the judge and the press are made up; they count how often they were called. Started again, the
program only reports the article, and calls nobody.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from fsmworkflow import Engine, Retry, Workflow, WorkflowContext, field

calls: Counter[str] = Counter()


async def llm(prompt: str) -> str:
    calls["llm"] += 1
    return f"[{prompt}]"


async def score(text: str) -> int:
    calls["score"] += 1
    return 9 if "draft 2" in text else 5


async def post(text: str, idempotency_key: str) -> None:
    """A real press would print once for one key, however often it is asked."""
    calls["post"] += 1


article = Workflow("article")


@article.step(initial=True, then="judge", retry=Retry(attempts=5), timeout=60)
async def draft(ctx: WorkflowContext) -> None:
    ctx.data["drafts"] = ctx.data.get("drafts", 0) + 1
    prompt = f"Write about {ctx.data['topic']}, draft {ctx.data['drafts']}"
    ctx.data["text"] = await ctx.call(llm, prompt)  # remembered: never paid for twice


@article.step(then=[(field("score") >= 8, "publish"), "draft"])  # the first whose condition holds
async def judge(ctx: WorkflowContext) -> None:
    ctx.data["score"] = await ctx.call(score, ctx.data["text"])


@article.step(then="published")
async def publish(ctx: WorkflowContext) -> None:
    await post(ctx.data["text"], idempotency_key=ctx.idempotency_key)


article.final("published")


async def main() -> None:
    async with Engine("sqlite:///articles.db", workflows=[article]) as engine:
        run = await engine.run(article, {"topic": "databases"}, key="article-1")
    print(f"{run.key} is {run.state}: {run.data['text']}, score {run.data['score']}")
    print("calls: " + (", ".join(f"{name} {count}" for name, count in calls.items()) or "none"))


if __name__ == "__main__":
    asyncio.run(main())
