/** Scrolls an element to the top of the screen, at once for those who asked for little motion. */
export function scrollToTop(element) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}
