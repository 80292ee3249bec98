"""The run page in a real browser: what it shows, how it is used, and that it keeps to itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from deploy.run_page import write
from tests.deploy.browser import SIZES, Open, colours
from tests.deploy.recorded import Recording

RGB = ["teacher.image_shape=[3,32,32]", "teacher.mean=[0,0,0]", "teacher.std=[1,1,1]"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished run that has everything."""
    out = tmp_path_factory.mktemp("whole") / "run"
    Recording(out).go_on(100).end()
    return write(out)


def confidences(page: Page) -> list[int]:
    captions = page.locator(".tile p").all_inner_texts()
    return [int(text.split(" % sure")[0].split()[-1]) for text in captions]


def test_a_report_shows_every_chart_and_asks_nobody_for_anything(
    report: Path, open_page: Open
) -> None:
    tab = open_page(report)
    expect(tab.page.locator("#state")).to_have_text("finished")
    expect(tab.page.get_by_text("93.10 %")).to_be_visible()
    charts = tab.page.locator("figure.chart:visible")
    assert charts.count() == tab.page.locator("figure.chart").count() == 20
    for chart in charts.all():
        assert chart.locator("svg path").count() > 0
        assert len(chart.locator(".plot").get_attribute("aria-label") or "") > 10
    tab.page.wait_for_timeout(300)
    assert tab.asked_beyond(f"file://{report}") == []


def test_the_gallery_goes_through_the_run_by_keyboard(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    expect(page.locator("#moment-name")).to_have_text("9 of 9: 1:40, step 5,000")
    assert page.locator(".tile").count() == 80
    assert min(colours(page)) > 5
    before = page.locator("#summary-ages").inner_text()
    page.locator("#moment").focus()
    page.keyboard.press("Home")
    expect(page.locator("#moment-name")).to_have_text("1 of 9: 0:20, step 1,000")
    assert page.locator("#moment").get_attribute("aria-valuetext") == "1 of 9: 0:20, step 1,000"
    assert min(colours(page)) > 5
    assert page.locator("#summary-ages").inner_text() != before
    page.keyboard.press("ArrowRight")
    expect(page.locator("#moment-name")).to_contain_text("2 of 9")


def test_samples_are_chosen_by_class_and_put_in_order(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    page.get_by_label("Class", exact=True).select_option("3")
    expect(page.locator("#gallery-summary")).to_have_text("8 samples of class 3, by class.")
    names = [each.get_attribute("aria-label") or "" for each in page.locator(".tile canvas").all()]
    assert all(name.startswith("Synthetic sample of class 3, asked for as") for name in names)
    assert all("teacher" in name and "difficulty" in name and "old" in name for name in names)
    page.get_by_label("Class", exact=True).select_option("")
    for order, rising in (("most confident first", False), ("most difficult first", True)):
        page.get_by_label("Order").select_option(order)
        expect(page.locator("#gallery-summary")).to_have_text(f"80 samples, {order}.")
        shown = confidences(page)
        assert shown == sorted(shown, reverse=not rising)
    page.get_by_label("Order").select_option("newest first")
    ages = [
        int(text.split("age ")[1].split()[0]) for text in page.locator(".tile p").all_inner_texts()
    ]
    assert ages == sorted(ages)


def test_images_are_enlarged_without_blur(report: Path, open_page: Open) -> None:
    tile = open_page(report).page.locator(".tile canvas").first
    assert tile.evaluate("(each) => getComputedStyle(each).imageRendering") == "pixelated"
    assert tile.evaluate("(each) => each.clientWidth / each.width") > 5


def test_curves_go_over_time_or_steps_and_each_has_a_table(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    figure = page.locator("#chart-kl")
    assert "at 0:02" in figure.locator("#summary-kl").inner_text()
    page.get_by_label("Curves over").select_option("step")
    assert "at step 100," in figure.locator("#summary-kl").inner_text()
    figure.get_by_text("Data as a table").focus()
    page.keyboard.press("Enter")
    table = figure.get_by_role("table")
    assert table.get_by_role("columnheader").all_inner_texts()[:3] == [
        "step",
        "drawn samples",
        "probes",
    ]
    assert table.locator("tbody tr").count() == 50
    for chart in page.locator("figure.chart:visible").all():
        if chart.locator("details[open]").count() == 0:
            chart.get_by_text("Data as a table").click()
        expect(chart.locator("tbody tr")).not_to_have_count(0)


def test_what_the_controller_did_and_got_is_a_table(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    rows = page.locator("#arms tbody tr")
    assert rows.count() == 3
    assert "uniform_share 0.5" in rows.nth(1).inner_text()
    chosen = [int(row.locator("td").nth(1).inner_text()) for row in rows.all()]
    assert sum(chosen) == 11  # ten decisions, and what was in force before them


def test_colours_follow_the_system_unless_chosen(report: Path, open_page: Open) -> None:
    def ground(page: Page) -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    light, dark = open_page(report).page, open_page(report, scheme="dark").page
    assert ground(light) != ground(dark)
    light.get_by_label("Colours").select_option("dark")
    assert ground(light) == ground(dark)
    light.reload()
    assert ground(light) == ground(dark)
    dark.get_by_label("Colours").select_option("light")
    assert ground(dark) != ground(light)


def test_keys_lead_past_the_head_and_to_every_control(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"moment", "class", "order", "SUMMARY"} <= reached


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_has_no_violations(
    report: Path, open_page: Open, size: str, scheme: str
) -> None:
    page = open_page(report, size, scheme).page
    for chart in ("accuracy", "classes-now"):  # a table of curves and one of bars
        page.locator(f"#chart-{chart} summary").click()
    page.locator("#environment summary").first.click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(report: Path, open_page: Open, size: str) -> None:
    page = open_page(report, size).page
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]


def test_who_wants_no_motion_gets_none(report: Path, open_page: Open) -> None:
    page = open_page(report, reduced_motion="reduce").page
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert page.evaluate(behaviour) == "auto"
    assert open_page(report).page.evaluate(behaviour) == "smooth"


def test_text_of_a_run_is_shown_and_never_run(tmp_path: Path, open_page: Open) -> None:
    evil = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"
    Recording(tmp_path).go_on(10).end(error=evil, method=evil)
    page = open_page(write(tmp_path)).page
    expect(page.locator("#error")).to_have_text(evil)
    assert page.evaluate("window.hurt") is None


@pytest.mark.parametrize(
    ("sets", "options", "hidden"),
    [
        ((), {"controlled": False}, {"controller"}),
        ((), {"pictures": False}, {"samples"}),
        ((), {"evaluated": False}, set()),
        ((*RGB, "teacher.classes=100"), {"controlled": False}, {"controller"}),
    ],
    ids=["no_controller", "no_pictures", "no_test_data", "colours"],
)
def test_runs_without_some_things_are_shown_without_them(
    tmp_path: Path,
    open_page: Open,
    sets: tuple[str, ...],
    options: dict[str, bool],
    hidden: set[str],
) -> None:
    Recording(tmp_path, *sets).go_on(30, **options)
    page = open_page(write(tmp_path, claimed=False)).page
    assert (
        set(
            page.locator("main > section[hidden]").evaluate_all(
                "(all) => all.map((each) => each.id)"
            )
        )
        == hidden
    )
    assert page.locator("#chart-accuracy").is_hidden() is (options == {"evaluated": False})
    links = page.locator("nav a:visible").all_inner_texts()
    assert ("Controller" in links) is ("controller" not in hidden)


def test_a_run_of_which_only_a_journal_is_left_is_shown(tmp_path: Path, open_page: Open) -> None:
    Recording(tmp_path).go_on(30)
    for name in ("timeline.jsonl", "pictures.jsonl", "controller.jsonl"):
        (tmp_path / name).unlink()
    page = open_page(write(tmp_path)).page
    expect(page.locator("#state")).to_contain_text("died")
    assert page.locator("#chart-kl").is_visible()
    assert page.locator("#chart-waiting").is_hidden()


def test_a_run_that_has_only_begun_is_shown(tmp_path: Path, open_page: Open) -> None:
    Recording(tmp_path)
    page = open_page(write(tmp_path, claimed=True)).page
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator("#progress")).to_have_text("Nothing has been recorded yet.")


def test_a_thousand_classes_are_shown_in_bounds(tmp_path: Path, open_page: Open) -> None:
    Recording(tmp_path, classes=1000, size=3000).go_on(40).end()
    report = write(tmp_path)
    assert report.stat().st_size < 2 << 20
    page = open_page(report).page
    expect(page.locator("#summary-classes-now")).to_contain_text("of 1000 classes are there")
    expect(page.locator("#summary-classes")).to_contain_text("median class")
    assert 0 < page.locator(".tile").count() <= 160


def test_what_a_resumed_training_repeats_is_shown_once(tmp_path: Path, open_page: Open) -> None:
    Recording(tmp_path).go_on(30).end(interrupted=True)
    Recording(tmp_path, began_seconds=20.0, attempt=2).go_on(20)
    page = open_page(write(tmp_path, claimed=True)).page
    expect(page.locator("#progress")).to_contain_text("0:40, step 2,000, in 2 pipelines")
    page.get_by_label("Curves over").select_option("step")
    page.locator("#chart-loss").get_by_text("Data as a table").click()
    rows = page.locator("#chart-loss tbody th")
    expect(rows).to_have_count(20)
    assert [int(text) for text in rows.all_inner_texts()] == list(range(100, 2001, 100))
