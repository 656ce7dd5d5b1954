/** Taking a picture or its tokens away: files and the clipboard. */

import { indicesOf } from "./bits.js";
import { copyText } from "./clipboard.js";
import { npy } from "./npy.js";

/** A file name out of words. */
export const fileName = (words) => words.replaceAll(/[^\w-]+/g, "_");

export class Keep {
  #buttons = [...document.querySelectorAll("#keep button")];
  #say;

  /**
   * @param {() => {name: string, tokens: string[][], picture: Blob | null}} look what is open
   * @param {(text: string) => void} say
   */
  constructor(look, say) {
    this.#say = say;
    const does = { png: savePicture, npy: saveNumbers, json: saveJson };
    for (const button of this.#buttons) {
      const { keep } = button.dataset;
      button.addEventListener("click", () => (keep === "copy" ? this.#copy(look()) : does[keep](look())));
    }
  }

  set enabled(enabled) {
    for (const button of this.#buttons) button.disabled = !enabled;
  }

  async #copy({ tokens }) {
    const copied = await copyText(tokens.map((row) => row.join(" ")).join("\n"));
    this.#say(
      copied
        ? "The bits are on the clipboard, one row a line."
        : "The browser did not allow copying. The JSON file has the same bits.",
    );
  }
}

const savePicture = ({ name, picture }) => picture && save(picture, `${fileName(name)}.png`);
const saveNumbers = ({ name, tokens }) => save(npy(indicesOf(tokens)), `${fileName(name)}_tokens.npy`);

function saveJson({ name, tokens }) {
  const answer = {
    grid: [tokens.length, tokens[0].length],
    bits_per_token: tokens[0][0].length,
    bit_order: "lsb-first",
    tokens,
    indices: indicesOf(tokens),
  };
  save(new Blob([JSON.stringify(answer)], { type: "application/json" }), `${fileName(name)}_tokens.json`);
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
