"""Draft, judge, revise until good, wait for a person, publish: no answer of the model is paid for twice.

    OPENAI_BASE_URL=http://127.0.0.1:8080/v1 python llm_pipeline.py TOPIC [--answer approved | rejected]

Needs httpx. Any server of the OpenAI chat protocol will do: OPENAI_API_KEY goes to it and nowhere else, OPENAI_MODEL
names the model. End the process whenever you like and start it again: it goes on at the first answer that is missing.
It always ends or waits: whatever the judge says, the third draft goes to a person. A small model may answer anything to
"from 1 to 10", so its answer is read inside the remembered call: the first such number, else a rule about the length.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import sys
from pathlib import Path

import httpx

from fsmworkflow import Engine, Retry, RunFailed, Workflow, WorkflowContext, field

URL = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1").rstrip("/")
MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
RETRY = Retry(attempts=6, first_delay=0.5, on=(httpx.TransportError, ValueError))


async def chat(prompt: str) -> str:
    """The model's answer. Raises ValueError where it has no word or the model is busy: both are tried again."""
    key = os.environ.get("OPENAI_API_KEY")
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 120, "stop": ["\n\n"]}
    async with httpx.AsyncClient(timeout=60, headers={"Authorization": f"Bearer {key}"} if key else {}) as client:
        reply = await client.post(f"{URL}/chat/completions", json=body)
    if reply.status_code == 429 or reply.status_code >= 500:
        raise ValueError(f"{URL} is busy: {reply.status_code}")
    text = " ".join((reply.raise_for_status().json()["choices"][0]["message"]["content"] or "").split())
    if not text:
        raise ValueError("the model said nothing")
    return text


async def score(text: str) -> int:
    answer = await chat(f"Rate this text: {text} Answer with a number from 1 to 10.")
    number = re.search(r"\b(10|[1-9])\b", answer)
    return int(number[1]) if number else 7 if 80 <= len(text) <= 400 else 3


article = Workflow("llm-article")


@article.step(initial=True, then="judge", retry=RETRY)
async def draft(ctx: WorkflowContext) -> None:
    ctx.data["texts"] = [await ctx.call(chat, f"Write two sentences about {ctx.data['topic']}.")]


@article.step(then=[((field("score") >= 8) | (field("drafts") >= 3), "review"), "revise"], retry=RETRY)
async def judge(ctx: WorkflowContext) -> None:
    scores = [await ctx.call(score, ctx.data["texts"][-1]) for _ in range(3)]  # three samples are three calls
    ctx.data.update(score=statistics.median(scores), drafts=len(ctx.data["texts"]))


@article.step(then="judge", retry=RETRY)
async def revise(ctx: WorkflowContext) -> None:
    better = f"Write two better sentences about {ctx.data['topic']} than these: {ctx.data['texts'][-1]}"
    ctx.data["texts"] += [await ctx.call(chat, better)]


article.wait("review", on={"approved": "publish", "rejected": "revise"}, after={"3d": "forgotten"})


@article.step(then="published")
def publish(ctx: WorkflowContext) -> None:
    ctx.data["by"] = ctx.event.payload["by"] if ctx.event else None
    Path("published.txt").write_text(ctx.data["texts"][-1] + "\n", encoding="utf-8")  # twice is the same as once


article.final("published", "forgotten")


async def main(topic: str, answer: str | None) -> None:
    async with Engine("sqlite:///llm.db", workflows=[article]) as engine:
        run = await engine.run(article, {"topic": topic}, key=topic)
        if answer and run.state == "review":
            await engine.send(article, topic, answer, {"by": "a person"}, visit=run.visit)
            run = await engine.result(article, topic)
    print(f"{topic}: {run.state}, draft {run.data['drafts']}, score {run.data['score']}\n{run.data['texts'][-1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("topic")
    parser.add_argument("--answer", choices=["approved", "rejected"])
    try:
        asyncio.run(main(**vars(parser.parse_args())))
    except RunFailed as failed:  # started again, it goes on at the call that failed
        sys.exit(str(failed))
