"""The smallest workflow in the style of the first FSM-Workflow: three steps and one choice.

With nothing configured it is kept in fsmworkflow.db, here; with DB_HOST, DB_NAME and so on (or .env) in PostgreSQL.
"""

from __future__ import annotations

import asyncio

from fsmworkflow import (
    Condition,
    DBConfig,
    PersistentWorkflowStateMachine,
    Transition,
    WorkflowContext,
    WorkflowDefinition,
    WorkflowStep,
)

Answer = tuple[WorkflowContext, str | None]  # the context to keep; a trigger, or None: the conditions choose

definition = WorkflowDefinition(
    name="parcel",
    steps=["weigh", "post_by_van", "post_by_bicycle"],
    transitions=[
        Transition(
            trigger="heavy",
            source="weigh",
            dest="post_by_van",
            conditions=[Condition(field="kilograms", operator="gt", value=5)],
        ),
        Transition(
            trigger="light",
            source="weigh",
            dest="post_by_bicycle",
            conditions=[Condition(field="kilograms", operator="le", value=5)],
        ),
        Transition(trigger="posted", source=["post_by_van", "post_by_bicycle"], dest=None),  # the run ends there
    ],
)


async def weigh(ctx: WorkflowContext) -> Answer:
    ctx.data["kilograms"] = 3
    print("weighed: 3 kg")
    return ctx, None


async def post_by_van(ctx: WorkflowContext) -> Answer:
    print("by van")
    return ctx, None


async def post_by_bicycle(ctx: WorkflowContext) -> Answer:
    print("by bicycle")
    return ctx, None


async def main() -> None:
    db_config = DBConfig()
    machine = PersistentWorkflowStateMachine(db_config, definition)
    machine.steps = {
        "weigh": WorkflowStep(name="weigh", execute=weigh),
        "post_by_van": WorkflowStep(name="post_by_van", execute=post_by_van),
        "post_by_bicycle": WorkflowStep(name="post_by_bicycle", execute=post_by_bicycle),
    }
    await machine.run_workflow()
    print(f"ended in {machine.state}")


if __name__ == "__main__":
    asyncio.run(main())
