"""The workflow of article.py as data: its states are a list of names, its transitions a list of records.

This is the spelling to choose where the workflow comes from a file or a form. The functions belong to the machine.
"""

from __future__ import annotations

import asyncio

from article import calls, llm, post, score

from fsmworkflow import (
    Condition,
    PersistentWorkflowStateMachine,
    Transition,
    WorkflowContext,
    WorkflowDefinition,
    WorkflowStep,
)

article = WorkflowDefinition(
    name="article as data",
    steps=["draft", "judge", "publish"],  # the first is where it begins, the last where it ends
    transitions=[
        Transition(trigger="drafted", source="draft", dest="judge"),
        Transition(trigger="liked", source="judge", dest="publish", conditions=[Condition("score", "ge", 8)]),
        Transition(trigger="disliked", source="judge", dest="draft"),
    ],
)


async def draft(ctx: WorkflowContext) -> None:
    ctx.data["drafts"] = ctx.data.get("drafts", 0) + 1
    ctx.data["text"] = await ctx.call(llm, f"Write about {ctx.data['topic']}, draft {ctx.data['drafts']}")


async def judge(ctx: WorkflowContext) -> None:
    ctx.data["score"] = await ctx.call(score, ctx.data["text"])


async def publish(ctx: WorkflowContext) -> None:
    await post(ctx.data["text"], idempotency_key=ctx.idempotency_key)
    print(f"published: {ctx.data['text']}, score {ctx.data['score']}")


async def main() -> None:
    machine = PersistentWorkflowStateMachine("sqlite:///articles.db", article, key="1", data={"topic": "databases"})
    machine.steps = {
        "draft": WorkflowStep(name="draft", execute=draft),
        "judge": WorkflowStep(name="judge", execute=judge),
        "publish": WorkflowStep(name="publish", execute=publish),
    }
    await machine.run_workflow()
    print(f"ended in {machine.state}")
    print("calls: " + (", ".join(f"{name} {count}" for name, count in calls.items()) or "none"))


if __name__ == "__main__":
    asyncio.run(main())
