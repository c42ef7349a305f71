#!/usr/bin/env python3
"""Uses the pages of `clasp serve` in a real browser, and takes pictures of them.

python runs/browser.py target/release/clasp --demo clasp-demo --model RUN ... [--out pictures]

--demo is the folder of `clasp demo`; further models (fine-tuned ones) are served beside its backbone.
Uploads an image, searches, filters by an attribute, corrects labels by mouse and by keyboard, reloads
and finds the corrections, and looks at a run. Every page is then seen at three widths, light and dark:
nothing may overflow, every image has a text, every control a name, and nothing is loaded from elsewhere
or reported as an error. Exits with 1 if something is wrong.

Needs playwright (pip install playwright) and a Chromium (Debian: apt-get install chromium).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

WIDTHS = (360, 820, 1440)
# What the pages have to offer to those who do not see them.
UNNAMED = """() => [...document.querySelectorAll('button, a, input, select, canvas, img, svg[role=img]')]
  .filter((one) => one.checkVisibility() || one.type === 'file')
  .filter((one) => one.tagName === 'IMG' ? !one.hasAttribute('alt') :
    !(one.textContent.trim() || one.getAttribute('aria-label') || one.labels?.length))
  .map((one) => one.outerHTML.slice(0, 120))"""
OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth;
  const found = [...document.querySelectorAll('body *')].filter((one) => {
    if (!one.checkVisibility() || one.closest('.scroll') || one.closest('svg')) return false;
    const box = one.getBoundingClientRect();
    return box.right > wide + 1 || box.left < -1;
  });
  const cut = [...document.querySelectorAll('button, label, h1, h2, h3, p, span')].filter(
    (one) => one.checkVisibility() && one.clientWidth > 0 && one.scrollWidth > one.clientWidth + 1);
  return [...found, ...cut].map((one) => one.outerHTML.slice(0, 120));
}"""
# Smallest contrast of text with what is behind it, after WCAG 2.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0]).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const back = (one) => {
    for (; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (parse(color).length < 4 || parse(color)[3] > 0.99) if (color !== 'rgba(0, 0, 0, 0)') return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const bad = [];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.checkVisibility() || one.closest('td')) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(parse(back(one)))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${one.outerHTML.slice(0, 100)}`);
  }
  return bad;
}"""


def serve(options, labels, store):
    demo = options.demo
    arguments = [options.clasp, "serve", "--listen", "127.0.0.1:0", "--json", "--quiet", "--model", str(demo / "run"),
                 "--gallery", str(demo / "people/unlabeled"), "--labels", str(labels), "--runs", str(demo), "--store", str(store)]
    for model in options.model:
        arguments += ["--model", model]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    text = process.stdout.readline()
    while text and not text.rstrip().endswith("}"):
        text += process.stdout.readline()
    if not text:
        raise SystemExit("the server did not start")
    return process, json.loads(text)["url"]


def people(page, url, photo):
    """Uploads, searches, filters, looks at an image of the gallery."""
    page.goto(url + "/")
    page.wait_for_selector("#cards li")
    assert page.locator("#cards li").count() == 48, "the gallery is shown"
    page.locator("#more").click()
    page.wait_for_function("() => document.querySelectorAll('#cards li').length > 48")
    page.set_input_files("#file", photo)
    page.wait_for_function("() => document.querySelector('#found-title').textContent === 'Most similar'")
    page.wait_for_function("() => document.querySelector('#status').textContent === ''", timeout=60_000)
    cosines = [float(text) for text in page.locator("#cards .cosine span:first-child").all_inner_texts()]
    assert len(cosines) == 24 and cosines == sorted(cosines, reverse=True), cosines
    assert cosines[0] > 0.999, "the photo is in the gallery"
    assert page.locator("#preview").is_visible() and page.locator("#search-status").inner_text()
    page.locator("#filters summary").click()
    box = page.locator("#filter-groups input").first
    box.check()
    page.wait_for_function("() => document.querySelector('#filter-count').textContent === ' (1)'")
    page.wait_for_function("() => document.querySelector('#status').textContent === ''", timeout=60_000)
    page.locator("#filter-clear").click()
    page.wait_for_function("() => document.querySelector('#filter-count').textContent === ''")
    page.wait_for_function("() => document.querySelector('#status').textContent === ''", timeout=60_000)
    # By keyboard: a card is a button.
    page.locator("#cards button").nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#predictions canvas", timeout=60_000)
    assert page.locator("#remove").is_visible()
    # A file that is none is refused in words.
    page.set_input_files("#file", {"name": "no.jpg", "mimeType": "image/jpeg", "buffer": b"no image"})
    page.wait_for_selector("#status.wrong")
    assert "not an image" in page.locator("#status").inner_text()
    # Added, found again, removed.
    page.set_input_files("#file", photo)
    page.wait_for_function("() => document.querySelector('#status').textContent === ''", timeout=60_000)
    page.fill("#add-key", "from the page")
    page.locator("#add button").click()
    page.wait_for_function("() => document.querySelector('#status').textContent.startsWith('Added')")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#remove").click()
    page.wait_for_function("() => document.querySelector('#status').textContent.startsWith('Removed')")


def labels(page, url):
    """Corrects labels, reloads, and finds the corrections."""
    page.goto(url + "/labels")
    page.wait_for_selector("#attributes select")
    saved = "document.querySelector('#saved').textContent === 'Saved.'"
    key = page.locator("#editor-title").inner_text()
    select = page.locator("#attributes select").first
    values = select.locator("option").evaluate_all("all => all.map((one) => one.value)")
    other = next(value for value in values if value and value != select.input_value())
    select.select_option(other)
    page.wait_for_function("() => " + saved)
    page.locator("#classes input").nth(2).check()
    name = page.locator("#classes label").nth(2).inner_text().split("\n")[0]
    box = page.locator("#map").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("() => document.querySelector('#cards button[aria-pressed=true] .answer').textContent === 'corrected'")
    page.wait_for_function("() => " + saved)
    page.locator("#map").focus()
    page.keyboard.press("3")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("() => " + saved)
    assert page.locator("#map-place").inner_text().split(": ")[1] in name, "the class that was chosen"
    page.reload()
    page.wait_for_selector("#attributes select")
    assert page.locator("#editor-title").inner_text() == key
    select = page.locator("#attributes select").first
    assert select.input_value() == other and "corrected" in select.get_attribute("class")
    answer = page.evaluate("(key) => fetch('/v1/labels/image?key=' + encodeURIComponent(key)).then((r) => r.json())", key)
    assert len(answer["corrected_parts"]) == 2, answer["corrected_parts"]
    assert all(answer["parts"][at] == 2 for at in answer["corrected_parts"])
    page.select_option("#corrected", "yes")
    page.wait_for_function("() => document.querySelectorAll('#cards li').length === 1")
    page.select_option("#corrected", "all")
    page.wait_for_function("() => document.querySelectorAll('#cards li').length > 1")
    page.locator("#next").click()
    page.wait_for_function("(key) => document.querySelector('#editor-title').textContent !== key", arg=key)


def runs(page, url, demo):
    page.goto(url + "/runs")
    page.wait_for_selector("#curves .chart")
    assert page.locator("#runs button").count() >= 2
    page.locator("#runs button", has_text="run").last.click()
    # A short run has measured no expert.
    if (demo / "run/experts.jsonl").stat().st_size > 0:
        page.wait_for_selector("#experts td")
    page.wait_for_function("() => document.querySelector('#run-title').textContent === 'run'")
    page.wait_for_selector("#curves svg")
    drawn = next(demo.glob("*/pictures"), None)
    if drawn is not None:
        page.locator("#runs button", has_text=drawn.parent.name).first.click()
        page.wait_for_selector("#pictures img")
        page.locator("#pictures img").first.scroll_into_view_if_needed()
        page.wait_for_function("() => document.querySelector('#pictures img').naturalWidth > 0")
        page.locator("#runs button", has_text="run").last.click()
        page.wait_for_function("() => document.querySelector('#run-title').textContent === 'run'")
        page.wait_for_function("() => document.querySelector('#pictures img') === null")
    labels = page.locator("#curves svg").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
    assert any(label.startswith("loss/") and "at step" in label for label in labels), labels


def look(browser, url, photo, out, faults):
    """Pictures at three widths, light and dark, and what can be measured of them."""
    for scheme in ("light", "dark"):
        for width in WIDTHS:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            watch(page, url, faults)
            for name in ("people", "labels", "runs"):
                page.goto(url + ("/" if name == "people" else f"/{name}"))
                if name == "people":
                    page.wait_for_selector("#cards li")
                    page.locator("#filters summary").click()
                    page.set_input_files("#file", photo)
                    page.wait_for_function("() => document.querySelector('#found-title').textContent === 'Most similar'")
                    page.wait_for_function("() => document.querySelector('#status').textContent === ''", timeout=60_000)
                    page.locator("#cards button").first.click()
                    page.wait_for_selector("#predictions canvas", timeout=60_000)
                elif name == "labels":
                    page.wait_for_selector("#attributes select")
                    page.locator("#map").focus()
                else:
                    page.wait_for_selector("#experts td, #curves .chart")
                page.wait_for_load_state("networkidle") if name != "runs" else page.wait_for_timeout(500)
                place = f"{name}-{width}-{scheme}"
                for what, script in (("overflows", OVERFLOW), ("without a name", UNNAMED), ("low contrast", CONTRAST)):
                    faults += [f"{place}: {what}: {one}" for one in page.evaluate(script)]
                page.screenshot(path=out / f"{place}.png", full_page=name != "labels")
            context.close()


def watch(page, url, faults):
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" and "415" not in message.text else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((url, "blob:", "data:")) else faults.append(request.url))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clasp")
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    if options.chromium is None:
        raise SystemExit("no chromium; Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    options.out.mkdir(exist_ok=True)
    faults = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        copy = Path(folder) / "labels"
        photo = Path(folder) / "photo.jpg"
        with tarfile.open(sorted((options.demo / "people/unlabeled").glob("*.tar"))[0]) as shard:
            member = [one for one in shard if one.name.endswith(".jpg")][5]
            photo.write_bytes(shard.extractfile(member).read())
        shutil.copytree(options.demo / "labels", copy)
        process, url = serve(options, copy, Path(folder) / "store")
        try:
            browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(30_000)
            watch(page, url, faults)
            page.goto(url + "/health")
            page.wait_for_function("() => fetch('/ready').then((answer) => answer.ok)", timeout=600_000, polling=500)
            faults.clear()
            people(page, url, photo)
            labels(page, url)
            runs(page, url, options.demo)
            page.close()
            look(browser, url, photo, options.out, faults)
            browser.close()
        finally:
            process.terminate()
            process.wait(timeout=60)
    print("\n".join(faults) or f"no faults; pictures in {options.out}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
