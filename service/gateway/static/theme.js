/* Light or dark, as the system says, until the button says otherwise. No module: it runs before the first paint. */

(() => {
  const KEY = "maskbit-theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const systems = () => (system.matches ? "dark" : "light");
  const shown = () => root.dataset.theme ?? systems();
  const other = () => (shown() === "dark" ? "light" : "dark");

  try {
    const kept = localStorage.getItem(KEY);
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch {
    // Storage may be forbidden; the choice then lasts as long as the page.
  }

  /** A choice that equals the system's is none: the page follows the system again. */
  function choose(theme) {
    if (theme === systems()) delete root.dataset.theme;
    else root.dataset.theme = theme;
    try {
      if (root.dataset.theme) localStorage.setItem(KEY, theme);
      else localStorage.removeItem(KEY);
    } catch {
      // As above.
    }
  }

  addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector("#theme");
    const label = () => button.setAttribute("aria-label", `Change to ${other()} colours`);
    button.addEventListener("click", () => {
      choose(other());
      label();
    });
    system.addEventListener("change", label);
    label();
  });
})();
