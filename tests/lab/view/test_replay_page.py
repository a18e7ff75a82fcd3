"""The page of a recorded trace shows the same as the live page."""

import pytest

from benchmarks.view_frames import write_trace
from minimal_vllm import LLM, SamplingParams
from minimal_vllm.trace.facts import engine_facts
from minimal_vllm.trace.writer import TraceWriter
from minimal_vllm_lab.view.document import DOCS
from tests.lab.view.browser import AT_END, new_page, page_at, pixels, stop, until
from tests.lab.view.test_live_page import SMALL, TINY_BUDGET, pause, send, step
from tests.server.harness import process

pytestmark = pytest.mark.browser


def test_a_replayed_run_looks_like_the_live_one_at_every_step(chromium, serve_trace, tmp_path):
    trace = tmp_path / "trace.jsonl"
    live, last = {}, None
    with process("--view", f"--trace={trace}", TINY_BUDGET, *SMALL) as server:
        with page_at(chromium, f"{server.url}/view") as page:
            until(page, "view.player.isLive")
            pause(page)
            send(server, 6, max_tokens=24)
            page.evaluate("view.select({ arrival: null, block: 0 })")
            for _ in range(40):
                step(page)
                last = pixels(page)
                live[page.evaluate("view.player.state.step")] = last[0]
        server.terminate()
        server.wait()
    with page_at(chromium, serve_trace(trace)) as page:
        stop(page)
        page.evaluate("view.select({ arrival: null, block: 0 })")
        for number, picture in live.items():
            page.evaluate(f"view.player.seekStep({number})")
            assert pixels(page)[0] == picture, f"step {number} looks otherwise"
    assert len(set(live.values())) == len(live), "each step changes the picture"


def test_a_trace_plays_by_itself_and_stops_at_its_end(chromium, replay_url):
    with page_at(chromium, replay_url) as page:
        page.select_option("#speed", "0")
        until(page, f"view.player.paused && {AT_END}")
        until(page, "!view.stale")
        last = page.evaluate("view.player.history.head.step")
        assert page.inner_text("#where") == f"step {last}"
        page.select_option("#speed", "0.5")  # so that it does not come to its end again
        page.click("#play")
        until(page, f"!view.player.paused && view.player.state.step < {last}")


@pytest.mark.parametrize(
    ("button", "field"), [("preemption", "preempted"), ("eviction", "evicted")]
)
def test_the_buttons_go_from_one_occasion_of_a_trace_to_the_next(
    chromium, replay_url, button, field
):
    with page_at(chromium, replay_url) as page:
        stop(page)
        page.evaluate("view.player.moveTo(0)")
        steps = []
        for _ in range(2):
            page.click(f"#{button}")
            assert page.evaluate(f"view.player.state.now.{field}.length") > 0
            steps.append(page.evaluate("view.player.state.step"))
        assert steps[0] < steps[1]
        page.click("#back")
        assert page.evaluate("view.player.state.step") == steps[1] - 1


def test_the_scrub_bar_and_a_click_on_the_batch_go_to_a_step(chromium, replay_url):
    with page_at(chromium, replay_url) as page:
        stop(page)
        page.fill("#scrub", "5")
        until(page, "view.player.state.step === 5")
        until(page, "!view.stale && !view.wordsAreStale")
        page.click("#batch", position={"x": 56 + 2.5 * 20, "y": 60})
        until(page, "view.player.state.step === 2")


def test_the_story_names_the_eviction_in_both_themes(chromium, replay_url):
    for scheme in ("light", "dark"):
        with page_at(chromium, replay_url, color_scheme=scheme) as page:
            assert page.evaluate("document.documentElement.dataset.theme") == scheme
            stop(page)
            page.evaluate("view.player.moveTo(0)")
            page.click("#eviction")
            until(page, "!view.stale && !view.wordsAreStale")
            told = page.inner_text("#story")
            (eviction, *_) = page.evaluate("view.player.state.now.evicted")
            assert f"Block {eviction['block']} was evicted for #{eviction['newOwner']}" in told
            assert f"in step {eviction['releasedStep']}" in told


NARRATE = """async (evicted) => {
  const { narrate } = await import("/view/page/narrate.js");
  const { state } = view.player;
  const now = { ...state.now, evicted, preempted: [], admitted: [], found: [], ended: [] };
  return narrate({ ...state, now });
}"""


def test_blocks_evicted_for_the_same_reason_share_a_sentence(chromium, replay_url):
    def evicted(block, owner, whom):
        return {"block": block, "releasedStep": 7, "hits": 0, "owner": owner, "newOwner": whom}

    why = "of all such blocks, {} released longest ago, in step 7 by #{}."
    with page_at(chromium, replay_url) as page:
        stop(page)
        page.evaluate("view.player.moveTo(view.player.history.end)")
        blocks = [evicted(4, 1, 5), evicted(9, 2, 5), evicted(2, 1, 5), evicted(3, 1, 6)]
        assert page.evaluate(NARRATE, blocks)[:-1] == [
            "Blocks 4 and 2 were evicted for #5: no request holds them, and "
            + why.format("they were", 1),
            "Block 9 was evicted for #5: no request holds it, and " + why.format("it was", 2),
            "1 more block was evicted.",
        ]


SMALL_CELLS = """async () => {
  const { theme, wordOf } = await import("/view/page/theme.js");
  const { pool, player: { state } } = view;
  const { data, width } = pool.context.getImageData(0, 0, pool.canvas.width, pool.canvas.height);
  const pixels = new Uint32Array(data.buffer);
  const isEmptyAt = (block, share) => {
    const x = (block % pool.columns) * pool.cell + 2;
    const y = Math.floor(block / pool.columns) * pool.cell + Math.round(share * (pool.cell - 1));
    return pixels[y * width + x] === wordOf(theme.slot);
  };
  return [...state.references.keys()].filter((block) => state.references[block] === 1)
    .map((b) => [state.fill[b] / state.facts.block_size, isEmptyAt(b, 0.2), isEmptyAt(b, 0.9)]);
}"""


def test_a_small_cell_is_filled_as_far_as_its_block(chromium, serve_trace, tmp_path):
    write_trace(tmp_path / "trace.jsonl", num_blocks=400, num_requests=20, num_steps=6)
    with page_at(chromium, serve_trace(tmp_path / "trace.jsonl")) as page:
        stop(page)
        page.evaluate("view.player.moveTo(view.player.history.end)")
        until(page, "!view.stale")
        cells = page.evaluate(SMALL_CELLS)
    by_fill = {fill: looks for fill, *looks in cells}
    assert by_fill[1.0] == [False, False]
    partial = [looks for fill, looks in by_fill.items() if 0.2 < fill < 0.7]
    assert partial
    assert all(looks == [True, False] for looks in partial)


@pytest.mark.parametrize("width", [800, 1280, 1920])
def test_all_panels_have_room(chromium, replay_url, width):
    with page_at(chromium, replay_url, viewport={"width": width, "height": 900}) as page:
        stop(page)
        page.evaluate("view.player.moveTo(view.player.history.end)")
        boxes = page.evaluate("""() => [...document.querySelectorAll(".panel")]
          .filter((each) => each.offsetParent !== null)
          .map((e) => [e.className, e.clientHeight, e.scrollWidth > e.clientWidth])""")
        assert len(boxes) == 5
        assert [name for name, height, is_cut in boxes if is_cut or height < 100] == []


CROWD = """async () => {
  const { colorOf, theme, wordOf } = await import("/view/page/theme.js");
  const { batch, digest } = view;
  const wrong = [], kinds = new Set();
  const image = batch.context.getImageData(0, 0, batch.canvas.width, batch.canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (const row of digest.rows) {
    const kindAt = new Map(row.cells.map(({ step, kind }) => [step, kind]));
    for (let step = row.from; step <= Math.min(row.until, batch.last); step += 1) {
      const kind = kindAt.get(step) ?? "waiting", isAhead = step > batch.cursor;
      if (kind === "waiting" && isAhead) continue;
      const strength = isAhead ? "pale" : kind === "decode" ? "full" : "bright";
      const color = kind === "waiting" ? theme.line : colorOf(row.arrival, strength);
      const x = batch.x(step) + batch.columnWidth / 2, y = batch.y(row.lane);
      const shown = pixels[Math.round(y) * image.width + Math.round(x)];
      if (shown !== wordOf(color)) wrong.push([row.arrival, step, kind]);
      kinds.add(`${kind} ${strength}`);
    }
  }
  return { wrong, kinds: [...kinds].sort(), height: batch.rowHeight };
}"""


@pytest.mark.parametrize(("num_requests", "height"), [(150, 2), (450, 1)])
def test_a_crowded_batch_shows_every_step_of_every_request(
    chromium, serve_trace, tmp_path, num_requests, height
):
    write_trace(tmp_path / "trace.jsonl", num_blocks=1000, num_requests=num_requests, num_steps=6)
    with page_at(chromium, serve_trace(tmp_path / "trace.jsonl")) as page:
        stop(page)
        page.evaluate("view.select({ arrival: null, block: 0 })")
        page.evaluate("view.player.seekStep(3)")
        until(page, "!view.stale && !view.wordsAreStale")
        shown = page.evaluate(CROWD)
    assert shown["wrong"] == []
    assert {"decode full", "decode pale", "prompt bright", "waiting bright"} <= set(shown["kinds"])
    assert shown["height"] == height


KEYFRAMES = """async (count) => {
  const { History, startState } = await import("/view/page/history.js");
  const history = new History(startState(view.facts, null), true);
  for (let arrival = 1; arrival <= count; arrival += 1) {
    const names = { request_id: String(arrival), arrival, arrived: 0, prompt_token_ids: [1] };
    history.append({ kind: "request", ...names });
  }
  return history.keyframes.reduce((sum, { state }) => sum + state.requests.size, 0);
}"""


def test_a_long_queue_is_not_copied_again_and_again(chromium, replay_url):
    with page_at(chromium, replay_url) as page:
        assert page.evaluate(KEYFRAMES, 4000) <= 2 * 4000


def test_the_page_forgets_what_the_history_has_forgotten(chromium, replay_url):
    with page_at(chromium, replay_url) as page:
        stop(page)
        forgotten = page.evaluate("""() => {
          const { player, digest } = view;
          player.isLive = true;
          player.moveTo(1);
          const seen = player.state.step; // a moment that is forgotten while one looks at it
          player.history.dropOldest();
          view.take({ kind: "reset" });
          const first = player.history.firstStep;
          return {
            first,
            wasShown: seen,
            isShown: player.state.step,
            columns: digest.firstStep,
            cells: Math.min(...digest.rows.flatMap((row) => row.cells.map((cell) => cell.step))),
          };
        }""")
    assert forgotten["wasShown"] < forgotten["isShown"] == forgotten["first"]
    assert forgotten["columns"] == forgotten["cells"] == forgotten["first"]


def test_experts_and_groups_of_layers_have_charts_in_models_that_have_them(
    chromium, serve_trace, replay_url, checkpoint, tmp_path
):
    path = tmp_path / "trace.jsonl"
    writer = TraceWriter(path, 10**7)
    folder = str(checkpoint("gpt-oss"))
    llm = LLM(folder, observers=[writer], num_gpu_blocks_override=32, max_model_len=96)
    writer.begin(engine_facts(llm.config, llm.built), llm.tokenizer.token_text)
    for index in range(3):
        llm.engine.add_request(str(index), [7 * index + 1] * 40, SamplingParams(max_tokens=9))
    for _ in range(5):
        llm.engine.step()
    writer.close()
    with page_at(chromium, serve_trace(path)) as page:
        until(page, "!view.stale && !view.wordsAreStale && view.player.state.step === 4")
        used = page.inner_text("#experts-value").split(" of ")
        assert used[1] == "5"
        assert 3 <= float(used[0]) <= 5, "each token has three experts"
        _, _, *in_use = page.evaluate("view.player.state.counts")
        held = [int(each) for each in page.inner_text("#groups-value").split(" + ")]
        assert len(held) == 2
        assert sum(held) == sum(in_use)
        assert held[0] != held[1], "only one of the groups has a window"
        assert len(page.evaluate("view.digest.columns.at(-1).groups")) == 2
    with page_at(chromium, replay_url) as page:
        assert not page.is_visible("#experts")
        assert not page.is_visible("#groups")


CUT_FORMULAS = """[...document.querySelectorAll(".formula")].filter(
    (each) => each.scrollWidth > each.clientWidth).map((each) => each.textContent)"""


def test_no_formula_of_a_document_is_wider_than_a_phone(chromium, replay_url):
    page = new_page(chromium, viewport={"width": 390, "height": 844})
    cut = {}
    for chapter in sorted((DOCS / "course").glob("*.md")):
        page.goto(f"{replay_url}/docs/course/{chapter.name}")
        cut[chapter.name] = page.evaluate(CUT_FORMULAS)
    page.goto(f"{replay_url}/docs/course/05-paged-attention.md")
    page.set_viewport_size({"width": 200, "height": 844})
    assert page.evaluate(CUT_FORMULAS) != []  # it would notice
    page.close()
    assert {name: found for name, found in cut.items() if found} == {}
