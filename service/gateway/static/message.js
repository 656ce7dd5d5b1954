/** What went wrong, said beside the control that it concerns. */

const template = document.querySelector("#message");

export class Message {
  #box = template.content.firstElementChild.cloneNode(true);
  #text = this.#box.querySelector("[role=alert]");
  #retryButton = this.#box.querySelector(".retry");
  #again = null;
  #timer = 0;

  /** @param {string} place selector of the element that the message takes the place of */
  constructor(place) {
    const holder = document.querySelector(place);
    this.#box.id = holder.id;
    holder.replaceWith(this.#box);
    this.#box.querySelector(".dismiss").addEventListener("click", () => this.clear());
    this.#retryButton.addEventListener("click", () => {
      const again = this.#again;
      this.clear();
      again();
    });
  }

  /**
   * Where the same request may succeed later, a button calls `retry`, held back for as long as the server asked.
   * @param {import("./api.js").ApiError | Error} error
   * @param {() => void} retry
   */
  error(error, retry) {
    this.say(sentence(error.message), error.requestId);
    if (!error.retryable) return;
    this.#again = retry;
    this.#retryButton.hidden = false;
    this.#count(error.retryAfterS ?? 0);
  }

  say(text, requestId = "") {
    this.clear();
    this.#box.hidden = false;
    this.#text.querySelector("p").textContent = text;
    this.#text.querySelector("small").textContent = requestId ? `Request ${requestId}` : "";
  }

  clear() {
    clearTimeout(this.#timer);
    this.#again = null;
    this.#box.hidden = this.#retryButton.hidden = true;
    this.#text.querySelector("p").textContent = "";
  }

  #count(seconds) {
    this.#retryButton.disabled = seconds > 0;
    this.#retryButton.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
    if (seconds > 0) this.#timer = setTimeout(() => this.#count(seconds - 1), 1000);
  }
}

/** Words of the server as a sentence. */
export function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}
