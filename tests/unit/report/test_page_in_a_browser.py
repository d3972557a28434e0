"""specbench.report.page, in a real browser"""

import base64
import io

import pytest
from matplotlib import image
from rich.console import Console

from specbench.report.build import build_report
from support.browser import Browser, executable

pytestmark = pytest.mark.skipif(executable() is None, reason="needs Chromium or Chrome on the path")


@pytest.fixture(scope="module")
def path(odd_folder):
    return build_report(odd_folder, Console(quiet=True))[0].path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


COLUMN = "[...document.querySelector('table.sortable').tBodies[0].rows].map(row => row.children[{}].dataset.key)"
HEAD = "document.querySelectorAll('table.sortable')[0].querySelectorAll('th')[{}]"


def test_the_page_loads_without_an_error_and_every_image_shows(browser, path):
    browser.open(path)
    widths = browser.value("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    assert len(widths) >= 7
    assert min(widths) > 100
    assert browser.faults == []


def test_a_broken_page_would_be_noticed(browser, path, tmp_path):
    broken = tmp_path / "broken.html"
    text = path.read_text(encoding="utf-8").replace("data:image/svg+xml;base64,", "data:image/svg+xml;base64,x", 1)
    broken.write_text(text.replace("const dialog =", "const dialog = absent ||"), "utf-8")
    browser.open(broken)
    assert browser.faults
    assert min(browser.value("[...document.images].map(image => image.naturalWidth)")) == 0


def test_a_heading_sorts_its_column_by_pointer_and_by_key_and_what_is_missing_stays_last(browser, path):
    browser.open(path)
    browser.value(f"{HEAD.format(2)}.querySelector('button').click()")
    assert browser.value(f"{HEAD.format(2)}.getAttribute('aria-sort')") == "ascending"
    shown = browser.value(COLUMN.format(2))
    numbers = [float(key) for key in shown if key]
    assert numbers == sorted(numbers)
    assert shown[-1] == ""
    browser.value(f"{HEAD.format(2)}.querySelector('button').focus()")
    browser.press("Enter", "\r")
    assert browser.value(f"{HEAD.format(2)}.getAttribute('aria-sort')") == "descending"
    shown = browser.value(COLUMN.format(2))
    assert [float(key) for key in shown if key] == sorted(numbers, reverse=True)
    assert shown[-1] == ""
    browser.value(f"{HEAD.format(1)}.querySelector('button').click()")
    names = browser.value(COLUMN.format(1))
    assert names == sorted(names)
    assert browser.value(f"{HEAD.format(2)}.getAttribute('aria-sort')") is None


def test_a_figure_enlarges_and_escape_closes_it(browser, path):
    browser.open(path)
    small = browser.value("document.querySelector('.enlarge img').getBoundingClientRect().width")
    browser.value("document.querySelector('.enlarge').click()")
    assert browser.value("document.querySelector('dialog').open") is True
    assert browser.value("document.querySelector('dialog img').getBoundingClientRect().width") > small
    browser.press("Escape")
    assert browser.value("document.querySelector('dialog').open") is False


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_runs_out_of_the_window(browser, path, width):
    browser.open(path, width=width)
    browser.value("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= width


def test_page_and_figures_follow_the_colour_scheme(browser, path):
    for scheme, is_dark in (("light", False), ("dark", True)):
        browser.open(path, scheme=scheme)
        assert (_lightness(browser, "h1") < 0.3) == is_dark
        assert (_lightness(browser, ".enlarge img") < 0.3) == is_dark


def test_it_prints_on_white_paper_even_where_the_screen_is_dark(browser, path):
    browser.open(path, scheme="dark")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert _lightness(browser, "h1") > 0.9
    assert _lightness(browser, ".enlarge img") > 0.9
    printed = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page/") + printed.count(b"/Type/Page") > 2


def _lightness(browser, selector):
    """Median lightness of what is shown at an element: that of its paper."""
    box = browser.value(
        f"(() => {{ const element = document.querySelector('{selector}'); element.scrollIntoView();"
        "const box = element.getBoundingClientRect();"
        "return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: Math.min(box.height, 200)}})()"
    )
    shot = browser.call("Page.captureScreenshot", clip=box | {"scale": 1}, captureBeyondViewport=True)
    pixels = image.imread(io.BytesIO(base64.b64decode(shot["data"])))
    return sorted(pixels[..., :3].mean(axis=2).ravel().tolist())[pixels.shape[0] * pixels.shape[1] // 2]
