/** Which model draws and reads; there is something to choose only where several are served. */

export class ModelChooser {
  #select = document.querySelector("#model-select");

  /** @param {(model: string) => void} onChoose */
  constructor(onChoose) {
    this.#select.addEventListener("change", () => onChoose(this.#select.value));
  }

  /** @param {string[]} names the default first */
  fill(names) {
    this.#select.replaceChildren(...names.map((name) => new Option(name)));
    this.#select.closest(".field").hidden = names.length < 2;
  }

  get value() {
    return this.#select.value;
  }

  set value(name) {
    this.#select.value = name;
  }

  /** The model `name` where it is served, else the default. */
  match(name) {
    const names = [...this.#select.options].map((option) => option.value);
    return names.includes(name) ? name : names[0];
  }
}
