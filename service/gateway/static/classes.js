/** The classes to click: a radio group with a roving tab stop, and a search box when there are many. */

const SEARCH_FROM = 25;
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export class ClassPicker {
  #group = document.querySelector("#classes");
  #search = document.querySelector("#search");
  #hint = document.querySelector("#classes-hint");
  #buttons = [];
  #onPick;

  /** @param {() => void} onPick called when the user chose another class */
  constructor(onPick) {
    this.#onPick = onPick;
    this.#group.addEventListener("click", (event) => {
      const button = event.target.closest(".class-button");
      if (button) this.#pick(button);
    });
    this.#group.addEventListener("keydown", (event) => this.#move(event));
    this.#search.addEventListener("input", () => this.#filter());
    this.#search.addEventListener("keydown", (event) => this.#pickFirst(event));
  }

  /** @param {{id: number, name: string}[]} classes */
  fill(classes) {
    this.#buttons = classes.map(makeButton);
    this.#group.replaceChildren(...this.#buttons);
    this.#search.hidden = classes.length < SEARCH_FROM;
    this.#hint.textContent = `${classes.length} to choose from`;
    if (classes.length) this.select(classes[0].id);
  }

  /** The chosen class's id, or null while there is none. */
  get value() {
    const button = this.#checked();
    return button ? Number(button.dataset.classId) : null;
  }

  get name() {
    return this.#checked()?.textContent ?? "";
  }

  /** Checks the class of this id; an unknown id changes nothing. */
  select(id) {
    const chosen = this.#buttons.find((button) => button.dataset.classId === String(id));
    if (!chosen) return;
    for (const button of this.#buttons) {
      button.setAttribute("aria-checked", String(button === chosen));
      button.tabIndex = button === chosen ? 0 : -1;
    }
    this.#scrollTo(chosen);
  }

  /** Scrolls the list alone; scrollIntoView would move the page too. */
  #scrollTo({ offsetTop, offsetHeight }) {
    const { scrollTop, clientHeight } = this.#group;
    const inView = offsetTop >= scrollTop && offsetTop + offsetHeight <= scrollTop + clientHeight;
    if (!inView) this.#group.scrollTop = offsetTop - (clientHeight - offsetHeight) / 2;
  }

  #checked() {
    return this.#buttons.find((button) => button.getAttribute("aria-checked") === "true");
  }

  #shown() {
    return this.#buttons.filter((button) => !button.hidden);
  }

  #pick(button) {
    this.select(button.dataset.classId);
    this.#onPick();
  }

  #move(event) {
    const shown = this.#shown();
    const here = shown.indexOf(document.activeElement);
    const targets = { Home: 0, End: shown.length - 1 };
    const there = targets[event.key] ?? (here + STEPS[event.key] + shown.length) % shown.length;
    if (here < 0 || Number.isNaN(there)) return;
    event.preventDefault();
    shown[there].focus({ preventScroll: true });
    this.#pick(shown[there]);
  }

  #filter() {
    const words = this.#search.value.toLowerCase().split(/[\s_]+/);
    for (const button of this.#buttons) {
      const name = button.textContent.toLowerCase();
      button.hidden = !words.every((word) => name.includes(word));
    }
    const shown = this.#shown();
    this.#hint.textContent = `${shown.length} of ${this.#buttons.length}`;
    // The checked class may be filtered away; the group must stay reachable by Tab.
    const stop = shown.includes(this.#checked()) ? this.#checked() : shown[0];
    for (const button of this.#buttons) button.tabIndex = button === stop ? 0 : -1;
  }

  #pickFirst(event) {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const [first] = this.#shown();
    if (first) this.#pick(first);
  }
}

/** Class names as people write them. */
export const spaced = (name) => name.replaceAll("_", " ");

function makeButton({ id, name }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "class-button";
  button.dataset.classId = String(id);
  button.setAttribute("role", "radio");
  button.textContent = spaced(name);
  return button;
}
