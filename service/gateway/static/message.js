/** The one place where the page says that something went wrong. */

const box = document.querySelector("#message");
const retryButton = document.querySelector("#retry");
let again = null;
let timer = 0;

export function setUpMessage() {
  document.querySelector("#dismiss").addEventListener("click", clearMessage);
  retryButton.addEventListener("click", () => {
    const retry = again;
    clearMessage();
    retry();
  });
}

/**
 * Shows an error. Where the same request may succeed later, a button calls `retry`, held back for as long
 * as the server asked.
 * @param {import("./api.js").ApiError | Error} error
 * @param {() => void} retry
 */
export function showError(error, retry) {
  const wait = error.retryAfterS ?? 0;
  const advice = wait > 0 ? ` Try again in ${wait} s.` : "";
  showText(sentence(error.message) + advice, error.requestId);
  again = retry;
  retryButton.hidden = !error.retryable;
  retryButton.disabled = wait > 0;
  timer = setTimeout(() => (retryButton.disabled = false), wait * 1000);
}

export function showText(text, requestId = "") {
  clearTimeout(timer);
  box.querySelector("p").textContent = text;
  box.querySelector("small").textContent = requestId ? `Request ${requestId}` : "";
  retryButton.hidden = true;
  box.hidden = false;
}

export function clearMessage() {
  clearTimeout(timer);
  again = null;
  box.hidden = true;
}

function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}
