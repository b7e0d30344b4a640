"""The other pages of the explorer as people meet them, in a real headless Chromium: tokens, heads, runs, failures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import ASKED, BROWSER, SAMPLING, WINDOW, in_address, opened, run_cell, saved_table, shown
from small_run import MARKUP

from apps.page_runs import LOOK_EVERY
from shardscope import Shard, load
from shardscope.checkpoint import list_checkpoints
from shardscope.generation import Generation, generate
from shardscope.microscope import ablated, ablation_effect, attribution, head_scores, logit_lens, read
from shardscope.visible import visible

pytestmark = BROWSER


# --------------------------------------------------------------------------------------------------- Tokens


def test_tokens_show_the_librarys_numbers_and_a_head_can_be_switched_off(
    page, address: str, model: Shard, ids: torch.Tensor, written: Generation, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    place = len(written.prompt_ids)  # the first new token
    opened(page, address, "tokens", **ASKED, query=place)
    grid = shown(page, "attribution")
    lens = logit_lens(model, ids, top=5)
    rows, left = saved_table(page, "tokens.csv"), run_cell(page, "tokens")
    exact = [float(lens.next_probability[-1, int(row["position"]) - 1]) for row in rows]
    for found in ([float(row["probability"]) for row in rows], left["probabilities"].numpy()):
        np.testing.assert_allclose(found, exact, rtol=1e-4)
    rows, left = saved_table(page, "lens.csv"), run_cell(page, "lens")
    assert [float(row["entropy"]) for row in rows] == pytest.approx(lens.entropy[:, place - 1].tolist(), rel=1e-4)
    assert left["lens"].topk(5).indices.tolist() == lens.tokens[:, place - 1].tolist()

    best = [int(id) for id in lens.tokens[-1, place - 1] if id != ids[place]]
    exact = attribution(model, ids, place - 1, int(ids[place]), best[0])
    titles = [button.get_attribute("title") for button in grid.get_by_role("button").all()]
    found = {tuple(map(int, re.findall(r"\d+", title)[:2])): float(title.split("adds ")[1]) for title in titles}
    assert found == {head: pytest.approx(float(x), abs=6e-5) for head, x in np.ndenumerate(exact.heads)}
    left = run_cell(page, "attribution")
    np.testing.assert_allclose(left["heads"].numpy(), exact.heads, atol=1e-5)

    grid.get_by_role("button", name=re.compile("layer 1, head 3 ")).click()
    page.get_by_text("Without L1H3 (zero)").wait_for()
    with ablated(model, [(1, 3)]):
        without = generate(model, [written.prompt_ids], SAMPLING)[0].text
    codes = page.locator("[data-testid=stCode] code")
    codes.nth(2).wait_for()
    shown_texts = codes.evaluate_all("codes => codes.map(code => code.textContent)")
    assert shown_texts == [visible(text) for text in (written.text, written.text, without)]
    assert without != written.text, "the fixture's head does nothing: choose another"
    in_address(page, "ablate=1.3")
    rows, left = saved_table(page, "ablation.csv"), run_cell(page, "ablation")
    effect = ablation_effect(model, ids, [(1, 3)], position=place - 1, top=8)
    for found in ([float(row["after"]) for row in rows], left["effect"].after):
        np.testing.assert_allclose(found, effect.after, rtol=1e-4)
    assert left["without"].text == without


def test_a_mean_is_the_prompts_own_in_the_effect_and_in_the_continuation(
    page, address: str, model: Shard, ids: torch.Tensor, written: Generation
) -> None:
    place, prompt = len(written.prompt_ids), torch.tensor(written.prompt_ids)
    opened(page, address, "tokens", **ASKED, query=place + 2, ablate="1.3 2.0", mode="mean")
    page.get_by_text("Without L1H3, L2H0 (mean)").wait_for()
    rows = saved_table(page, "ablation.csv")
    with ablated(model, [(1, 3), (2, 0)], "mean", reference=prompt), torch.no_grad():
        after = model(ids[None])[0, place + 1].softmax(dim=-1)
        without = generate(model, [written.prompt_ids], SAMPLING)[0].text
    best = after.topk(5).values.tolist()
    assert sorted((float(row["after"]) for row in rows), reverse=True)[:5] == pytest.approx(best, rel=1e-4)
    texts = page.locator("[data-testid=stCode] code").evaluate_all("codes => codes.map(code => code.textContent)")
    assert texts[2] == visible(without)


# ---------------------------------------------------------------------------------------------------- Heads


def test_heads_are_found_by_their_scores_and_followed_through_the_run(
    page, address: str, model: Shard, ids: torch.Tensor, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    opened(page, address, "heads", **ASKED, by="previous", kind="global")
    grid = shown(page, "previous")
    scores = {(score.layer, score.head): score for score in head_scores(read(model, ids))}
    for button in grid.get_by_role("button").all():
        layer, head, value = re.findall(r"\d+\.\d+|\d+", button.get_attribute("title"))
        assert float(value) == pytest.approx(scores[int(layer), int(head)].previous, abs=6e-5)
    rows = saved_table(page, "heads.csv")
    assert all(float(row["reach"]) == 0 for row in rows if row["kind"] == "sliding")
    best = max((score for score in scores.values() if score.kind == "global"), key=lambda score: score.previous)
    framed = grid.locator("button[aria-pressed=true]")
    assert framed.count() == 3
    assert f"{best.layer}.{best.head}" in [button.get_attribute("data-head") for button in framed.all()]

    found = run_cell(page, "heads")["found"]
    assert (found[0].layer, found[0].head) == (best.layer, best.head)
    assert {score.kind for score in found} == {"global"}
    rows, left = saved_table(page, "distances.csv"), run_cell(page, "distances")
    masses = [mass for head in left["masses"].values() for mass in head]
    np.testing.assert_allclose([float(row["mass"]) for row in rows], masses, atol=1e-6)

    page.get_by_text("Read all 2 checkpoints").click()
    page.locator(".st-key-take-training button").wait_for()
    rows, left = saved_table(page, "training.csv"), run_cell(page, "training")
    for path in list_checkpoints(run):
        step = int(path.name.removeprefix("step-"))
        expected = {(s.layer, s.head): s.previous for s in head_scores(read(load(path), ids))}[best.layer, best.head]
        row = next(r for r in rows if r["head"] == f"L{best.layer}H{best.head}" and int(r["step"]) == step)
        assert float(row["score"]) == pytest.approx(expected, abs=1e-5)
        assert left["training"][step][best.layer, best.head] == pytest.approx(expected, abs=1e-5)


# --------------------------------------------------------------------------------------- Runs and Failures


def test_the_runs_page_shows_a_line_soon_after_a_training_writes_it(
    page, address: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks every two seconds, so that the lag stays under five; how long a busy machine takes is another matter."""
    assert LOOK_EVERY <= 2
    monkeypatch.chdir(run.parents[1])
    opened(page, address, "runs")
    page.locator("td", has_text="20 of 100").wait_for(state="attached")
    assert page.get_by_text("pretrain with muon: 100 steps").count() == 1
    with (run / "metrics.jsonl").open("a") as file:
        line = {"kind": "train", "step": 30, "time": 0.0, "cross_entropy": 4.25, "lr": 1e-3, "tokens_per_second": 77.0}
        file.write(json.dumps(line) + "\n")
    page.locator("td", has_text="30 of 100").wait_for(state="attached")
    rows, left = saved_table(page, "curve.csv"), run_cell(page, "curve")
    assert [(int(row["step"]), float(row["value"])) for row in rows][-1] == (30, 4.25)
    assert left["curve"] == {"runs/tiny-run": [(int(row["step"]), float(row["value"])) for row in rows]}
    rows, left = saved_table(page, "plan of tiny-run.csv"), run_cell(page, "plan of tiny-run")
    rates = {int(float(row["step"])): float(row["learning rate"]) for row in rows if row["step"]}
    assert [left["rates"][step] for step in rates] == pytest.approx(list(rates.values()))
    assert left["shares"] == pytest.approx({row["source"]: float(row["share"]) for row in rows if row["source"]})


def test_a_biography_is_read_while_it_grows_and_can_be_taken_away(
    page, address: str, run: Path, model: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    shape = (model.config.n_layers, model.config.n_heads)

    def line(step: int) -> str:
        scores = np.full(shape, 0.02)
        scores[1, 2] = 0.02 if step < 100 else 0.5
        told = {
            "kind": "probe", "step": step, "time": 0.0, "seconds": 0.1, "window": WINDOW,
            "kinds": list(model.config.layer_kinds), "heads": {"induction 8": scores.tolist()},
            "matrices": {"blocks.0.attn.W_Q": [0.1, 2.0, 5.0, None]}, "positions": [0, WINDOW, 64],
            "loss": {"prose": {"mean": 3.0, "by_position": [4.0, 3.0]}},
            "samples": [{"prompt": "Once", "output": MARKUP, "failure": "loop"}],
        }  # fmt: skip
        return json.dumps(told) + "\n"

    log = run / "biography.jsonl"
    try:
        log.write_text("".join(map(line, range(0, 190, 10))))
        opened(page, address, "runs")
        page.get_by_text("L1H2 global rises from 0.02 to 0.5 between steps 90 and 100").wait_for()
        rows, left = saved_table(page, "biography of heads.csv"), run_cell(page, "biography of heads")
        assert [float(row["induction 8"]) for row in rows] == pytest.approx(left["scores"].ravel().tolist())
        assert {head for head, changes in left["changes"].items() if changes} == {"L1H2"}
        with log.open("a") as file:
            file.write(line(190).replace("0.5", "0.9"))
        page.get_by_text("L1H2 global rises from 0.02 to 0.54 between steps 90 and 100").wait_for()
        in_address(page, "biography=tiny-run")
    finally:
        log.unlink()


def test_failures_show_six_prompts_with_their_flags(
    page, address: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    opened(page, address, sample_tokens=16)
    page.get_by_role("link", name="Failures").click()
    page.locator(".marked").wait_for()
    assert page.locator(".marked").inner_text().startswith("The capital of France is")
    flags = r"^(no flag|loop|breakdown|early end|repetitive|echo|digits|wrong|drift|untrue).* · \d+ tokens"
    assert page.get_by_text(re.compile(flags)).count() == 1
    rows = saved_table(page, "training samples.csv")
    assert [(row["output"], row["failure"]) for row in rows] == [(" a a a a", "loop"), (" fine", "no flag")]
    assert [line["output"] for line in run_cell(page, "training samples")["samples"]] == [row["output"] for row in rows]
    rows = saved_table(page, "samples.csv")
    left = run_cell(page, "samples")
    assert [(row["output"], row["flags"]) for row in rows] == [
        (sample.generation.text, left["describe"](sample.labels)) for sample in left["samples"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_needs_sideways_scrolling_on_a_phone(chromium, address: str, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    signs = {
        "": ".heatmap[data-shows]",
        "tokens": ".heads[data-shows]",
        "heads": ".heads[data-shows]",
        "runs": ".vega-embed",
        "failures": ".marked",
    }
    for path, sign in signs.items():
        opened(page, address, path, **ASKED, sample_tokens=8)
        page.locator(sign).first.wait_for()
        main = page.locator("[data-testid=stMain]")
        inside, outside = main.evaluate("main => [main.scrollWidth, main.clientWidth]")
        assert inside <= outside, path
        background = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 380) == (scheme == "light"), path
    context.close()
