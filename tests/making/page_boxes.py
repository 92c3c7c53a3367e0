"""What runs out of its box or lies over other text in a page that Chromium shows, for tests."""

from __future__ import annotations

# of each element that is seen: whether it leaves the window to a side, and of each text whether it leaves its chart, or
# lies over another; what can be scrolled to is in its box, and so is the sidebar that slides over the page
MEASURE = """() => {
  const wide = document.documentElement.clientWidth
  const isSeen = element => {
    if (element.closest("[data-testid=stSidebar], [inert], [role=tooltip], style, script")) return false
    for (let one = element; one; one = one.parentElement) {
      const style = getComputedStyle(one)
      if (style.display === "none" || style.visibility === "hidden" || Number(style.opacity) === 0) return false
    }
    return true
  }
  const frameOf = element => {
    for (let one = element.parentElement; one; one = one.parentElement) {
      if (one instanceof SVGSVGElement) return one
      const scrolls = ["auto", "scroll"].includes(getComputedStyle(one).overflowX)
      if (scrolls && !one.matches("[data-testid=stMain]") && one.scrollWidth > one.clientWidth + 1) return null
    }
    return document.documentElement
  }
  const boxOf = element => {
    const range = document.createRange()
    range.selectNodeContents(element)
    return element instanceof SVGElement ? element.getBoundingClientRect() : range.getBoundingClientRect()
  }
  const isText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
  const isIcon = element => element.matches("[data-testid=stIconMaterial], [aria-hidden=true]:not(text)")
  const told = [], texts = []
  for (const element of document.querySelectorAll("body *")) {
    const whole = element.getBoundingClientRect()
    if (whole.width < 2 || whole.height < 2 || !isSeen(element) || element.matches("input")) continue
    const frame = frameOf(element)
    if (frame === null) continue
    const name = (element.textContent || element.className || element.tagName).toString().slice(0, 40)
    if (frame === document.documentElement && (whole.right > wide + 1 || whole.left < -1))
      told.push(`${element.tagName} “${name}” leaves the window: ${whole.left} to ${whole.right} of ${wide}`)
    if (!isText(element) || isIcon(element)) continue
    const box = boxOf(element), around = frame.getBoundingClientRect()
    if (frame instanceof SVGSVGElement && (box.right > around.right + 3 || box.left < around.left - 3))
      told.push(`“${name}” is cut off: ${box.left} to ${box.right} in ${around.left} to ${around.right}`)
    texts.push([element, name, box])
  }
  texts.forEach(([one, first, p], place) => texts.slice(place + 1).forEach(([other, second, q]) => {
    if (one.contains(other) || other.contains(one)) return
    const across = Math.min(p.right, q.right) - Math.max(p.left, q.left)
    const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top)
    if (across > 4 && down > 4) told.push(`“${first}” lies over “${second}” by ${across} × ${down}`)
  }))
  for (const page of document.querySelectorAll("html, [data-testid=stMain]"))
    if (page.scrollWidth > page.clientWidth) told.push("the page scrolls sideways")
  return {told, texts: texts.length}
}"""
QUIET = "!document.querySelector('[data-testid=stStatusWidget], [data-testid=stSkeleton], [data-stale=true]')"


def settled(page) -> None:
    """Wait until a page has been drawn."""
    page.locator("[data-testid=stMain] :is(h2, h3)").first.wait_for()
    page.wait_for_timeout(700)
    page.wait_for_function(QUIET)
    page.wait_for_timeout(500)


def out_of_box(page, width: int) -> list[str]:
    """Return a sentence for each element that runs out of its box, or over another, in a window of that width."""
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(600)
    found = page.evaluate(MEASURE)
    assert found["texts"] > 2, "the page shows nothing"  # Findings begins with a sentence
    return found["told"]
