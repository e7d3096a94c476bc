"""The workflow, without a database: python -m unittest"""

from __future__ import annotations

import unittest

from app import article

from fsmworkflow import Engine


class Article(unittest.IsolatedAsyncioTestCase):
    async def test_what_is_approved_is_published(self) -> None:
        async with Engine("memory://", workflows=[article]) as engine:
            run = await engine.run(article, {"topic": "tea"}, key="a-1")
            assert run.state == "review"
            await engine.send(article, "a-1", "approved")
            run = await engine.result(article, "a-1")
            assert (run.state, run.data["drafts"]) == ("published", 1)

    async def test_what_is_rejected_three_times_is_dropped(self) -> None:
        async with Engine("memory://", workflows=[article]) as engine:
            await engine.run(article, {"topic": "tea"}, key="a-1")
            for _ in range(3):
                await engine.send(article, "a-1", "rejected")
                run = await engine.result(article, "a-1")
            assert (run.state, run.status) == ("dropped", "failed")
