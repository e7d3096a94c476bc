"""Workflows as pictures: what is drawn, that programs really draw it, and that no name can be anything but a label."""

from __future__ import annotations

import html
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from examples.order import order
from examples.parcel import parcel
from examples.trip import trip
from fsmworkflow import Engine, Retry, To, Workflow, field, open_store
from fsmworkflow.diagram import diagram
from fsmworkflow.diagram.outline import closed
from fsmworkflow.diagram.picture import END, Picture, picture
from tests.browser import seen
from tests.scenarios import SCENARIOS, Ledger, Scenario, by_run
from tests.tools import program

HOSTILE = [
    'quote " and \\" more',
    "a --> b : c",
    "<script>document.title='taken'</script>",
    "<img src=x onerror=document.title='taken'>",
    "]; evil -> other [label=x",
    "%% comment; { } } [*] <<choice>>",
    "`code` **bold** _it_ ~x~ $$x$$",
    "#35;quot; &lt;b&gt; &amp;",
    "1. item",
    "- list",
    "end note",
    "the direction LR of it",
    "a [[fork]] in it",
    "ünïcode 漢字 🎉 ﷽",
    "\u202egnp.exe",
    "[link](javascript:alert(1)) www.example.com",
    "fa:fa-car ```",
    "x" * 190,
]


def nothing(ctx: Any) -> None:
    pass


def wide(fetch: Any = nothing) -> Workflow:
    """One of everything that is drawn."""
    child = Workflow("thumb")
    child.step("make", initial=True, then="made")(nothing)
    child.final("made")
    flow = Workflow("wide")
    flow.step("fetch", initial=True, then="judge", retry=Retry(attempts=4), timeout="30s", compensate=len,
              on_error={TimeoutError: "lost"})(fetch)  # fmt: skip
    flow.choice("judge", [(field("score") >= 8, "both"), "fetch"])
    both = flow.parallel("both", then="thumbs", on={"stop": "lost"})
    left, right = both.region("left"), both.region("right")
    left.wait("ask", initial=True, on={"yes": "asked", "note": To("ask", internal=True)})
    left.final("asked")
    right.wait("ask", initial=True, on={"yes": "asked", "again": "ask"})
    right.final("asked")
    flow.each("thumbs", child, over=field("images"), then="inner")
    inner = flow.state("inner", then="kept", on={"redo": "inner.second"}, after={"2d": "lost"})
    inner.wait("first", initial=True, on={"next": "second"})
    inner.wait("second", on={"next": "over"}, enter=print)
    inner.final("over")
    flow.final("kept")
    flow.final("lost", outcome="failed")
    flow.transition("abort", "*", None)
    return flow


def arrows(shown: Picture) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(arrow.source, arrow.dest): arrow.lines for arrow in shown.arrows}


def lines(shown: Picture) -> dict[str, tuple[str, ...]]:
    return {node.path: node.lines for node in shown.all()}


async def moved(flow: Workflow, *events: str, data: Any = None) -> tuple[Any, list[Any]]:
    async with Engine("memory://", workflows=[flow]) as engine:
        await engine.run(flow, data or {}, key="k")
        for event in events:
            await engine.send(flow, "k", event)
            await engine.result(flow, "k")
        return await engine.get(flow, "k"), await engine.history(flow, "k")


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_arrows_bear_triggers_conditions_delays_and_errors() -> None:
    found = arrows(picture(wide()))
    assert found["fetch", "judge"] == ()
    assert found["fetch", "lost"] == ("on TimeoutError",)
    assert found["judge", "both"] == ("[score >= 8]",)
    assert found["judge", "fetch"] == ("[else]",)
    assert found["both", "lost"] == ("stop",)
    assert found["both.left.ask", "both.left.asked"] == ("yes",)
    assert found["inner", "lost"] == ("after 2d",)
    assert found["", END] == ("abort",)
    assert ("both.left.ask", "both.left.ask") not in found
    assert found["kept", END] == ()


def test_states_say_what_they_do() -> None:
    found = lines(picture(wide()))
    assert found["fetch"] == ("up to 4 attempts", "within 30s", "undone by len")
    assert found["thumbs"] == ("runs thumb for each of", "images")
    assert found["both.left.ask"] == ("note (stays)",)
    assert found["inner"] == ("redo → second",)
    assert found["inner.second"] == ("entry / print",)
    assert found["lost"] == ("as failed",)


def test_states_stand_in_the_states_that_hold_them() -> None:
    text = diagram(wide())
    both = text[text.index('state "both"') : text.index('state "thumbs')]
    assert len(re.findall(r'^        state "(?:left|right)" as \w+ {$', both, re.MULTILINE)) == 2
    assert both.count("[*] --> ") == 2
    assert both.count(" --> [*]") == 2
    assert diagram(wide(), format="dot").count("subgraph cluster_") == 4


async def test_a_runs_way_is_drawn_with_its_visits_and_where_it_is() -> None:
    flow = wide(scoring)
    run, history = await moved(flow, "again", "note", "yes", data={"score": 0, "images": []})
    shown = picture(flow, run, history)
    visits = {node.path: next((line for line in node.lines if "visits" in line), "") for node in shown.all()}
    assert visits["fetch"] == visits["judge"] == visits["both.right.ask"] == "2 visits"
    assert visits["both.left.ask"] == visits["both"] == ""
    places = {node.path: node.place for node in shown.all()}
    assert {path for path, place in places.items() if place == "current"} == {"inner", "inner.first"}
    assert {path for path, place in places.items() if place == ""} == {"inner.second", "inner.over", "kept", "lost"}
    taken = {(arrow.source, arrow.dest): arrow.taken for arrow in shown.arrows if arrow.taken}
    assert taken == {
        ("fetch", "judge"): 2, ("judge", "fetch"): 1, ("judge", "both"): 1, ("both.right.ask", "both.right.ask"): 1,
        ("both.left.ask", "both.left.asked"): 1, ("both.right.ask", "both.right.asked"): 1, ("both", "thumbs"): 1,
        ("thumbs", "inner"): 1,
    }  # fmt: skip
    assert any(line.startswith("next timer") for line in lines(shown)["inner"])
    assert shown.facts[0] == "waiting in inner.first, version 9"
    assert re.fullmatch(r"next timer: inner, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", shown.facts[1])


def scoring(ctx: Any) -> None:
    ctx.data["score"] += 5


async def test_what_takes_a_transition_is_told_apart() -> None:
    flow = Workflow("told")
    flow.step("work", initial=True, then="rest", on_error={ValueError: "rest"})(failing)
    flow.wait("rest", on={"go": [(field("n") > 5, "end"), (field("n") > 0, "end")], "back": "work"})
    flow.final("end")
    run, history = await moved(flow, "back", "go", data={"n": 1})
    found = arrows(picture(flow, run, history))
    assert found["work", "rest"] == ("(at the end) ✓", "on ValueError ✓")
    assert found["rest", "end"] == ("go [n > 5]", "go [n > 0] ✓")
    assert run.status == "done"


def failing(ctx: Any) -> None:
    ctx.data["n"] = 1
    if ctx.run.version == 0:
        raise ValueError("no")


async def test_a_failed_run_is_drawn_where_it_stopped_with_its_error() -> None:
    flow = Workflow("fails")

    @flow.step(initial=True, then="end")
    def work(ctx: Any) -> None:
        raise ValueError("<b>no</b>")

    flow.final("end")
    async with Engine("memory://", workflows=[flow]) as engine:
        await engine.start(flow, {}, key="k")
        run = await engine.result(flow, "k")
        shown = picture(flow, run, await engine.history(flow, "k"))
    assert [node.place for node in shown.all()] == ["failed", ""]
    assert shown.facts[1] == "ValueError in work, attempt 1: <b>no</b>"
    assert "<b>no" not in diagram(flow, run, format="html").replace(html.escape("<b>no</b>"), "")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no format 'png': mermaid, dot, html"):
        diagram(order, format="png")  # type: ignore[arg-type]


# -- that programs draw it --------------------------------------------------------------------------------------------


def hostile() -> Workflow:
    """Every name and text that a user writes is hostile."""
    flow = Workflow(HOSTILE[2])
    names = [name.replace(".", "") for name in HOSTILE]
    for number, name in enumerate(names):
        following = names[(number + 1) % len(names)]
        ways = {event: [(field(HOSTILE[3]) == event, following), following] for event in HOSTILE}
        flow.wait(name, initial=number == 0, on=ways, after={"1s": "end"})
    holder = flow.state(names[0] + "!", on={"in": "end"})
    holder.wait(names[1], initial=True, on={HOSTILE[0]: names[0] + "!"})
    flow.transition(HOSTILE[5], names[0], names[0] + "!")
    flow.final("end")
    return flow


def drawn(page: Path) -> tuple[str, list[str]]:
    """The page as drawn in a browser, and the texts in its picture."""
    shown = seen(page)
    assert '<body data-drawn="yes">' in shown, shown[-2000:]
    figure = shown[shown.index("<figure>") : shown.index("</figure>")]
    assert "<svg" in figure
    found = re.findall(r"<(?:p|span|text|tspan)\b[^>]*>([^<]+)", figure.replace("<br>", " ").replace("<br/>", " "))
    return shown, [html.unescape(text) for text in found]


@pytest.mark.parametrize("flow", [order, parcel, trip, wide()], ids=lambda flow: str(flow.name))
def test_a_browser_without_a_network_draws_the_page(flow: Workflow, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(diagram(flow, format="html"), encoding="utf-8")
    assert not re.search(r"<(?:link|img|iframe|script[^>]+src)", page.read_text(encoding="utf-8").split("<script>")[0])
    _, texts = drawn(page)
    told = " ".join(texts)
    assert {state.rpartition(".")[2] for state in flow.states} <= set(re.findall(r"\w+", told))


async def test_in_the_browser_the_arrows_that_were_taken_stand_out(tmp_path: Path) -> None:
    run, history = await moved(parcel, "weighed")
    page = tmp_path / "page.html"
    page.write_text(diagram(parcel, run, history, format="html"), encoding="utf-8")
    shown, texts = drawn(page)
    marked = re.findall(r'<path[^>]*class="[^"]*\btaken\b', shown)
    assert len(marked) == sum(arrow.taken > 0 for arrow in picture(parcel, run, history).arrows)
    assert any("weighed" in text for text in texts)
    assert "<td>weighed" in shown


def test_hostile_names_are_only_ever_labels_in_a_browser(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(diagram(hostile(), format="html"), encoding="utf-8")
    shown, texts = drawn(page)
    assert f"<title>{html.escape(HOSTILE[2], quote=False)}</title>" in shown
    figure = shown[shown.index("<figure>") : shown.index("</figure>")]
    assert not re.search(r"<(?:script|img|a|b|code|strong|em|li)\b", figure)
    told = re.sub(r"\s", "", "".join(texts))
    for name in HOSTILE[:14]:
        assert re.sub(r"\s", "", name).replace(".", "") in told, name


def test_hostile_names_are_only_ever_labels_in_graphviz(tmp_path: Path) -> None:
    source = tmp_path / "x.dot"
    source.write_text(diagram(hostile(), format="dot"), encoding="utf-8")
    done = subprocess.run([program("dot"), "-Tjson", source], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    labels = {one.get("label", "") for one in found["objects"]}
    assert len([one for one in found["objects"] if one["name"].startswith("s")]) == len(hostile().states)
    assert 'quote " and' in " ".join(labels).replace("\\n", " ").replace('\\"', '"')


@pytest.mark.parametrize("flow", [order, parcel, trip, wide()], ids=lambda flow: str(flow.name))
def test_graphviz_draws_it(flow: Workflow, tmp_path: Path) -> None:
    source = tmp_path / "x.dot"
    source.write_text(diagram(flow, format="dot"), encoding="utf-8")
    done = subprocess.run([program("dot"), "-Tsvg", source], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count('class="node"') >= len(flow.states)


def test_no_text_of_a_workflow_can_end_a_line_or_a_quote() -> None:
    for line in diagram(hostile()).splitlines():
        told = re.sub(r'state "[^"<>{};:%`]*(?:<br/>[^"<>{};:%`]*)*" as s\d+(?: {)?$', "ok", re.sub(r"#\d+;", "", line))
        told = re.sub(r"(?:s\d+|\[\*\]|any) --> (?:s\d+|\[\*\])(?: : [^<>{};:%`]*(?:<br/>[^<>{};:%`]*)*)?$", "ok", told)
        assert re.fullmatch(
            r" *(?:ok|}|stateDiagram-v2|classDef .*|class s\d+ \w+|state \"any state\" as any)", told
        ), line
    for line in diagram(hostile(), format="dot").splitlines():
        assert len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2 == 0, line


def test_graphviz_draws_two_hundred_states_in_time(tmp_path: Path) -> None:
    flow, source = Workflow("long"), tmp_path / "x.dot"
    for number in range(200):
        flow.wait(f"s{number}", initial=number == 0, on={"next": f"s{number + 1}", "back": f"s{max(0, number - 3)}"})
    flow.final("s200")
    source.write_text(diagram(flow, format="dot"), encoding="utf-8")
    done = subprocess.run([program("dot"), "-Tsvg", source], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.count('class="node"') == 203


# -- what is too large to be laid out ---------------------------------------------------------------------------------


def grouped(groups: int, inside: int = 10) -> Workflow:
    """States by the hundred, in groups which lead on to each other."""
    flow = Workflow("grouped")
    for number in range(groups):
        following = f"g{number + 1}" if number + 1 < groups else "end"
        group = flow.state(f"g{number}", initial=number == 0, then=following, on={"fail": "end"})
        for one in range(inside - 1):
            group.wait(f"s{one}", initial=one == 0, on={"next": f"s{one + 1}" if one + 2 < inside else "over"})
        group.final("over")
    flow.final("end")
    return flow


async def test_a_picture_of_three_hundred_states_is_drawn_with_groups_closed_and_lists_them_all(tmp_path: Path) -> None:
    flow = grouped(30)
    run, history = await moved(flow, "next", "next")
    shown = closed(picture(flow, run, history))
    assert shown is not None
    assert [node.path for node in shown.all()] == [*(f"g{number}" for number in range(30)), "end"]
    assert shown.nodes[0].lines == ("10 states in it",)
    assert shown.nodes[0].place == "current"
    assert arrows(shown)["g0", "g1"] == ()
    assert arrows(shown)["g0", "end"] == ("fail",)
    page = tmp_path / "page.html"
    page.write_text(diagram(flow, run, history, format="html"), encoding="utf-8")
    told, texts = drawn(page)
    assert any("g29" in text for text in texts)
    listed = told[told.index('<ul class="states">') : told.index("<table>")]
    assert listed.count("<li ") == len(flow.states)
    assert re.search(r'<li id="s4" class="current"><b>s2</b>', listed)
    assert re.search(r'<div class="taken">next ✓ → <a href="#s4">g0.s2</a></div>', listed)


def test_of_several_levels_as_many_stay_open_as_can_be_laid_out() -> None:
    flow = Workflow("deep")
    for outer in "abcde":
        around = flow.state(outer, initial=outer == "a", on={"go": chr(ord(outer) + 1) if outer != "e" else "end"})
        for middle in range(6):
            within = around.state(f"m{middle}", initial=middle == 0, on={"go": f"m{(middle + 1) % 6}"})
            for inner in range(8):
                within.wait(f"i{inner}", initial=inner == 0, on={"go": f"i{(inner + 1) % 8}", "out": "end"})
    flow.final("end")
    shown = closed(picture(flow))
    assert shown is not None
    assert {node.path.count(".") for node in shown.all()} == {0, 1}
    assert arrows(shown)["a.m0", "end"] == ("out",)
    assert arrows(shown)["a.m0", "a.m1"] == ("go",)
    assert ("a.m0", "a.m0") not in arrows(shown)
    assert closed(picture(order)) == picture(order)


def flat() -> Workflow:
    flow = Workflow("flat")
    for number in range(1_000):
        flow.wait(f"s{number}", initial=number == 0, on={"next": f"s{number + 1}", "back": f"s{number // 2}"})
    flow.final("s1000")
    return flow


async def test_of_what_is_flat_and_large_the_surroundings_of_a_run_are_drawn(tmp_path: Path) -> None:
    flow = flat()
    run, history = await moved(flow, "next", "next", "next", "back", "next", "next")
    shown = closed(picture(flow, run, history))
    assert shown is not None
    assert [node.path for node in shown.all()] == ["s0", "s1", "s2", "s3", "s4"]
    assert set(arrows(shown)) == {
        ("s0", "s1"), ("s1", "s2"), ("s2", "s3"), ("s3", "s1"), ("s3", "s4")
    }  # fmt: skip
    page = tmp_path / "page.html"
    page.write_text(diagram(flow, run, history, format="html"), encoding="utf-8")
    told, _ = drawn(page)
    assert told.count("<li ") == 1_001


def test_what_is_flat_and_large_is_a_list_without_a_script(tmp_path: Path) -> None:
    flow = flat()
    assert closed(picture(flow)) is None
    text = diagram(flow, format="html")
    assert "<script" not in text
    assert "<figure" not in text
    assert "1,001 states and 2,001 ways between them are too many" in text
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    shown = seen(page)
    assert shown.count("<li ") == 1_001
    assert shown.count('<a href="#s') == 2_000


def test_hostile_names_are_only_ever_texts_in_a_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fsmworkflow.diagram.outline.PARTS", 5)
    page = tmp_path / "page.html"
    page.write_text(diagram(hostile(), format="html"), encoding="utf-8")
    shown = seen(page)
    assert f"<title>{html.escape(HOSTILE[2], quote=False)}</title>" in shown
    listed = shown[shown.index('<ul class="states">') : shown.index("</body>")]
    assert set(re.findall(r"<(\w+)", listed)) == {"ul", "li", "b", "div", "a"}
    assert not re.search(r"<[^>]*\son\w+=", listed)
    names = [html.unescape(name) for name in re.findall(r"<b>(.*?)</b>", listed)]
    shows = {"".join(sign if sign.isprintable() else "\ufffd" for sign in name) for name in hostile().states}
    assert {name.rpartition(".")[2] for name in shows} <= set(names)


def spent_on(groups: int) -> float:
    """Seconds of this process's own that the page of a workflow of so many groups of states takes."""
    flow = grouped(groups)
    flow.check()
    began = time.process_time()
    text = diagram(flow, format="html")
    took = time.process_time() - began
    assert text.count("<li ") == len(flow.states)
    return took


def test_ten_thousand_states_are_a_page_in_a_time_that_grows_as_they_do() -> None:
    assert spent_on(1_000) < 60 * spent_on(100), "ten times as many, each with every other, take a hundred times"


def test_a_workflow_of_a_thousand_states_is_drawn_in_a_second() -> None:
    flow = Workflow("large")
    for number in range(1_000):
        flow.wait(f"s{number}", initial=number == 0, on={"next": f"s{number + 1}"}, after={"1d": "s1000"})
    flow.final("s1000")
    flow.check()
    began = time.process_time()
    assert diagram(flow).count(" --> ") == 2_001
    assert time.process_time() - began < 1.0


# -- every durable feature --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if not one.connected], ids=str)
async def test_every_move_that_leads_on_is_found_in_the_picture(scenario: Scenario) -> None:
    ledger, store = Ledger(), open_store("memory://")
    await store.open()
    run = await by_run(store, scenario, ledger)
    history = await store.history(run)
    flow = scenario.make(ledger).check()
    known, before = picture(flow, run, history), 0
    for number, entry in enumerate(history[1:], 2):
        taken = sum(arrow.taken for arrow in picture(flow, run, history[:number]).arrows)
        undoing = "compensating" in (entry.status, history[number - 2].status)
        if entry.source != entry.dest and not undoing:
            assert taken > before, (entry, history[number - 2])
        before = taken
    if not run.undo.ends:
        visits = {node.path: node.place for node in known.all()}
        assert all(visits[state] for state in scenario.visits)


def test_a_browser_draws_every_scenario(tmp_path: Path) -> None:
    flows = [scenario.make(Ledger()) for scenario in SCENARIOS]
    page = tmp_path / "all.html"
    head, _, _ = diagram(flows[0], format="html").rpartition("</body>")
    texts = json.dumps([diagram(flow) for flow in flows]).replace("<", "\\u003c")
    draw = """
        const texts = TEXTS, told = [];
        (async () => {
            for (const [number, text] of texts.entries())
                try { await mermaid.render(`p${number}`, text); }
                catch (error) { told.push(`${number}: ${error.message}`); }
            document.body.dataset.told = told.join("; ") || "all";
        })();
    """.replace("TEXTS", texts)
    page.write_text(f"{head}<script>{draw}</script></body></html>", encoding="utf-8")
    assert 'data-told="all"' in seen(page)
