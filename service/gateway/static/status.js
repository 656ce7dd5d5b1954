/** The line at the foot of the page: which model, and whether the server is ready. */

import { getReady } from "./api.js";

const CALM_MS = 15_000;
const EAGER_MS = 2_000;
const ready = document.querySelector("#ready");

/** Watches /readyz for as long as the page lives; `onReady` is called each time it becomes ready. */
export async function watch(onReady) {
  for (;;) {
    const before = ready.dataset.state;
    if (!document.hidden) show(...(await look()));
    if (ready.dataset.state === "ready" && before !== "ready") await onReady();
    await pause(ready.dataset.state === "ready" ? CALM_MS : EAGER_MS);
  }
}

export function describe({ bundle, runtime, image_size, grid, bits, licence }) {
  const pixels = `${image_size} × ${image_size} pixels`;
  const tokens = `${grid[0]} × ${grid[1]} tokens of ${bits} bits`;
  const parts = [bundle, runtime, pixels, tokens, licence].filter(Boolean);
  document.querySelector("#model").textContent = parts.join(" · ");
}

async function look() {
  try {
    await getReady();
    return ["ready", "ready"];
  } catch (error) {
    return error.code === "unreachable" ? ["gone", "no answer"] : ["waiting", `not ready: ${error.message}`];
  }
}

function show(state, text) {
  ready.dataset.state = state;
  ready.textContent = text;
}

/** Sleeps, or wakes early when the user comes back to the page. */
function pause(ms) {
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", wake);
      resolve();
    };
    const timer = setTimeout(wake, ms);
    document.addEventListener("visibilitychange", wake);
  });
}
